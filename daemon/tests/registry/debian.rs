//! Against Debian's docker-registry: another implementation of the same specification.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::registry::{
    FixedCredentials, Mirror, Problem, Reference, RegistryConfig, TlsConfig, media_type,
};
use serde_json::json;
use ztoc::Digest;

use super::{client, pattern, quick};

struct Debian {
    process: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for Debian {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Debian {
    /// Starts one with `more` settings at the ends of the sections `http` and of the file.
    fn start(http: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let storage = dir.path().join("storage");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n{http}{more}",
            storage.display()
        );
        let path = dir.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is needed: apt-get install docker-registry");
        let started = Self {
            process,
            port,
            _dir: dir,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(
                Instant::now() < deadline,
                "docker-registry does not come up"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        started
    }

    fn image(&self) -> Reference {
        format!("127.0.0.1:{}/team/app:v1", self.port)
            .parse()
            .unwrap()
    }
}

/// Pushes a blob and a manifest that names it, and returns the blob.
async fn push(registry: &daemon::registry::Registry, image: &Reference) -> Vec<u8> {
    let blob = pattern(1_000_000);
    registry
        .push_blob(image, blob.clone().into())
        .await
        .unwrap();
    registry
        .push_blob(image, (&b"{}"[..]).into())
        .await
        .unwrap();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(b"{}").to_string(), "size": 2},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": Digest::of(&blob).to_string(), "size": blob.len()}],
    });
    let bytes = manifest.to_string().into();
    registry
        .push_manifest(image, media_type::OCI_MANIFEST, bytes)
        .await
        .unwrap();
    blob
}

#[tokio::test]
async fn what_is_pushed_is_resolved_read_by_ranges_and_downloaded() {
    let debian = Debian::start("", "");
    let registry = client(RegistryConfig::default());
    let image = debian.image();
    let bytes = push(&registry, &image).await;
    let resolved = registry.resolve(&image).await.unwrap();
    assert_eq!(
        registry
            .manifest(&image, &resolved.descriptor.digest)
            .await
            .unwrap()
            .bytes,
        resolved.bytes
    );

    let digest = Digest::of(&bytes);
    let blob = registry.blob(&image, &digest, bytes.len() as u64);
    assert_eq!(
        blob.read(123_456..234_567).await.unwrap(),
        &bytes[123_456..234_567]
    );
    assert_eq!(
        registry.fetch(&image, &digest, 1_000_000).await.unwrap(),
        bytes
    );
    let gone = registry
        .blob(&image, &Digest::of(b"gone"), 4)
        .read(0..4)
        .await
        .unwrap_err();
    assert!(gone.is_not_found(), "{gone}");
    let subject = resolved.descriptor.digest;
    assert!(
        registry
            .referrers(&image, &subject, "application/x")
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn the_referrers_tag_stands_in_where_there_is_no_referrers_api() {
    let debian = Debian::start("", "");
    let registry = client(RegistryConfig::default());
    let image = debian.image();
    push(&registry, &image).await;
    let subject = registry.resolve(&image).await.unwrap().descriptor;
    let kind = "application/vnd.amazon.soci.index.v1+json";
    let index = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": {"mediaType": kind, "digest": Digest::of(b"{}").to_string(), "size": 2},
        "layers": [],
        "subject": {"mediaType": subject.media_type, "digest": subject.digest.to_string(), "size": subject.size},
    })
    .to_string();
    let mut descriptor =
        daemon::registry::Descriptor::of(media_type::OCI_MANIFEST, index.as_bytes());
    descriptor.artifact_type = Some(kind.to_owned());
    let place = image.with_digest(descriptor.digest);
    let pushed = registry
        .push_manifest(&place, media_type::OCI_MANIFEST, index.into())
        .await
        .unwrap();
    if !pushed.subject_known {
        registry
            .push_referrers_tag(&image, &subject.digest, &descriptor)
            .await
            .unwrap();
    }
    let found = registry
        .referrers(&image, &subject.digest, kind)
        .await
        .unwrap();
    assert_eq!(
        found.iter().map(|found| found.digest).collect::<Vec<_>>(),
        [descriptor.digest]
    );
}

fn openssl(dir: &Path, arguments: &[&str]) {
    let run = Command::new("openssl")
        .current_dir(dir)
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
}

/// An authority and a certificate of 127.0.0.1 signed by it.
fn certificates(dir: &Path) {
    openssl(
        dir,
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-days",
            "2",
            "-subj",
            "/CN=test authority",
        ],
    );
    openssl(
        dir,
        &[
            "req", "-newkey", "rsa:2048", "-nodes", "-keyout", "host.key", "-out", "host.csr",
            "-subj", "/CN=host",
        ],
    );
    std::fs::write(
        dir.join("ext"),
        "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n",
    )
    .unwrap();
    openssl(
        dir,
        &[
            "x509",
            "-req",
            "-in",
            "host.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-out",
            "host.pem",
            "-days",
            "2",
            "-extfile",
            "ext",
        ],
    );
}

#[tokio::test]
async fn tls_with_an_own_authority_is_trusted_only_when_told() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let path = |name: &str| dir.path().join(name);
    let http = format!(
        "  tls:\n    certificate: {}\n    key: {}\n",
        path("host.pem").display(),
        path("host.key").display()
    );
    let debian = Debian::start(&http, "");
    let with = |tls: TlsConfig| RegistryConfig {
        tls,
        ..RegistryConfig::default()
    };
    let image = debian.image();

    let trusting = client(with(TlsConfig {
        ca_file: Some(path("ca.pem")),
        ..TlsConfig::default()
    }));
    let bytes = push(&trusting, &image).await;
    let blob = trusting.blob(&image, &Digest::of(&bytes), bytes.len() as u64);
    assert_eq!(blob.read(10..20).await.unwrap(), &bytes[10..20]);

    let blind = client(with(TlsConfig {
        skip_verify: true,
        ..TlsConfig::default()
    }));
    blind.resolve(&image).await.unwrap();

    // The same by hosts.toml, whose paths are relative to it.
    let hosts = path("certs.d").join(format!("127.0.0.1:{}", debian.port));
    std::fs::create_dir_all(&hosts).unwrap();
    let toml = format!(
        "[host.\"https://127.0.0.1:{}\"]\nca = \"../../ca.pem\"\n",
        debian.port
    );
    std::fs::write(hosts.join("hosts.toml"), toml).unwrap();
    let told = client(RegistryConfig {
        hosts_dirs: vec![path("certs.d")],
        ..RegistryConfig::default()
    });
    told.resolve(&image).await.unwrap();
    told.push_blob(&image, pattern(77).into()).await.unwrap();

    // And in Docker's way, by certificates alone.
    std::fs::remove_file(hosts.join("hosts.toml")).unwrap();
    let by_certificates = || {
        client(RegistryConfig {
            hosts_dirs: vec![path("certs.d")],
            ..RegistryConfig::default()
        })
    };
    std::fs::copy(path("ca.pem"), hosts.join("ca.crt")).unwrap();
    by_certificates().resolve(&image).await.unwrap();

    openssl(
        dir.path(),
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "other.key",
            "-out",
            "other.pem",
            "-days",
            "2",
            "-subj",
            "/CN=other",
        ],
    );
    let other = client(with(TlsConfig {
        ca_file: Some(path("other.pem")),
        ..TlsConfig::default()
    }));
    let error = other.resolve(&image).await.unwrap_err();
    assert!(
        matches!(error.problem, Problem::Certificate { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_pull_through_cache_serves_ranges_as_a_mirror() {
    let origin = Debian::start("", "");
    let direct = client(RegistryConfig::default());
    let bytes = push(&direct, &origin.image()).await;
    let cache = Debian::start(
        "",
        &format!("proxy:\n  remoteurl: http://127.0.0.1:{}\n", origin.port),
    );
    let mut config = RegistryConfig::default();
    let entry = Mirror {
        host: format!("127.0.0.1:{}", cache.port),
        insecure: true,
        request_timeout: None,
    };
    // An origin where nobody listens: everything has to come through the cache.
    config.mirrors.insert("127.0.0.1:1".to_owned(), vec![entry]);
    let through = client(config);
    let image: Reference = "127.0.0.1:1/team/app:v1".parse().unwrap();
    through.resolve(&image).await.unwrap();
    let blob = through.blob(&image, &Digest::of(&bytes), bytes.len() as u64);
    assert_eq!(
        blob.read(500_000..600_000).await.unwrap(),
        &bytes[500_000..600_000]
    );
    assert_eq!(blob.read(0..100_000).await.unwrap(), &bytes[..100_000]);
}

#[tokio::test]
async fn htpasswd_protects_and_admits() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("htpasswd"), format!("user:{HASH}\n")).unwrap();
    let auth = format!(
        "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
        dir.path().join("htpasswd").display()
    );
    let debian = Debian::start("", &auth);
    let mut config = RegistryConfig::default();
    let error = client(config.clone())
        .resolve(&debian.image())
        .await
        .unwrap_err();
    assert!(matches!(error.problem, Problem::Denied { .. }), "{error}");
    config
        .credentials
        .push(Arc::new(FixedCredentials::parse("user:secret").unwrap()));
    push(&client(config), &debian.image()).await;
}

/// bcrypt of "secret", made with crypt(3).
const HASH: &str = "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";

#[tokio::test]
async fn a_client_certificate_beside_the_authority_is_shown_as_docker_does() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let path = |name: &str| dir.path().join(name);
    // The server wants its client to have a certificate of the same authority.
    let http = format!(
        "  tls:\n    certificate: {}\n    key: {}\n    clientcas: [{}]\n",
        path("host.pem").display(),
        path("host.key").display(),
        path("ca.pem").display()
    );
    let debian = Debian::start(&http, "");
    let hosts = path("certs.d").join(format!("127.0.0.1:{}", debian.port));
    std::fs::create_dir_all(&hosts).unwrap();
    std::fs::copy(path("ca.pem"), hosts.join("ca.crt")).unwrap();
    let started = || {
        client(RegistryConfig {
            hosts_dirs: vec![path("certs.d")],
            http: quick().http,
            ..RegistryConfig::default()
        })
    };
    let image = debian.image();
    let without = started().push_blob(&image, pattern(10).into()).await;
    assert!(without.is_err(), "no certificate was shown");
    std::fs::copy(path("host.pem"), hosts.join("client.cert")).unwrap();
    std::fs::copy(path("host.key"), hosts.join("client.key")).unwrap();
    push(&started(), &image).await;
    started().resolve(&image).await.unwrap();
}

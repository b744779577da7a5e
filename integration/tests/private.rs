//! A registry that only some may read, by TLS with an authority of its own.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use integration::busybox::noise;
use integration::command::{command, fail, run};
use integration::ctr::Run;
use integration::host::{Indexing, convert, sha256_hex, small_layers};
use integration::push::push;
use integration::{Containerd, DockerRegistry, Layout, Scratch, Snapshotter, Soci};

const USER: &str = "reader";
const PASSWORD: &str = "secret";
/// bcrypt of [`PASSWORD`], made with crypt(3).
const HASH: &str = "$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";

/// A certificate of 127.0.0.1, its key, and the authority that signed it.
struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
    authority: PathBuf,
}

impl Certificate {
    fn new(dir: &Path) -> Self {
        let path = |name: &str| dir.join(name);
        let req = |subject: &str, key: &Path, certificate: &Path| {
            let mut openssl = command("openssl");
            openssl.args([
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            ]);
            openssl.args(["-subj", subject]);
            openssl.arg("-keyout").arg(key).arg("-out").arg(certificate);
            openssl
        };
        let new = Self {
            certificate: path("host.pem"),
            key: path("host.key"),
            authority: path("ca.pem"),
        };
        run(&mut req("/CN=authority", &path("ca.key"), &new.authority)).unwrap();
        let mut host = req("/CN=host", &new.key, &new.certificate);
        host.arg("-CA").arg(&new.authority);
        host.arg("-CAkey").arg(path("ca.key"));
        host.args(["-addext", "subjectAltName=IP:127.0.0.1"]);
        host.args(["-addext", "basicConstraints=CA:FALSE"]);
        run(&mut host).unwrap();
        new
    }
}

/// `command` with the credentials that are in `docker`.
fn with_credentials(command: &Command, docker: &Path) -> Command {
    let mut wrapped = integration::command::command(command.get_program());
    wrapped.args(command.get_args());
    wrapped.env("DOCKER_CONFIG", docker);
    wrapped
}

#[test]
fn an_image_of_a_private_registry_runs_lazily_and_nobody_else_gets_it() {
    let scratch = Scratch::new().unwrap();
    let tls = Certificate::new(scratch.path());
    let users = scratch.path().join("htpasswd");
    fs::write(&users, format!("{USER}:{HASH}\n")).unwrap();

    let content = noise(2 << 20);
    let layout = Layout::create(&scratch.path().join("layout")).unwrap();
    let layers = small_layers(&layout, &[("file", &content)]).unwrap();
    layout.add_image(&layers, &["sh"], "latest").unwrap();
    let indexed = scratch.path().join("indexed");
    let alone = Soci::alone(&scratch).unwrap();
    convert(&alone, layout.path(), &indexed, Indexing::default()).unwrap();
    let dir = scratch.dir("registry").unwrap();
    let open = DockerRegistry::start_at(&dir).unwrap();
    push(&Layout::open(&indexed), &open.reference("team/app:latest")).unwrap();
    drop(open);
    let registry = DockerRegistry::start_private(&dir, &tls.certificate, &tls.key, &users).unwrap();
    let reference = registry.reference("team/app:latest");

    let hosts = scratch.path().join("certs.d").join(registry.host());
    fs::create_dir_all(&hosts).unwrap();
    fs::copy(&tls.authority, hosts.join("ca.crt")).unwrap();
    let docker = scratch.dir("docker").unwrap();
    let auth = BASE64.encode(format!("{USER}:{PASSWORD}"));
    let auths = serde_json::json!({"auths": {registry.host(): {"auth": auth}}});
    fs::write(docker.join("config.json"), auths.to_string()).unwrap();

    let containerd = Containerd::start(&scratch).unwrap();
    let config = format!(
        "[background_fetch]\ndisable = true\n[resolver]\nconfig_path = \"{}\"\n",
        scratch.path().join("certs.d").display()
    );
    let wrap = |daemon: &Command| with_credentials(daemon, &docker);
    let snapshotter = Snapshotter::start_wrapped(&wrap, &scratch, &containerd, &config).unwrap();
    let soci = Soci::with(&scratch, &containerd).unwrap();
    let certs = scratch.path().join("certs.d").display().to_string();
    let pull = ["rpull", "--hosts-dir", &certs, &reference];

    let refused = fail(soci.command().unwrap().args(pull)).unwrap();
    assert!(refused.contains(&registry.host()), "{refused}");
    assert!(
        refused.contains("credentials"),
        "what to look at: {refused}"
    );

    let user = format!("{USER}:{PASSWORD}");
    soci.call(&[&pull[..], &["--user", &user]].concat())
        .unwrap();
    let before = registry.traffic().unwrap();
    let shell = Run::shell(&reference, "reader", "sha256sum /file");
    let output = containerd.ctr().run(shell).unwrap();
    assert_eq!(output, format!("{}  /file\n", sha256_hex(&content)));
    let read = registry.traffic().unwrap().since(before);
    assert!(
        read.blob_bytes >= content.len() as u64,
        "it was fetched as it was read: {read:?}"
    );
    let log = snapshotter.log();
    assert!(log.contains("layer is served lazily"), "{log}");
    for hidden in [PASSWORD, &auth] {
        assert!(!log.contains(hidden), "a credential is in the log");
    }
}

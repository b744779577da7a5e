//! Which hosts serve a reference: configured mirrors in order, then those of containerd's
//! `hosts.toml`, then the origin.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

use super::config::RegistryConfig;
use super::error::Problem;
use super::reference::Reference;

mod endpoint;
mod file;

pub(crate) use endpoint::Endpoint;
use file::HostsFile;
#[cfg(any(test, fuzzing))]
pub(crate) use file::probe;

const REMEMBERED_HOSTS: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");
/// After this long a `hosts.toml` is looked at again.
const FILE_LIFETIME: Duration = Duration::from_secs(30);

/// What a host is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Content by digest.
    Pull,
    /// What a tag points at.
    Resolve,
    /// Taking content.
    Push,
}

/// The endpoints of each registry, with what is known of their health.
#[derive(Debug)]
pub(crate) struct Hosts {
    context: Arc<Context>,
    known: Mutex<LruCache<String, Known>>,
}

/// What endpoints are made of.
#[derive(Debug)]
struct Context {
    config: Arc<RegistryConfig>,
    client: reqwest::Client,
}

#[derive(Debug, Clone)]
struct Known {
    endpoints: Arc<[Arc<Endpoint>]>,
    file: Option<HostsFile>,
    read: Instant,
}

impl Hosts {
    /// Fails when a configured mirror is no host.
    pub(crate) fn new(
        config: Arc<RegistryConfig>,
        client: reqwest::Client,
    ) -> Result<Self, Problem> {
        let context = Context { config, client };
        for (origin, mirrors) in &context.config.mirrors {
            for (number, mirror) in mirrors.iter().enumerate() {
                let checked = Endpoint::mirror(mirror, origin, &context.config, &context.client);
                checked.map_err(|problem| Problem::Setup {
                    detail: format!("mirror {} of {origin}: {problem}", number + 1),
                })?;
            }
        }
        Ok(Self {
            context: Arc::new(context),
            known: Mutex::new(LruCache::new(REMEMBERED_HOSTS)),
        })
    }

    /// The hosts to ask for `purpose`, at least one; those that could not be reached lately come last.
    pub(crate) async fn of(
        &self,
        reference: &Reference,
        purpose: Purpose,
    ) -> Result<Vec<Arc<Endpoint>>, Problem> {
        let all = self.all(reference).await?;
        let able = all.iter().filter(|host| host.serves(purpose)).cloned();
        let (resting, mut hosts): (Vec<_>, Vec<_>) = able.partition(|host| host.is_resting());
        hosts.extend(resting);
        if hosts.is_empty() {
            return Err(Problem::Setup {
                detail: format!(
                    "no configured host of {} may be used to {purpose:?}",
                    reference.host()
                ),
            });
        }
        Ok(hosts)
    }

    async fn all(&self, reference: &Reference) -> Result<Arc<[Arc<Endpoint>]>, Problem> {
        let known = self.known.lock().get(reference.host()).cloned();
        let files = !self.context.config.hosts_dirs.is_empty();
        if let Some(known) = &known
            && (!files || known.read.elapsed() < FILE_LIFETIME)
        {
            return Ok(known.endpoints.clone());
        }
        let fresh = if files {
            self.read(reference.clone(), known).await?
        } else {
            self.context.refresh(reference, None, known)?
        };
        let endpoints = fresh.endpoints.clone();
        self.known.lock().put(reference.host().to_owned(), fresh);
        Ok(endpoints)
    }

    async fn read(&self, reference: Reference, known: Option<Known>) -> Result<Known, Problem> {
        let context = self.context.clone();
        let read = tokio::task::spawn_blocking(move || {
            let file = HostsFile::find(&context.config.hosts_dirs, reference.host())?;
            context.refresh(&reference, file, known)
        });
        read.await.unwrap_or_else(|error| {
            Err(Problem::Setup {
                detail: format!("hosts.toml: {error}"),
            })
        })
    }
}

impl Context {
    /// The endpoints there were, if `file` is what they were made of; else new ones.
    fn refresh(
        &self,
        reference: &Reference,
        file: Option<HostsFile>,
        known: Option<Known>,
    ) -> Result<Known, Problem> {
        let read = Instant::now();
        match known {
            Some(known) if known.file == file => Ok(Known { read, ..known }),
            _ => Ok(Known {
                endpoints: self.endpoints(reference, file.as_ref())?,
                file,
                read,
            }),
        }
    }

    fn endpoints(
        &self,
        reference: &Reference,
        file: Option<&HostsFile>,
    ) -> Result<Arc<[Arc<Endpoint>]>, Problem> {
        let mirrors = self
            .config
            .mirrors
            .get(reference.host())
            .map_or(&[][..], Vec::as_slice);
        let mirrors = mirrors
            .iter()
            .map(|mirror| Endpoint::mirror(mirror, reference.host(), &self.config, &self.client));
        let mut endpoints = mirrors.collect::<Result<Vec<_>, _>>()?;
        let origin = Endpoint::origin(reference, &self.config, &self.client)?;
        match file {
            Some(file) => endpoints.extend(file.endpoints(reference, origin, &self.config)?),
            None => endpoints.push(origin),
        }
        Ok(endpoints.into_iter().map(Arc::new).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::path::Path;

    use super::super::config::Mirror;
    use super::super::tls;
    use super::*;

    fn hosts(config: RegistryConfig) -> Result<Hosts, Problem> {
        let client = tls::client(&config, &tls::HostTls::default())?;
        Hosts::new(Arc::new(config), client)
    }

    async fn urls(reference: &str, purpose: Purpose, config: &RegistryConfig) -> Vec<String> {
        let reference: Reference = reference.parse().unwrap();
        let endpoints = hosts(config.clone())
            .unwrap()
            .of(&reference, purpose)
            .await
            .unwrap();
        endpoints
            .iter()
            .map(|host| host.url(reference.repository(), "x").to_string())
            .collect()
    }

    async fn pull_urls(reference: &str, config: &RegistryConfig) -> Vec<String> {
        urls(reference, Purpose::Pull, config).await
    }

    fn mirror(host: &str, insecure: bool) -> Mirror {
        Mirror {
            host: host.to_owned(),
            insecure,
            request_timeout: None,
        }
    }

    fn with_file(dir: &Path, host: &str, text: &str) -> RegistryConfig {
        fs::create_dir_all(dir.join(host)).unwrap();
        fs::write(dir.join(host).join("hosts.toml"), text).unwrap();
        RegistryConfig {
            hosts_dirs: vec![dir.to_owned()],
            ..RegistryConfig::default()
        }
    }

    #[tokio::test]
    async fn loopback_is_spoken_to_in_plain_http_and_the_world_in_https() {
        let config = RegistryConfig::default();
        for (reference, url) in [
            ("alpine", "https://registry-1.docker.io/v2/library/alpine/x"),
            ("localhost:5000/a", "http://localhost:5000/v2/a/x"),
            ("127.0.0.1:5000/a", "http://127.0.0.1:5000/v2/a/x"),
            ("[::1]:5000/a", "http://[::1]:5000/v2/a/x"),
        ] {
            assert_eq!(pull_urls(reference, &config).await, [url]);
        }
        let insecure = RegistryConfig {
            insecure_hosts: ["reg.example:5000".to_owned()].into(),
            ..RegistryConfig::default()
        };
        assert_eq!(
            pull_urls("reg.example:5000/a", &insecure).await,
            ["http://reg.example:5000/v2/a/x"]
        );
        assert_eq!(
            pull_urls("other.example/a", &insecure).await,
            ["https://other.example/v2/a/x"]
        );
    }

    #[tokio::test]
    async fn mirrors_come_first_as_host_or_url_and_leave_the_origin_encrypted() {
        let mut config = RegistryConfig::default();
        let mut mirrors = [
            "10.0.0.1:30000",
            "https://m.example/proxy/v2",
            "http://n.example",
        ]
        .map(|host| mirror(host, false))
        .to_vec();
        mirrors.push(mirror("p.example", true));
        config.mirrors.insert("docker.io".to_owned(), mirrors);
        assert_eq!(
            pull_urls("alpine", &config).await,
            [
                "https://10.0.0.1:30000/v2/library/alpine/x?ns=docker.io",
                "https://m.example/proxy/v2/library/alpine/x?ns=docker.io",
                "http://n.example/v2/library/alpine/x?ns=docker.io",
                "http://p.example/v2/library/alpine/x?ns=docker.io",
                "https://registry-1.docker.io/v2/library/alpine/x",
            ]
        );
        assert_eq!(
            urls("alpine", Purpose::Push, &config).await,
            ["https://registry-1.docker.io/v2/library/alpine/x"]
        );
    }

    #[tokio::test]
    async fn a_mirror_that_is_no_host_is_an_error_and_not_skipped() {
        for host in ["", "https://", "user:pw@m.example"] {
            let mut config = RegistryConfig::default();
            config
                .mirrors
                .insert("docker.io".to_owned(), vec![mirror(host, false)]);
            let error = hosts(config).unwrap_err().to_string();
            assert!(
                error.contains("mirror 1 of docker.io") && !error.contains("pw"),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_host_that_was_not_reached_is_asked_last() {
        let mut config = RegistryConfig::default();
        config
            .mirrors
            .insert("docker.io".to_owned(), vec![mirror("m.example", false)]);
        let reference: Reference = "alpine".parse().unwrap();
        let hosts = hosts(config).unwrap();
        hosts.of(&reference, Purpose::Pull).await.unwrap()[0].rest();
        let order = hosts.of(&reference, Purpose::Pull).await.unwrap();
        assert!(!order[0].is_mirror() && order[1].is_mirror());
    }

    const FILE: &str = r#"
        server = "https://real.example/base"
        [host."https://z.example"]
          capabilities = ["pull"]
          skip_verify = true
          [host."https://z.example".header]
            x-custom = ["one", "two"]
        [host."http://a.example/api/v2"]
          capabilities = ["pull", "resolve"]
        [host."https://q.example/odd/path"]
          override_path = true
    "#;

    #[tokio::test]
    async fn the_hosts_of_hosts_toml_are_used_in_the_order_of_the_file_for_what_they_can_do() {
        let dir = tempfile::tempdir().unwrap();
        let config = with_file(dir.path(), "reg.example", FILE);
        let z = "https://z.example/v2/a/x?ns=reg.example";
        let a = "http://a.example/api/v2/a/x?ns=reg.example";
        let q = "https://q.example/odd/path/a/x?ns=reg.example";
        let server = "https://real.example/base/v2/a/x?ns=reg.example";
        assert_eq!(pull_urls("reg.example/a", &config).await, [z, a, q, server]);
        assert_eq!(
            urls("reg.example/a", Purpose::Resolve, &config).await,
            [a, q, server]
        );
        assert_eq!(
            urls("reg.example/a", Purpose::Push, &config).await,
            [q, server]
        );
        assert_eq!(
            pull_urls("other.example/a", &config).await,
            ["https://other.example/v2/a/x"]
        );
    }

    #[tokio::test]
    async fn a_host_with_a_port_and_the_default_have_their_directories() {
        let dir = tempfile::tempdir().unwrap();
        let plain = "[host.\"http://reg.example:5000\"]\n";
        let config = with_file(dir.path(), "reg.example_5000_", plain);
        let found = pull_urls("reg.example:5000/a", &config).await;
        assert_eq!(
            found,
            [
                "http://reg.example:5000/v2/a/x",
                "https://reg.example:5000/v2/a/x"
            ]
        );
        let config = with_file(dir.path(), "_default", "[host.\"https://cache.example\"]\n");
        assert_eq!(
            pull_urls("some.example/a", &config).await,
            [
                "https://cache.example/v2/a/x?ns=some.example",
                "https://some.example/v2/a/x"
            ]
        );
    }

    #[tokio::test]
    async fn certificates_without_a_file_make_loopback_encrypted_and_their_change_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("localhost:5000");
        fs::create_dir_all(&host).unwrap();
        let find = || HostsFile::find(&[dir.path().to_owned()], "localhost:5000").unwrap();
        assert_eq!(find(), None, "an empty directory says nothing");
        fs::write(host.join("ca.crt"), "").unwrap();
        let config = RegistryConfig {
            hosts_dirs: vec![dir.path().to_owned()],
            ..RegistryConfig::default()
        };
        assert_eq!(
            pull_urls("localhost:5000/a", &config).await,
            ["https://localhost:5000/v2/a/x"]
        );
        let before = find();
        assert!(before.is_some());
        assert_eq!(find(), before);
        fs::write(host.join("ca.crt"), "another").unwrap();
        assert_ne!(find(), before);
    }

    #[tokio::test]
    async fn a_malformed_hosts_toml_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let reference: Reference = "reg.example/a".parse().unwrap();
        for text in [
            "server = 5",
            "[host.\"https://\"]",
            "ca = \"/nowhere.pem\"",
            "[host.x]\nskip_verify = 1",
        ] {
            let hosts = hosts(with_file(dir.path(), "reg.example", text)).unwrap();
            let error = hosts
                .of(&reference, Purpose::Pull)
                .await
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("reg.example/hosts.toml") || error.contains("/nowhere.pem"),
                "{text}: {error}"
            );
        }
    }
}

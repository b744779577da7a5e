//! Which hosts serve a reference: its mirrors in order, then its origin.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;
use url::{Host, Url};

use super::config::{Mirror, RegistryConfig, TlsConfig};
use super::error::Problem;
use super::reference::Reference;

/// How long a host that could not be reached is asked last.
const REST: Duration = Duration::from_secs(30);
const REMEMBERED_HOSTS: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// A host that speaks the distribution API for one registry.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Prefix of the API, with its final slash.
    base: Url,
    /// Host and port, for people and credentials.
    pub(crate) name: String,
    /// The registry whose content a mirror serves.
    namespace: Option<String>,
    pub(crate) request_timeout: Duration,
    resting_until: Mutex<Option<Instant>>,
}

impl Endpoint {
    fn origin(reference: &Reference, config: &RegistryConfig) -> Result<Self, Problem> {
        let host = reference.api_host();
        let plain = config.plain_http
            || config.insecure_hosts.contains(reference.host())
            || config.insecure_hosts.contains(host)
            || (is_loopback(host) && config.tls == TlsConfig::default());
        let scheme = if plain { "http" } else { "https" };
        Ok(Self {
            base: base_url(&format!("{scheme}://{host}/v2/"))?,
            name: reference.host().to_owned(),
            namespace: None,
            request_timeout: config.http.request_timeout,
            resting_until: Mutex::new(None),
        })
    }

    fn mirror(mirror: &Mirror, origin: &str, config: &RegistryConfig) -> Result<Self, Problem> {
        let text = mirror.host.trim();
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, text),
        };
        let host = rest.split('/').next().unwrap_or_default();
        if host.is_empty() {
            return Err(no_host());
        }
        let plain =
            mirror.insecure || scheme == Some("http") || (scheme.is_none() && is_loopback(host));
        let scheme = if plain { "http" } else { "https" };
        let path = rest[host.len()..].trim_matches('/');
        let path = if path.is_empty() { "v2" } else { path };
        Ok(Self {
            base: base_url(&format!("{scheme}://{host}/{path}/"))?,
            name: host.to_owned(),
            namespace: Some(origin.to_owned()),
            request_timeout: mirror
                .request_timeout
                .unwrap_or(config.http.request_timeout),
            resting_until: Mutex::new(None),
        })
    }

    /// The URL of `path` below the repository. A mirror is told whose repository is meant.
    pub(crate) fn url(&self, repository: &str, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{repository}/{path}", self.base.path()));
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }

    /// Whether `url` is on this very host: only there are its credentials shown.
    pub(crate) fn owns(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    pub(crate) fn is_mirror(&self) -> bool {
        self.namespace.is_some()
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.base.scheme() == "https"
    }

    /// Distinguishes endpoints in caches.
    pub(crate) fn key(&self) -> &str {
        self.base.as_str()
    }

    /// Asks this host after the others for a while.
    pub(crate) fn rest(&self) {
        *self.resting_until.lock() = Some(Instant::now() + REST);
    }

    fn is_resting(&self) -> bool {
        self.resting_until
            .lock()
            .is_some_and(|until| until > Instant::now())
    }
}

fn base_url(text: &str) -> Result<Url, Problem> {
    let url = Url::parse(text).ok().filter(|url| {
        url.host_str().is_some_and(|host| !host.is_empty())
            && url.username().is_empty()
            && url.password().is_none()
    });
    url.ok_or_else(no_host)
}

fn no_host() -> Problem {
    Problem::Setup {
        detail: String::from(
            "a configured host is neither host:port nor a URL without credentials",
        ),
    }
}

/// Whether all of the configured mirrors can be used.
pub(crate) fn check(config: &RegistryConfig) -> Result<(), Problem> {
    for (origin, mirrors) in &config.mirrors {
        for (number, mirror) in mirrors.iter().enumerate() {
            Endpoint::mirror(mirror, origin, config).map_err(|problem| Problem::Setup {
                detail: format!("mirror {} of {origin}: {problem}", number + 1),
            })?;
        }
    }
    Ok(())
}

/// Whether `host` (with or without a port) is this machine.
fn is_loopback(host: &str) -> bool {
    let Ok(url) = Url::parse(&format!("http://{host}/")) else {
        return false;
    };
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The endpoints of each registry, with what is known of their health.
#[derive(Debug)]
pub(crate) struct Hosts {
    known: Mutex<LruCache<String, Arc<[Arc<Endpoint>]>>>,
}

impl Hosts {
    pub(crate) fn new() -> Self {
        Self {
            known: Mutex::new(LruCache::new(REMEMBERED_HOSTS)),
        }
    }

    /// Mirrors in order, then the origin; those that could not be reached lately come last.
    pub(crate) fn for_pull(
        &self,
        reference: &Reference,
        config: &RegistryConfig,
    ) -> Result<Vec<Arc<Endpoint>>, Problem> {
        let all = self.all(reference, config)?;
        let (resting, mut hosts): (Vec<_>, Vec<_>) =
            all.iter().cloned().partition(|host| host.is_resting());
        hosts.extend(resting);
        Ok(hosts)
    }

    /// The origin alone.
    pub(crate) fn for_push(
        &self,
        reference: &Reference,
        config: &RegistryConfig,
    ) -> Result<Vec<Arc<Endpoint>>, Problem> {
        let all = self.all(reference, config)?;
        Ok(all
            .iter()
            .filter(|host| !host.is_mirror())
            .cloned()
            .collect())
    }

    fn all(
        &self,
        reference: &Reference,
        config: &RegistryConfig,
    ) -> Result<Arc<[Arc<Endpoint>]>, Problem> {
        let mut known = self.known.lock();
        if let Some(hosts) = known.get(reference.host()) {
            return Ok(hosts.clone());
        }
        let mirrors = config
            .mirrors
            .get(reference.host())
            .map_or(&[][..], Vec::as_slice);
        let mut hosts = mirrors
            .iter()
            .map(|mirror| Endpoint::mirror(mirror, reference.host(), config).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        hosts.push(Arc::new(Endpoint::origin(reference, config)?));
        let hosts: Arc<[_]> = hosts.into();
        known.put(reference.host().to_owned(), hosts.clone());
        Ok(hosts)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn urls(reference: &str, config: &RegistryConfig) -> Vec<String> {
        let reference: Reference = reference.parse().unwrap();
        let hosts = Hosts::new().for_pull(&reference, config).unwrap();
        hosts
            .iter()
            .map(|host| host.url(reference.repository(), "x").to_string())
            .collect()
    }

    fn mirror(host: &str, insecure: bool) -> Mirror {
        Mirror {
            host: host.to_owned(),
            insecure,
            request_timeout: None,
        }
    }

    #[test]
    fn loopback_is_spoken_to_in_plain_http_and_the_world_in_https() {
        let config = RegistryConfig::default();
        assert_eq!(
            urls("alpine", &config),
            ["https://registry-1.docker.io/v2/library/alpine/x"]
        );
        assert_eq!(
            urls("localhost:5000/a", &config),
            ["http://localhost:5000/v2/a/x"]
        );
        assert_eq!(
            urls("127.0.0.1:5000/a", &config),
            ["http://127.0.0.1:5000/v2/a/x"]
        );
        assert_eq!(urls("[::1]:5000/a", &config), ["http://[::1]:5000/v2/a/x"]);
        let insecure = RegistryConfig {
            insecure_hosts: ["reg.example:5000".to_owned()].into(),
            ..RegistryConfig::default()
        };
        assert_eq!(
            urls("reg.example:5000/a", &insecure),
            ["http://reg.example:5000/v2/a/x"]
        );
        assert_eq!(
            urls("other.example/a", &insecure),
            ["https://other.example/v2/a/x"]
        );
    }

    #[test]
    fn mirrors_come_first_as_host_or_url_and_leave_the_origin_encrypted() {
        let mut config = RegistryConfig::default();
        let mirrors = [
            "10.0.0.1:30000",
            "https://m.example/proxy/v2",
            "http://n.example",
        ]
        .map(|host| mirror(host, false));
        config
            .mirrors
            .insert("docker.io".to_owned(), mirrors.to_vec());
        config
            .mirrors
            .entry("docker.io".to_owned())
            .or_default()
            .push(mirror("p.example", true));
        assert_eq!(
            urls("alpine", &config),
            [
                "https://10.0.0.1:30000/v2/library/alpine/x?ns=docker.io",
                "https://m.example/proxy/v2/library/alpine/x?ns=docker.io",
                "http://n.example/v2/library/alpine/x?ns=docker.io",
                "http://p.example/v2/library/alpine/x?ns=docker.io",
                "https://registry-1.docker.io/v2/library/alpine/x",
            ]
        );
    }

    #[test]
    fn a_mirror_that_is_no_host_is_an_error_and_not_skipped() {
        for host in ["", "https://", "user:pw@m.example"] {
            let mut config = RegistryConfig::default();
            config
                .mirrors
                .insert("docker.io".to_owned(), vec![mirror(host, false)]);
            assert!(check(&config).is_err(), "{host:?}");
        }
    }

    #[test]
    fn a_host_that_was_not_reached_is_asked_last() {
        let mut config = RegistryConfig::default();
        config
            .mirrors
            .insert("docker.io".to_owned(), vec![mirror("m.example", false)]);
        let reference: Reference = "alpine".parse().unwrap();
        let hosts = Hosts::new();
        hosts.for_pull(&reference, &config).unwrap()[0].rest();
        let order = hosts.for_pull(&reference, &config).unwrap();
        assert!(!order[0].is_mirror() && order[1].is_mirror());
    }
}

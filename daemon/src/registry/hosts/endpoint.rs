//! One host that speaks the distribution API.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reqwest::header::HeaderMap;
use url::{Host, Url};

use super::super::config::{Mirror, RegistryConfig, TlsConfig};
use super::super::error::Problem;
use super::super::reference::Reference;
use super::Purpose;

/// How long a host that could not be reached is asked last.
const REST: Duration = Duration::from_secs(30);

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
    /// What it is spoken to with.
    pub(crate) client: reqwest::Client,
    /// Sent with every request to it.
    pub(crate) headers: HeaderMap,
    capabilities: Capabilities,
    resting_until: Mutex<Option<Instant>>,
    ranges: Ranges,
}

/// How a host has answered to ranges so far.
#[derive(Debug, Default)]
struct Ranges {
    served: AtomicBool,
    /// By the whole blob, at least once: a pull-through cache does so for what it does not have yet.
    ignored: AtomicBool,
}

/// What a host may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    pub(super) pull: bool,
    pub(super) resolve: bool,
    pub(super) push: bool,
}

impl Capabilities {
    pub(super) const ALL: Self = Self {
        pull: true,
        resolve: true,
        push: true,
    };
    const READ: Self = Self {
        push: false,
        ..Self::ALL
    };
}

impl Endpoint {
    pub(super) fn origin(
        reference: &Reference,
        config: &RegistryConfig,
        client: &reqwest::Client,
    ) -> Result<Self, Problem> {
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
            client: client.clone(),
            headers: HeaderMap::new(),
            capabilities: Capabilities::ALL,
            resting_until: Mutex::new(None),
            ranges: Ranges::default(),
        })
    }

    pub(super) fn mirror(
        mirror: &Mirror,
        origin: &str,
        config: &RegistryConfig,
        client: &reqwest::Client,
    ) -> Result<Self, Problem> {
        let place = Place::parse(&mirror.host)?;
        let plain = mirror.insecure || place.plain;
        let path = if place.path.is_empty() {
            "v2"
        } else {
            place.path
        };
        Ok(Self {
            base: place.base(plain, path)?,
            name: place.host.to_owned(),
            namespace: Some(origin.to_owned()),
            request_timeout: mirror
                .request_timeout
                .unwrap_or(config.http.request_timeout),
            client: client.clone(),
            headers: HeaderMap::new(),
            capabilities: Capabilities::READ,
            resting_until: Mutex::new(None),
            ranges: Ranges::default(),
        })
    }

    /// A host of `hosts.toml`. `raw_path` takes the path of `url` as the whole prefix of the API.
    pub(super) fn listed(
        url: &str,
        raw_path: bool,
        reference: &Reference,
        config: &RegistryConfig,
        client: &reqwest::Client,
    ) -> Result<Self, Problem> {
        let place = Place::parse(url)?;
        let path = match place.path {
            path if raw_path || path == "v2" || path.ends_with("/v2") => path.to_owned(),
            "" => String::from("v2"),
            path => format!("{path}/v2"),
        };
        let same = place.host == reference.host() || place.host == reference.api_host();
        Ok(Self {
            base: place.base(place.plain, &path)?,
            name: if same { reference.host() } else { place.host }.to_owned(),
            namespace: (!same).then(|| reference.host().to_owned()),
            request_timeout: config.http.request_timeout,
            client: client.clone(),
            headers: HeaderMap::new(),
            capabilities: Capabilities::ALL,
            resting_until: Mutex::new(None),
            ranges: Ranges::default(),
        })
    }

    pub(super) fn set_up(
        self,
        client: reqwest::Client,
        capabilities: Capabilities,
        headers: HeaderMap,
    ) -> Self {
        Self {
            client,
            headers,
            capabilities,
            ..self
        }
    }

    /// The same by HTTPS.
    pub(super) fn encrypted(mut self) -> Self {
        // Fails only for schemes that a host never has.
        let _ = self.base.set_scheme("https");
        self
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

    /// Whether `url` is on this very host: only there are its credentials and headers shown.
    pub(crate) fn owns(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    pub(crate) fn is_mirror(&self) -> bool {
        self.namespace.is_some()
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.base.scheme() == "https"
    }

    pub(super) fn serves(&self, purpose: Purpose) -> bool {
        match purpose {
            Purpose::Pull => self.capabilities.pull,
            Purpose::Resolve => self.capabilities.resolve,
            Purpose::Push => self.capabilities.push,
        }
    }

    /// Notes how a range was answered that is not the whole blob.
    pub(crate) fn answered_range(&self, served: bool) {
        let known = match served {
            true => &self.ranges.served,
            false => &self.ranges.ignored,
        };
        known.store(true, Ordering::Relaxed);
    }

    /// Whether ranges have always been served, and at least once.
    pub(crate) fn serves_ranges(&self) -> bool {
        self.ranges.served.load(Ordering::Relaxed) && !self.ranges.ignored.load(Ordering::Relaxed)
    }

    /// Distinguishes endpoints in caches.
    pub(crate) fn key(&self) -> &str {
        self.base.as_str()
    }

    /// Asks this host after the others for a while.
    pub(crate) fn rest(&self) {
        *self.resting_until.lock() = Some(Instant::now() + REST);
    }

    pub(super) fn is_resting(&self) -> bool {
        self.resting_until
            .lock()
            .is_some_and(|until| until > Instant::now())
    }
}

/// A configured host: `host`, `host:port`, or a URL.
struct Place<'a> {
    host: &'a str,
    /// Without slashes at its ends.
    path: &'a str,
    /// By its scheme, or as a loopback host without one.
    plain: bool,
}

impl<'a> Place<'a> {
    fn parse(text: &'a str) -> Result<Self, Problem> {
        let (scheme, rest) = match text.trim().split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, text.trim()),
        };
        let host = rest.split('/').next().unwrap_or_default();
        if host.is_empty() {
            return Err(no_host());
        }
        Ok(Self {
            host,
            path: rest[host.len()..].trim_matches('/'),
            plain: scheme == Some("http") || (scheme.is_none() && is_loopback(host)),
        })
    }

    fn base(&self, plain: bool, path: &str) -> Result<Url, Problem> {
        let scheme = if plain { "http" } else { "https" };
        let slash = if path.is_empty() { "" } else { "/" };
        base_url(&format!("{scheme}://{}/{path}{slash}", self.host))
    }
}

fn base_url(text: &str) -> Result<Url, Problem> {
    let url = Url::parse(text).ok().filter(|url| {
        url.host_str().is_some_and(|host| !host.is_empty())
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
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

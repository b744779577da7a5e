//! What the registry client is told: hosts, mirrors, time limits, TLS, credentials.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::credentials::CredentialProvider;

/// Settings of a [`super::Registry`]. `Default` is what an empty configuration file means.
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    /// Speak plain HTTP to every origin (`--plain-http`). Loopback hosts are spoken to in plain HTTP
    /// without this, unless [`TlsConfig`] says something.
    pub plain_http: bool,
    /// Origins, as written in references, that speak plain HTTP.
    pub insecure_hosts: BTreeSet<String>,
    /// Mirrors by the host of the reference; tried in order before the origin.
    pub mirrors: BTreeMap<String, Vec<Mirror>>,
    /// Directories of `<host>/hosts.toml` as containerd reads them (`/etc/containerd/certs.d`); the
    /// first that has one for a host counts. Read again when it changes.
    pub hosts_dirs: Vec<PathBuf>,
    /// Time limits and retries.
    pub http: HttpConfig,
    /// Certificates.
    pub tls: TlsConfig,
    /// Asked in order; the first that knows credentials for a host wins.
    pub credentials: Vec<Arc<dyn CredentialProvider>>,
    /// `User-Agent` of every request.
    pub user_agent: String,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            plain_http: false,
            insecure_hosts: BTreeSet::new(),
            mirrors: BTreeMap::new(),
            hosts_dirs: Vec::new(),
            http: HttpConfig::default(),
            tls: TlsConfig::default(),
            credentials: Vec::new(),
            user_agent: format!("soci-snapshotter/{}", env!("CARGO_PKG_VERSION")),
        }
    }
}

/// One `[[resolver.host."<host>".mirrors]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// `host`, `host:port` or a URL; its path, by default `/v2`, is the prefix of the API.
    pub host: String,
    /// Plain HTTP even if it is not a loopback host.
    pub insecure: bool,
    /// Limit of one request to this mirror; `None` is [`HttpConfig::request_timeout`].
    pub request_timeout: Option<Duration>,
}

/// Table `[http]` of the configuration file, and what it does not name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// Limit of making a connection (`DialTimeoutMsec`).
    pub dial_timeout: Duration,
    /// Limit of waiting for the head of an answer (`ResponseHeaderTimeoutMsec`).
    pub response_header_timeout: Duration,
    /// Limit of one request with its body, and of everything tried for one read
    /// (`RequestTimeoutMsec`). A streamed download is limited by `stall_timeout` only.
    pub request_timeout: Duration,
    /// A body that brings no byte for this long is given up, and continued by another request.
    pub stall_timeout: Duration,
    /// A range of a whole pull that is waited for and takes longer than this, and four times as long as the line explains,
    /// is asked for once more, of the next host if there is one.
    pub straggler: Duration,
    /// How often a failed request is made again (`MaxRetries`).
    pub max_retries: u32,
    /// Wait before the first retry; doubles with each (`MinWaitMsec`).
    pub min_wait: Duration,
    /// Longest wait between retries (`MaxWaitMsec`).
    pub max_wait: Duration,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            dial_timeout: Duration::from_secs(3),
            response_header_timeout: Duration::from_secs(3),
            request_timeout: Duration::from_secs(300),
            stall_timeout: Duration::from_secs(10),
            straggler: Duration::from_secs(2),
            max_retries: 8,
            min_wait: Duration::from_millis(30),
            max_wait: Duration::from_secs(300),
        }
    }
}

/// Certificates beside the system's roots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// PEM file of certificate authorities trusted in addition (`--tlscacert`).
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate chain (`--tlscert`).
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client's key (`--tlskey`).
    pub key_file: Option<PathBuf>,
    /// Accept any certificate (`--skip-verify`).
    pub skip_verify: bool,
}

//! Registries: requests, retries, mirrors.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::replace_zero;

/// `[http]`. Keys are spelt as in the original's own file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HttpConfig {
    /// Longest time to connect, in milliseconds.
    #[serde(rename(serialize = "DialTimeoutMsec", deserialize = "dialtimeoutmsec"))]
    pub dial_timeout_msec: u64,
    /// Longest wait for the head of a response, in milliseconds.
    #[serde(rename(
        serialize = "ResponseHeaderTimeoutMsec",
        deserialize = "responseheadertimeoutmsec"
    ))]
    pub response_header_timeout_msec: u64,
    /// Longest time for a request with its body, in milliseconds.
    #[serde(rename(serialize = "RequestTimeoutMsec", deserialize = "requesttimeoutmsec"))]
    pub request_timeout_msec: u64,
    /// How often a request is tried again.
    #[serde(rename(serialize = "MaxRetries", deserialize = "maxretries"))]
    pub max_retries: u32,
    /// Shortest wait before another try, in milliseconds.
    #[serde(rename(serialize = "MinWaitMsec", deserialize = "minwaitmsec"))]
    pub min_wait_msec: u64,
    /// Longest wait before another try, in milliseconds.
    #[serde(rename(serialize = "MaxWaitMsec", deserialize = "maxwaitmsec"))]
    pub max_wait_msec: u64,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            dial_timeout_msec: 3000,
            response_header_timeout_msec: 3000,
            request_timeout_msec: 300_000,
            max_retries: 8,
            min_wait_msec: 30,
            max_wait_msec: 300_000,
        }
    }
}

/// `[blob]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlobConfig {
    /// How long a layer's address is taken to be good, in seconds.
    pub valid_interval: u64,
    /// Checks the address before every use.
    pub check_always: bool,
    /// Longest time for a request, in seconds.
    pub fetching_timeout_sec: u64,
    /// As in `[http]`, whose value zero stands for.
    pub max_retries: u32,
    /// As in `[http]`, whose value zero stands for.
    pub min_wait_msec: u64,
    /// As in `[http]`, whose value zero stands for.
    pub max_wait_msec: u64,
    /// Asks for one range per request.
    pub force_single_range_mode: bool,
    /// How often a span that is not what it should be is fetched again.
    pub max_span_verification_retries: u32,
}

impl Default for BlobConfig {
    fn default() -> Self {
        Self {
            valid_interval: 60,
            check_always: false,
            fetching_timeout_sec: 300,
            max_retries: 0,
            min_wait_msec: 0,
            max_wait_msec: 0,
            force_single_range_mode: false,
            max_span_verification_retries: 0,
        }
    }
}

impl BlobConfig {
    pub(super) fn complete(&mut self, http: &HttpConfig) {
        replace_zero(&mut self.max_retries, http.max_retries);
        replace_zero(&mut self.min_wait_msec, http.min_wait_msec);
        replace_zero(&mut self.max_wait_msec, http.max_wait_msec);
    }
}

/// `[resolver]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResolverConfig {
    /// How long tokens are kept, in seconds.
    pub auth_client_ttl_sec: u64,
    /// Shares tokens among the images of a host.
    pub enable_auth_client_sharing: bool,
    /// Directories of containerd's `<host>/hosts.toml`, separated by colons; empty: none.
    pub config_path: String,
    /// `[resolver.host."HOST"]`.
    pub host: BTreeMap<String, HostConfig>,
}

impl Default for ResolverConfig {
    fn default() -> Self {
        Self {
            auth_client_ttl_sec: 3600,
            enable_auth_client_sharing: false,
            config_path: "/etc/containerd/certs.d:/etc/docker/certs.d".to_owned(),
            host: BTreeMap::new(),
        }
    }
}

/// What is said of one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostConfig {
    /// Tried in this order before the registry itself.
    pub mirrors: Vec<MirrorConfig>,
}

/// A mirror of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorConfig {
    /// `host[:port]`.
    pub host: String,
    /// Plain HTTP.
    #[serde(default)]
    pub insecure: bool,
    /// Longest time for a request, in seconds; zero: the default, negative: none.
    #[serde(default)]
    pub request_timeout_sec: i64,
}

//! TLS and the HTTP client under everything.

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use reqwest::{Certificate, ClientBuilder, Identity, redirect};

use super::config::{RegistryConfig, TlsConfig};
use super::error::Problem;
use super::proxy;

/// Makes `ring` the process's cryptography; rustls wants to be told once. Later calls do nothing.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Fails only if someone has installed a provider already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// What one host wants beside the configured certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostTls {
    pub(crate) ca_files: Vec<PathBuf>,
    /// The client's certificate, and its key if that is in another file.
    pub(crate) identity: Option<(PathBuf, Option<PathBuf>)>,
    pub(crate) skip_verify: bool,
}

impl HostTls {
    /// All files that it is read from.
    pub(crate) fn files(self) -> Vec<PathBuf> {
        let identity = self.identity.into_iter();
        let identity = identity.flat_map(|(cert, key)| std::iter::once(cert).chain(key));
        self.ca_files.into_iter().chain(identity).collect()
    }
}

/// An HTTP client with the configured limits. It follows no redirect: where one leads must be known,
/// and must not be logged. Blocks on reading certificates.
pub(crate) fn client(config: &RegistryConfig, host: &HostTls) -> Result<reqwest::Client, Problem> {
    install();
    let extra = authorities(&config.tls, host)?;
    let merged = builder(config, host)?
        .tls_certs_merge(extra.clone())
        .build();
    let error = match merged {
        Ok(client) => return Ok(client),
        Err(error) => error.without_url(),
    };
    // A system without root certificates can still speak plain HTTP, or to hosts under `ca_file`.
    let only = builder(config, host)?.tls_certs_only(extra).build();
    let client = only.map_err(|_| setup("TLS", &error))?;
    tracing::warn!(%error, "no root certificates on this system: only the configured authorities are trusted");
    Ok(client)
}

fn builder(config: &RegistryConfig, host: &HostTls) -> Result<ClientBuilder, Problem> {
    let builder = reqwest::Client::builder().no_proxy();
    let builder = proxy::from_environment()?
        .into_iter()
        .fold(builder, ClientBuilder::proxy);
    let builder = builder
        .user_agent(&config.user_agent)
        .redirect(redirect::Policy::none())
        .referer(false)
        .connect_timeout(config.http.dial_timeout)
        .pool_idle_timeout(Duration::from_secs(90))
        .pool_max_idle_per_host(100)
        .tcp_keepalive(Duration::from_secs(30))
        .http2_adaptive_window(true)
        .tls_danger_accept_invalid_certs(config.tls.skip_verify || host.skip_verify);
    Ok(match identity(&config.tls, host)? {
        Some(identity) => builder.identity(identity),
        None => builder,
    })
}

fn authorities(tls: &TlsConfig, host: &HostTls) -> Result<Vec<Certificate>, Problem> {
    let mut certificates = Vec::new();
    for path in tls.ca_file.iter().chain(&host.ca_files) {
        let bundle = Certificate::from_pem_bundle(&read(path)?);
        certificates.extend(bundle.map_err(|error| setup(&path.display().to_string(), &error))?);
    }
    Ok(certificates)
}

fn identity(tls: &TlsConfig, host: &HostTls) -> Result<Option<Identity>, Problem> {
    let (cert, key) = match (&host.identity, &tls.cert_file, &tls.key_file) {
        (Some((cert, key)), _, _) => (cert, key.as_ref()),
        (None, Some(cert), Some(key)) => (cert, Some(key)),
        (None, None, None) => return Ok(None),
        _ => {
            return Err(Problem::Setup {
                detail: String::from(
                    "a client certificate needs both its certificate and its key file",
                ),
            });
        }
    };
    let mut pem = read(cert)?;
    if let Some(key) = key {
        pem.push(b'\n');
        pem.extend(read(key)?);
    }
    Identity::from_pem(&pem)
        .map(Some)
        .map_err(|error| setup(&cert.display().to_string(), &error))
}

fn read(path: &Path) -> Result<Vec<u8>, Problem> {
    std::fs::read(path).map_err(|error| Problem::Setup {
        detail: format!("{}: {error}", path.display()),
    })
}

fn setup(what: &str, error: &reqwest::Error) -> Problem {
    Problem::Setup {
        detail: format!("{what}: {}", root_cause(error)),
    }
}

/// The innermost cause: `reqwest`'s own texts carry the URL, and say little else.
pub(crate) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    match cause.downcast_ref::<reqwest::Error>() {
        Some(_) => String::from("the HTTP client failed"),
        None => cause.to_string(),
    }
}

//! TLS and the HTTP client under everything.

use std::path::Path;
use std::sync::Once;
use std::time::Duration;

use reqwest::{Certificate, ClientBuilder, Identity, redirect};

use super::config::{RegistryConfig, TlsConfig};
use super::error::Problem;

/// Makes `ring` the process's cryptography; rustls wants to be told once. Later calls do nothing.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Fails only if someone has installed a provider already, which serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// An HTTP client with the configured limits. It follows no redirect: where one leads must be known,
/// and must not be logged.
pub(crate) fn client(config: &RegistryConfig) -> Result<reqwest::Client, Problem> {
    install();
    let extra = authorities(&config.tls)?;
    let build = |builder: ClientBuilder| builder.build();
    match build(builder(config)?.tls_certs_merge(extra.clone())) {
        Ok(client) => Ok(client),
        // A system without root certificates can still speak plain HTTP, or to hosts under `ca_file`.
        Err(error) => {
            let client =
                build(builder(config)?.tls_certs_only(extra)).map_err(|_| setup("TLS", &error))?;
            tracing::warn!(
                error = %error.without_url(),
                "no root certificates on this system: only the configured authorities are trusted"
            );
            Ok(client)
        }
    }
}

fn builder(config: &RegistryConfig) -> Result<ClientBuilder, Problem> {
    let builder = reqwest::Client::builder()
        .user_agent(&config.user_agent)
        .redirect(redirect::Policy::none())
        .referer(false)
        .connect_timeout(config.http.dial_timeout)
        .pool_idle_timeout(Duration::from_secs(90))
        .pool_max_idle_per_host(100)
        .tcp_keepalive(Duration::from_secs(30))
        .http2_adaptive_window(true)
        .tls_danger_accept_invalid_certs(config.tls.skip_verify);
    Ok(match identity(&config.tls)? {
        Some(identity) => builder.identity(identity),
        None => builder,
    })
}

fn authorities(tls: &TlsConfig) -> Result<Vec<Certificate>, Problem> {
    let Some(path) = &tls.ca_file else {
        return Ok(Vec::new());
    };
    Certificate::from_pem_bundle(&read(path)?)
        .map_err(|error| setup(&path.display().to_string(), &error))
}

fn identity(tls: &TlsConfig) -> Result<Option<Identity>, Problem> {
    let (cert, key) = match (&tls.cert_file, &tls.key_file) {
        (Some(cert), Some(key)) => (cert, key),
        (None, None) => return Ok(None),
        _ => {
            return Err(Problem::Setup {
                detail: String::from(
                    "a client certificate needs both its certificate and its key file",
                ),
            });
        }
    };
    let mut pem = read(key)?;
    pem.push(b'\n');
    pem.extend(read(cert)?);
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

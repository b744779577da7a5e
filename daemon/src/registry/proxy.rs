//! Proxies by the usual environment variables, but never for this machine: a registry on loopback
//! is not reached through them. (The HTTP client would send even that there.)

use std::env;

use reqwest::{NoProxy, Proxy};

use super::error::Problem;

/// Left out whatever `NO_PROXY` says.
const LOOPBACK: &str = "localhost,127.0.0.0/8,::1";

/// By variable, what it is the proxy of.
const VARIABLES: [(&str, Make); 3] = [
    ("HTTP_PROXY", Proxy::http::<String>),
    ("HTTPS_PROXY", Proxy::https::<String>),
    ("ALL_PROXY", Proxy::all::<String>),
];

type Make = fn(String) -> reqwest::Result<Proxy>;

/// `HTTP_PROXY`, `HTTPS_PROXY` and `ALL_PROXY`, except for the hosts of `NO_PROXY`; in lower case too.
pub(super) fn from_environment() -> Result<Vec<Proxy>, Problem> {
    let except = format!("{LOOPBACK},{}", variable("NO_PROXY").unwrap_or_default());
    let mut proxies = Vec::new();
    for (name, make) in VARIABLES {
        let Some(url) = variable(name) else {
            continue;
        };
        // The value may hold a password.
        let proxy = make(url).map_err(|_| Problem::Setup {
            detail: format!("environment variable {name} is not the URL of a proxy"),
        })?;
        proxies.push(proxy.no_proxy(NoProxy::from_string(&except)));
    }
    Ok(proxies)
}

fn variable(name: &str) -> Option<String> {
    let lower = || env::var(name.to_ascii_lowercase()).ok();
    env::var(name)
        .ok()
        .or_else(lower)
        .filter(|value| !value.is_empty())
}

//! The registry client against a registry whose failures are scripted.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "registry/auth.rs"]
mod auth;
#[path = "registry/debian.rs"]
mod debian;
#[path = "registry/discovery.rs"]
mod discovery;
#[path = "registry/download.rs"]
mod download;
#[path = "registry/manifests.rs"]
mod manifests;
#[path = "registry/ranges.rs"]
mod ranges;

use std::time::Duration;

use daemon::registry::{HttpConfig, Reference, Registry, RegistryConfig};
use integration::registry::ScriptedRegistry;

/// Limits as short as a loopback allows.
fn quick() -> RegistryConfig {
    RegistryConfig {
        http: HttpConfig {
            dial_timeout: Duration::from_secs(1),
            response_header_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(1),
            straggler: Duration::from_secs(30),
            max_retries: 3,
            min_wait: Duration::from_millis(5),
            max_wait: Duration::from_secs(2),
        },
        ..RegistryConfig::default()
    }
}

fn client(config: RegistryConfig) -> Registry {
    Registry::new(config).unwrap()
}

fn image(registry: &ScriptedRegistry, name: &str) -> Reference {
    format!("{}/{name}", registry.host()).parse().unwrap()
}

/// Bytes in which any shift shows.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0])
        .collect()
}

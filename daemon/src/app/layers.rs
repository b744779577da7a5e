//! The side that knows registries and kernels, made from the configuration.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use fuse::MountOptions;
use tokio::runtime::Handle;

use super::root::Root;
use crate::config::{Config, ContentStoreKind, HostConfig, HttpConfig as HttpKeys};
use crate::containerd::Containerd;
use crate::content::{ContainerdStore, ContentStore, OciLayoutStore};
use crate::discovery::{Discovery, Modes};
use crate::images::{ImageLayers, ImageOptions, Sources};
use crate::layer::{LayerOptions, LayerStore};
use crate::metrics::Metrics;
use crate::registry::{DockerConfig, HttpConfig, Mirror, Registry, RegistryConfig};
use crate::snapshot::images::Images;
use crate::view::Views;

/// The namespace whose artifacts a containerd content store shows, unless `CONTAINERD_NAMESPACE`
/// names another.
const NAMESPACE: &str = "default";

/// Fewest further tries for a span whose bytes are wrong. The original's default is none, which
/// makes one flipped bit on the way an I/O error of the container.
const SPAN_RETRIES: u32 = 2;

/// Registry, artifacts, layers and views as `config` wants them, with their state under `root`.
/// Must be called within a runtime; blocks on file I/O.
///
/// # Errors
/// Which part could not be made, and why.
pub fn images(config: &Config, root: &Root, metrics: &Arc<Metrics>) -> Result<Arc<dyn Images>> {
    let runtime = Handle::current();
    let registry = Registry::new(registry_config(config)).context("registry settings")?;
    let content = content_store(config, root.path())?;
    let modes = Modes {
        v1: config.pull_modes.soci_v1.enable,
        v2: config.pull_modes.soci_v2.enable,
    };
    let discovery = Discovery::new(registry.clone(), Arc::clone(&content), modes);
    let layers = LayerStore::start(
        &root.path().join("layers"),
        layer_options(config),
        runtime.clone(),
    )
    .context("cannot open the layers")?;
    metrics.watch(layers.clone());
    let views = root.path().join("views");
    let views = Views::start(&views, MountOptions::new(root.path()), runtime)
        .with_context(|| format!("cannot clear the views in {}", views.display()))?;
    let sources = Sources {
        registry,
        content,
        discovery,
    };
    let options = ImageOptions {
        min_layer_size: config.snapshotter.min_layer_size,
        prepare_timeout: Duration::from_secs(config.mount_timeout_sec),
        ..ImageOptions::default()
    };
    Ok(Arc::new(ImageLayers::new(sources, layers, views, options)))
}

fn content_store(config: &Config, root: &Path) -> Result<Arc<dyn ContentStore>> {
    Ok(match config.content_store.kind {
        ContentStoreKind::Soci => Arc::new(
            OciLayoutStore::open_at(&root.join("content"))
                .context("cannot open the content store")?,
        ),
        ContentStoreKind::Containerd => {
            let address = Path::new(&config.content_store.containerd_address);
            let namespace = std::env::var("CONTAINERD_NAMESPACE");
            let namespace = namespace.as_deref().unwrap_or(NAMESPACE);
            let containerd = Containerd::new(address, namespace)
                .with_context(|| format!("containerd at {}", address.display()))?;
            Arc::new(ContainerdStore::new(containerd))
        }
    })
}

fn layer_options(config: &Config) -> LayerOptions {
    LayerOptions {
        verification_retries: config.blob.max_span_verification_retries.max(SPAN_RETRIES),
        ..LayerOptions::default()
    }
}

fn registry_config(config: &Config) -> RegistryConfig {
    let hosts = &config.resolver.host;
    RegistryConfig {
        mirrors: hosts
            .iter()
            .map(|(host, settings)| (host.clone(), mirrors(settings)))
            .collect(),
        http: http_config(&config.http),
        credentials: DockerConfig::from_env()
            .map(|config| Arc::new(config) as _)
            .into_iter()
            .collect(),
        ..RegistryConfig::default()
    }
}

fn mirrors(host: &HostConfig) -> Vec<Mirror> {
    let mirrors = host.mirrors.iter().map(|mirror| Mirror {
        host: mirror.host.clone(),
        insecure: mirror.insecure,
        request_timeout: match mirror.request_timeout_sec {
            0 => None,
            seconds => Some(u64::try_from(seconds).map_or(Duration::MAX, Duration::from_secs)),
        },
    });
    mirrors.collect()
}

fn http_config(keys: &HttpKeys) -> HttpConfig {
    HttpConfig {
        dial_timeout: Duration::from_millis(keys.dial_timeout_msec),
        response_header_timeout: Duration::from_millis(keys.response_header_timeout_msec),
        request_timeout: Duration::from_millis(keys.request_timeout_msec),
        max_retries: keys.max_retries,
        min_wait: Duration::from_millis(keys.min_wait_msec),
        max_wait: Duration::from_millis(keys.max_wait_msec),
        ..HttpConfig::default()
    }
}

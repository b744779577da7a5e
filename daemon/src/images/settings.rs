//! The layers of a daemon as its configuration file wants them.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use fuse::MountOptions;
use tokio::runtime::Handle;

use super::{ImageLayers, ImageOptions, PullOptions, Sources, WholeImages};
use crate::config::{
    BackgroundFetchConfig, Config, ContentStoreKind, DropPolicy, HostConfig, MirrorConfig,
    ParallelPullConfig, PrefetchConfig,
};
use crate::containerd::Containerd;
use crate::content::{ContainerdStore, ContentStore, OciLayoutStore};
use crate::discovery::{Discovery, Modes};
use crate::layer::{FillOptions, LayerOptions, LayerStore};
use crate::registry::{
    CredentialProvider, DockerConfig, HttpConfig, KubeletProviders, Mirror, PullSecrets, Registry,
    RegistryConfig,
};
use crate::view::Views;
use crate::view::keeper::Keep;

/// The containerd namespace whose content store is used; SOCI artifacts are stored there by
/// `soci --namespace`.
const NAMESPACE: &str = "default";
/// Fewest extra tries for a span whose bytes are wrong: a broken proxy or cache on the way is common
/// enough, and one more request is cheap against a failed read.
const VERIFICATION_RETRIES: u32 = 2;
/// What a negative limit means: 34 years, to which a time of today can still be added.
const NO_LIMIT: Duration = Duration::from_secs(1 << 30);

impl ImageLayers {
    /// Layers kept under `root`, as `config` wants them, with the descriptors of their views kept by `keeper`.
    /// What an earlier daemon mounted is there until it is [adopted](Self::adopt). Must be called within
    /// a runtime, which everything runs on. `credentials` are further sources of them, asked after those of the
    /// configuration file.
    ///
    /// # Errors
    /// What cannot be opened, or which setting is wrong.
    pub fn start(
        root: &Path,
        config: &Config,
        keeper: Arc<dyn Keep>,
        credentials: Vec<Arc<dyn CredentialProvider>>,
    ) -> Result<Self> {
        let runtime = Handle::current();
        let registry = Registry::new(registry(config, credentials))
            .context("cannot set up the registry client")?;
        let content = content(root, config)?;
        let modes = Modes {
            v1: config.pull_modes.soci_v1.enable,
            v2: config.pull_modes.soci_v2.enable,
            compact: config.pull_modes.compact.enable,
        };
        let discovery = Discovery::new(registry.clone(), Arc::clone(&content), modes);
        let layers = LayerStore::start(&root.join("layers"), layers(config), runtime.clone())
            .context("cannot open the layer store")?;
        let views = root.join("views");
        let mut options = MountOptions::new(root);
        options.log_operations = config.fuse.log_fuse_operations || config.debug;
        let large = config.fuse.passthrough_min_file_size.bytes;
        let views = Views::start_kept(&views, options, runtime, keeper)
            .map(|views| views.passing_through((large > 0).then_some(large)))
            .with_context(|| format!("cannot prepare {}", views.display()))?;
        let sources = Sources {
            registry,
            content,
            discovery,
            containerd: containerd(config),
        };
        let staging = root.join("unpack");
        Self::new(sources, layers, views, &staging, images(config))
            .with_context(|| format!("cannot prepare {}", staging.display()))
    }
}

/// Takes over what of `config` can change while the daemon runs: `background_fetch` and `layer_cache`. `false` if
/// a part of it has to wait for the next start. Blocks on file I/O.
pub fn reconfigure(store: &LayerStore, config: &Config) -> bool {
    store.reconfigure(&layers(config))
}

fn content(root: &Path, config: &Config) -> Result<Arc<dyn ContentStore>> {
    Ok(match config.content_store.kind {
        ContentStoreKind::Soci => Arc::new(OciLayoutStore::open_at(&root.join("content"))?),
        ContentStoreKind::Containerd => {
            let address = Path::new(&config.content_store.containerd_address);
            Arc::new(ContainerdStore::new(Containerd::new(address, NAMESPACE)?))
        }
    })
}

/// Where containerd can be asked for what it has.
fn containerd(config: &Config) -> Option<PathBuf> {
    let address = &config.content_store.containerd_address;
    (!address.is_empty()).then(|| PathBuf::from(address))
}

/// Sources of credentials, in the order in which they are asked. Within a runtime.
fn credentials(config: &Config) -> Vec<Arc<dyn CredentialProvider>> {
    let mut all: Vec<Arc<dyn CredentialProvider>> = Vec::new();
    if let Some(docker) = DockerConfig::from_env() {
        all.push(Arc::new(docker));
    }
    let kubelet = &config.kubelet_keychain;
    if !kubelet.config_path.is_empty() {
        let (path, programs) = (&kubelet.config_path, &kubelet.bin_dir);
        all.push(Arc::new(KubeletProviders::new(
            path.into(),
            programs.into(),
        )));
    }
    let cluster = &config.kubeconfig_keychain;
    if cluster.enable_keychain {
        all.push(Arc::new(PullSecrets::start(&cluster.kubeconfig_path)));
    }
    all
}

fn registry(config: &Config, more: Vec<Arc<dyn CredentialProvider>>) -> RegistryConfig {
    let hosts = config.resolver.host.iter();
    let dirs = config.resolver.config_path.split(':');
    let mut credentials = credentials(config);
    credentials.extend(more);
    RegistryConfig {
        hosts_dirs: dirs
            .filter(|dir| !dir.is_empty())
            .map(PathBuf::from)
            .collect(),
        mirrors: hosts
            .map(|(host, known)| (host.clone(), mirrors(known)))
            .collect(),
        http: http(config),
        credentials,
        ..RegistryConfig::default()
    }
}

fn http(config: &Config) -> HttpConfig {
    let http = &config.http;
    HttpConfig {
        dial_timeout: Duration::from_millis(http.dial_timeout_msec),
        response_header_timeout: Duration::from_millis(http.response_header_timeout_msec),
        request_timeout: Duration::from_millis(http.request_timeout_msec),
        max_retries: http.max_retries,
        min_wait: Duration::from_millis(http.min_wait_msec),
        max_wait: Duration::from_millis(http.max_wait_msec),
        ..HttpConfig::default()
    }
}

fn mirrors(host: &HostConfig) -> Vec<Mirror> {
    let mirror = |mirror: &MirrorConfig| Mirror {
        host: mirror.host.clone(),
        insecure: mirror.insecure,
        request_timeout: match u64::try_from(mirror.request_timeout_sec) {
            Ok(0) => None,
            Ok(seconds) => Some(Duration::from_secs(seconds)),
            Err(_) => Some(NO_LIMIT),
        },
    };
    host.mirrors.iter().map(mirror).collect()
}

fn layers(config: &Config) -> LayerOptions {
    let retries = config.blob.max_span_verification_retries;
    LayerOptions {
        verification_retries: retries.max(VERIFICATION_RETRIES),
        fill: fill(&config.background_fetch),
        cache_limit: Some(config.layer_cache.max_size.bytes).filter(|&bytes| bytes > 0),
        ..LayerOptions::default()
    }
}

/// What the original's defaults would slow down goes at once; other values are meant.
fn fill(config: &BackgroundFetchConfig) -> Option<FillOptions> {
    let usual = BackgroundFetchConfig::default();
    let meant = |value: u64, usual: u64| match value {
        value if value == usual => Duration::ZERO,
        value => Duration::from_millis(value).min(NO_LIMIT),
    };
    let fill = FillOptions {
        silence: meant(config.silence_period_msec, usual.silence_period_msec),
        period: meant(config.fetch_period_msec, usual.fetch_period_msec),
        bandwidth: NonZeroU64::new(config.max_bandwidth.bytes),
        most_waiting: usize::try_from(config.max_queue_size).unwrap_or(usize::MAX),
        drop_oldest: config.drop_policy == DropPolicy::Oldest,
    };
    (!config.disable).then_some(fill)
}

fn images(config: &Config) -> ImageOptions {
    let defaults = ImageOptions::default();
    ImageOptions {
        min_layer_size: config.snapshotter.min_layer_size,
        prepare_timeout: match config.mount_timeout_sec {
            0 => defaults.prepare_timeout,
            seconds => Duration::from_secs(seconds),
        },
        whole: whole(&config.pull_modes.parallel_pull_unpack),
        pull: PullOptions {
            ingest: !config
                .pull_modes
                .parallel_pull_unpack
                .discard_unpacked_layers
                && config.content_store.kind == ContentStoreKind::Containerd,
            ..pull(&config.pull_modes.parallel_pull_unpack)
        },
        prefetch: prefetch(&config.prefetch),
        ..defaults
    }
}

fn prefetch(config: &PrefetchConfig) -> Option<usize> {
    let at_once = usize::try_from(config.max_concurrency).unwrap_or(0);
    let at_once = if at_once == 0 { usize::MAX } else { at_once };
    config.enable.then_some(at_once)
}

fn whole(config: &ParallelPullConfig) -> WholeImages {
    match (config.enable, config.experimental_parallel_pull_as_fallback) {
        (true, _) => WholeImages::All,
        (false, true) => WholeImages::Unindexed,
        (false, false) => WholeImages::Never,
    }
}

fn pull(config: &ParallelPullConfig) -> PullOptions {
    let defaults = PullOptions::default();
    // A negative number leaves it to us.
    let limit = |wanted: i64, ours: usize| usize::try_from(wanted).unwrap_or(ours);
    let downloads_per_image = limit(
        config.max_concurrent_downloads_per_image,
        defaults.downloads_per_image,
    );
    let unpacks_per_image = limit(
        config.max_concurrent_unpacks_per_image,
        defaults.unpacks_per_image,
    );
    let ours = |of_all: usize, per_image: usize| of_all.max(per_image);
    PullOptions {
        chunk: match &config.concurrent_download_chunk_size {
            size if size.is_empty() => defaults.chunk,
            size => Some(size.bytes).filter(|bytes| *bytes > 0),
        },
        downloads: limit(
            config.max_concurrent_downloads,
            ours(defaults.downloads, downloads_per_image),
        ),
        unpacks: limit(
            config.max_concurrent_unpacks,
            ours(defaults.unpacks, unpacks_per_image),
        ),
        downloads_per_image,
        unpacks_per_image,
        ..defaults
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parsed(text: &str) -> Config {
        Config::parse(text, Path::new("config.toml")).unwrap().0
    }

    #[test]
    fn the_configuration_file_reaches_the_parts() {
        let config = parsed(
            r#"
            mount_timeout_sec = 7
            [http]
            MaxRetries = 3
            [blob]
            max_span_verification_retries = 5
            [snapshotter]
            min_layer_size = 1000
            [layer_cache]
            max_size = "2gb"
            [[resolver.host."registry.test".mirrors]]
            host = "mirror.test:5000"
            insecure = true
            request_timeout_sec = -1
            "#,
        );
        let registry = registry(&config, Vec::new());
        assert_eq!(registry.http.max_retries, 3);
        let mirror = &registry.mirrors["registry.test"][0];
        assert_eq!((&*mirror.host, mirror.insecure), ("mirror.test:5000", true));
        assert_eq!(mirror.request_timeout, Some(NO_LIMIT));
        assert_eq!(layers(&config).verification_retries, 5);
        assert_eq!(layers(&config).cache_limit, Some(2 << 30));
        let images = images(&config);
        assert_eq!(
            (images.min_layer_size, images.prepare_timeout.as_secs()),
            (1000, 7)
        );
    }

    #[test]
    fn the_fill_goes_at_once_unless_the_file_says_otherwise_than_the_originals_defaults() {
        let filled = |text: &str| fill(&parsed(text).background_fetch);
        assert_eq!(filled(""), Some(FillOptions::default()));
        let usual = "[background_fetch]\nsilence_period_msec = 30000\nfetch_period_msec = 500\n";
        assert_eq!(filled(usual), Some(FillOptions::default()));
        assert_eq!(filled("[background_fetch]\ndisable = true"), None);
        let slow = r#"
            [background_fetch]
            silence_period_msec = 1000
            fetch_period_msec = 250
            max_queue_size = -1
            drop_policy = "oldest"
            max_bandwidth = "10mb"
            "#;
        let expected = FillOptions {
            silence: Duration::from_secs(1),
            period: Duration::from_millis(250),
            bandwidth: NonZeroU64::new(10 << 20),
            most_waiting: usize::MAX,
            drop_oldest: true,
        };
        assert_eq!(filled(slow), Some(expected));
    }

    #[tokio::test]
    async fn the_defaults_start_on_an_empty_root_and_again_on_the_same() {
        let root = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let keeper = Arc::new(crate::view::keeper::Nobody);
            ImageLayers::start(root.path(), &parsed(""), keeper, Vec::new())
                .unwrap()
                .stop()
                .await;
        }
    }
}

//! The configuration file: TOML, with the tables, keys and defaults of the original.
//!
//! Keys are matched without regard to case; unknown ones are reported and ignored; a value that is
//! malformed is fatal, with file and line. Some keys have no effect here and are kept so that a
//! file that served the original serves us.

mod cache;
mod fetch;
mod keychain;
mod parse;
mod pull;
mod reload;
mod traces;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use self::cache::{
    BackgroundFetchConfig, ContentStoreConfig, ContentStoreKind, DirectoryCacheConfig, DropPolicy,
    FuseConfig, LayerCacheConfig, PrefetchConfig,
};
pub use self::fetch::{BlobConfig, HostConfig, HttpConfig, MirrorConfig, ResolverConfig};
pub use self::keychain::{CriKeychainConfig, KubeconfigKeychainConfig, KubeletKeychainConfig};
pub use self::parse::UnknownKey;
pub use self::pull::{
    ByteSize, DecompressStream, MapIds, ParallelPullConfig, PullModeConfig, PullModesConfig,
    SnapshotterConfig,
};
pub use self::reload::Reloader;
pub use self::traces::TracesConfig;

/// Where the file is if the user names none; it may be absent then.
pub const DEFAULT_PATH: &str = "/etc/soci-snapshotter-grpc/config.toml";

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default = "Config::incomplete")]
pub struct Config {
    /// No effect.
    pub http_cache_type: String,
    /// `memory` kept spans in memory; here they are always on disk.
    pub filesystem_cache_type: String,
    /// Layers kept open after their last use. Zero stands for 30.
    pub resolve_result_entry: u32,
    /// Logs every FUSE request.
    pub debug: bool,
    /// No effect: what is read is always verified.
    pub disable_verification: bool,
    /// Layers resolved ahead at once; negative: unlimited. Zero stands for 100.
    pub max_concurrency: i64,
    /// Longest time to provide one layer, in seconds. Zero stands for 30.
    pub mount_timeout_sec: u64,
    /// No effect.
    pub fuse_metrics_emit_wait_duration_sec: u64,
    /// Where metrics are served: `host:port` or the path of a socket; empty: nowhere.
    pub metrics_address: String,
    /// What `metrics_address` is.
    pub metrics_network: Network,
    /// Switches metrics of single layers off.
    pub no_prometheus: bool,
    /// No effect: there is no Go profiler.
    pub debug_address: String,
    /// No effect: file metadata is read from the zTOC.
    pub metadata_store: MetadataStore,
    /// No effect.
    pub metadata_db_no_sync: bool,
    /// No effect. Zero stands for 5000.
    pub metadata_insertion_chunk_size: u32,
    /// Starts even where overlayfs does not work.
    pub skip_check_snapshotter_supported: bool,
    /// Requests to registries.
    pub http: HttpConfig,
    /// Requests for parts of layers.
    pub blob: BlobConfig,
    /// Caches of files.
    pub directory_cache: DirectoryCacheConfig,
    /// What is kept of layers.
    pub layer_cache: LayerCacheConfig,
    /// The FUSE mounts.
    pub fuse: FuseConfig,
    /// Fetching of what no one has asked for yet.
    pub background_fetch: BackgroundFetchConfig,
    /// Where SOCI artifacts are kept.
    pub content_store: ContentStoreConfig,
    /// Fetching of what the image's author says is needed first.
    pub prefetch: PrefetchConfig,
    /// How layers are provided.
    pub pull_modes: PullModesConfig,
    /// Credentials from a kubeconfig.
    pub kubeconfig_keychain: KubeconfigKeychainConfig,
    /// Credentials from the kubelet's pull requests.
    pub cri_keychain: CriKeychainConfig,
    /// Credentials from the kubelet's credential providers.
    pub kubelet_keychain: KubeletKeychainConfig,
    /// Registries and their mirrors.
    pub resolver: ResolverConfig,
    /// The snapshots service.
    pub snapshotter: SnapshotterConfig,
    /// Traces for OpenTelemetry.
    pub traces: TracesConfig,
}

/// Kinds of addresses to listen on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// `host:port`.
    #[default]
    Tcp,
    /// The path of a socket.
    Unix,
}

/// Ways in which the original stores file metadata.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MetadataStore {
    /// One database.
    #[default]
    Db,
    /// One database per layer.
    DbMulti,
}

/// Where metrics are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricsAddress<'c> {
    /// Nowhere.
    Off,
    /// `host:port`.
    Tcp(&'c str),
    /// The path of a socket.
    Unix(&'c str),
}

impl Default for Config {
    fn default() -> Self {
        Self::incomplete().complete()
    }
}

impl Config {
    /// What a file adds to: values that depend on others are still zero.
    fn incomplete() -> Self {
        Self {
            http_cache_type: String::new(),
            filesystem_cache_type: String::new(),
            resolve_result_entry: 30,
            debug: false,
            disable_verification: false,
            max_concurrency: 100,
            mount_timeout_sec: 30,
            fuse_metrics_emit_wait_duration_sec: 60,
            metrics_address: String::new(),
            metrics_network: Network::default(),
            no_prometheus: false,
            debug_address: String::new(),
            metadata_store: MetadataStore::default(),
            metadata_db_no_sync: false,
            metadata_insertion_chunk_size: 5000,
            skip_check_snapshotter_supported: false,
            http: HttpConfig::default(),
            blob: BlobConfig::default(),
            directory_cache: DirectoryCacheConfig::default(),
            layer_cache: LayerCacheConfig::default(),
            fuse: FuseConfig::default(),
            background_fetch: BackgroundFetchConfig::default(),
            content_store: ContentStoreConfig::default(),
            prefetch: PrefetchConfig::default(),
            pull_modes: PullModesConfig::default(),
            kubeconfig_keychain: KubeconfigKeychainConfig::default(),
            cri_keychain: CriKeychainConfig::default(),
            kubelet_keychain: KubeletKeychainConfig::default(),
            resolver: ResolverConfig::default(),
            snapshotter: SnapshotterConfig::default(),
            traces: TracesConfig::default(),
        }
    }

    /// Reads the file at `path`, or the default file if there is one. Answers the keys that it does
    /// not know as well.
    ///
    /// # Errors
    /// The file cannot be read or is malformed; a file that was asked for is missing.
    pub fn load(path: Option<&Path>) -> Result<(Self, Vec<UnknownKey>), ConfigError> {
        let must_be = path.is_some();
        let file = path.unwrap_or_else(|| Path::new(DEFAULT_PATH));
        match std::fs::read_to_string(file) {
            Ok(text) => Self::parse(&text, file),
            Err(error) if !must_be && error.kind() == std::io::ErrorKind::NotFound => {
                Ok((Self::default(), Vec::new()))
            }
            Err(source) => Err(ConfigError::Read {
                path: file.to_owned(),
                source,
            }),
        }
    }

    /// Reads configuration text; `path` is only named in errors.
    ///
    /// # Errors
    /// The text is malformed or contradicts itself.
    pub fn parse(text: &str, path: &Path) -> Result<(Self, Vec<UnknownKey>), ConfigError> {
        let (config, unknown) = parse::parse(text, path)?;
        let config = config.complete();
        let parallel = config.pull_modes.parallel_pull_unpack.check();
        parallel
            .and_then(|()| config.traces.check())
            .map_err(|detail| ConfigError::Contradiction {
                path: path.to_owned(),
                detail,
            })?;
        Ok((config, unknown))
    }

    /// The configuration as TOML.
    ///
    /// # Errors
    /// A value cannot be written in TOML (a number above 2^63).
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// Where metrics are to be served.
    pub fn metrics_address(&self) -> MetricsAddress<'_> {
        match (self.metrics_address.as_str(), self.metrics_network) {
            ("", _) => MetricsAddress::Off,
            (address, Network::Tcp) => MetricsAddress::Tcp(address),
            (address, Network::Unix) => MetricsAddress::Unix(address),
        }
    }

    /// Puts defaults where zero asks for them.
    fn complete(mut self) -> Self {
        replace_zero(&mut self.resolve_result_entry, 30);
        replace_zero(&mut self.max_concurrency, 100);
        replace_zero(&mut self.mount_timeout_sec, 30);
        replace_zero(&mut self.metadata_insertion_chunk_size, 5000);
        self.blob.complete(&self.http);
        self.directory_cache.complete();
        self.fuse.complete();
        self
    }
}

/// Zero is how a file says: as you think best.
fn replace_zero<T: Default + PartialEq>(value: &mut T, default: T) {
    if *value == T::default() {
        *value = default;
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML, or a value is not what its key needs.
    #[error("{path}:{line}: {detail}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        detail: String,
    },
    /// Values that do not go together.
    #[error("{path}: {detail}", path = path.display())]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// Which ones, and why.
        detail: String,
    },
}

#[cfg(test)]
mod tests;

//! Caches, mounts, and what is fetched ahead.

use serde::{Deserialize, Serialize};

use super::{ByteSize, replace_zero};

/// `[directory_cache]`. Here the kernel caches what files hold; kept for the original's files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DirectoryCacheConfig {
    /// No effect. Zero stands for 10.
    pub max_lru_cache_entry: u32,
    /// No effect. Zero stands for 10.
    pub max_cache_fds: u32,
    /// Writes spans to disk before they are answered.
    pub sync_add: bool,
    /// No effect.
    pub direct: bool,
}

impl Default for DirectoryCacheConfig {
    fn default() -> Self {
        Self {
            max_lru_cache_entry: 0,
            max_cache_fds: 0,
            sync_add: false,
            direct: true,
        }
    }
}

impl DirectoryCacheConfig {
    pub(super) fn complete(&mut self) {
        replace_zero(&mut self.max_lru_cache_entry, 10);
        replace_zero(&mut self.max_cache_fds, 10);
    }
}

/// `[layer_cache]`, ours: the spans of layers under `<root>/layers`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LayerCacheConfig {
    /// Most bytes of unpacked layers on disk; empty or zero: as many as there is room for. What was
    /// used longest ago goes, and is fetched again when it is read.
    pub max_size: ByteSize,
}

/// `[fuse]`. Views never change, so the kernel may keep what it learnt: the timeouts have no effect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FuseConfig {
    /// Seconds. Zero stands for 1.
    pub attr_timeout: u64,
    /// Seconds. Zero stands for 1.
    pub entry_timeout: u64,
    /// Seconds. Zero stands for 1.
    pub negative_timeout: u64,
    /// Logs every request.
    pub log_fuse_operations: bool,
    /// Ours: files of at least so many bytes are read by the kernel itself once their layer is complete and proven
    /// (Linux 6.9); empty or zero: none. Each takes its bytes on disk a second time, and in views that have one every
    /// open is a message.
    pub passthrough_min_file_size: ByteSize,
}

impl FuseConfig {
    pub(super) fn complete(&mut self) {
        replace_zero(&mut self.attr_timeout, 1);
        replace_zero(&mut self.entry_timeout, 1);
        replace_zero(&mut self.negative_timeout, 1);
    }
}

/// `[background_fetch]`. Everything is fetched behind what is read, as fast as the line is: a pause of
/// the original's default length is therefore none here, as most files only repeat the defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackgroundFetchConfig {
    /// Fetches only what is read.
    pub disable: bool,
    /// Wait after a view is mounted, in milliseconds; 30000, the original's default: none.
    pub silence_period_msec: u64,
    /// Pause between spans, in milliseconds; 500, the original's default: none.
    pub fetch_period_msec: u64,
    /// Layers waiting; negative: unlimited.
    pub max_queue_size: i64,
    /// Which layer goes when the queue is full.
    pub drop_policy: DropPolicy,
    /// No effect.
    pub emit_metric_period_sec: u64,
    /// Ours: most compressed bytes per second for the whole daemon; empty or zero: no limit.
    pub max_bandwidth: ByteSize,
}

impl Default for BackgroundFetchConfig {
    fn default() -> Self {
        Self {
            disable: false,
            silence_period_msec: 30_000,
            fetch_period_msec: 500,
            max_queue_size: 300,
            drop_policy: DropPolicy::default(),
            emit_metric_period_sec: 10,
            max_bandwidth: ByteSize::default(),
        }
    }
}

/// Which element a full queue loses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DropPolicy {
    /// The one that was to be added.
    #[default]
    Newest,
    /// The one that waited longest.
    Oldest,
}

/// `[content_store]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContentStoreConfig {
    /// Which store.
    #[serde(rename = "type")]
    pub kind: ContentStoreKind,
    /// Socket of containerd.
    pub containerd_address: String,
}

impl Default for ContentStoreConfig {
    fn default() -> Self {
        Self {
            kind: ContentStoreKind::default(),
            containerd_address: "/run/containerd/containerd.sock".to_owned(),
        }
    }
}

/// Stores of SOCI artifacts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContentStoreKind {
    /// `<root>/content`.
    #[default]
    Soci,
    /// containerd's.
    Containerd,
}

/// `[prefetch]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefetchConfig {
    /// Follows the prefetch artifacts of images.
    pub enable: bool,
    /// Layers at once; zero or less: unlimited.
    pub max_concurrency: i64,
}

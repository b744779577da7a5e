//! How layers are provided.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// `[snapshotter]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SnapshotterConfig {
    /// Layers of fewer compressed bytes are unpacked.
    pub min_layer_size: u64,
    /// Who maps the ids of views for containers in user namespaces.
    pub map_ids: MapIds,
    /// No effect: a view that cannot be mounted never keeps the daemon from starting.
    pub allow_invalid_mounts_on_restart: bool,
}

/// Ways in which views show mapped ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MapIds {
    /// The kernel's, if it has one for views, else the views' own.
    #[default]
    Auto,
    /// The kernel's only.
    Kernel,
    /// The views' own.
    Views,
}

/// `[pull_modes]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PullModesConfig {
    /// SOCI indexes found through the registry's referrers.
    pub soci_v1: PullModeConfig,
    /// SOCI indexes named by the image itself.
    pub soci_v2: PullModeConfig,
    /// Compact zTOCs, where an image has them; found in the same ways.
    pub compact: PullModeConfig,
    /// Whole layers, pulled in parallel.
    pub parallel_pull_unpack: ParallelPullConfig,
}

impl Default for PullModesConfig {
    fn default() -> Self {
        Self {
            soci_v1: PullModeConfig { enable: false },
            soci_v2: PullModeConfig { enable: true },
            compact: PullModeConfig { enable: true },
            parallel_pull_unpack: ParallelPullConfig::default(),
        }
    }
}

/// A way to serve layers lazily.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PullModeConfig {
    /// Whether it is used.
    pub enable: bool,
}

/// `[pull_modes.parallel_pull_unpack]`. Negative numbers leave it to us: enough to keep link and processors
/// busy, in bounded memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ParallelPullConfig {
    /// Whether it is used, instead of lazy loading.
    pub enable: bool,
    /// Whether it is used for images without a usable SOCI index; else containerd pulls them.
    pub experimental_parallel_pull_as_fallback: bool,
    /// Requests at once, for all images.
    pub max_concurrent_downloads: i64,
    /// Requests at once for one image.
    pub max_concurrent_downloads_per_image: i64,
    /// Size of a request; zero: a whole layer; empty: as we think best.
    pub concurrent_download_chunk_size: ByteSize,
    /// Layers unpacked at once, each while it is downloaded.
    pub max_concurrent_unpacks: i64,
    /// Layers of one image unpacked at once.
    pub max_concurrent_unpacks_per_image: i64,
    /// Gives containerd no copy of the layers. They get one only if `content_store.type` is
    /// `containerd`.
    pub discard_unpacked_layers: bool,
    /// No effect: layers are decompressed here, while they are downloaded.
    pub decompress_streams: BTreeMap<String, DecompressStream>,
}

impl Default for ParallelPullConfig {
    fn default() -> Self {
        Self {
            enable: false,
            experimental_parallel_pull_as_fallback: true,
            max_concurrent_downloads: -1,
            max_concurrent_downloads_per_image: -1,
            concurrent_download_chunk_size: ByteSize::default(),
            max_concurrent_unpacks: -1,
            max_concurrent_unpacks_per_image: -1,
            discard_unpacked_layers: false,
            decompress_streams: BTreeMap::new(),
        }
    }
}

/// A program that decompresses its standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecompressStream {
    /// Absolute path.
    pub path: String,
    /// Arguments.
    #[serde(default)]
    pub args: Vec<String>,
}

impl ParallelPullConfig {
    /// Says what contradicts itself, if this mode is used at all.
    pub(super) fn check(&self) -> Result<(), String> {
        if !self.enable && !self.experimental_parallel_pull_as_fallback {
            return Ok(());
        }
        check_share(
            "max_concurrent_downloads",
            self.max_concurrent_downloads_per_image,
            self.max_concurrent_downloads,
        )?;
        check_share(
            "max_concurrent_unpacks",
            self.max_concurrent_unpacks_per_image,
            self.max_concurrent_unpacks,
        )?;
        for (compression, stream) in &self.decompress_streams {
            stream
                .check()
                .map_err(|detail| format!("decompress_streams.{compression}: {detail}"))?;
        }
        Ok(())
    }
}

/// An image cannot have more than there is for all. Zero would mean that nothing ever runs.
fn check_share(key: &str, per_image: i64, of_all: i64) -> Result<(), String> {
    if per_image == 0 || of_all == 0 {
        return Err(format!("{key} must not be 0; -1 is unlimited"));
    }
    if per_image > of_all && of_all > 0 {
        return Err(format!(
            "{key}_per_image ({per_image}) is more than {key} ({of_all})"
        ));
    }
    Ok(())
}

impl DecompressStream {
    fn check(&self) -> Result<(), String> {
        if !Path::new(&self.path).is_absolute() {
            return Err(format!("{:?} is not an absolute path", self.path));
        }
        let forbidden = |c: char| r"#%{}\|;&$<>".contains(c) || c == '\0';
        let argument = self
            .args
            .iter()
            .find(|argument| argument.contains(forbidden));
        argument.map_or(Ok(()), |argument| {
            Err(format!(
                r"argument {argument:?} has one of # % {{ }} \ | ; & $ < >"
            ))
        })
    }
}

/// A number of bytes, written as a number and `b`, `kb`, `mb` or `gb` (powers of 1024). Empty: 0.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ByteSize {
    /// The number.
    pub bytes: u64,
    text: String,
}

impl TryFrom<String> for ByteSize {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let lower = text.trim().to_ascii_lowercase();
        let split = lower.find(|c: char| !c.is_ascii_digit());
        let (number, unit) = lower.split_at(split.unwrap_or(lower.len()));
        let shift = match unit.trim() {
            "" | "b" => Some(0),
            "kb" => Some(10),
            "mb" => Some(20),
            "gb" => Some(30),
            _ => None,
        };
        let number = if lower.is_empty() { "0" } else { number };
        let bytes = shift.and_then(|shift| number.parse::<u64>().ok()?.checked_mul(1 << shift));
        let bytes = bytes.ok_or_else(|| format!("{text:?} is no size: write 16mb, for example"))?;
        Ok(Self { bytes, text })
    }
}

impl ByteSize {
    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        self.text.trim().is_empty()
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> Self {
        size.text
    }
}

//! What the daemon reads of a SOCI index.

use std::collections::BTreeMap;

use serde::Deserialize;
use ztoc::Digest;

use crate::registry::Descriptor;

/// Artifact type of a v1 index (`config.mediaType`).
pub const V1_ARTIFACT_TYPE: &str = "application/vnd.amazon.soci.index.v1+json";
/// Artifact type of a v2 index.
pub const V2_ARTIFACT_TYPE: &str = "application/vnd.amazon.soci.index.v2+json";

const ZTOC_MEDIA_TYPE: &str = "application/octet-stream";
const LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";
const SPAN_SIZE: &str = "com.amazon.soci.span-size";
const DISABLE_XATTRS: &str = "com.amazon.soci.disable-xattrs";

/// Most zTOCs taken from one index; image layers are limited to 127 by overlayfs in practice.
const MAX_ENTRIES: usize = 4096;

/// A SOCI index: which layers have a zTOC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SociIndex {
    /// Its digest.
    pub digest: Digest,
    /// One per indexed layer, in the order of the index.
    pub layers: Vec<ZtocRef>,
    /// Prefetch artifacts, which are listed like zTOCs.
    pub prefetch: Vec<ZtocRef>,
}

/// A zTOC as its index describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZtocRef {
    /// The layer it is for.
    pub layer: Digest,
    /// The zTOC's digest.
    pub ztoc: Digest,
    /// The zTOC's size in bytes.
    pub size: u64,
    /// Span size in bytes; absent in older indexes.
    pub span_size: Option<u64>,
    /// The layer has no extended attribute and no opaque directory.
    pub disable_xattrs: bool,
}

/// Why a manifest is not a SOCI index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// It is not JSON of the right shape.
    #[error("malformed: {0}")]
    Json(String),
    /// `config.mediaType` names no known version.
    #[error("unknown index version {0:?}")]
    Version(String),
    /// It names more artifacts than accepted.
    #[error("{0} entries are more than the {MAX_ENTRIES} accepted")]
    TooMany(usize),
    /// A zTOC entry does not say for which layer it is.
    #[error("zTOC {0} names no layer")]
    NoLayer(Digest),
}

#[derive(Deserialize)]
struct Manifest {
    config: Config,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    media_type: String,
}

impl SociIndex {
    /// Reads the bytes of an index, v1 or v2. Entries that are neither zTOCs nor prefetch artifacts are left
    /// out.
    pub fn parse(digest: Digest, bytes: &[u8]) -> Result<Self, IndexError> {
        let manifest: Manifest =
            serde_json::from_slice(bytes).map_err(|error| IndexError::Json(error.to_string()))?;
        if !matches!(
            &*manifest.config.media_type,
            V1_ARTIFACT_TYPE | V2_ARTIFACT_TYPE
        ) {
            return Err(IndexError::Version(
                manifest.config.media_type.chars().take(100).collect(),
            ));
        }
        if manifest.layers.len() > MAX_ENTRIES {
            return Err(IndexError::TooMany(manifest.layers.len()));
        }
        let of_type = |media_type: &'static str| {
            let entries = manifest.layers.iter();
            let entries = entries.filter(move |layer| layer.media_type == media_type);
            entries.map(ZtocRef::read)
        };
        Ok(Self {
            digest,
            layers: of_type(ZTOC_MEDIA_TYPE).collect::<Result<_, _>>()?,
            // An image is no less lazy for a broken hint.
            prefetch: of_type(ztoc::index::PREFETCH).flatten().collect(),
        })
    }

    /// The zTOC of `layer`, if the index has one.
    pub fn ztoc(&self, layer: &Digest) -> Option<&ZtocRef> {
        self.layers.iter().find(|ztoc| ztoc.layer == *layer)
    }
}

impl ZtocRef {
    fn read(descriptor: &Descriptor) -> Result<Self, IndexError> {
        let annotations: &BTreeMap<_, _> = &descriptor.annotations;
        let layer = annotations
            .get(LAYER_DIGEST)
            .and_then(|text| text.parse().ok());
        Ok(Self {
            layer: layer.ok_or(IndexError::NoLayer(descriptor.digest))?,
            ztoc: descriptor.digest,
            size: descriptor.size,
            span_size: annotations
                .get(SPAN_SIZE)
                .and_then(|text| text.parse().ok()),
            disable_xattrs: annotations
                .get(DISABLE_XATTRS)
                .is_some_and(|value| value == "true"),
        })
    }
}

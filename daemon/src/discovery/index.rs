//! What the daemon reads of a SOCI index.

use std::collections::BTreeMap;

use serde::Deserialize;
use ztoc::Digest;
use ztoc::index::{CompactIndex, Head};

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
    /// Compact zTOCs, of a compact index beside this one.
    pub compact: Vec<ZtocRef>,
    /// Prefetch artifacts of layers whose compact zTOC is used.
    pub compact_prefetch: Vec<ZtocRef>,
}

/// A zTOC, compact or not, as its index describes it.
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
    /// How its bytes begin, if it is compact: all that is needed at first.
    pub head: Option<Head>,
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
            compact: Vec::new(),
            compact_prefetch: Vec::new(),
        })
    }

    /// Reads the bytes of a compact index, as if it stood beside an index without zTOCs.
    pub fn parse_compact(digest: Digest, bytes: &[u8]) -> Result<Self, IndexError> {
        let index = CompactIndex::parse(bytes).map_err(|error| match error {
            ztoc::index::IndexError::UnknownVersion(text) => IndexError::Version(text),
            error => IndexError::Json(error.to_string()),
        })?;
        if index.blobs().len() > MAX_ENTRIES {
            return Err(IndexError::TooMany(index.blobs().len()));
        }
        let compact = index.ztocs().iter().map(|listed| ZtocRef {
            layer: listed.ztoc.layer_digest,
            ztoc: listed.ztoc.digest,
            size: listed.ztoc.size,
            span_size: listed.ztoc.span_size.map(ztoc::SpanSize::bytes),
            disable_xattrs: listed.ztoc.disable_xattrs,
            head: Some(listed.head),
        });
        let prefetch = index.prefetch().iter().map(|listed| ZtocRef {
            layer: listed.layer_digest,
            ztoc: listed.digest,
            size: listed.size,
            span_size: None,
            disable_xattrs: false,
            head: None,
        });
        Ok(Self {
            digest,
            layers: Vec::new(),
            prefetch: Vec::new(),
            compact: compact.collect(),
            compact_prefetch: prefetch.collect(),
        })
    }

    /// This index with what `compact`, a compact index, has.
    pub(super) fn beside(self, compact: Self) -> Self {
        Self {
            compact: compact.compact,
            compact_prefetch: compact.compact_prefetch,
            ..self
        }
    }

    /// What the index has for `layer`: the compact zTOC before the zTOC.
    pub fn forms(&self, layer: &Digest) -> Vec<ZtocRef> {
        let compact = self.compact.iter().find(|ztoc| ztoc.layer == *layer);
        compact
            .into_iter()
            .chain(self.ztoc(layer))
            .cloned()
            .collect()
    }

    /// Whether the index has anything for `layer`.
    pub fn has(&self, layer: &Digest) -> bool {
        self.compact.iter().any(|ztoc| ztoc.layer == *layer) || self.ztoc(layer).is_some()
    }

    /// The layers that the index has anything for.
    pub fn indexed(&self) -> impl Iterator<Item = Digest> {
        let compact = self.compact.iter().map(|ztoc| ztoc.layer);
        let others = self.layers.iter().map(|ztoc| ztoc.layer);
        compact.chain(others.filter(|layer| !self.compact.iter().any(|it| it.layer == *layer)))
    }

    /// The prefetch artifacts of the layers that are served by a zTOC of this form.
    pub fn prefetch(&self, compact: bool) -> &[ZtocRef] {
        match compact {
            true => &self.compact_prefetch,
            false => &self.prefetch,
        }
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
            head: None,
        })
    }
}

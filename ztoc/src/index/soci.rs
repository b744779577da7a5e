//! SOCI index v1 and v2.

use std::collections::BTreeMap;

use super::descriptor::{Annotations, Descriptor};
use super::manifest::{DocumentError, Manifest};
use super::{
    BUILD_TOOL, EMPTY_CONFIG, OCI_MANIFEST, PREFETCH, SOCI_INDEX_V1, SOCI_INDEX_V2, ZTOC,
    annotation,
};
use crate::digest::{Digest, ParseDigestError};
use crate::unit::SpanSize;

/// How a SOCI index is tied to its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IndexVersion {
    /// By its `subject`; found by the referrers API.
    V1,
    /// By an annotation of the image manifest.
    V2,
}

impl IndexVersion {
    /// The artifact type, which is also the config's media type.
    pub fn artifact_type(self) -> &'static str {
        match self {
            Self::V1 => SOCI_INDEX_V1,
            Self::V2 => SOCI_INDEX_V2,
        }
    }

    /// The version an artifact type names.
    pub fn from_artifact_type(artifact_type: &str) -> Option<Self> {
        match artifact_type {
            SOCI_INDEX_V1 => Some(Self::V1),
            SOCI_INDEX_V2 => Some(Self::V2),
            _ => None,
        }
    }
}

/// A zTOC as a SOCI index lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZtocDescriptor {
    /// sha256 of the zTOC's bytes.
    pub digest: Digest,
    /// Size of the zTOC in bytes.
    pub size: u64,
    /// The layer it describes.
    pub layer_digest: Digest,
    /// The layer's media type; empty where the index has none.
    pub layer_media_type: String,
    /// The wanted span size. Old indexes lack it; the zTOC itself knows its spans.
    pub span_size: Option<SpanSize>,
    /// The layer has no extended attributes and no opaque directories.
    pub disable_xattrs: bool,
}

/// A prefetch artifact as a SOCI index lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefetchDescriptor {
    /// sha256 of the artifact.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// The layer whose spans it lists.
    pub layer_digest: Digest,
}

/// What a v1 index belongs to: media type, digest and size of the platform's image manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Media type of the image manifest.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// A manifest that is no SOCI index, or one that could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// Not even a manifest.
    #[error("not a SOCI index")]
    Document(#[from] DocumentError),
    /// `config.mediaType` is neither version's.
    #[error("unknown index version: config media type is {0:?}")]
    UnknownVersion(String),
    /// An entry does not say which layer it describes.
    #[error("SOCI index entry {blob} has no {key} annotation", key = annotation::LAYER_DIGEST)]
    NoLayer {
        /// Digest of the entry.
        blob: Digest,
    },
    /// An entry names its layer by something that is no digest.
    #[error("SOCI index entry {blob} names no layer")]
    BadLayer {
        /// Digest of the entry.
        blob: Digest,
        /// What is wrong with it.
        #[source]
        source: ParseDigestError,
    },
    /// An entry of a compact index does not say how its blob begins.
    #[error("compact index entry {blob} does not name its head")]
    NoHead {
        /// Digest of the entry.
        blob: Digest,
    },
    /// Nothing to index.
    #[error("empty index: no layer of the image has a zTOC")]
    Empty,
}

/// A SOCI index: which zTOC describes which layer of one image manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SociIndex {
    version: IndexVersion,
    manifest: Manifest,
    ztocs: Vec<ZtocDescriptor>,
    prefetch: Vec<PrefetchDescriptor>,
}

impl SociIndex {
    /// A v1 index of `subject`. `ztocs` and `prefetch` are in the order of the image's layers.
    pub fn v1(
        subject: &Subject,
        ztocs: Vec<ZtocDescriptor>,
        prefetch: Vec<PrefetchDescriptor>,
    ) -> Result<Self, IndexError> {
        let subject = Descriptor::new(subject.media_type.clone(), subject.digest, subject.size);
        Self::build(IndexVersion::V1, Some(subject), ztocs, prefetch)
    }

    /// A v2 index. `ztocs` and `prefetch` are in the order of the image's layers.
    pub fn v2(
        ztocs: Vec<ZtocDescriptor>,
        prefetch: Vec<PrefetchDescriptor>,
    ) -> Result<Self, IndexError> {
        Self::build(IndexVersion::V2, None, ztocs, prefetch)
    }

    fn build(
        version: IndexVersion,
        subject: Option<Descriptor>,
        ztocs: Vec<ZtocDescriptor>,
        prefetch: Vec<PrefetchDescriptor>,
    ) -> Result<Self, IndexError> {
        if ztocs.is_empty() && prefetch.is_empty() {
            return Err(IndexError::Empty);
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            artifact_type: None,
            config: Descriptor::of(version.artifact_type(), EMPTY_CONFIG),
            layers: (ztocs.iter().map(ZtocDescriptor::descriptor))
                .chain(prefetch.iter().map(PrefetchDescriptor::descriptor))
                .collect(),
            subject,
            annotations: Annotations::from([(
                annotation::BUILD_TOOL.to_owned(),
                BUILD_TOOL.to_owned(),
            )]),
            other: BTreeMap::new(),
        };
        Ok(Self {
            version,
            manifest,
            ztocs,
            prefetch,
        })
    }

    /// Reads an index of either version. Entries of other media types than zTOC and prefetch
    /// artifact are passed over.
    pub fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        let manifest = Manifest::parse(bytes)?;
        let version =
            IndexVersion::from_artifact_type(&manifest.config.media_type).ok_or_else(|| {
                IndexError::UnknownVersion(manifest.config.media_type.chars().take(200).collect())
            })?;
        let (mut ztocs, mut prefetch) = (Vec::new(), Vec::new());
        for entry in &manifest.layers {
            match entry.media_type.as_str() {
                ZTOC => ztocs.push(ZtocDescriptor::parse(entry)?),
                PREFETCH => prefetch.push(PrefetchDescriptor::parse(entry)?),
                _ => {}
            }
        }
        Ok(Self {
            version,
            manifest,
            ztocs,
            prefetch,
        })
    }

    /// The canonical bytes. For an index that was read these are the bytes it should have had:
    /// store what was read, not this.
    pub fn encode(&self) -> Vec<u8> {
        self.manifest.encode()
    }

    /// The version.
    pub fn version(&self) -> IndexVersion {
        self.version
    }

    /// All zTOCs, in layer order.
    pub fn ztocs(&self) -> &[ZtocDescriptor] {
        &self.ztocs
    }

    /// All prefetch artifacts, in layer order.
    pub fn prefetch(&self) -> &[PrefetchDescriptor] {
        &self.prefetch
    }

    /// The zTOC of a layer.
    pub fn ztoc_of(&self, layer: Digest) -> Option<&ZtocDescriptor> {
        self.ztocs.iter().find(|ztoc| ztoc.layer_digest == layer)
    }

    /// The image manifest a v1 index belongs to.
    pub fn subject(&self) -> Option<&Descriptor> {
        self.manifest.subject.as_ref()
    }

    /// The config blob's descriptor.
    pub fn config(&self) -> &Descriptor {
        &self.manifest.config
    }

    /// Descriptors of everything the index lists, as it lists them.
    pub fn blobs(&self) -> &[Descriptor] {
        &self.manifest.layers
    }
}

impl ZtocDescriptor {
    pub(super) fn descriptor(&self) -> Descriptor {
        let mut descriptor = Descriptor::new(ZTOC, self.digest, self.size);
        let mut annotate = |key: &str, value: String| {
            descriptor.annotations.insert(key.to_owned(), value);
        };
        annotate(annotation::LAYER_DIGEST, self.layer_digest.to_string());
        annotate(annotation::LAYER_MEDIA_TYPE, self.layer_media_type.clone());
        if let Some(span_size) = self.span_size {
            annotate(annotation::SPAN_SIZE, span_size.bytes().to_string());
        }
        if self.disable_xattrs {
            annotate(annotation::DISABLE_XATTRS, "true".to_owned());
        }
        descriptor
    }

    pub(super) fn parse(entry: &Descriptor) -> Result<Self, IndexError> {
        let text = |key| entry.annotation(key).unwrap_or_default();
        Ok(Self {
            digest: entry.digest,
            size: entry.size,
            layer_digest: layer_of(entry)?,
            layer_media_type: text(annotation::LAYER_MEDIA_TYPE).to_owned(),
            span_size: text(annotation::SPAN_SIZE)
                .parse()
                .ok()
                .and_then(SpanSize::new),
            disable_xattrs: text(annotation::DISABLE_XATTRS) == "true",
        })
    }
}

impl PrefetchDescriptor {
    pub(super) fn descriptor(&self) -> Descriptor {
        let mut descriptor = Descriptor::new(PREFETCH, self.digest, self.size);
        descriptor.annotations.insert(
            annotation::LAYER_DIGEST.to_owned(),
            self.layer_digest.to_string(),
        );
        descriptor
    }

    pub(super) fn parse(entry: &Descriptor) -> Result<Self, IndexError> {
        Ok(Self {
            digest: entry.digest,
            size: entry.size,
            layer_digest: layer_of(entry)?,
        })
    }
}

fn layer_of(entry: &Descriptor) -> Result<Digest, IndexError> {
    entry
        .annotation(annotation::LAYER_DIGEST)
        .ok_or(IndexError::NoLayer { blob: entry.digest })?
        .parse()
        .map_err(|source| IndexError::BadLayer {
            blob: entry.digest,
            source,
        })
}

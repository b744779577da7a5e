//! Indexes, zTOCs and image manifests: from the content store, else from the registry.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use ztoc::Digest;
use ztoc::index::{Head, annotation};

use super::DiscoveryError;
use super::index::{IndexError, SociIndex, ZtocRef};
use crate::content::{ContentStore, Labels};
use crate::registry::{Descriptor, MAX_MANIFEST_SIZE, Reference, Registry, media_type};

/// Largest zTOC accepted, in bytes. A checkpoint is 32 KiB per 4 MiB of layer at the default span size, so that
/// this is enough for a layer of 50 GB.
pub const MAX_ZTOC_SIZE: u64 = 512 << 20;

/// A body of a compact zTOC that comes with the head in one request, in bytes: what the line carries while a request is answered.
const SMALL_BODY: u64 = 32 << 10;

/// On an image manifest: its v2 SOCI index.
const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";
const GC_ROOT: &str = "containerd.io/gc.root";
const GC_CONFIG: &str = "containerd.io/gc.ref.content.config";
const GC_ZTOC: &str = "containerd.io/gc.ref.content.ztoc.";
/// Digest of the empty config `{}` of every SOCI index.
const EMPTY_CONFIG: &str =
    "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

/// Reads artifacts.
#[derive(Debug)]
pub(super) struct Artifacts {
    registry: Registry,
    store: Arc<dyn ContentStore>,
}

/// What the annotations of an image manifest name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Annotated {
    pub(super) soci: Option<Digest>,
    pub(super) compact: Option<Digest>,
}

#[derive(Deserialize)]
struct ImageManifest {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl Artifacts {
    pub(super) fn new(registry: Registry, store: Arc<dyn ContentStore>) -> Self {
        Self { registry, store }
    }

    /// The indexes that the image manifest's annotations name; `bytes` are the manifest's, if they are known.
    pub(super) async fn annotated_indexes(
        &self,
        image: &Reference,
        manifest: Digest,
        bytes: Option<Bytes>,
    ) -> Result<Annotated, DiscoveryError> {
        let stored = match bytes {
            Some(bytes) => Some(bytes),
            None => self.stored(&manifest, MAX_MANIFEST_SIZE).await,
        };
        let bytes = match stored {
            Some(bytes) => bytes,
            None => self.registry.manifest(image, &manifest).await?.bytes,
        };
        annotated(&bytes).map_err(|detail| DiscoveryError::Manifest {
            digest: manifest,
            detail,
        })
    }

    /// The first index of this type among the manifest's referrers.
    pub(super) async fn referring_index(
        &self,
        image: &Reference,
        manifest: Digest,
        artifact_type: &str,
    ) -> Result<Option<Digest>, DiscoveryError> {
        let referrers = self
            .registry
            .referrers(image, &manifest, artifact_type)
            .await?;
        Ok(referrers.first().map(|descriptor| descriptor.digest))
    }

    pub(super) async fn index(
        &self,
        image: &Reference,
        digest: Digest,
    ) -> Result<SociIndex, DiscoveryError> {
        tracing::info!(%digest, %image, "fetching SOCI artifacts using index descriptor");
        self.manifest(image, digest, SociIndex::parse).await
    }

    /// A compact index, as an index that has nothing else.
    pub(super) async fn compact_index(
        &self,
        image: &Reference,
        digest: Digest,
    ) -> Result<SociIndex, DiscoveryError> {
        self.manifest(image, digest, SociIndex::parse_compact).await
    }

    async fn manifest(
        &self,
        image: &Reference,
        digest: Digest,
        parse: fn(Digest, &[u8]) -> Result<SociIndex, IndexError>,
    ) -> Result<SociIndex, DiscoveryError> {
        let parse = |bytes: &[u8]| {
            parse(digest, bytes).map_err(|error| DiscoveryError::Index { digest, error })
        };
        if let Some(bytes) = self.stored(&digest, MAX_MANIFEST_SIZE).await {
            return parse(&bytes);
        }
        let resolved = self.registry.manifest(image, &digest).await?;
        let index = parse(&resolved.bytes)?;
        self.keep(&resolved.descriptor, resolved.bytes, &labels(&index))
            .await;
        Ok(index)
    }

    pub(super) async fn ztoc(
        &self,
        image: &Reference,
        ztoc: &ZtocRef,
    ) -> Result<Bytes, DiscoveryError> {
        let wrong_size = |size: u64, limit: u64| DiscoveryError::ZtocSize {
            digest: ztoc.ztoc,
            size,
            limit,
        };
        if ztoc.size > MAX_ZTOC_SIZE {
            return Err(wrong_size(ztoc.size, MAX_ZTOC_SIZE));
        }
        if let Some(bytes) = self.stored(&ztoc.ztoc, ztoc.size).await {
            return Ok(bytes);
        }
        let bytes = self.registry.fetch(image, &ztoc.ztoc, ztoc.size).await?;
        if bytes.len() as u64 != ztoc.size {
            return Err(wrong_size(bytes.len() as u64, ztoc.size));
        }
        let descriptor = Descriptor {
            media_type: media_type::OCTET_STREAM.to_owned(),
            digest: ztoc.ztoc,
            size: ztoc.size,
            annotations: BTreeMap::new(),
            artifact_type: None,
        };
        self.keep(&descriptor, bytes.clone(), &Labels::new()).await;
        Ok(bytes)
    }

    /// The head of a compact zTOC, or all of it where that is hardly more or the store has it. Verified.
    pub(super) async fn head(
        &self,
        image: &Reference,
        ztoc: &ZtocRef,
        head: &Head,
    ) -> Result<Bytes, DiscoveryError> {
        if ztoc.size.saturating_sub(head.size) <= SMALL_BODY {
            return self.ztoc(image, ztoc).await;
        }
        if let Some(bytes) = self.stored(&ztoc.ztoc, ztoc.size.min(MAX_ZTOC_SIZE)).await {
            return Ok(bytes);
        }
        let blob = self.registry.blob(image, &ztoc.ztoc, ztoc.size);
        let bytes = blob.read(0..head.size).await?;
        // Some hundred KiB: too much for a thread of the runtime.
        let hash = bytes.clone();
        let actual = tokio::task::spawn_blocking(move || Digest::of(&hash)).await;
        match actual {
            Ok(actual) if actual == head.digest => Ok(bytes),
            _ => Err(DiscoveryError::Head {
                digest: ztoc.ztoc,
                head: head.digest,
            }),
        }
    }

    /// What the store has; a store that fails is no reason not to ask the registry.
    async fn stored(&self, digest: &Digest, limit: u64) -> Option<Bytes> {
        match self.store.get(digest, limit).await {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(%error, "content store unusable, asking the registry");
                None
            }
        }
    }

    /// Stores what was fetched; it serves without being stored as well.
    async fn keep(&self, descriptor: &Descriptor, bytes: Bytes, labels: &Labels) {
        if let Err(error) = self.store.put(descriptor, bytes, labels).await {
            tracing::warn!(%error, "a fetched SOCI artifact could not be stored");
        }
    }
}

/// What a manifest's annotations name, or what is wrong with them.
fn annotated(manifest: &[u8]) -> Result<Annotated, String> {
    let parsed: ImageManifest =
        serde_json::from_slice(manifest).map_err(|error| error.to_string())?;
    let annotations = parsed.annotations.unwrap_or_default();
    let named = annotations.get(INDEX_DIGEST);
    let digest = named.map(|text| text.parse()).transpose();
    let soci = digest.map_err(|error| format!("annotation {INDEX_DIGEST}: {error}"))?;
    // An image is no less lazy for a wrong name of something that another can do without.
    let compact = annotations.get(annotation::COMPACT_INDEX_DIGEST);
    let compact = compact.and_then(|text| text.parse().ok());
    Ok(Annotated { soci, compact })
}

/// For [`crate::hostile`]: some manifest.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(bytes: &[u8]) {
    let named = annotated(bytes);
    assert!(named.is_ok() || named.is_err_and(|detail| detail.len() < 1000));
}

/// What keeps an index and its zTOCs from containerd's garbage collector.
fn labels(index: &SociIndex) -> Labels {
    let now = OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .unwrap_or_default();
    let whole = index.layers.iter().chain(&index.prefetch);
    // Compact zTOCs are kept with their layers, and not in the store.
    let ztocs = whole.chain(&index.compact_prefetch).enumerate();
    let mut labels: Labels = ztocs
        .map(|(number, ztoc)| (format!("{GC_ZTOC}{number}"), ztoc.ztoc.to_string()))
        .collect();
    labels.insert(GC_ROOT.to_owned(), now);
    labels.insert(GC_CONFIG.to_owned(), EMPTY_CONFIG.to_owned());
    labels
}

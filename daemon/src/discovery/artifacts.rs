//! Indexes, zTOCs and image manifests: from the content store, else from the registry.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use ztoc::Digest;

use super::DiscoveryError;
use super::index::{SociIndex, V1_ARTIFACT_TYPE, ZtocRef};
use crate::content::{ContentStore, Labels};
use crate::registry::{Descriptor, MAX_MANIFEST_SIZE, Reference, Registry, media_type};

/// Largest zTOC accepted, in bytes. A checkpoint is 32 KiB per 4 MiB of layer at the default span size, so that
/// this is enough for a layer of 50 GB.
pub const MAX_ZTOC_SIZE: u64 = 512 << 20;

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

#[derive(Deserialize)]
struct ImageManifest {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl Artifacts {
    pub(super) fn new(registry: Registry, store: Arc<dyn ContentStore>) -> Self {
        Self { registry, store }
    }

    /// The index that the image manifest's annotation names; `bytes` are the manifest's, if they are known.
    pub(super) async fn annotated_index(
        &self,
        image: &Reference,
        manifest: Digest,
        bytes: Option<Bytes>,
    ) -> Result<Option<Digest>, DiscoveryError> {
        let stored = match bytes {
            Some(bytes) => Some(bytes),
            None => self.stored(&manifest, MAX_MANIFEST_SIZE).await,
        };
        let bytes = match stored {
            Some(bytes) => bytes,
            None => self.registry.manifest(image, &manifest).await?.bytes,
        };
        named_index(&bytes).map_err(|detail| DiscoveryError::Manifest {
            digest: manifest,
            detail,
        })
    }

    /// The first v1 index among the manifest's referrers.
    pub(super) async fn referring_index(
        &self,
        image: &Reference,
        manifest: Digest,
    ) -> Result<Option<Digest>, DiscoveryError> {
        let referrers = self
            .registry
            .referrers(image, &manifest, V1_ARTIFACT_TYPE)
            .await?;
        Ok(referrers.first().map(|descriptor| descriptor.digest))
    }

    pub(super) async fn index(
        &self,
        image: &Reference,
        digest: Digest,
    ) -> Result<SociIndex, DiscoveryError> {
        tracing::info!(%digest, %image, "fetching SOCI artifacts using index descriptor");
        let parse = |bytes: &[u8]| {
            SociIndex::parse(digest, bytes).map_err(|error| DiscoveryError::Index { digest, error })
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

/// The index that a manifest's annotation names, or what is wrong with it.
fn named_index(manifest: &[u8]) -> Result<Option<Digest>, String> {
    let parsed: ImageManifest =
        serde_json::from_slice(manifest).map_err(|error| error.to_string())?;
    let named = parsed.annotations.unwrap_or_default().remove(INDEX_DIGEST);
    let digest = named.map(|text| text.parse()).transpose();
    digest.map_err(|error| format!("annotation {INDEX_DIGEST}: {error}"))
}

/// For [`crate::hostile`]: some manifest.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(bytes: &[u8]) {
    let named = named_index(bytes);
    assert!(named.is_ok() || named.is_err_and(|detail| detail.len() < 1000));
}

/// What keeps an index and its zTOCs from containerd's garbage collector.
fn labels(index: &SociIndex) -> Labels {
    let now = OffsetDateTime::now_utc()
        .format(&Rfc3339)
        .unwrap_or_default();
    let ztocs = index.layers.iter().chain(&index.prefetch).enumerate();
    let mut labels: Labels = ztocs
        .map(|(number, ztoc)| (format!("{GC_ZTOC}{number}"), ztoc.ztoc.to_string()))
        .collect();
    labels.insert(GC_ROOT.to_owned(), now);
    labels.insert(GC_CONFIG.to_owned(), EMPTY_CONFIG.to_owned());
    labels
}

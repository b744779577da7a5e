//! What an image's manifest and configuration say about its layers.

use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use serde::Deserialize;
use ztoc::Digest;

use super::node_content::NodeContent;
use crate::registry::flight::Flights;
use crate::registry::{Descriptor, MAX_MANIFEST_SIZE, Registry};
use crate::snapshot::images::LayerRequest;

/// Images remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(128).expect("not zero");

/// Layers of an image; with more it could not be mounted, and nothing is known of it here.
const MAX_LAYERS: usize = 1024;

/// Reads manifests and configurations, each once at a time, and remembers them.
#[derive(Debug)]
pub(super) struct Manifests {
    shared: Arc<Shared>,
    manifests: Flights<Digest, Option<Arc<Manifest>>>,
    known: Mutex<LruCache<Digest, Arc<Manifest>>>,
    diff_ids: Mutex<LruCache<Digest, Arc<Vec<Digest>>>>,
}

/// A layer as manifest and configuration describe it.
#[derive(Debug, Clone)]
pub(super) struct KnownLayer {
    /// Digest of the blob.
    pub(super) digest: Digest,
    /// Its bytes.
    pub(super) size: Option<u64>,
    /// Digest of the tar in it.
    pub(super) diff_id: Option<Digest>,
}

impl KnownLayer {
    /// Nothing is known of the layer but its digest.
    pub(super) fn unknown(digest: Digest) -> Self {
        Self {
            digest,
            size: None,
            diff_id: None,
        }
    }
}

#[derive(Debug)]
struct Shared {
    registry: Registry,
    content: Arc<NodeContent>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

impl Manifests {
    pub(super) fn new(registry: Registry, content: Arc<NodeContent>) -> Self {
        Self {
            shared: Arc::new(Shared { registry, content }),
            manifests: Flights::new(),
            known: Mutex::new(LruCache::new(REMEMBERED)),
            diff_ids: Mutex::new(LruCache::new(REMEMBERED)),
        }
    }

    /// The bytes of the image's manifest, if this node has them.
    pub(super) fn here(
        &self,
        request: &LayerRequest,
    ) -> impl Future<Output = Option<Bytes>> + Send + 'static {
        let (shared, request) = (Arc::clone(&self.shared), request.clone());
        async move {
            let digest = request.manifest.or_else(|| request.image.digest())?;
            shared.stored(&request, &digest).await
        }
    }

    /// Compressed size of the layer, if the manifest can be had. It is only a check, so a failure is
    /// no more than a missing check.
    pub(super) async fn size(&self, request: &LayerRequest) -> Option<u64> {
        let manifest = self.manifest(request).await?;
        let mut layers = manifest.layers.iter();
        let layer = layers.find(|layer| layer.digest == request.layer)?;
        Some(layer.size)
    }

    /// All layers of the image, lowest first, if the manifest can be had and has the one requested.
    /// Without the configuration, no diff ID is known: the digest of the blob still decides.
    pub(super) async fn layers(&self, request: &LayerRequest) -> Option<Vec<KnownLayer>> {
        let manifest = self.manifest(request).await?;
        let mut layers = manifest.layers.iter();
        layers.find(|layer| layer.digest == request.layer)?;
        let config = manifest.config.digest;
        let known = self.diff_ids.lock().get(&config).cloned();
        let diff_ids = match known {
            Some(diff_ids) => Some(diff_ids),
            None => self.shared.diff_ids(request, &config).await.map(Arc::new),
        };
        if let Some(diff_ids) = &diff_ids {
            self.diff_ids.lock().put(config, Arc::clone(diff_ids));
        }
        let diff_ids = diff_ids.filter(|diff_ids| diff_ids.len() == manifest.layers.len());
        let known = manifest
            .layers
            .iter()
            .enumerate()
            .map(|(at, layer)| KnownLayer {
                digest: layer.digest,
                size: Some(layer.size),
                diff_id: diff_ids
                    .as_ref()
                    .and_then(|diff_ids| diff_ids.get(at).copied()),
            });
        Some(known.collect())
    }

    /// The diff ID of the layer, if the image's configuration can be had.
    pub(super) async fn diff_id(&self, request: &LayerRequest) -> Option<Digest> {
        let layers = self.layers(request).await?;
        let same = |layer: &&KnownLayer| layer.digest == request.layer;
        layers.iter().find(same)?.diff_id
    }

    async fn manifest(&self, request: &LayerRequest) -> Option<Arc<Manifest>> {
        let digest = request.manifest.or_else(|| request.image.digest())?;
        if let Some(known) = self.known.lock().get(&digest) {
            return Some(Arc::clone(known));
        }
        let work = || {
            let (shared, request) = (Arc::clone(&self.shared), request.clone());
            async move { shared.manifest(&request, &digest).await.map(Arc::new) }
        };
        let manifest = self.manifests.join(digest, work).await?;
        self.known.lock().put(digest, Arc::clone(&manifest));
        Some(manifest)
    }
}

impl Shared {
    async fn manifest(&self, request: &LayerRequest, digest: &Digest) -> Option<Manifest> {
        let bytes = match self.stored(request, digest).await {
            Some(bytes) => bytes,
            None => {
                let fetched = self.registry.manifest(&request.image, digest).await;
                fetched.ok()?.bytes
            }
        };
        parse_manifest(&bytes)
    }

    async fn diff_ids(&self, request: &LayerRequest, config: &Digest) -> Option<Vec<Digest>> {
        let bytes = match self.stored(request, config).await {
            Some(bytes) => bytes,
            None => {
                let fetched = self
                    .registry
                    .fetch(&request.image, config, MAX_MANIFEST_SIZE);
                fetched.await.ok()?
            }
        };
        parse_diff_ids(&bytes)
    }

    async fn stored(&self, request: &LayerRequest, digest: &Digest) -> Option<Bytes> {
        let content = &self.content;
        content
            .get(&request.namespace, digest, MAX_MANIFEST_SIZE)
            .await
    }
}

fn parse_manifest(bytes: &[u8]) -> Option<Manifest> {
    let manifest: Manifest = serde_json::from_slice(bytes).ok()?;
    (manifest.layers.len() <= MAX_LAYERS).then_some(manifest)
}

fn parse_diff_ids(bytes: &[u8]) -> Option<Vec<Digest>> {
    let config: Config = serde_json::from_slice(bytes).ok()?;
    let diff_ids = config.rootfs.diff_ids;
    if diff_ids.len() > MAX_LAYERS {
        return None;
    }
    diff_ids.iter().map(|text| text.parse().ok()).collect()
}

/// For [`crate::hostile`]: some document.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(bytes: &[u8]) {
    let _ = parse_manifest(bytes).map(|manifest| assert!(manifest.layers.len() <= MAX_LAYERS));
    let _ = parse_diff_ids(bytes).map(|diff_ids| assert!(diff_ids.len() <= MAX_LAYERS));
}

//! What an image's manifest and configuration say about its layers.

use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use serde::Deserialize;
use ztoc::Digest;

use crate::content::ContentStore;
use crate::registry::flight::Flights;
use crate::registry::{Descriptor, MAX_MANIFEST_SIZE, Reference, Registry};
use crate::snapshot::images::LayerRequest;

/// Images remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(128).expect("not zero");

/// Reads manifests and configurations, each once at a time, and remembers them.
#[derive(Debug)]
pub(super) struct Manifests {
    shared: Arc<Shared>,
    manifests: Flights<Digest, Option<Arc<Manifest>>>,
    known: Mutex<LruCache<Digest, Arc<Manifest>>>,
    diff_ids: Mutex<LruCache<Digest, Arc<Vec<Digest>>>>,
}

#[derive(Debug)]
struct Shared {
    registry: Registry,
    content: Arc<dyn ContentStore>,
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
    pub(super) fn new(registry: Registry, content: Arc<dyn ContentStore>) -> Self {
        Self {
            shared: Arc::new(Shared { registry, content }),
            manifests: Flights::new(),
            known: Mutex::new(LruCache::new(REMEMBERED)),
            diff_ids: Mutex::new(LruCache::new(REMEMBERED)),
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

    /// Digest of the layer's tar, if manifest and configuration can be had. Without it the digest of
    /// the blob still decides.
    pub(super) async fn diff_id(&self, request: &LayerRequest) -> Option<Digest> {
        let manifest = self.manifest(request).await?;
        let mut layers = manifest.layers.iter();
        let position = layers.position(|layer| layer.digest == request.layer)?;
        let config = manifest.config.digest;
        let known = self.diff_ids.lock().get(&config).cloned();
        let diff_ids = match known {
            Some(diff_ids) => diff_ids,
            None => {
                let diff_ids = Arc::new(self.shared.diff_ids(&request.image, &config).await?);
                self.diff_ids.lock().put(config, Arc::clone(&diff_ids));
                diff_ids
            }
        };
        diff_ids
            .get(position)
            .copied()
            .filter(|_| diff_ids.len() == manifest.layers.len())
    }

    async fn manifest(&self, request: &LayerRequest) -> Option<Arc<Manifest>> {
        let digest = request.manifest.or_else(|| request.image.digest())?;
        if let Some(known) = self.known.lock().get(&digest) {
            return Some(Arc::clone(known));
        }
        let work = || {
            let (shared, image) = (Arc::clone(&self.shared), request.image.clone());
            async move { shared.manifest(&image, &digest).await.map(Arc::new) }
        };
        let manifest = self.manifests.join(digest, work).await?;
        self.known.lock().put(digest, Arc::clone(&manifest));
        Some(manifest)
    }
}

impl Shared {
    async fn manifest(&self, image: &Reference, digest: &Digest) -> Option<Manifest> {
        let bytes = match self.stored(digest).await {
            Some(bytes) => bytes,
            None => self.registry.manifest(image, digest).await.ok()?.bytes,
        };
        serde_json::from_slice(&bytes).ok()
    }

    async fn diff_ids(&self, image: &Reference, config: &Digest) -> Option<Vec<Digest>> {
        let bytes = match self.stored(config).await {
            Some(bytes) => bytes,
            None => {
                let fetched = self.registry.fetch(image, config, MAX_MANIFEST_SIZE).await;
                fetched.ok()?
            }
        };
        let config: Config = serde_json::from_slice(&bytes).ok()?;
        let parsed = config.rootfs.diff_ids.iter().map(|text| text.parse().ok());
        parsed.collect()
    }

    async fn stored(&self, digest: &Digest) -> Option<Bytes> {
        self.content
            .get(digest, MAX_MANIFEST_SIZE)
            .await
            .ok()
            .flatten()
    }
}

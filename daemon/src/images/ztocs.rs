//! zTOCs on their way into the layer store.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use ztoc::Digest;

use crate::content::ContentStore;
use crate::discovery::{Discovery, SociIndex, ZtocRef};
use crate::layer::{LayerStore, NewLayer};
use crate::registry::flight::Flights;
use crate::registry::{MAX_MANIFEST_SIZE, Reference};
use crate::snapshot::images::NotLazy;

/// Most pieces of content looked at to find the index of a layer whose zTOC is gone.
const MOST_SEARCHED: usize = 10_000;

/// Fetches, checks and stores zTOCs, each once at a time. Clones share that.
#[derive(Debug, Clone)]
pub(super) struct Ztocs {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    discovery: Discovery,
    content: Arc<dyn ContentStore>,
    layers: LayerStore,
    flights: Flights<Digest, Result<(), NotLazy>>,
    ahead: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Ztocs {
    pub(super) fn new(
        discovery: Discovery,
        content: Arc<dyn ContentStore>,
        layers: LayerStore,
        ahead: usize,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                discovery,
                content,
                layers,
                flights: Flights::new(),
                ahead: Arc::new(Semaphore::new(ahead.max(1))),
                tasks: TaskTracker::new(),
                stop: CancellationToken::new(),
            }),
        }
    }

    /// Ends what is fetched ahead.
    pub(super) async fn stop(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// Has the zTOC stored for its layer, which has `size` compressed bytes.
    pub(super) async fn ensure(
        &self,
        image: &Reference,
        ztoc: &ZtocRef,
        size: Option<u64>,
    ) -> Result<(), NotLazy> {
        let work = || {
            let (shared, image, ztoc) = (Arc::clone(&self.shared), image.clone(), ztoc.clone());
            async move { shared.store(&image, &ztoc, size).await }
        };
        let stored = self.shared.flights.join(ztoc.layer, work).await;
        if size.is_none() {
            return stored;
        }
        // Whoever fetched it ahead did not know the layer's size.
        stored?;
        self.shared.check_size(ztoc, size).await
    }

    /// Begins to fetch the zTOCs of all layers that `index` knows and that are not here, a few at a time.
    pub(super) fn fetch_ahead(&self, image: &Reference, index: &Arc<SociIndex>) {
        for ztoc in &index.layers {
            let (this, image, ztoc) = (self.clone(), image.clone(), ztoc.clone());
            let work = async move {
                let _turn = Arc::clone(&this.shared.ahead).acquire_owned().await;
                // A failure is told to whoever prepares the layer: it is tried again then.
                let _ = this.ensure(&image, &ztoc, None).await;
            };
            let stop = self.shared.stop.clone();
            self.shared.tasks.spawn(async move {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {}
                    () = work => {}
                }
            });
        }
    }

    /// Stores the zTOC of a layer anew, found by an index in the content store.
    pub(super) async fn recover(&self, image: &Reference, layer: &Digest) -> Result<(), NotLazy> {
        let Some(ztoc) = self.shared.search(layer).await else {
            return Err(unusable("no index in the content store names the layer"));
        };
        let removed = self.shared.layers.remove(layer).await;
        removed.map_err(unusable)?;
        self.ensure(image, &ztoc, None).await
    }
}

impl Shared {
    async fn store(
        &self,
        image: &Reference,
        ztoc: &ZtocRef,
        size: Option<u64>,
    ) -> Result<(), NotLazy> {
        if let Some(stored) = self.stored(ztoc.layer).await {
            if stored != ztoc.ztoc {
                tracing::info!(
                    layer = %ztoc.layer, %stored, named = %ztoc.ztoc, %image,
                    "the layer is served by the zTOC of an earlier image"
                );
            }
            return Ok(());
        }
        let bytes = self.discovery.fetch_ztoc(image, ztoc).await?;
        let new = NewLayer {
            layer: ztoc.layer,
            size,
            ztoc: ztoc.ztoc,
            bytes,
            image: image.to_string(),
        };
        self.layers.insert(new).await.map_err(unusable)
    }

    async fn stored(&self, layer: Digest) -> Option<Digest> {
        let layers = self.layers.clone();
        let stored = tokio::task::spawn_blocking(move || layers.stored(&layer)).await;
        stored.ok().flatten()
    }

    async fn check_size(&self, ztoc: &ZtocRef, size: Option<u64>) -> Result<(), NotLazy> {
        let checked = self.layers.check_size(&ztoc.layer, size).await;
        checked.map_err(unusable)
    }

    async fn search(&self, layer: &Digest) -> Option<ZtocRef> {
        let listed = self.content.list().await.unwrap_or_default();
        let manifests = listed
            .iter()
            .filter(|content| content.size <= MAX_MANIFEST_SIZE);
        for content in manifests.take(MOST_SEARCHED) {
            let Ok(Some(bytes)) = self.content.get(&content.digest, MAX_MANIFEST_SIZE).await else {
                continue;
            };
            if bytes.first() != Some(&b'{') {
                continue;
            }
            let index = SociIndex::parse(content.digest, &bytes).ok();
            if let Some(ztoc) = index.as_ref().and_then(|index| index.ztoc(layer)) {
                return Some(ztoc.clone());
            }
        }
        None
    }
}

fn unusable(detail: impl std::fmt::Display) -> NotLazy {
    NotLazy::Artifact {
        detail: detail.to_string(),
    }
}

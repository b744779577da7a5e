//! zTOCs on their way into the layer store.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;
use ztoc::Digest;

use crate::content::ContentStore;
use crate::discovery::{Discovery, SociIndex, ZtocRef};
use crate::layer::{LayerStore, NewLayer};
use crate::registry::flight::Flights;
use crate::registry::{MAX_MANIFEST_SIZE, Reference};
use crate::snapshot::images::NotLazy;
use crate::traces::step;

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

    /// Has a zTOC stored for `layer`, which has `size` compressed bytes: the first of `forms` that can be had.
    pub(super) async fn ensure(
        &self,
        image: &Reference,
        layer: Digest,
        forms: Vec<ZtocRef>,
        size: Option<u64>,
    ) -> Result<(), NotLazy> {
        let work = || {
            let (shared, image) = (Arc::clone(&self.shared), image.clone());
            async move { shared.store_first(&image, layer, forms, size).await }
        };
        let stored = self.shared.flights.join(layer, work).await;
        if size.is_none() {
            return stored;
        }
        // Whoever fetched it ahead did not know the layer's size.
        stored?;
        self.shared.check_size(layer, size).await
    }

    /// Begins to fetch the zTOCs of all layers that `index` knows and that are not here, a few at a time.
    pub(super) fn fetch_ahead(&self, image: &Reference, index: &Arc<SociIndex>) {
        for layer in index.indexed() {
            let (this, image, forms) = (self.clone(), image.clone(), index.forms(&layer));
            let work = async move {
                let _turn = Arc::clone(&this.shared.ahead).acquire_owned().await;
                // A failure is told to whoever prepares the layer: it is tried again then.
                let _ = this.ensure(&image, layer, forms, None).await;
            };
            let work = work.instrument(step!("zTOC ahead", layer = %layer));
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
        let forms = self.shared.search(layer).await;
        if forms.is_empty() {
            return Err(unusable("no index in the content store names the layer"));
        }
        let removed = self.shared.layers.remove(layer).await;
        removed.map_err(unusable)?;
        self.ensure(image, *layer, forms, None).await
    }
}

impl Shared {
    async fn store_first(
        &self,
        image: &Reference,
        layer: Digest,
        forms: Vec<ZtocRef>,
        size: Option<u64>,
    ) -> Result<(), NotLazy> {
        if let Some(stored) = self.stored(layer).await {
            if forms.iter().all(|ztoc| ztoc.ztoc != stored) {
                tracing::info!(%layer, %stored, %image, "the layer is served by the zTOC of an earlier image");
            }
            return Ok(());
        }
        let mut failure = NotLazy::NoZtoc;
        for ztoc in &forms {
            let form = form(ztoc);
            match self.store(image, ztoc, size).await {
                Ok(bytes) => {
                    tracing::info!(%layer, %image, ztoc = %ztoc.ztoc, form, bytes, "the layer has its zTOC");
                    return Ok(());
                }
                Err(reason) => {
                    tracing::warn!(%layer, %image, ztoc = %ztoc.ztoc, form, "a zTOC cannot be used: {reason}");
                    failure = reason;
                }
            }
        }
        Err(failure)
    }

    /// Fetches and stores one; how many bytes of it.
    async fn store(
        &self,
        image: &Reference,
        ztoc: &ZtocRef,
        size: Option<u64>,
    ) -> Result<usize, NotLazy> {
        let bytes = self.discovery.fetch_first(image, ztoc).await?;
        let len = bytes.len();
        let new = NewLayer {
            layer: ztoc.layer,
            size,
            ztoc: ztoc.ztoc,
            bytes,
            image: image.to_string(),
        };
        self.layers.insert(new).await.map_err(unusable)?;
        Ok(len)
    }

    async fn stored(&self, layer: Digest) -> Option<Digest> {
        let layers = self.layers.clone();
        let stored = tokio::task::spawn_blocking(move || layers.stored(&layer)).await;
        stored.ok().flatten()
    }

    async fn check_size(&self, layer: Digest, size: Option<u64>) -> Result<(), NotLazy> {
        let checked = self.layers.check_size(&layer, size).await;
        checked.map_err(unusable)
    }

    /// What indexes in the content store have for a layer, the compact zTOC first.
    async fn search(&self, layer: &Digest) -> Vec<ZtocRef> {
        let (mut compact, mut ztoc) = (None, None);
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
            let index = SociIndex::parse(content.digest, &bytes);
            let index = index.or_else(|_| SociIndex::parse_compact(content.digest, &bytes));
            for found in index.map(|index| index.forms(layer)).unwrap_or_default() {
                match found.head {
                    Some(_) => compact = Some(found),
                    None => ztoc = Some(found),
                }
            }
            if compact.is_some() && ztoc.is_some() {
                break;
            }
        }
        compact.into_iter().chain(ztoc).collect()
    }
}

/// What a zTOC is called where it is told which one is used.
fn form(ztoc: &ZtocRef) -> &'static str {
    match ztoc.head {
        Some(_) => "compact",
        None => "zTOC",
    }
}

fn unusable(detail: impl std::fmt::Display) -> NotLazy {
    NotLazy::Artifact {
        detail: detail.to_string(),
    }
}

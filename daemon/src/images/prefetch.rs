//! Follows the prefetch artifacts of images: the spans they list are fetched as one stream over all layers,
//! the most urgent first, behind what anybody waits for. Nobody waits for it, `Prepare` least of all.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use ztoc::index::Prefetch;
use ztoc::{Digest, SpanId};

use super::ztocs::Ztocs;
use crate::discovery::{Discovery, SociIndex, ZtocRef};
use crate::layer::{BlobSource, Lane, Layer, LayerStore};
use crate::registry::{Reference, Registry};

/// Ranges on their way at a time: enough to keep a link busy, few enough to keep the order.
const WINDOW: usize = 4;
/// How soon it is noticed that a range has come.
const INTERVAL: Duration = Duration::from_millis(5);
/// A range that takes longer is not waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// All layers of an image are prepared within this time, and its prefetch is begun once.
const ONCE: Duration = Duration::from_secs(60);
/// Ranges followed of one image.
const MOST_RANGES: usize = 100_000;

/// Fetches what images want first.
#[derive(Debug, Clone)]
pub(super) struct Prefetcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    registry: Registry,
    discovery: Discovery,
    ztocs: Ztocs,
    layers: LayerStore,
    /// Images at a time.
    turns: Semaphore,
    begun: Mutex<HashMap<Digest, Instant>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// Spans of one layer that are wanted together.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    priority: u32,
    layer: Digest,
    spans: Range<SpanId>,
}

impl Prefetcher {
    /// Follows the artifacts of `at_once` images at a time.
    pub(super) fn new(
        registry: Registry,
        discovery: Discovery,
        ztocs: Ztocs,
        layers: LayerStore,
        at_once: usize,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                registry,
                discovery,
                ztocs,
                layers,
                turns: Semaphore::new(at_once.clamp(1, Semaphore::MAX_PERMITS)),
                begun: Mutex::default(),
                tasks: TaskTracker::new(),
                stop: CancellationToken::new(),
            }),
        }
    }

    /// Begins to follow the artifacts that `index` lists, if it has not been done just now.
    pub(super) fn begin(&self, image: &Reference, index: &Arc<SociIndex>) {
        let nothing = index.prefetch.is_empty() && index.compact_prefetch.is_empty();
        if nothing || !self.shared.is_first(index.digest) {
            return;
        }
        let (shared, image, index) = (Arc::clone(&self.shared), image.clone(), Arc::clone(index));
        let stop = shared.stop.clone();
        self.shared.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = shared.follow(&image, &index) => {}
            }
        });
    }

    /// Ends all prefetches.
    pub(super) async fn stop(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Shared {
    fn is_first(&self, index: Digest) -> bool {
        let mut begun = self.begun.lock();
        begun.retain(|_, since| since.elapsed() < ONCE);
        begun.insert(index, Instant::now()).is_none()
    }

    async fn follow(&self, image: &Reference, index: &SociIndex) {
        let Ok(_turn) = self.turns.acquire().await else {
            return;
        };
        let mut wanted = Vec::new();
        for listed in self.usable(image, index).await {
            match self.list(image, listed).await {
                Ok(list) => {
                    tracing::info!(
                        %image, layer = %listed.layer, digest = %listed.ztoc, spans = list.span_count(),
                        "Successfully loaded prefetch artifact"
                    );
                    wanted.extend(list.ranges().iter().map(|range| Wanted {
                        priority: range.priority,
                        layer: listed.layer,
                        spans: range.spans.clone(),
                    }));
                }
                Err(error) => tracing::warn!(
                    %image, layer = %listed.layer, digest = %listed.ztoc,
                    "a prefetch artifact is not followed: {error}"
                ),
            }
        }
        self.fetch(image, index, in_order(wanted)).await;
    }

    /// The artifacts whose spans are those of the zTOC by which their layer is served.
    async fn usable<'a>(&self, image: &Reference, index: &'a SociIndex) -> Vec<&'a ZtocRef> {
        let mut usable = Vec::new();
        for compact in [true, false] {
            for listed in index.prefetch(compact) {
                let layer = self.open(image, index, &listed.layer).await;
                if layer.is_some_and(|layer| layer.compact_ztoc().is_some() == compact) {
                    usable.push(listed);
                }
            }
        }
        usable
    }

    async fn list(&self, image: &Reference, listed: &ZtocRef) -> Result<Prefetch, String> {
        let bytes = self.discovery.fetch_ztoc(image, listed).await;
        let bytes = bytes.map_err(|error| error.to_string())?;
        Prefetch::parse(&bytes).map_err(|error| error.to_string())
    }

    async fn fetch(&self, image: &Reference, index: &SociIndex, wanted: Vec<Wanted>) {
        let mut open: HashMap<Digest, Option<Arc<Layer>>> = HashMap::new();
        let mut flying: VecDeque<(Arc<Layer>, Range<SpanId>)> = VecDeque::new();
        for Wanted { layer, spans, .. } in wanted {
            let layer = match open.entry(layer) {
                Entry::Occupied(known) => known.get().clone(),
                Entry::Vacant(new) => new.insert(self.open(image, index, &layer).await).clone(),
            };
            let Some(layer) = layer else { continue };
            let end = spans.end.min(SpanId(layer.spans().count()));
            let spans = spans.start.min(end)..end;
            layer.request(spans.clone(), Lane::Readahead);
            flying.push_back((layer, spans));
            if flying.len() == WINDOW
                && let Some((layer, spans)) = flying.pop_front()
            {
                settled(&layer, &spans).await;
            }
        }
        for (layer, spans) in flying {
            settled(&layer, &spans).await;
        }
        tracing::debug!(%image, "prefetched");
    }

    /// The layer, once its zTOC is here; `None` if it cannot be had, which whoever prepares it is told.
    async fn open(
        &self,
        image: &Reference,
        index: &SociIndex,
        layer: &Digest,
    ) -> Option<Arc<Layer>> {
        let forms = index.forms(layer);
        self.ztocs.ensure(image, *layer, forms, None).await.ok()?;
        let source = |size| Arc::new(self.registry.blob(image, layer, size)) as Arc<dyn BlobSource>;
        let opened = self.layers.open(layer, image.to_string(), source).await;
        let opened = opened.ok()?;
        if let Some((ztoc, size)) = opened.compact_ztoc() {
            let windows = Arc::new(self.registry.blob(image, &ztoc, size));
            opened.add_window_source(image.to_string(), windows);
        }
        Some(opened)
    }
}

/// The most urgent first; neighbours that follow each other as one.
fn in_order(mut wanted: Vec<Wanted>) -> Vec<Wanted> {
    wanted.truncate(MOST_RANGES);
    wanted.sort_by_key(|range| range.priority);
    let mut merged: Vec<Wanted> = Vec::new();
    for range in wanted {
        match merged.last_mut() {
            Some(last) if last.layer == range.layer && last.spans.end == range.spans.start => {
                last.spans.end = range.spans.end;
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// Waits until none of `spans` is on its way any more.
async fn settled(layer: &Layer, spans: &Range<SpanId>) {
    let begun = Instant::now();
    while layer.is_fetching(spans) && begun.elapsed() < PATIENCE {
        tokio::time::sleep(INTERVAL).await;
    }
}

/// For [`crate::hostile`]: some artifact.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(prefetch: &Prefetch) {
    let layer = Digest::of(b"");
    let wanted = prefetch.ranges().iter().map(|range| Wanted {
        priority: range.priority,
        layer,
        spans: range.spans.clone(),
    });
    assert!(in_order(wanted.collect()).len() <= MOST_RANGES);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_interleaved_by_urgency_and_neighbours_become_one_request() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let wanted = |priority, layer, start, end| Wanted {
            priority,
            layer,
            spans: SpanId(start)..SpanId(end),
        };
        let ordered = in_order(vec![
            wanted(0, a, 5, 6),
            wanted(3, a, 0, 2),
            wanted(4, a, 2, 3),
            wanted(1, b, 9, 10),
        ]);
        let expected = [wanted(0, a, 5, 6), wanted(1, b, 9, 10), wanted(3, a, 0, 3)];
        assert_eq!(ordered, expected);
    }
}

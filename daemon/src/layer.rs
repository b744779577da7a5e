//! Layers and their spans on this node: `<root>/layers/<sha256 hex>/{ztoc,origin,data,map}`.
//!
//! A [`Layer`] belongs to a layer digest and is shared by everything that shows the layer. A read is
//! answered on the calling thread when its spans are in the cache; else it waits, off that thread, for the
//! spans that are missing: each is fetched once, verified, inflated, handed to who waits and written to
//! the cache, in this order. A failure fails the reads that wait for it and nothing else.

mod cache;
mod counters;
mod decode;
mod engine;
mod fetch;
mod flight;
mod kept_ztoc;
mod map;
mod pending;
mod readahead;
mod record;
mod schedule;
mod source;
mod store;
#[cfg(test)]
mod tests;
mod unwritten;

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Weak};

use fuse::LayerTree;
use fuse::content::{LayerContent, ReadError, ReadReply};
use ztoc::unit::ByteLen as _;
use ztoc::{Digest, SpanId, SpanTable, UncompressedOffset};

use self::cache::SpanCache;
use self::counters::{Counters, Throttle, add};
use self::engine::Engine;
use self::fetch::{Landing, Run};
use self::flight::{Flights, Joined, Origin};
use self::pending::PendingRead;
use self::readahead::Streams;
use self::schedule::Ticket;
use self::source::Sources;

pub use self::counters::LayerCounters;
pub use self::engine::LayerOptions;
pub use self::schedule::Lane;
pub use self::source::{BlobSource, FetchError};
pub use self::store::{LayerError, LayerStore, MAX_ZTOC_SIZE, NewLayer};

thread_local! {
    /// Where hits are read into; taken while in use, since a reply may read again.
    static HIT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Largest hit buffer that a thread keeps, in bytes: the largest read that FUSE asks for.
const KEPT_HIT: usize = 1 << 20;

/// The spans of one layer: where they are, who fetches them, who waits for them.
#[derive(Debug)]
pub struct Layer {
    digest: Digest,
    spans: SpanTable,
    tree: Arc<LayerTree>,
    cache: SpanCache,
    flights: Flights<Arc<PendingRead>>,
    sources: Sources,
    streams: Streams,
    counters: Arc<Counters>,
    fetch_trouble: Throttle,
    engine: Arc<Engine>,
    this: Weak<Self>,
}

impl Layer {
    /// Opens the cache in `dir` and trusts nothing in it yet. Blocks on file I/O.
    fn open(
        dir: &Path,
        digest: Digest,
        ztoc: &Digest,
        spans: SpanTable,
        tree: Arc<LayerTree>,
        engine: Arc<Engine>,
    ) -> io::Result<Arc<Self>> {
        let size = spans.uncompressed_size();
        let (cache, claimed) = SpanCache::open(dir, ztoc, spans.count(), size)?;
        Ok(Arc::new_cyclic(|this| Self {
            digest,
            spans,
            tree,
            cache,
            flights: Flights::new(&claimed),
            sources: Sources::default(),
            streams: Streams::default(),
            counters: Arc::default(),
            fetch_trouble: Throttle::default(),
            engine,
            this: Weak::clone(this),
        }))
    }

    /// Digest of the compressed layer.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The spans as the zTOC describes them.
    pub fn spans(&self) -> &SpanTable {
        &self.spans
    }

    /// Its names.
    pub fn tree(&self) -> &Arc<LayerTree> {
        &self.tree
    }

    /// What it has done so far.
    pub fn counters(&self) -> LayerCounters {
        self.counters.now()
    }

    /// Number of spans in the cache; some of them may yet prove wrong at first use.
    pub fn spans_present(&self) -> usize {
        self.flights.present()
    }

    /// The state of each span: 0 absent, 1 in flight, 2 in the cache and not yet checked, 3 in the cache.
    pub fn span_states(&self) -> Vec<u8> {
        self.flights.states()
    }

    /// Whether any of `spans` is being fetched.
    pub(crate) fn is_fetching(&self, spans: &Range<SpanId>) -> bool {
        self.flights.any_in_flight(spans)
    }

    /// The images it is known to be of.
    pub fn images(&self) -> Vec<String> {
        self.sources.names()
    }

    /// Whether the cached bytes of `span` are those that were written; `None` if it is not in the cache.
    /// What is wrong is absent from now on. Blocks on file I/O.
    pub fn verify_cached(&self, span: SpanId) -> Option<bool> {
        self.flights.sight(span..SpanId(span.0 + 1))?;
        let range = self.spans.uncompressed(span);
        let right = self.cache.check(span, &range, &mut Vec::new());
        let right = right.unwrap_or(false);
        if !right {
            self.distrust(span);
        }
        Some(right)
    }

    /// Has `spans` fetched, as far as they are missing, with nobody waiting for them.
    pub fn request(&self, spans: Range<SpanId>, lane: Lane) {
        let end = spans.end.min(SpanId(self.spans.count()));
        self.want(spans.start..end, None, lane);
    }

    /// The spans that hold `range`; `None` if they do not hold all of it.
    fn locate(&self, range: &Range<UncompressedOffset>) -> Option<Range<SpanId>> {
        let inside = range.start <= range.end && range.end.0 <= self.spans.uncompressed_size();
        inside.then(|| self.spans.covering(range.clone()))
    }

    /// Answers on this thread if all of `spans` are present; else gives the reply back.
    fn hit(
        &self,
        spans: Range<SpanId>,
        range: &Range<UncompressedOffset>,
        reply: ReadReply,
    ) -> Option<ReadReply> {
        let Some(seen) = self.flights.sight(spans.clone()) else {
            return Some(reply);
        };
        let Ok(length) = usize::try_from(range.byte_len()) else {
            return Some(reply);
        };
        let mut buffer = HIT.take();
        buffer.resize(length.max(buffer.len()), 0);
        let read = self.cache.read(range.start, &mut buffer[..length]);
        let unanswered = if read.is_ok() && self.flights.still(spans, &seen) {
            add(&self.counters.hits, 1);
            add(&self.counters.bytes_served, length as u64);
            reply.data(&buffer[..length]);
            None
        } else {
            Some(reply)
        };
        if buffer.len() <= KEPT_HIT {
            HIT.set(buffer);
        }
        unanswered
    }

    /// Has the reply answered when all of `spans` have been had.
    fn miss(&self, spans: Range<SpanId>, range: Range<UncompressedOffset>, reply: ReadReply) {
        add(&self.counters.misses, 1);
        let parts = spans.end.0 - spans.start.0;
        let counters = Arc::clone(&self.counters);
        let read = Arc::new(PendingRead::new(range, reply, parts, counters));
        self.want(spans, Some(&read), Lane::Demand);
    }

    /// Gets the spans that are missing, and has `read` filled from each.
    fn want(&self, spans: Range<SpanId>, read: Option<&Arc<PendingRead>>, lane: Lane) {
        let Some(this) = self.this.upgrade() else {
            return;
        };
        let limit = self.engine.options.max_request;
        let mut runs: Vec<Run> = Vec::new();
        for span in (spans.start.0..spans.end.0).map(SpanId) {
            let run = runs.last_mut();
            let run = run.filter(|run| run.has_room(span, &self.spans, limit));
            let ticket = match &run {
                Some(run) => Arc::clone(&run.ticket),
                None => Arc::new(Ticket::new(lane)),
            };
            match (self.join(span, read, &ticket), run) {
                (Some(Origin::Registry), Some(run)) => run.landings.push(Landing::new(&this, span)),
                (Some(Origin::Registry), None) => {
                    let landings = vec![Landing::new(&this, span)];
                    runs.push(Run { landings, ticket });
                }
                (Some(Origin::Disk), _) => Landing::new(&this, span).recover(ticket),
                (None, _) => {}
            }
        }
        for run in runs {
            self.engine.spawn(run.fetch(Arc::clone(&this)));
        }
    }

    /// Has `read` filled from `span` now or later; from where the caller must get it, if it must.
    fn join(
        &self,
        span: SpanId,
        read: Option<&Arc<PendingRead>>,
        ticket: &Arc<Ticket>,
    ) -> Option<Origin> {
        let kept = read.and_then(|_| self.engine.unwritten.lock().get(&self.digest, span));
        if let (Some(read), Some(bytes)) = (read, kept) {
            read.fill(&self.spans.uncompressed(span), &bytes);
            return None;
        }
        loop {
            match self.flights.join(span, read.map(Arc::clone), ticket) {
                Joined::Started(origin) => return Some(origin),
                Joined::Waiting => return None,
                Joined::Present => match read {
                    Some(read) if !self.read_present(span, read) => self.distrust(span),
                    _ => return None,
                },
            }
        }
    }

    /// Fills `read` from a present span; `false` if the disk does not give it.
    fn read_present(&self, span: SpanId, read: &PendingRead) -> bool {
        let whole = self.spans.uncompressed(span);
        let part = read.part(&whole);
        let ids = span..SpanId(span.0 + 1);
        let Some(seen) = self.flights.sight(ids.clone()) else {
            return false;
        };
        let mut bytes = vec![0; usize::try_from(part.byte_len()).unwrap_or_default()];
        let had = self.cache.read(part.start, &mut bytes).is_ok() && self.flights.still(ids, &seen);
        if had {
            read.fill(&part, &bytes);
        }
        had
    }

    /// The disk does not give a span it should have: it is absent from now on.
    fn distrust(&self, span: SpanId) {
        if self.flights.leave(span) {
            add(&self.counters.bad_cached_spans, 1);
            tracing::warn!(layer = %self.digest, %span, "a cached span cannot be read; it is fetched again");
        }
    }
}

impl LayerContent for Layer {
    fn read(&self, range: Range<UncompressedOffset>, reply: ReadReply) {
        let Some(spans) = self.locate(&range) else {
            add(&self.counters.failed_reads, 1);
            tracing::debug!(layer = %self.digest, ?range, "a read beyond the layer's end");
            return reply.error(ReadError::Unavailable);
        };
        if spans.is_empty() {
            return reply.data(&[]);
        }
        if let Some(reply) = self.hit(spans.clone(), &range, reply) {
            self.miss(spans.clone(), range, reply);
        }
        if self.engine.options.readahead
            && let Some(ahead) = self.streams.observe(&spans)
        {
            self.request(ahead, Lane::Readahead);
        }
    }
}

//! Layers and their spans on this node: `<root>/layers/<sha256 hex>/{ztoc,origin,data,map,files}`.
//!
//! A [`Layer`] belongs to a layer digest and is shared by everything that shows the layer. A read is
//! answered on the calling thread when its spans are in the cache; else it waits, off that thread, for the
//! spans that are missing: each is fetched once, verified, inflated, handed to who waits and written to
//! the cache, in this order. A failure fails the reads that wait for it and nothing else.

mod cache;
mod cold;
mod counters;
mod decode;
mod direct;
mod disk_ahead;
mod engine;
mod fetch;
mod fill;
mod flight;
mod hot;
mod idle;
mod kept_ztoc;
mod large;
mod ledger;
mod link;
mod map;
mod own_files;
mod pace;
mod past_cache;
mod pending;
mod proof;
mod readahead;
mod record;
mod residency;
mod schedule;
mod source;
mod store;
mod stored;
mod sync;
mod tail;
#[cfg(test)]
mod tests;
mod unwritten;
mod windows;

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Weak};
use std::time::Instant;

use fuse::LayerTree;
use fuse::content::{LayerContent, ReadError, ReadReply};
use ztoc::unit::ByteLen as _;
use ztoc::{Digest, SpanId, SpanTable, UncompressedOffset};

use self::cache::SpanCache;
use self::counters::{Counters, add};
use self::engine::Engine;
use self::fetch::{Landing, Run};
use self::fill::Filler;
use self::flight::{Flights, Joined, Origin};
use self::hot::Hot;
use self::ledger::GROUP;
use self::own_files::OwnFiles;
use self::pending::PendingRead;
use self::proof::Proof;
use self::readahead::{Streams, WINDOW};
use self::schedule::{Ticket, compressed};
use self::source::Sources;
use self::windows::Windows;
use crate::traces;

pub use self::counters::LayerCounters;
pub(crate) use self::counters::Throttle;
pub use self::engine::LayerOptions;
pub(crate) use self::link::Link;
pub use self::pace::FillOptions;
pub use self::schedule::Lane;
pub use self::source::{BlobSource, FetchError};
pub use self::store::{LayerError, LayerStore, MAX_ZTOC_SIZE, NewLayer};

thread_local! {
    /// Where hits are read into; taken while in use, since a reply may read again.
    static HIT: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Largest hit buffer that a thread keeps, in bytes: for the largest read that FUSE asks for.
const KEPT_HIT: usize = (1 << 20) + LINE;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Room for `length` bytes in a buffer that is used again, from a cache line's beginning on: malloc(3) puts large
/// buffers 16 bytes behind a page's, to where AMD's Zen 3 copies pages four times slower.
fn room(buffer: &mut Vec<u8>, length: usize) -> &mut [u8] {
    buffer.resize((length + LINE).max(buffer.len()), 0);
    let start = buffer.as_ptr().align_offset(LINE).min(LINE);
    &mut buffer[start..start + length]
}

/// Answers a read of what is on disk and not in memory; the buffer is lent.
type AnswerCold =
    fn(&Layer, Range<SpanId>, Range<UncompressedOffset>, ReadReply, buffer: &mut Vec<u8>);

/// The spans of one layer: where they are, who fetches them, who waits for them.
#[derive(Debug)]
pub struct Layer {
    digest: Digest,
    spans: SpanTable,
    tree: Arc<LayerTree>,
    cache: SpanCache,
    flights: Flights<Arc<PendingRead>>,
    sources: Sources,
    /// Where the windows are, if the zTOC is compact.
    windows: Option<Windows>,
    streams: Streams,
    hot: Hot,
    proof: Proof,
    own_files: OwnFiles,
    /// Plain bytes on disk, those of own files included.
    held: AtomicU64,
    /// When each group of spans was used last, by the ledger's clock.
    used: Box<[AtomicI64]>,
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
        (spans, windows): (SpanTable, Option<Windows>),
        tree: Arc<LayerTree>,
        engine: Arc<Engine>,
    ) -> io::Result<Arc<Self>> {
        let size = spans.uncompressed_size();
        let (cache, claimed) = SpanCache::open(dir, ztoc, spans.count(), size)?;
        let held = spans.ids().zip(&claimed).filter(|(_, claimed)| **claimed);
        let held: u64 = held
            .map(|(span, _)| spans.uncompressed(span).byte_len())
            .sum();
        let groups = spans.count().div_ceil(GROUP);
        let now = engine.ledger.now();
        let own_files = OwnFiles::open(dir, now);
        Ok(Arc::new_cyclic(|this| Self {
            digest,
            spans,
            tree,
            cache,
            flights: Flights::new(&claimed),
            sources: Sources::default(),
            windows,
            streams: Streams::default(),
            hot: Hot::default(),
            proof: Proof::open(dir),
            held: AtomicU64::new(held + own_files.bytes()),
            own_files,
            used: (0..groups).map(|_| AtomicI64::new(now)).collect(),
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

    /// Whether all of it has been here and was what the image says.
    pub fn is_proven(&self) -> bool {
        self.proof.is_proven()
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

    /// Has everything that is missing fetched behind whatever anybody waits for, unless the fill is
    /// switched off. Ends when the layer is closed.
    pub fn fill_up(self: &Arc<Self>) {
        if let Some(filler) = &self.engine.filler {
            filler.add(self);
        }
    }

    /// Has `spans` fetched, as far as they are missing, with nobody waiting for them.
    pub fn request(&self, spans: Range<SpanId>, lane: Lane) {
        let end = spans.end.min(SpanId(self.spans.count()));
        self.want(spans.start..end, None, lane);
    }

    /// How many spans a sequential reader needs fetched ahead of it to find each there: as many as fit
    /// on the line, and as many again for those that are being read.
    fn window(&self) -> u32 {
        let average = self.spans.compressed_size() / u64::from(self.spans.count().max(1));
        let line = self.engine.link.capacity().unwrap_or(0) / average.max(1);
        let spans = u32::try_from(line.saturating_mul(2)).unwrap_or(u32::MAX);
        spans.clamp(WINDOW.start, WINDOW.end)
    }

    /// The spans that hold `range`; `None` if they do not hold all of it.
    fn locate(&self, range: &Range<UncompressedOffset>) -> Option<Range<SpanId>> {
        let inside = range.start <= range.end && range.end.0 <= self.spans.uncompressed_size();
        inside.then(|| self.spans.covering(range.clone()))
    }

    /// Answers if all of `spans` are present, on this thread unless that would wait for the disk; else gives
    /// the reply back. `end` is that of the file.
    fn hit(
        &self,
        spans: Range<SpanId>,
        range: &Range<UncompressedOffset>,
        end: UncompressedOffset,
        reply: ReadReply,
    ) -> Option<ReadReply> {
        let Some(seen) = self.flights.sight(spans.clone()) else {
            return Some(reply);
        };
        let Ok(length) = usize::try_from(range.byte_len()) else {
            return Some(reply);
        };
        let reply = match range.byte_len() {
            direct::SMALLEST.. => self.hit_past_cache(&spans, range, end, reply)?,
            _ => reply,
        };
        let mut buffer = HIT.take();
        let into = room(&mut buffer, length);
        let unanswered = match self.read_here(range.start, into) {
            Ok(false) => {
                self.hit_later(spans, range.clone(), reply, Self::hit_cold);
                None
            }
            Ok(true) if self.flights.still(spans.clone(), &seen) => {
                self.answer(&spans, into, reply);
                None
            }
            Ok(true) | Err(_) => Some(reply),
        };
        if buffer.len() <= KEPT_HIT {
            HIT.set(buffer);
        }
        unanswered
    }

    /// Reads bytes of spans known to be there, unless that would have to wait for the disk and another read
    /// waits already.
    fn read_here(&self, at: UncompressedOffset, into: &mut [u8]) -> io::Result<bool> {
        let done = self.cache.read_at_once(at, into)?;
        if done == into.len() {
            return Ok(true);
        }
        let Some(_spot) = self.engine.cold.spot() else {
            return Ok(false);
        };
        let rest = UncompressedOffset(at.0 + done as u64);
        self.cache.read(rest, &mut into[done..])?;
        Ok(true)
    }

    /// Has a read of what is on disk answered by a thread that may wait for it.
    fn hit_later(
        &self,
        spans: Range<SpanId>,
        range: Range<UncompressedOffset>,
        reply: ReadReply,
        answer: AnswerCold,
    ) {
        let Some(this) = self.this.upgrade() else {
            return;
        };
        add(&self.counters.cold_hits, 1);
        let trace = traces::here();
        let read = move |buffer: &mut Vec<u8>| {
            let _inside = trace.enter();
            answer(&this, spans, range, reply, buffer);
        };
        if let Some(read) = self.engine.cold.submit(Box::new(read)) {
            read(&mut Vec::new());
        }
    }

    fn hit_cold(
        &self,
        spans: Range<SpanId>,
        range: Range<UncompressedOffset>,
        reply: ReadReply,
        buffer: &mut Vec<u8>,
    ) {
        if let Some(seen) = self.flights.sight(spans.clone())
            && let Ok(length) = usize::try_from(range.byte_len())
        {
            let into = room(buffer, length);
            let read = self.cache.read(range.start, into);
            if read.is_ok() && self.flights.still(spans.clone(), &seen) {
                return self.answer(&spans, into, reply);
            }
        }
        self.miss(spans, range, reply);
    }

    fn answer(&self, spans: &Range<SpanId>, bytes: &[u8], reply: ReadReply) {
        self.touch(spans);
        add(&self.counters.hits, 1);
        add(&self.counters.bytes_copied, bytes.len() as u64);
        add(&self.counters.bytes_served, bytes.len() as u64);
        reply.data(bytes);
    }

    /// Has the reply answered when all of `spans` have been had.
    fn miss(&self, spans: Range<SpanId>, range: Range<UncompressedOffset>, reply: ReadReply) {
        add(&self.counters.misses, 1);
        self.touch(&spans);
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
        for run in self.start(&this, spans, read, lane) {
            let layer = Arc::clone(&this);
            self.engine.spawn(async move {
                run.fetch(&layer).await;
            });
        }
    }

    /// The requests that bring what is missing of `spans`, and has `read` filled from each span.
    fn start(
        &self,
        this: &Arc<Self>,
        spans: Range<SpanId>,
        read: Option<&Arc<PendingRead>>,
        lane: Lane,
    ) -> Vec<Run> {
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
                (Some(Origin::Registry), Some(run)) => run.landings.push(Landing::new(this, span)),
                (Some(Origin::Registry), None) => {
                    runs.push(Run::new(Landing::new(this, span), ticket));
                }
                (Some(Origin::Disk), _) => Landing::new(this, span).recover(ticket),
                (None, _) => {}
            }
        }
        runs
    }

    /// The first run of spans in `within` that are neither here nor on their way, of at most `bytes`
    /// compressed bytes or one span.
    fn missing(&self, within: &Range<SpanId>, bytes: u64) -> Option<Range<SpanId>> {
        let mut ids = (within.start.0..within.end.0).map(SpanId);
        let first = ids.find(|&span| self.flights.is_absent(span))?;
        let mut run = first..SpanId(first.0 + 1);
        for span in ids {
            let longer = first..SpanId(span.0 + 1);
            if !self.flights.is_absent(span) || compressed(&self.spans, &longer).byte_len() > bytes
            {
                break;
            }
            run = longer;
        }
        Some(run)
    }

    /// The plain bytes of a run.
    fn plain_bytes(&self, run: &Range<SpanId>) -> u64 {
        let last = SpanId(run.end.0.saturating_sub(1).max(run.start.0));
        (self.spans.uncompressed(run.start).start..self.spans.uncompressed(last).end).byte_len()
    }

    /// Has `spans` fetched for `filler`, which is told what came of it.
    fn fill(self: &Arc<Self>, spans: Range<SpanId>, filler: &Arc<Filler>) {
        let bytes = compressed(&self.spans, &spans).byte_len();
        // Counted from now on, so that the filler sees it before it looks for more to do.
        let mut passage = Some(self.engine.link.depart(bytes, Lane::Fill));
        for mut run in self.start(self, spans, None, Lane::Fill) {
            run.passage = passage.take();
            let spans = run.spans();
            let (plain, brought) = (self.plain_bytes(&spans), spans.end.0 - spans.start.0);
            self.engine.ledger.expect(plain);
            let (layer, filler) = (Arc::clone(self), Arc::clone(filler));
            self.engine.spawn(async move {
                run.fetch(&layer).await;
                layer.engine.ledger.came(plain);
                let mut ids = (spans.start.0..spans.end.0).map(SpanId);
                let lost = ids.find(|&span| layer.flights.is_absent(span));
                match lost {
                    Some(_) => add(&layer.counters.failed_fills, 1),
                    None => add(&layer.counters.spans_filled, brought.into()),
                }
                filler.landed(&layer, lost, Instant::now());
            });
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
                Joined::Waiting => {
                    if ticket.lane() != Lane::Fill {
                        self.engine.decoders.hurry();
                    }
                    return None;
                }
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
        self.engine.cold.ahead().forget();
        if self.flights.leave(span) {
            self.drops(self.spans.uncompressed(span).byte_len());
            add(&self.counters.bad_cached_spans, 1);
            tracing::warn!(layer = %self.digest, %span, "a cached span cannot be read; it is fetched again");
        }
    }
}

impl LayerContent for Layer {
    fn read(&self, range: Range<UncompressedOffset>, reply: ReadReply) {
        self.read_in_file(range.clone(), range, reply);
    }

    fn read_in_file(
        &self,
        file: Range<UncompressedOffset>,
        range: Range<UncompressedOffset>,
        reply: ReadReply,
    ) {
        if self.proof.is_wrong() {
            add(&self.counters.failed_reads, 1);
            return reply.error(ReadError::Unavailable);
        }
        let Some(spans) = self.locate(&range) else {
            add(&self.counters.failed_reads, 1);
            tracing::debug!(layer = %self.digest, ?range, "a read beyond the layer's end");
            return reply.error(ReadError::Unavailable);
        };
        if spans.is_empty() {
            return reply.data(&[]);
        }
        let end = file.end;
        let file = self.locate(&file).unwrap_or_else(|| spans.clone());
        if let Some(reply) = self.hit(spans.clone(), &range, end, reply) {
            self.miss(spans.clone(), range, reply);
            self.hot.note(file.clone());
        }
        if self.engine.options.readahead
            && let Some(ahead) = self.streams.observe(&spans, &file, || self.window())
        {
            ahead
                .runs()
                .for_each(|run| self.request(run, Lane::Readahead));
        }
    }

    fn own_file(&self, file: Range<UncompressedOffset>) -> Option<Arc<File>> {
        self.own_file_at(file)
    }

    fn contradicted(&self, data: UncompressedOffset) {
        let why = format!("the headers before {data} are not those that its zTOC says\n");
        let Some(note) = self.proof.condemn(why) else {
            return;
        };
        add(&self.counters.quarantined, 1);
        tracing::error!(
            layer = %self.digest, %data,
            "THE LAYER IS NOT WHAT ITS ZTOC SAYS: in front of a file are other headers. It is quarantined, its \
             reads fail. Remove the image, and build and push its SOCI index again"
        );
        self.engine.spawn(async move {
            let _ = tokio::task::spawn_blocking(note).await;
        });
    }
}

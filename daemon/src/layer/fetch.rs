//! Spans on their way: fetched, verified, decoded, handed out, cached.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fuse::content::ReadError;
use futures::future::Either;
use tokio::sync::mpsc;
use tracing::{Instrument as _, Span};
use ztoc::error::InflateError;
use ztoc::unit::ByteLen as _;
use ztoc::{CompressedOffset, CompressedSpan, SpanBuffer, SpanDecoder, SpanId, SpanTable};

use super::Layer;
use super::counters::add;
use super::decode::Scratch;
use super::engine::LOG_INTERVAL;
use super::link::Passage;
use super::pending::PendingRead;
use super::schedule::{Lane, Ticket, compressed};
use super::source::{FetchError, Sources};
use crate::traces::{self, step};

/// How often it is looked whether those who wait for a request are still there.
const LOOK: Duration = Duration::from_millis(500);

type Decoder<'s> = SpanDecoder<&'s [u8], &'s mut SpanBuffer>;

/// How many times as long as expected a request may take.
const PATIENCE: u32 = 4;

/// A span in flight and the duty to end the flight: dropped before it landed, it fails those who wait.
#[derive(Debug)]
pub(crate) struct Landing {
    layer: Arc<Layer>,
    span: SpanId,
    landed: bool,
}

/// Neighbouring spans that are to be fetched by one request, and its urgency.
#[derive(Debug)]
pub(crate) struct Run {
    /// Ascending, without a gap; not empty.
    pub(crate) landings: Vec<Landing>,
    pub(crate) ticket: Arc<Ticket>,
    /// Counts the request as in flight already.
    pub(crate) passage: Option<Passage>,
    /// Of the read that waits for it, in a trace.
    trace: Span,
}

impl Run {
    /// A run of one span.
    pub(crate) fn new(landing: Landing, ticket: Arc<Ticket>) -> Self {
        let trace = match ticket.lane() {
            Lane::Demand => traces::here(),
            Lane::Readahead | Lane::Fill => Span::none(),
        };
        Self {
            landings: vec![landing],
            ticket,
            passage: None,
            trace,
        }
    }

    /// One attempt to get it, as a part of the trace.
    fn step(&self, layer: &Layer, attempt: u32) -> Span {
        let spans = self.spans();
        let bytes = || compressed(&layer.spans, &spans).byte_len();
        self.trace.in_scope(|| {
            step!(
                "fetch", layer = %layer.digest, first_span = spans.start.0, end_span = spans.end.0, bytes = bytes(), attempt
            )
        })
    }

    /// The spans; none in a run without landings.
    pub(crate) fn spans(&self) -> Range<SpanId> {
        let first = self.landings.first().map_or(SpanId(0), |first| first.span);
        let end = self
            .landings
            .last()
            .map_or(first, |last| SpanId(last.span.0 + 1));
        first..end
    }

    /// Whether `span` follows, and the request would still have no more than `limit` bytes.
    pub(crate) fn has_room(&self, span: SpanId, table: &SpanTable, limit: u64) -> bool {
        let (Some(first), Some(last)) = (self.landings.first(), self.landings.last()) else {
            return false;
        };
        let longer = first.span..SpanId(span.0.saturating_add(1));
        last.span.0.checked_add(1) == Some(span.0) && compressed(table, &longer).byte_len() <= limit
    }

    /// Gets the spans, unless everybody for whom that was begun is killed meanwhile.
    pub(crate) async fn fetch(self, layer: &Arc<Layer>) {
        let (spans, ticket) = (self.spans(), Arc::clone(&self.ticket));
        let get = std::pin::pin!(self.get(layer));
        let abandoned = std::pin::pin!(abandoned(layer, spans, &ticket));
        // What was not got is dropped here, and lands with that.
        futures::future::select(get, abandoned).await;
    }

    /// Gets the spans; those whose bytes are wrong again, one by one.
    async fn get(self, layer: &Arc<Layer>) {
        let retries = layer.engine.options.verification_retries;
        let (ticket, trace) = (Arc::clone(&self.ticket), self.trace.clone());
        let step = self.step(layer, 0);
        let mut open = attempt(layer, self, 0).instrument(step).await;
        for number in 1..=retries {
            let mut still_open = Vec::new();
            for landing in open {
                let run = trace.in_scope(|| Self::new(landing, Arc::clone(&ticket)));
                let step = run.step(layer, number);
                still_open.extend(attempt(layer, run, number).instrument(step).await);
            }
            open = still_open;
        }
        for landing in open {
            tracing::error!(
                layer = %layer.digest, span = %landing.span, attempts = u64::from(retries) + 1,
                "the sources do not give the bytes that the zTOC describes; the reads of this span fail"
            );
        }
    }
}

/// Ends when a request that was begun for readers has none of them left, and lets go of each that is killed: else its
/// thread waits for the answer before it ends, and its container with it.
async fn abandoned(layer: &Layer, spans: Range<SpanId>, ticket: &Ticket) {
    let for_readers = ticket.lane() == Lane::Demand;
    loop {
        tokio::time::sleep(LOOK).await;
        let (mut gone, mut left) = (0, 0);
        for span in (spans.start.0..spans.end.0).map(SpanId) {
            let (released, waiting) = layer.release_gone(span);
            gone += released;
            left += waiting;
        }
        if for_readers && gone > 0 && left == 0 {
            ticket.withdraw();
            tracing::debug!(
                layer = %layer.digest, first = %spans.start, end = %spans.end,
                "a fetch is given up, its readers were killed"
            );
            return;
        }
    }
}

/// One request for neighbouring spans; gives back those whose bytes were wrong.
async fn attempt(layer: &Arc<Layer>, run: Run, number: u32) -> Vec<Landing> {
    let Run {
        landings,
        ticket,
        passage,
        ..
    } = run;
    let (Some(first), Some(last)) = (landings.first(), landings.last()) else {
        return landings;
    };
    let run = first.span..SpanId(last.span.0 + 1);
    let range = compressed(&layer.spans, &run);
    let size = range.byte_len();
    let Some(_room) = layer.engine.budget.acquire(size, &ticket).await else {
        return Vec::new();
    };
    let passage = passage.unwrap_or_else(|| layer.engine.link.depart(size, ticket.lane()));
    add(&layer.counters.requests, 1);
    let fetched = bytes(layer, &layer.sources, &range, number, &ticket);
    let both = futures::future::try_join(fetched, layer.bring_windows(&run, &ticket));
    match both.await {
        Ok((bytes, ())) => {
            let _undecoded = passage.arrive(bytes.len() as u64);
            add(&layer.counters.bytes_fetched, bytes.len() as u64);
            decode(layer, landings, range.start, &bytes, &ticket).await
        }
        Err(failure) => {
            add(&layer.counters.failed_requests, 1);
            if let Some(suppressed) = layer.fetch_trouble.pass(LOG_INTERVAL) {
                tracing::warn!(
                    layer = %layer.digest, first = %run.start, end = %run.end, suppressed,
                    "spans cannot be fetched, the reads that wait for them fail: {failure}"
                );
            }
            Vec::new()
        }
    }
}

/// The bytes of one request. One that takes far longer than it should while somebody waits is made again, of
/// another source if there is one, and whichever answer comes first counts.
pub(crate) async fn bytes(
    layer: &Layer,
    sources: &Sources,
    range: &Range<CompressedOffset>,
    number: u32,
    ticket: &Ticket,
) -> Result<Bytes, FetchError> {
    let first = Box::pin(sources.fetch(range.clone(), number as usize));
    let engine = &layer.engine;
    let expected = engine.link.expected(range.byte_len()).unwrap_or_default();
    let patience = engine
        .options
        .straggler
        .max(expected.saturating_mul(PATIENCE));
    let first = match futures::future::select(first, Box::pin(late(patience, ticket))).await {
        Either::Left((answer, _)) => return answer,
        Either::Right(((), first)) => first,
    };
    add(&layer.counters.stragglers, 1);
    add(&layer.counters.requests, 1);
    let second = Box::pin(sources.fetch(range.clone(), number as usize + 1));
    futures::future::select_ok([first, second])
        .await
        .map(|(bytes, _)| bytes)
}

/// Ends when `patience` is over and somebody waits.
async fn late(patience: Duration, ticket: &Ticket) {
    loop {
        tokio::time::sleep(patience).await;
        if ticket.lane() == Lane::Demand {
            return;
        }
    }
}

/// Has the decode pool land each span from its part of `bytes`, which begin at `start`.
async fn decode(
    layer: &Arc<Layer>,
    landings: Vec<Landing>,
    start: CompressedOffset,
    bytes: &Bytes,
    ticket: &Arc<Ticket>,
) -> Vec<Landing> {
    let (back, mut wrong) = mpsc::channel(landings.len().max(1));
    for landing in landings {
        let (back, trace) = (back.clone(), traces::here());
        let part = landing.part(start, bytes);
        layer.engine.decoders.submit(ticket, move |scratch| {
            let _inside = trace.enter();
            if let Err(landing) = landing.land(&part, scratch) {
                // Has room for all of them.
                let _ = back.try_send(landing);
            }
        });
    }
    drop(back);
    let mut again = Vec::new();
    while let Some(landing) = wrong.recv().await {
        again.push(landing);
    }
    again.sort_by_key(|landing| landing.span);
    again
}

impl Layer {
    /// Lets go of those who wait for `span` and are killed. Answers how many these are, and how many wait on.
    fn release_gone(&self, span: SpanId) -> (usize, usize) {
        let mut gone: Vec<Arc<PendingRead>> = self.flights.waiting(span);
        gone.retain(|read| read.is_abandoned());
        let stays = |read: &Arc<PendingRead>| !gone.iter().any(|other| Arc::ptr_eq(read, other));
        let left = self.flights.retain_waiting(span, stays);
        for read in &gone {
            read.fail(ReadError::Interrupted);
        }
        (gone.len(), left)
    }
}

impl Landing {
    /// For a span that was just started.
    pub(crate) fn new(layer: &Arc<Layer>, span: SpanId) -> Self {
        Self {
            layer: Arc::clone(layer),
            span,
            landed: false,
        }
    }

    /// The bytes of this span among those of a run that begins at `start`; fewer when they are short.
    fn part(&self, start: CompressedOffset, bytes: &Bytes) -> Bytes {
        let range = self.layer.spans.compressed(self.span);
        let position = |offset: CompressedOffset| {
            usize::try_from(offset.0.saturating_sub(start.0))
                .map_or(bytes.len(), |position| position.min(bytes.len()))
        };
        bytes.slice(position(range.start)..position(range.end))
    }

    /// Verifies and decodes the span, answers who waits, writes the cache. Gives itself back when the
    /// bytes are wrong. Blocks on file I/O and CPU.
    fn land(mut self, bytes: &[u8], scratch: &mut Scratch) -> Result<(), Self> {
        let layer = Arc::clone(&self.layer);
        let verifying = step!("verify", span = self.span.0, bytes = bytes.len());
        let verified = match CompressedSpan::new(self.span, bytes).verify(&layer.spans) {
            Ok(verified) => verified,
            Err(error) => return Err(self.wrong(&error)),
        };
        drop(verifying);
        let inflating = step!("inflate", span = self.span.0);
        let mut decoder = match verified.decoder(&mut scratch.span) {
            Ok(decoder) => decoder,
            Err(error) => {
                layer.distrust_windows(self.span);
                // The disk's fault: other bytes would not help.
                tracing::error!(
                    layer = %layer.digest, span = %self.span,
                    "a checkpoint cannot be read from the layer's zTOC on disk, the reads of its span fail: {error}"
                );
                return Ok(());
            }
        };
        if let Err(error) = self.answer_early(&mut decoder) {
            return Err(self.wrong(&error));
        }
        let plain = match decoder.decode_all() {
            Ok(plain) => plain,
            Err(error) => return Err(self.wrong(&error)),
        };
        let length = plain.len();
        add(&layer.counters.spans_decoded, 1);
        add(&layer.counters.bytes_decoded, length as u64);
        drop(inflating);
        self.deliver(plain);
        scratch.used(length);
        Ok(())
    }

    /// Answers who waits as soon as his bytes are decoded, nearest first.
    fn answer_early(&self, decoder: &mut Decoder<'_>) -> Result<(), InflateError> {
        let range = self.layer.spans.uncompressed(self.span);
        loop {
            let mut waiting = self.layer.flights.take_waiters(self.span);
            if waiting.is_empty() {
                return Ok(());
            }
            waiting.sort_by_key(|read| read.part(&range).end);
            let mut waiting = waiting.into_iter();
            while let Some(read) = waiting.next() {
                match decoder.decode_to(read.part(&range).end) {
                    Ok(plain) => read.fill(&range, plain),
                    Err(error) => {
                        // The bytes are verified: what describes them is wrong, and stays so.
                        read.fail(ReadError::Unavailable);
                        waiting.for_each(|read| read.fail(ReadError::Unavailable));
                        return Err(error);
                    }
                }
            }
        }
    }

    fn wrong(self, error: &dyn std::error::Error) -> Self {
        add(&self.layer.counters.bad_spans, 1);
        tracing::warn!(layer = %self.layer.digest, "fetched bytes are unusable: {error}");
        self
    }

    /// Hands out a span's bytes: to those who wait, to the cache, to those who came meanwhile.
    fn deliver(&mut self, plain: &[u8]) {
        let layer = &self.layer;
        let range = layer.spans.uncompressed(self.span);
        for read in layer.flights.take_waiters(self.span) {
            read.fill(&range, plain);
        }
        let storing = step!("store", span = self.span.0, bytes = plain.len());
        let stored = layer.cache.store(self.span, range.start, plain);
        drop(storing);
        if stored.is_ok() {
            layer.holds(plain.len() as u64);
        }
        {
            let mut unwritten = layer.engine.unwritten.lock();
            match &stored {
                Ok(()) => unwritten.drop_span(&layer.digest, self.span),
                Err(_) => unwritten.keep(layer.digest, self.span, plain),
            }
        }
        self.landed = true;
        for read in layer.flights.finish(self.span, stored.is_ok()) {
            read.fill(&range, plain);
        }
        match stored {
            Ok(()) => {
                layer.engine.ledger.evict();
                layer.prove_if_whole();
            }
            Err(error) => self.not_stored(&error),
        }
    }

    fn not_stored(&self, error: &std::io::Error) {
        add(&self.layer.counters.cache_write_failures, 1);
        self.layer.engine.ledger.refused();
        if let Some(suppressed) = self.layer.engine.write_failures.pass(LOG_INTERVAL) {
            tracing::warn!(
                layer = %self.layer.digest, span = %self.span, suppressed,
                "cannot write the span cache, spans are served from memory and fetched again: {error}"
            );
        }
    }

    /// Checks a span that the cache claims, and has it fetched if the claim is wrong.
    pub(crate) fn recover(self, ticket: Arc<Ticket>) {
        let layer = Arc::clone(&self.layer);
        let (urgency, trace) = (Arc::clone(&ticket), traces::here());
        layer.engine.decoders.submit(&urgency, move |scratch| {
            let _inside = trace.enter();
            self.check(&ticket, scratch);
        });
    }

    fn check(mut self, ticket: &Arc<Ticket>, scratch: &mut Scratch) {
        let layer = Arc::clone(&self.layer);
        let range = layer.spans.uncompressed(self.span);
        let checked = layer.cache.check(self.span, &range, &mut scratch.plain);
        scratch.used(scratch.plain.len());
        if matches!(checked, Ok(true)) {
            add(&layer.counters.spans_recovered, 1);
            self.landed = true;
            for read in layer.flights.finish(self.span, true) {
                read.fill(&range, &scratch.plain);
            }
            return;
        }
        add(&layer.counters.bad_cached_spans, 1);
        tracing::warn!(layer = %layer.digest, span = %self.span, "a cached span is damaged; it is fetched again");
        layer.drops(range.byte_len());
        layer.cache.forget(self.span, range);
        let run = Run::new(self, Arc::clone(ticket));
        let this = Arc::clone(&layer);
        layer.engine.spawn(async move { run.fetch(&this).await });
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if self.landed {
            return;
        }
        let given_up = self.layer.flights.is_withdrawn(self.span);
        for read in self.layer.flights.finish(self.span, false) {
            if given_up {
                // It came when the last look had been taken.
                let next = SpanId(self.span.0 + 1);
                self.layer.want(self.span..next, Some(&read), Lane::Demand);
            } else {
                read.fail(ReadError::Unavailable);
            }
        }
    }
}

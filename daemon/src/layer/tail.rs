//! What is in a layer behind the end of its archive.
//!
//! A zTOC describes a layer up to where the archive ends; nobody ever reads what is behind. It is fetched when the
//! whole layer is to be proven, from the last span of the archive on, and decoded piece by piece.

use std::io::{self, Read as _};
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use sha2::{Digest as _, Sha256};
use ztoc::gunzip::{Gunzip, PIECE_LEN};
use ztoc::unit::ByteLen as _;
use ztoc::{CompressedOffset, CompressedSpan, Compression, SpanId, SpanTable};

use super::Layer;
use super::counters::add;
use super::decode::Scratch;
use super::schedule::{Lane, Ticket, compressed};

/// Most compressed bytes looked at; more than a span and any padding by far. A layer with more behind its
/// archive is not proven.
const MOST: u64 = 64 << 20;

/// The end of a layer, being hashed.
pub(super) struct Tail {
    layer: Arc<Layer>,
    plain: Plain,
    /// Bytes in front, which have been hashed.
    skip: u64,
    hash: Sha256,
}

/// The plain bytes from the last span of the archive on.
enum Plain {
    Gzip(Box<Gunzip<bytes::buf::Reader<Bytes>>>),
    Tar(bytes::buf::Reader<Bytes>),
}

/// The spans from the one in which the archive ends.
fn spans(table: &SpanTable) -> Range<SpanId> {
    let end = table.uncompressed_size();
    let last = (0..table.count()).rev().map(SpanId);
    let mut at_end = last.skip_while(|span| table.uncompressed(*span).start.0 >= end && span.0 > 0);
    at_end.next().unwrap_or(SpanId(0))..SpanId(table.count())
}

impl Tail {
    /// Has the end of `layer` fetched and hashed behind what `hash` has seen, and ends the layer's proof.
    pub(super) fn fetch(layer: &Arc<Layer>, hash: Sha256) {
        let this = Arc::clone(layer);
        layer.engine.spawn(async move {
            match bytes(&this).await {
                Ok(bytes) => Self::begin(&this, bytes, hash),
                Err(why) => this.put_off(&why),
            }
        });
    }

    fn begin(layer: &Arc<Layer>, bytes: Bytes, hash: Sha256) {
        let this = Arc::clone(layer);
        let work = move |scratch: &mut Scratch| {
            match Self::new(&this, bytes, hash) {
                Ok(tail) => tail.step(scratch),
                Err(why) => this.put_off(&why),
            };
        };
        layer
            .engine
            .decoders
            .submit(&Arc::new(Ticket::new(Lane::Fill)), work);
    }

    fn new(layer: &Arc<Layer>, bytes: Bytes, hash: Sha256) -> Result<Self, String> {
        let table = &layer.spans;
        let spans = spans(table);
        verify(table, &spans, &bytes)?;
        let start = table.uncompressed(spans.start).start;
        let plain = match table.compression() {
            Compression::Gzip => {
                let gunzip = Gunzip::from_span(bytes.reader(), table, spans.start);
                Plain::Gzip(Box::new(gunzip.map_err(|error| error.to_string())?))
            }
            Compression::Uncompressed => Plain::Tar(bytes.reader()),
        };
        Ok(Self {
            layer: Arc::clone(layer),
            plain,
            skip: table.uncompressed_size() - start.0,
            hash,
        })
    }

    /// Hashes the next piece: other work goes on in between.
    fn step(mut self, scratch: &mut Scratch) {
        let piece = match self.plain.next(&mut scratch.plain) {
            Ok(piece) => piece,
            Err(error) => {
                // The bytes are those that the zTOC names.
                tracing::warn!(layer = %self.layer.digest, "the layer's end cannot be decoded: {error}");
                return self.layer.judge_by(self.hash);
            }
        };
        if piece.is_empty() {
            return self.layer.judge_by(self.hash);
        }
        scratch.used(scratch.plain.len());
        let piece = &scratch.plain[piece];
        let known = usize::try_from(self.skip)
            .unwrap_or(usize::MAX)
            .min(piece.len());
        self.skip -= known as u64;
        self.hash.update(&piece[known..]);
        let engine = Arc::clone(&self.layer.engine);
        let ticket = Arc::new(Ticket::new(Lane::Fill));
        engine
            .decoders
            .submit(&ticket, move |scratch| self.step(scratch));
    }
}

impl Plain {
    /// Puts the next bytes into `buffer` and tells where they are: nowhere at the end.
    fn next(&mut self, buffer: &mut Vec<u8>) -> io::Result<Range<usize>> {
        match self {
            Self::Gzip(gunzip) => gunzip.read_piece(buffer).map_err(io::Error::other),
            Self::Tar(bytes) => {
                buffer.resize(PIECE_LEN, 0);
                Ok(0..bytes.read(&mut buffer[..PIECE_LEN])?)
            }
        }
    }
}

/// The compressed bytes, not verified.
async fn bytes(layer: &Arc<Layer>) -> Result<Bytes, String> {
    let spans = spans(&layer.spans);
    if spans.start >= spans.end {
        return Ok(Bytes::new());
    }
    let range = compressed(&layer.spans, &spans);
    let size = range.byte_len();
    if size > MOST {
        return Err(format!("it is in {size} compressed bytes"));
    }
    let ticket = Arc::new(Ticket::new(Lane::Fill));
    let Some(_room) = layer.engine.budget.acquire(size, &ticket).await else {
        return Err(String::from("the daemon ends"));
    };
    let first = spans.start..SpanId(spans.start.0 + 1);
    let windows = layer.bring_windows(&first, &ticket).await;
    windows.map_err(|failure| failure.detail)?;
    add(&layer.counters.requests, 1);
    let bytes = layer
        .sources
        .fetch(range, 0)
        .await
        .map_err(|failure| failure.detail)?;
    add(&layer.counters.bytes_fetched, bytes.len() as u64);
    Ok(bytes)
}

fn verify(table: &SpanTable, spans: &Range<SpanId>, bytes: &Bytes) -> Result<(), String> {
    let start = compressed(table, spans).start;
    for span in (spans.start.0..spans.end.0).map(SpanId) {
        let range = table.compressed(span);
        let at = |offset: CompressedOffset| {
            usize::try_from(offset.0.saturating_sub(start.0))
                .map_or(bytes.len(), |at| at.min(bytes.len()))
        };
        let part = &bytes[at(range.start)..at(range.end).max(at(range.start))];
        CompressedSpan::new(span, part)
            .verify(table)
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

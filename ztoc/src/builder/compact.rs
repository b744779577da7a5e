//! Finds the spans of a compact zTOC while a layer is read: a thread that is told of the bytes on both
//! sides of the decoder and of the blocks between them.
//!
//! A checkpoint can be wherever a block begins. Of the boundaries that lie between one and one and an eighth of a
//! span behind the checkpoint before, the one is taken whose window is cheapest; if there is none, the first behind
//! them. How much of a window is used is found by decoding what follows twice more, behind windows whose bytes say
//! where they stand.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};

use super::lock;
use super::pipeline::Halt;
use super::plain::PlainPiece;
use super::rolling::Rolling;
use crate::checkpoint::{Checkpoint, WINDOW_LEN};
use crate::compact::{CompactSpan, MIN_SPAN_SIZE, SparseWindow, Used};
use crate::digest::Digest;
use crate::inflate::{self, Cursor, Stop, Tables};
use crate::unit::{CompressedOffset, SpanSize, UncompressedOffset};
use crate::ztoc::Compression;

/// Events that wait.
const QUEUE_LEN: usize = 16;

/// Boundaries nearer to the one before are passed over: of blocks that short there are too many to look at.
const MIN_BLOCK_LEN: u64 = 4 << 10;

/// A layer's spans for a compact zTOC.
#[derive(Debug)]
pub(super) struct BuiltSpans {
    pub(super) span_size: SpanSize,
    pub(super) spans: Vec<CompactSpan>,
}

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Event {
    /// A block begins here.
    Boundary(Boundary),
    /// The next bytes of the blob.
    Compressed(Vec<u8>),
    /// The next bytes of its content, and how many so far belong to the archive.
    Plain(PlainPiece, u64),
}

/// Where a block begins: bit of the blob, byte of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Boundary {
    bit: u64,
    position: u64,
}

/// The way to the thread. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Tap {
    events: SyncSender<Event>,
    compression: Compression,
    /// The next boundary that is told of is here or behind.
    next_boundary: Arc<Mutex<u64>>,
}

impl Tap {
    pub(super) fn new(compression: Compression) -> (Self, Receiver<Event>) {
        let (events, told) = sync_channel(QUEUE_LEN);
        let tap = Self {
            events,
            compression,
            next_boundary: Arc::default(),
        };
        (tap, told)
    }

    fn tell(&self, event: Event) -> Result<(), Halt> {
        self.events.send(event).map_err(|_| Halt::Closed)
    }

    pub(super) fn boundary(&self, bit: u64, position: u64) -> Result<(), Halt> {
        {
            let mut next = lock(&self.next_boundary);
            if position < *next {
                return Ok(());
            }
            *next = position + MIN_BLOCK_LEN;
        }
        self.tell(Event::Boundary(Boundary { bit, position }))
    }

    pub(super) fn compressed(&self, bytes: &[u8]) -> Result<(), Halt> {
        match self.compression {
            Compression::Gzip => self.tell(Event::Compressed(bytes.to_vec())),
            Compression::Uncompressed => Ok(()),
        }
    }

    pub(super) fn plain(&self, piece: PlainPiece, archived: u64) {
        // The thread ends early only by a panic, which is told when it is joined.
        let _ = self.tell(Event::Plain(piece, archived));
    }
}

/// Works off what is told until nobody is left to tell more.
pub(super) fn compact_spans(
    events: &Receiver<Event>,
    compression: Compression,
    span_size: SpanSize,
) -> BuiltSpans {
    let span_size = span_size.max(MIN_SPAN_SIZE);
    let mut spans = Spans::new(compression, span_size.bytes());
    for event in events {
        spans.take(event);
        spans.decide(false);
    }
    BuiltSpans {
        span_size,
        spans: spans.finish(),
    }
}

/// The span that is being read.
struct Open {
    checkpoint: Checkpoint,
    window: SparseWindow,
    digest: Sha256,
    checksum: crc32fast::Hasher,
    /// How far both are.
    hashed: u64,
    summed: u64,
}

struct Spans {
    compression: Compression,
    span_size: u64,
    done: Vec<CompactSpan>,
    open: Option<Open>,
    boundaries: VecDeque<Boundary>,
    compressed: Rolling,
    plain: Rolling,
    /// How much of the content belongs to the archive.
    archived: u64,
    tables: Tables,
    coded: Vec<u8>,
}

impl Spans {
    fn new(compression: Compression, span_size: u64) -> Self {
        Self {
            compression,
            span_size,
            done: Vec::new(),
            open: None,
            boundaries: VecDeque::new(),
            compressed: Rolling::default(),
            plain: Rolling::default(),
            archived: 0,
            tables: Tables::new(),
            coded: Vec::new(),
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Boundary(boundary) => self.boundaries.push_back(boundary),
            Event::Compressed(bytes) => self.compressed.extend(&bytes),
            Event::Plain(piece, archived) => {
                let bytes = &piece.buffer[piece.range.clone()];
                self.plain.extend(bytes);
                self.archived = archived;
                if self.compression == Compression::Uncompressed {
                    self.compressed.extend(bytes);
                }
            }
        }
    }

    /// Takes the checkpoints that can be chosen by now.
    fn decide(&mut self, last: bool) {
        let choose = match self.compression {
            Compression::Gzip => Self::choose,
            Compression::Uncompressed => Self::next_of_tar,
        };
        while let Some((checkpoint, window)) = choose(self, last) {
            self.begin(checkpoint, window);
        }
        self.advance();
    }

    /// The next span of a plain tar begins where its size says.
    fn next_of_tar(&mut self, _last: bool) -> Option<(Checkpoint, SparseWindow)> {
        let next = self.open.as_ref().map_or(0, |open| {
            open.checkpoint
                .uncompressed
                .0
                .saturating_add(self.span_size)
        });
        let checkpoint = Checkpoint {
            compressed: CompressedOffset(next),
            uncompressed: UncompressedOffset(next),
            bits: 0,
        };
        (next < self.plain.end()).then(|| (checkpoint, SparseWindow::default()))
    }

    /// The next checkpoint and its window, if it can be told by now.
    fn choose(&mut self, last: bool) -> Option<(Checkpoint, SparseWindow)> {
        let Some(open) = &self.open else {
            let first = self.boundaries.pop_front()?;
            let checkpoint = Checkpoint::at_bit(first.bit, first.position);
            return Some((checkpoint, SparseWindow::default()));
        };
        let from = open
            .checkpoint
            .uncompressed
            .0
            .saturating_add(self.span_size);
        let to = from.saturating_add(self.span_size / 8);
        while self.boundaries.front().is_some_and(|it| it.position < from) {
            self.boundaries.pop_front();
        }
        let known = |position: u64| last || self.plain.end() >= position + WINDOW_LEN as u64;
        if !known(to) {
            return None;
        }
        let end = self.plain.end();
        let candidates = self.boundaries.iter().take_while(|it| it.position <= to);
        let count = candidates.count().max(1).min(self.boundaries.len());
        let mut best: Option<(usize, SparseWindow)> = None;
        for index in 0..count {
            let boundary = self.boundaries[index];
            if boundary.position >= end || !(last || end >= boundary.position + WINDOW_LEN as u64) {
                break;
            }
            let used = self.used(boundary, last)?;
            let window = SparseWindow::new(&self.plain.window(boundary.position), &used);
            if best
                .as_ref()
                .is_none_or(|(_, best)| window.cost() < best.cost())
            {
                best = Some((index, window));
            }
        }
        let (index, window) = best?;
        let chosen = self.boundaries[index];
        self.boundaries.drain(..=index);
        Some((Checkpoint::at_bit(chosen.bit, chosen.position), window))
    }

    /// Which bytes of the window at `at` are used; `None` if more of the blob must come first.
    fn used(&mut self, at: Boundary, last: bool) -> Option<Used> {
        let from = at.bit / 8;
        let input = self.compressed.from(from);
        let plain = self.plain.from(at.position);
        let len = plain.len().min(WINDOW_LEN);
        self.coded.resize(2 * (2 * WINDOW_LEN), 0);
        let (low, high) = self.coded.split_at_mut(2 * WINDOW_LEN);
        let mut reached = 0;
        for (coded, code) in [
            (&mut *low, low_code as fn(usize) -> u8),
            (&mut *high, high_code),
        ] {
            for (position, byte) in coded[..WINDOW_LEN].iter_mut().enumerate() {
                *byte = code(position);
            }
            let mut cursor = Cursor::at_bit(at.bit % 8);
            let end = WINDOW_LEN + len;
            let tables = &mut self.tables;
            let run = inflate::run(tables, input, &mut cursor, coded, WINDOW_LEN, end);
            match run {
                Ok((Stop::InputExhausted, _)) if !last => return None,
                Ok((_, end)) => reached = end - WINDOW_LEN,
                // It was decoded before; should this ever be, then everything is used.
                Err(_) => return Some(Used::all()),
            }
        }
        let mut used = Used::none();
        let window = self.plain.window(at.position);
        let coded = low[WINDOW_LEN..].iter().zip(&high[WINDOW_LEN..]);
        for ((low, high), plain) in coded.zip(plain).take(reached) {
            let position = usize::from(*low) | usize::from(high & 0x7f) << 8;
            // A literal comes out as itself both times. So may a byte of the window, which then is the same.
            let literal = low == high && low == plain;
            if !literal || (high & 0x80 != 0 && window[position] == *plain) {
                used.mark(position);
            }
        }
        Some(used)
    }

    /// Ends the span that is being read, and begins the next.
    fn begin(&mut self, checkpoint: Checkpoint, window: SparseWindow) {
        self.end(Some(&checkpoint));
        self.open = Some(Open {
            digest: Sha256::new(),
            checksum: crc32fast::Hasher::new(),
            hashed: checkpoint.first_byte().0,
            summed: checkpoint.uncompressed.0,
            checkpoint,
            window,
        });
    }

    /// Ends the span that is being read where `next` begins, or at the end.
    fn end(&mut self, next: Option<&Checkpoint>) {
        let (compressed, plain) = match next {
            Some(next) => (next.compressed.0, next.uncompressed.0),
            None => (self.compressed.end(), self.plain.end()),
        };
        self.hash_to(compressed, plain);
        let Some(open) = self.open.take() else { return };
        self.done.push(CompactSpan {
            checkpoint: open.checkpoint,
            digest: Digest::from_bytes(open.digest.finalize().into()),
            checksum: open.checksum.finalize(),
            window: open.window,
        });
    }

    /// Hashes what certainly belongs to the span that is being read, and forgets what is not needed any more.
    fn advance(&mut self) {
        let Some(open) = &self.open else { return };
        let size = self.span_size;
        let nearest = open.checkpoint.uncompressed.0.saturating_add(size);
        let next = self.boundaries.iter().find(|it| it.position >= nearest);
        let (compressed, plain) = match (self.compression, next) {
            (Compression::Gzip, Some(next)) => (next.bit / 8, next.position),
            // The boundary that comes next is not known of before its block is decoded, which may lag behind.
            (Compression::Gzip, None) => (self.compressed.end(), nearest),
            (Compression::Uncompressed, _) => (nearest, nearest),
        };
        self.hash_to(
            compressed.min(self.compressed.end()),
            plain.min(self.plain.end()),
        );
    }

    fn hash_to(&mut self, compressed: u64, plain: u64) {
        let Some(open) = &mut self.open else { return };
        open.digest
            .update(self.compressed.range(open.hashed..compressed));
        open.hashed = open.hashed.max(compressed);
        // Nothing behind the archive is ever decoded.
        let summed = plain.min(self.archived.max(open.summed));
        open.checksum.update(self.plain.range(open.summed..summed));
        open.summed = open.summed.max(plain);
        self.compressed.forget(open.hashed.saturating_sub(1));
        self.plain
            .forget(open.summed.saturating_sub(WINDOW_LEN as u64));
    }

    fn finish(mut self) -> Vec<CompactSpan> {
        self.decide(true);
        self.end(None);
        self.done
    }
}

/// The low byte of a position in the window.
fn low_code(position: usize) -> u8 {
    position.to_le_bytes()[0]
}

/// The high byte, marked.
fn high_code(position: usize) -> u8 {
    position.to_le_bytes()[1] | 0x80
}

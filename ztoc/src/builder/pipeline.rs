//! The two threads of a build and what goes between them.
//!
//! One inflates, which cannot be divided; the other hashes and scans what comes out. Two that are always busy keep two
//! cores busy; a third would take turns with the one that everything waits for. What is compressed has to be read and
//! hashed too, in order and at any time: whoever has nothing else to do does it.

use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread::{self, ScopedJoinHandle};

use super::ahead::ReadAhead;
use super::compact::{Tap, compact_spans};
use super::compressed::{Backlog, CompressedPiece};
use super::gunzip::Gunzip;
use super::input::Chunk;
use super::plain::{PlainPiece, PlainReader};
use super::{BuildError, BuildOptions, Built, LayerFormat, sniff};
use crate::checkpoint::{Checkpoint, TarZinfo, Zinfo};
use crate::digest::Digest;
use crate::span::SpanTable;
use crate::tar::Scanned;
use crate::toc::{Entry, Toc};
use crate::unit::{CompressedOffset, SpanSize, UncompressedOffset};
use crate::ztoc::{Compression, Ztoc};

/// Pieces that wait between two threads.
const QUEUE_LEN: usize = 4;

/// Room that a span digest takes in a zTOC.
const DIGEST_LEN: usize = 96;

/// What stops the reading side: an error of its own, or the end of another side.
#[derive(Debug)]
pub(super) enum Halt {
    Failed(BuildError),
    /// The other side has an error to tell.
    Closed,
}

impl From<BuildError> for Halt {
    fn from(error: BuildError) -> Self {
        Self::Failed(error)
    }
}

impl From<std::io::Error> for Halt {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.into())
    }
}

/// The ways to the other threads.
#[derive(Debug)]
pub(super) struct Sinks<'b> {
    plain: SyncSender<PlainPiece>,
    backlog: &'b Backlog,
    compact: Option<Tap>,
}

impl Sinks<'_> {
    /// Hands a piece on. While there is no room, hashes what is compressed.
    pub(super) fn plain(&self, mut piece: PlainPiece) -> Result<(), Halt> {
        loop {
            piece = match self.plain.try_send(piece) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(_)) => return Err(Halt::Closed),
                Err(TrySendError::Full(piece)) => piece,
            };
            if !self.backlog.work() {
                return self.plain.send(piece).map_err(|_| Halt::Closed);
            }
        }
    }

    pub(super) fn compressed(&self, piece: CompressedPiece) -> Result<(), Halt> {
        if let Some(tap) = &self.compact {
            tap.compressed(piece.bytes())?;
        }
        self.backlog.add(piece);
        Ok(())
    }

    /// A block begins at this bit of the blob and this position of its content.
    pub(super) fn boundary(&self, bit: u64, position: u64) -> Result<(), Halt> {
        match &self.compact {
            Some(tap) => tap.boundary(bit, position),
            None => Ok(()),
        }
    }
}

pub(super) fn build(
    compression: Compression,
    layer: impl Read + Send,
    options: &BuildOptions,
    compact: Option<SpanSize>,
) -> Result<Built, BuildError> {
    let blob = ReadAhead::new(layer);
    let first = blob.next()?.unwrap_or_default();
    check_format(compression, first.bytes())?;
    let gzip = compression == Compression::Gzip;
    let (plain, plain_pieces) = sync_channel(QUEUE_LEN);
    let backlog = Backlog::new(gzip);
    let (tap, events) = compact.map(|_| Tap::new(compression)).unzip();
    let sinks = Sinks {
        plain,
        backlog: &backlog,
        compact: tap.clone(),
    };
    let (read, scanned, compact) = thread::scope(|scope| {
        let compacting = events
            .zip(compact)
            .map(|(events, size)| scope.spawn(move || compact_spans(&events, compression, size)));
        let (blob, backlog) = (&blob, &backlog);
        let otherwise = move || backlog.work() || blob.work();
        let scanning = scope.spawn(move || scan(&plain_pieces, otherwise, gzip, tap));
        let read = match compression {
            Compression::Gzip => Gunzip::new((first, blob), &sinks, options.span_size).run(),
            Compression::Uncompressed => copy((first, blob), &sinks, options.span_size),
        };
        drop(sinks);
        while backlog.work() {}
        (read, join(scanning), compacting.map(join))
    });
    let (zinfo, size) = match read {
        Ok(read) => read,
        Err(Halt::Failed(error)) => return Err(error),
        Err(Halt::Closed) => return Err(scanned.expect_err("it closes early on errors only")),
    };
    let (diff_id, scanned) = scanned?;
    let (blob, digests) = backlog.finish();
    let ztoc = assemble(zinfo, digests, size, scanned, &options.build_tool)?;
    Ok(Built {
        ztoc,
        layer_digest: blob.unwrap_or(diff_id),
        diff_id,
        compact,
    })
}

fn check_format(compression: Compression, head: &[u8]) -> Result<(), BuildError> {
    let expected = match compression {
        Compression::Gzip => LayerFormat::Gzip,
        Compression::Uncompressed => LayerFormat::Plain,
    };
    match sniff(head) {
        LayerFormat::Zstd => Err(BuildError::Zstd),
        _ if head.is_empty() && compression == Compression::Gzip => Err(BuildError::Empty),
        found if found != expected => Err(BuildError::Format { expected, found }),
        _ => Ok(()),
    }
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Takes pieces until there will be no more. While none has come, does what there is to do `otherwise`, if anything.
fn scan(
    pieces: &Receiver<PlainPiece>,
    otherwise: impl Fn() -> bool,
    gzip: bool,
    tap: Option<Tap>,
) -> Result<(Digest, Scanned), BuildError> {
    let mut reader = PlainReader::new(gzip);
    loop {
        let piece = match pieces.try_recv() {
            Ok(piece) => piece,
            Err(TryRecvError::Disconnected) => return reader.finish(),
            Err(TryRecvError::Empty) if otherwise() => continue,
            Err(TryRecvError::Empty) => match pieces.recv() {
                Ok(piece) => piece,
                Err(_) => return reader.finish(),
            },
        };
        reader.take(&piece)?;
        if let Some(tap) = &tap {
            tap.plain(piece, reader.archived());
        }
    }
}

/// Reads a plain layer to its end; its spans and size.
fn copy(
    (first, blob): (Chunk, &ReadAhead<impl Read>),
    sinks: &Sinks<'_>,
    span_size: SpanSize,
) -> Result<(Zinfo, u64), Halt> {
    let span_size = span_size.bytes();
    let (mut spans, mut end): (u64, u64) = (0, 0);
    let mut next = Some(first);
    while let Some(Chunk { buffer, range }) = next {
        end += range.len() as u64;
        let mut checkpoints = Vec::new();
        while let Some(at) = spans.checked_mul(span_size).filter(|at| *at < end) {
            checkpoints.push(Checkpoint {
                compressed: CompressedOffset(at),
                uncompressed: UncompressedOffset(at),
                bits: 0,
            });
            spans += 1;
        }
        if spans > (Ztoc::MAX_ENCODED_LEN / DIGEST_LEN) as u64 {
            return Err(BuildError::TooLarge.into());
        }
        let buffer = blob.lend(buffer);
        sinks.compressed(CompressedPiece {
            buffer: Arc::clone(&buffer),
            range: range.clone(),
            checkpoints,
        })?;
        sinks.plain(PlainPiece {
            buffer,
            range,
            members: Vec::new(),
        })?;
        next = blob.next()?;
    }
    let spans = TarZinfo {
        version: 2,
        span_size,
        size: end,
    };
    Ok((Zinfo::Tar(spans), end))
}

fn assemble(
    zinfo: Zinfo,
    digests: Vec<Digest>,
    size: u64,
    scanned: Scanned,
    build_tool: &str,
) -> Result<Ztoc, BuildError> {
    let texts = build_tool.len() + DIGEST_LEN * digests.len();
    let entries: usize = scanned.entries.iter().map(Entry::encoded_len).sum();
    if entries + texts + zinfo.encoded_len() > Ztoc::MAX_ENCODED_LEN {
        return Err(BuildError::TooLarge);
    }
    let end = scanned.end.0;
    let max_id = i32::try_from(digests.len()).map_err(|_| BuildError::TooLarge)? - 1;
    let spans = SpanTable::new(zinfo, digests, max_id, size, end)?;
    let toc = Toc::new(scanned.entries, end).map_err(BuildError::Toc)?;
    Ok(Ztoc::new(build_tool, toc, spans))
}

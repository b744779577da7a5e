//! The stages of one layer: decoding, hashing and writing run beside each other.
//!
//! ```text
//! download -> decode thread -> tar, in pieces -> the caller, who writes
//!                  |  blob           |
//!                  +--> hash thread <+
//! ```
//! A few pieces may wait in front of each stage, so that memory is bounded; buffers go round.

use std::io::{self, BufRead, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver as Queue, Sender, SyncSender, channel, sync_channel};
use std::thread;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use ztoc::Digest;

use super::decode::Decoder;
use super::error::UnpackError;
use super::stream::{Chunks, Receiver};

/// Most bytes of a layer, compressed or not.
const MAX_BYTES: u64 = 1 << 40;
/// Pieces in front of a stage; a piece is 256 KiB at most.
const AHEAD: usize = 4;

/// What a layer turned out to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Digests {
    /// Of the blob.
    pub(super) blob: Digest,
    /// Of the tar in it.
    pub(super) tar: Digest,
}

/// Some bytes of the tar. The buffer goes back when nobody needs it any more.
struct Piece {
    buffer: Vec<u8>,
    range: Range<usize>,
    home: Sender<Vec<u8>>,
}

enum Message {
    Piece(Arc<Piece>),
    Failed(io::Error),
    End,
}

enum Hashable {
    Blob(Bytes),
    Tar(Arc<Piece>),
}

/// Decodes and hashes `blob` while `write` reads the tar in it, to the end. Drops `downloading` once
/// no more of the blob is wanted: whoever holds its other end must end the download then.
pub(super) fn run<T>(
    blob: Receiver,
    downloading: oneshot::Sender<()>,
    write: impl FnOnce(&mut Tar) -> Result<T, UnpackError>,
) -> Result<(T, Digests), UnpackError> {
    let (hashes, to_hash) = sync_channel(AHEAD);
    let (pieces, tar) = sync_channel(AHEAD);
    thread::scope(|threads| {
        let started = |name: &str| thread::Builder::new().name(name.to_owned());
        let hasher = started("layer-hash")
            .spawn_scoped(threads, || hash(to_hash))
            .map_err(UnpackError::Read)?;
        started("layer-decode")
            .spawn_scoped(threads, move || {
                let last = match decode(blob, &pieces, &hashes) {
                    Ok(()) => Message::End,
                    Err(error) => Message::Failed(error),
                };
                // Nobody listens if writing failed.
                let _ = pieces.send(last);
            })
            .map_err(UnpackError::Read)?;
        let mut tar = Tar {
            pieces: tar,
            piece: None,
            at: 0,
            ended: false,
        };
        let written = write(&mut tar).and_then(|written| {
            io::copy(&mut tar, &mut io::sink()).map_err(UnpackError::Read)?;
            Ok(written)
        });
        // The decoder may be waiting for one of them.
        drop((tar, downloading));
        let written = written?;
        let digests = hasher.join().map_err(|_| UnpackError::GivenUp)?;
        Ok((written, digests))
    })
}

/// Ends early when one of the other stages has.
fn decode(
    blob: Receiver,
    pieces: &SyncSender<Message>,
    hashes: &SyncSender<Hashable>,
) -> io::Result<()> {
    let stopped = || io::Error::other("another stage stopped");
    let mut compressed = 0;
    let blob = Chunks::new(blob, |chunk| {
        add(&mut compressed, chunk.len())?;
        let hashed = hashes.send(Hashable::Blob(chunk.clone()));
        hashed.map_err(|_| stopped())
    });
    let mut decoder = Decoder::new(blob)?;
    let (home, free) = channel();
    let mut plain = 0;
    loop {
        let mut buffer = free.try_recv().unwrap_or_default();
        let range = decoder.read_piece(&mut buffer)?;
        if range.is_empty() {
            return Ok(());
        }
        add(&mut plain, range.len())?;
        let home = home.clone();
        let piece = Arc::new(Piece {
            buffer,
            range,
            home,
        });
        let hashed = hashes.send(Hashable::Tar(Arc::clone(&piece)));
        hashed.map_err(|_| stopped())?;
        pieces.send(Message::Piece(piece)).map_err(|_| stopped())?;
    }
}

fn add(sum: &mut u64, count: usize) -> io::Result<()> {
    *sum += count as u64;
    if *sum <= MAX_BYTES {
        return Ok(());
    }
    let detail = format!("more than the {MAX_BYTES} bytes accepted");
    Err(io::Error::new(io::ErrorKind::FileTooLarge, detail))
}

fn hash(queue: Queue<Hashable>) -> Digests {
    let (mut blob, mut tar) = (Sha256::new(), Sha256::new());
    for item in queue {
        match item {
            Hashable::Blob(chunk) => blob.update(&chunk),
            Hashable::Tar(piece) => tar.update(piece.bytes()),
        }
    }
    let digest = |hash: Sha256| Digest::from_bytes(hash.finalize().into());
    Digests {
        blob: digest(blob),
        tar: digest(tar),
    }
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        // The decoder may have ended.
        let _ = self.home.send(std::mem::take(&mut self.buffer));
    }
}

/// The tar as it is decoded. Its end is the blob's end: what went wrong is an error instead.
pub(super) struct Tar {
    pieces: Queue<Message>,
    piece: Option<Arc<Piece>>,
    /// How much of the piece is used up.
    at: usize,
    ended: bool,
}

impl BufRead for Tar {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let used_up = |piece: &Arc<Piece>| self.at >= piece.range.len();
        if !self.ended && self.piece.as_ref().is_none_or(used_up) {
            (self.piece, self.at) = (None, 0);
            match self.pieces.recv() {
                Ok(Message::Piece(piece)) => self.piece = Some(piece),
                Ok(Message::End) => self.ended = true,
                Ok(Message::Failed(error)) => return Err(error),
                Err(_) => return Err(io::Error::other("decoding was given up")),
            }
        }
        let piece = self.piece.as_ref();
        Ok(piece.map_or(&[], |piece| &piece.bytes()[self.at..]))
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

impl Read for Tar {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut bytes = self.fill_buf()?;
        let length = bytes.read(into)?;
        self.consume(length);
        Ok(length)
    }
}

//! Hashes the blob: as a whole and span by span.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};

use super::lock;
use crate::checkpoint::Checkpoint;
use crate::digest::Digest;

/// A piece of the blob and the checkpoints found up to its end, or a little behind it.
#[derive(Debug, Default)]
pub(super) struct CompressedPiece {
    pub(super) buffer: Arc<Vec<u8>>,
    /// Where in the buffer the piece is.
    pub(super) range: Range<usize>,
    pub(super) checkpoints: Vec<Checkpoint>,
}

impl CompressedPiece {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

/// Pieces that wait; beyond, who brings one hashes one.
const MOST_WAITING: usize = 8;

/// Pieces to be hashed by whoever has the time.
#[derive(Debug)]
pub(super) struct Backlog {
    waiting: Mutex<VecDeque<CompressedPiece>>,
    /// Who has it hashes the first that waits.
    hasher: Mutex<CompressedHasher>,
}

impl Backlog {
    pub(super) fn new(whole_blob: bool) -> Self {
        Self {
            waiting: Mutex::default(),
            hasher: Mutex::new(CompressedHasher::new(whole_blob)),
        }
    }

    /// Adds the piece that follows.
    pub(super) fn add(&self, piece: CompressedPiece) {
        lock(&self.waiting).push_back(piece);
        while lock(&self.waiting).len() > MOST_WAITING {
            self.work_with(lock(&self.hasher));
        }
    }

    /// Hashes one piece; `false` if there is none, or somebody else is at it.
    pub(super) fn work(&self) -> bool {
        match self.hasher.try_lock() {
            Ok(hasher) => self.work_with(hasher),
            Err(_) => false,
        }
    }

    fn work_with(&self, mut hasher: MutexGuard<'_, CompressedHasher>) -> bool {
        let piece = lock(&self.waiting).pop_front();
        if let Some(piece) = &piece {
            hasher.take(piece);
        }
        piece.is_some()
    }

    /// Hashes what waits still. The digests of the blob, if it was wanted, and of each span.
    pub(super) fn finish(self) -> (Option<Digest>, Vec<Digest>) {
        let hasher = self.hasher.into_inner();
        let mut hasher = hasher.unwrap_or_else(PoisonError::into_inner);
        let waiting = self.waiting.into_inner();
        for piece in waiting.unwrap_or_else(PoisonError::into_inner) {
            hasher.take(&piece);
        }
        hasher.finish()
    }
}

/// Hashes pieces as they come.
#[derive(Debug, Default)]
struct CompressedHasher {
    /// Of the whole blob, if it is wanted.
    blob: Option<Sha256>,
    /// Of the span that is being read, once there is one.
    span: Option<Sha256>,
    digests: Vec<Digest>,
    /// Checkpoints that lie ahead.
    ahead: Vec<Checkpoint>,
    position: u64,
    last_byte: u8,
}

impl CompressedHasher {
    fn new(whole_blob: bool) -> Self {
        Self {
            blob: whole_blob.then(Sha256::new),
            ..Self::default()
        }
    }

    fn take(&mut self, piece: &CompressedPiece) {
        if let Some(blob) = &mut self.blob {
            blob.update(piece.bytes());
        }
        self.ahead.extend_from_slice(&piece.checkpoints);
        let end = self.position + piece.range.len() as u64;
        let mut bytes = piece.bytes();
        let reached = self
            .ahead
            .iter()
            .take_while(|point| point.compressed.0 <= end)
            .count();
        for point in self.ahead.drain(..reached).collect::<Vec<_>>() {
            let distance = point.compressed.0.saturating_sub(self.position);
            let len = usize::try_from(distance).map_or(bytes.len(), |len| len.min(bytes.len()));
            let (before, after) = bytes.split_at(len);
            self.advance(before);
            self.start_span(point.bits != 0);
            bytes = after;
        }
        self.advance(bytes);
    }

    fn advance(&mut self, bytes: &[u8]) {
        if let Some(span) = &mut self.span {
            span.update(bytes);
        }
        self.position += bytes.len() as u64;
        self.last_byte = bytes.last().copied().unwrap_or(self.last_byte);
    }

    /// The byte in front of a checkpoint belongs to two spans if the checkpoint cuts it.
    fn start_span(&mut self, shares_last_byte: bool) {
        let mut next = Sha256::new();
        if shares_last_byte {
            next.update([self.last_byte]);
        }
        if let Some(span) = self.span.replace(next) {
            self.digests
                .push(Digest::from_bytes(span.finalize().into()));
        }
    }

    /// The digests of the blob, if it was wanted, and of each span.
    fn finish(mut self) -> (Option<Digest>, Vec<Digest>) {
        if let Some(span) = self.span {
            self.digests
                .push(Digest::from_bytes(span.finalize().into()));
        }
        let blob = self
            .blob
            .map(|blob| Digest::from_bytes(blob.finalize().into()));
        (blob, self.digests)
    }
}

//! Hashes the blob: as a whole and span by span.

use sha2::{Digest as _, Sha256};

use crate::checkpoint::Checkpoint;
use crate::digest::Digest;

/// A piece of the blob and the checkpoints found up to its end, or a little behind it.
#[derive(Debug, Default)]
pub(super) struct CompressedPiece {
    pub(super) bytes: Vec<u8>,
    pub(super) checkpoints: Vec<Checkpoint>,
}

/// Hashes pieces as they come.
#[derive(Debug, Default)]
pub(super) struct CompressedHasher {
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
    pub(super) fn new(whole_blob: bool) -> Self {
        Self {
            blob: whole_blob.then(Sha256::new),
            ..Self::default()
        }
    }

    pub(super) fn take(&mut self, piece: &CompressedPiece) {
        if let Some(blob) = &mut self.blob {
            blob.update(&piece.bytes);
        }
        self.ahead.extend_from_slice(&piece.checkpoints);
        let end = self.position + piece.bytes.len() as u64;
        let mut bytes = piece.bytes.as_slice();
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
    pub(super) fn finish(mut self) -> (Option<Digest>, Vec<Digest>) {
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

//! Looks at the uncompressed stream: its digest, gzip's checksums, and the tar in it.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::BuildError;
use crate::digest::Digest;
use crate::gzip::Trailer;
use crate::tar::{Scanned, Scanner};

/// A piece of the uncompressed stream and the gzip members that end within it.
#[derive(Debug, Clone)]
pub(super) struct PlainPiece {
    pub(super) buffer: Arc<Vec<u8>>,
    /// Where the piece lies in the buffer.
    pub(super) range: std::ops::Range<usize>,
    /// Ends of members, as positions in the uncompressed stream, ascending.
    pub(super) members: Vec<(u64, Trailer)>,
}

/// Takes pieces as they come.
#[derive(Debug, Default)]
pub(super) struct PlainReader {
    hasher: Sha256,
    /// Of the current gzip member, if there are any.
    crc: Option<crc32fast::Hasher>,
    member_start: u64,
    position: u64,
    scanner: Scanner,
}

impl PlainReader {
    pub(super) fn new(gzip: bool) -> Self {
        Self {
            crc: gzip.then(crc32fast::Hasher::new),
            ..Self::default()
        }
    }

    pub(super) fn take(&mut self, piece: &PlainPiece) -> Result<(), BuildError> {
        let bytes = &piece.buffer[piece.range.clone()];
        self.hasher.update(bytes);
        self.check_members(bytes, &piece.members)?;
        self.scanner.feed(bytes)?;
        Ok(())
    }

    fn check_members(
        &mut self,
        mut bytes: &[u8],
        members: &[(u64, Trailer)],
    ) -> Result<(), BuildError> {
        for (end, trailer) in members {
            let len = usize::try_from(end - self.position).expect("within this piece");
            let (member, rest) = bytes.split_at(len);
            self.advance(member);
            let crc = self.crc.replace(crc32fast::Hasher::new());
            let crc = crc.map(crc32fast::Hasher::finalize);
            // Lengths are stated modulo 2^32.
            let len = (end - self.member_start) & u64::from(u32::MAX);
            if crc != Some(trailer.crc) || len != u64::from(trailer.len) {
                return Err(BuildError::Checksum(*end));
            }
            self.member_start = *end;
            bytes = rest;
        }
        self.advance(bytes);
        Ok(())
    }

    fn advance(&mut self, bytes: &[u8]) {
        if let Some(crc) = &mut self.crc {
            crc.update(bytes);
        }
        self.position += bytes.len() as u64;
    }

    /// How many of the bytes taken so far belong to the archive.
    pub(super) fn archived(&self) -> u64 {
        self.scanner.position()
    }

    /// The diff ID and what the tar holds.
    pub(super) fn finish(self) -> Result<(Digest, Scanned), BuildError> {
        Ok((
            Digest::from_bytes(self.hasher.finalize().into()),
            self.scanner.finish()?,
        ))
    }
}

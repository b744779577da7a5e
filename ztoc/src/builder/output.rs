//! Where inflated bytes go: buffers with the window in front, handed on when they are full.

use super::lent::Lent;
use super::pipeline::{Halt, Sinks};
use super::plain::PlainPiece;
use crate::checkpoint::WINDOW_LEN;
use crate::gzip::Trailer;

/// Output per buffer.
const PIECE_LEN: usize = 256 << 10;

/// Ends of members that one piece may tell of.
const MAX_MEMBERS: usize = 1 << 14;

/// The output of all members of a layer.
pub(super) struct Output<'s> {
    sinks: &'s Sinks<'s>,
    buffer: Vec<u8>,
    /// Where the next byte goes.
    pos: usize,
    /// Where in the buffer the current member's output begins. Deflate may refer to no
    /// byte before it, though a checkpoint's window shows them.
    member: usize,
    /// Bytes that went out in earlier buffers.
    flushed: u64,
    members: Vec<(u64, Trailer)>,
    lent: Lent,
}

impl<'s> Output<'s> {
    pub(super) fn new(sinks: &'s Sinks<'s>) -> Self {
        Self {
            sinks,
            buffer: vec![0; WINDOW_LEN + PIECE_LEN],
            pos: WINDOW_LEN,
            member: WINDOW_LEN,
            flushed: 0,
            members: Vec::new(),
            lent: Lent::default(),
        }
    }

    /// The number of bytes put out so far.
    pub(super) fn position(&self) -> u64 {
        self.flushed + (self.pos - WINDOW_LEN) as u64
    }

    /// The last 32 KiB put out, behind zeros if there are fewer.
    pub(super) fn window(&self) -> &[u8] {
        &self.buffer[self.pos - WINDOW_LEN..self.pos]
    }

    /// The current member's output as far as it is in reach, with room behind it, and where
    /// the room begins.
    pub(super) fn space(&mut self) -> (&mut [u8], usize) {
        (&mut self.buffer[self.member..], self.pos - self.member)
    }

    /// Output now reaches up to `pos` in [`Self::space`].
    pub(super) fn advance_to(&mut self, pos: usize) {
        self.pos = self.member + pos;
    }

    pub(super) fn begin_member(&mut self) {
        self.member = self.pos;
    }

    pub(super) fn end_member(&mut self, trailer: Trailer) -> Result<(), Halt> {
        self.members.push((self.position(), trailer));
        if self.members.len() < MAX_MEMBERS {
            Ok(())
        } else {
            self.flush()
        }
    }

    /// Hands on what there is, and goes on in another buffer.
    pub(super) fn flush(&mut self) -> Result<(), Halt> {
        let mut next = self.lent.returned();
        next.resize(WINDOW_LEN + PIECE_LEN, 0);
        next[..WINDOW_LEN].copy_from_slice(self.window());
        let full = std::mem::replace(&mut self.buffer, next);
        let piece = PlainPiece {
            buffer: self.lent.lend(full),
            range: WINDOW_LEN..self.pos,
            members: std::mem::take(&mut self.members),
        };
        self.flushed = self.position();
        self.member = self.member.saturating_sub(self.pos - WINDOW_LEN);
        self.pos = WINDOW_LEN;
        self.sinks.plain(piece)
    }
}

//! A part of a stream that is kept for a while.

use std::ops::Range;

use crate::checkpoint::WINDOW_LEN;

/// What may be forgotten before it is worth moving the rest.
const SLACK: usize = 1 << 20;

/// The bytes of a stream from some position on.
#[derive(Debug, Default)]
pub(super) struct Rolling {
    bytes: Vec<u8>,
    /// Position of the first.
    start: u64,
    /// What is needed begins here.
    needed: u64,
}

impl Rolling {
    /// The stream goes on.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Where the stream ends by now.
    pub(super) fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// All that is there from `position` on, which has not been forgotten.
    pub(super) fn from(&self, position: u64) -> &[u8] {
        self.range(position..self.end())
    }

    /// The bytes of `range`, of which none has been forgotten; empty if it is inverted.
    pub(super) fn range(&self, range: Range<u64>) -> &[u8] {
        let end = self.index(range.end);
        &self.bytes[self.index(range.start).min(end)..end]
    }

    /// The bytes in front of `position`, as many as a window has, behind zeros if there are fewer.
    pub(super) fn window(&self, position: u64) -> Vec<u8> {
        let start = position.saturating_sub(WINDOW_LEN as u64);
        let bytes = self.range(start..position);
        let mut window = vec![0; WINDOW_LEN];
        window[WINDOW_LEN - bytes.len()..].copy_from_slice(bytes);
        window
    }

    /// Nothing before `position` will be asked for.
    pub(super) fn forget(&mut self, position: u64) {
        self.needed = self.needed.max(position);
        let unneeded = self.index(self.needed);
        if unneeded >= SLACK {
            self.bytes.drain(..unneeded);
            self.start += unneeded as u64;
        }
    }

    fn index(&self, position: u64) -> usize {
        let index = usize::try_from(position.saturating_sub(self.start));
        index.map_or(self.bytes.len(), |index| index.min(self.bytes.len()))
    }
}

//! The layer blob as it comes in: a buffer whose used-up front makes room for more.

use std::io::{ErrorKind, Read};

/// How much is read at once.
const CHUNK_LEN: usize = 256 << 10;

/// A reader with the bytes that have been read and are still needed.
#[derive(Debug)]
pub(crate) struct Input<R> {
    reader: R,
    buffer: Vec<u8>,
    /// How much of `buffer` has been read.
    filled: usize,
    /// How much of its front is used up.
    used: usize,
    /// Position of the end of what has been read in the blob.
    end: u64,
    ended: bool,
}

impl<R: Read> Input<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self {
            reader,
            buffer: Vec::new(),
            filled: 0,
            used: 0,
            end: 0,
            ended: false,
        }
    }

    /// What has been read and not released.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.used..self.filled]
    }

    /// Position of the first of [`Self::bytes`] in the blob.
    pub(crate) fn base(&self) -> u64 {
        self.end - self.bytes().len() as u64
    }

    /// Gives up the first `len` bytes.
    pub(crate) fn release(&mut self, len: usize) {
        assert!(len <= self.bytes().len(), "released more than there is");
        self.used += len;
    }

    /// Goes on in the buffer `next`, whose content is lost. The buffer before, and how much of it has been released since
    /// it was filled.
    pub(crate) fn go_on_in(&mut self, mut next: Vec<u8>) -> (Vec<u8>, usize) {
        let rest = self.bytes();
        let len = rest.len();
        if next.len() < len {
            next.resize(len, 0);
        }
        next[..len].copy_from_slice(rest);
        let before = std::mem::replace(&mut self.buffer, next);
        self.filled = len;
        (before, std::mem::take(&mut self.used))
    }

    /// Reads more and forgets what has been released; whether there was more.
    pub(crate) fn fill(&mut self) -> std::io::Result<bool> {
        self.buffer.copy_within(self.used..self.filled, 0);
        let start = self.filled - self.used;
        (self.filled, self.used) = (start, 0);
        let wanted = start + CHUNK_LEN;
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        while self.filled < wanted && !self.ended {
            match self.reader.read(&mut self.buffer[self.filled..wanted]) {
                Ok(0) => self.ended = true,
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let read = self.filled - start;
        self.end += read as u64;
        Ok(read > 0)
    }
}

//! The layer blob as it comes in: a buffer whose used-up front makes room for more.

use std::io::{ErrorKind, Read};

/// How much is read at once.
const CHUNK_LEN: usize = 256 << 10;

/// A reader with the bytes that have been read and are still needed.
#[derive(Debug)]
pub(crate) struct Input<R> {
    reader: R,
    buffer: Vec<u8>,
    /// How much of the front of `buffer` is used up.
    used: usize,
    /// Position of the end of `buffer` in the blob.
    end: u64,
    ended: bool,
}

impl<R: Read> Input<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self {
            reader,
            buffer: Vec::new(),
            used: 0,
            end: 0,
            ended: false,
        }
    }

    /// What has been read and not released.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.used..]
    }

    /// What has been released since the buffer was filled.
    pub(crate) fn released(&self) -> &[u8] {
        &self.buffer[..self.used]
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

    /// Reads more and forgets what has been released; whether there was more.
    pub(crate) fn fill(&mut self) -> std::io::Result<bool> {
        self.buffer.drain(..self.used);
        self.used = 0;
        let start = self.buffer.len();
        self.buffer.resize(start + CHUNK_LEN, 0);
        let mut end = start;
        while end < self.buffer.len() && !self.ended {
            match self.reader.read(&mut self.buffer[end..]) {
                Ok(0) => self.ended = true,
                Ok(count) => end += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.buffer.truncate(end);
        self.end += (end - start) as u64;
        Ok(end > start)
    }
}

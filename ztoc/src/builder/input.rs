//! The layer blob as it comes in: a buffer whose used-up front makes room for more.

use std::io::{ErrorKind, Read};
use std::ops::Range;

/// How much is read at once.
pub(super) const CHUNK_LEN: usize = 256 << 10;

/// What has been read and is still needed.
#[derive(Debug, Default)]
pub(crate) struct Input {
    buffer: Vec<u8>,
    /// Where in `buffer` that is.
    unused: Range<usize>,
    /// What lies in front of it up to here is used up and still here.
    start: usize,
    /// Position of the end of what has been read in the blob.
    end: u64,
}

/// Bytes of a buffer.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) buffer: Vec<u8>,
    pub(super) range: Range<usize>,
}

impl Chunk {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

impl Input {
    /// What has been read and not released.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.unused.clone()]
    }

    /// Position of the first of [`Self::bytes`] in the blob.
    pub(crate) fn base(&self) -> u64 {
        self.end - self.unused.len() as u64
    }

    /// Gives up the first `len` bytes.
    pub(crate) fn release(&mut self, len: usize) {
        assert!(len <= self.unused.len(), "released more than there is");
        self.unused.start += len;
    }

    /// Goes on with the bytes of `next` behind what has not been released. That is moved in front of them if there is room;
    /// otherwise they are moved. Which buffer is left over, and what has been released of it.
    pub(super) fn go_on_with(&mut self, next: Chunk) -> Chunk {
        self.end += next.range.len() as u64;
        let Some(start) = next.range.start.checked_sub(self.unused.len()) else {
            self.buffer.truncate(self.unused.end);
            self.buffer.extend_from_slice(next.bytes());
            self.unused.end += next.range.len();
            return Chunk {
                range: 0..0,
                ..next
            };
        };
        let Chunk { mut buffer, range } = next;
        buffer[start..range.start].copy_from_slice(self.bytes());
        let before = Chunk {
            buffer: std::mem::replace(&mut self.buffer, buffer),
            range: self.start..self.unused.start,
        };
        self.start = start;
        self.unused = start..range.end;
        before
    }

    /// Reads more and forgets what has been released; whether there was more.
    pub(crate) fn fill(&mut self, reader: &mut impl Read) -> std::io::Result<bool> {
        self.buffer.copy_within(self.unused.clone(), 0);
        let start = self.unused.len();
        let wanted = start + CHUNK_LEN;
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        (self.start, self.unused) = (0, 0..start);
        let count = read_full(reader, &mut self.buffer[start..wanted])?;
        self.unused.end += count;
        self.end += count as u64;
        Ok(count > 0)
    }
}

/// Reads until `into` is full or nothing is left; how much.
pub(super) fn read_full(reader: &mut impl Read, into: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match reader.read(&mut into[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::collection;
    use proptest::prelude::*;

    use super::*;

    fn chunk(room: usize, bytes: &[u8]) -> Chunk {
        Chunk {
            buffer: [&vec![0; room], bytes].concat(),
            range: room..room + bytes.len(),
        }
    }

    proptest! {
        #[test]
        fn what_is_left_over_is_what_was_released_and_the_rest_is_in_one_piece(
            steps in collection::vec((0_usize..40, 0_usize..40, 0_usize..=4), 0..20),
        ) {
            let blob: Vec<u8> = (0..=u8::MAX).cycle().take(20 * 40).collect();
            let (mut input, mut read, mut left_over) = (Input::default(), 0, Vec::new());
            for (room, len, quarters) in steps {
                left_over.extend_from_slice(input.go_on_with(chunk(room, &blob[read..read + len])).bytes());
                read += len;
                let base = usize::try_from(input.base()).unwrap();
                prop_assert_eq!(input.bytes(), &blob[base..read]);
                input.release(input.bytes().len() * quarters / 4);
            }
            prop_assert_eq!(&left_over[..], &blob[..left_over.len()]);
            input.release(input.bytes().len());
            left_over.extend_from_slice(input.go_on_with(Chunk::default()).bytes());
            prop_assert_eq!(&left_over[..], &blob[..read]);
        }
    }
}

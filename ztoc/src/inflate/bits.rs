//! Bits of a byte slice, least significant first, at any bit position.

use crate::error::InflateError;

/// Why a structure could not be read to its end.
#[derive(Debug)]
pub(super) enum Halt {
    /// The input ends inside of it.
    Exhausted,
    /// It breaks the format.
    Corrupt(InflateError),
}

impl From<InflateError> for Halt {
    fn from(error: InflateError) -> Self {
        Self::Corrupt(error)
    }
}

/// Outcome of reading a structure.
pub(super) type Read<T> = Result<T, Halt>;

/// Reader for headers and for the ends of input and output, where speed does not count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bits<'a> {
    input: &'a [u8],
    at: u64,
}

impl<'a> Bits<'a> {
    /// Reads `input` from bit `at` on, which may lie beyond its end.
    pub(super) fn new(input: &'a [u8], at: u64) -> Self {
        Self { input, at }
    }

    /// Position of the next bit.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Bits that are left.
    pub(super) fn left(&self) -> u64 {
        (self.input.len() as u64 * 8).saturating_sub(self.at)
    }

    /// Bytes from the next bit on, which must be the first of its byte.
    pub(super) fn bytes(&self) -> &'a [u8] {
        usize::try_from(self.at / 8)
            .ok()
            .and_then(|byte| self.input.get(byte..))
            .unwrap_or_default()
    }

    /// The next 57 bits or more, zeros beyond the end.
    pub(super) fn peek(&self) -> u64 {
        let bytes = self.bytes();
        let word = bytes.first_chunk().map_or_else(
            || {
                let mut padded = [0; 8];
                padded[..bytes.len()].copy_from_slice(bytes);
                u64::from_le_bytes(padded)
            },
            |chunk| u64::from_le_bytes(*chunk),
        );
        word >> (self.at % 8)
    }

    /// Drops `count` bits.
    pub(super) fn skip(&mut self, count: u32) -> Read<()> {
        if u64::from(count) > self.left() {
            return Err(Halt::Exhausted);
        }
        self.at += u64::from(count);
        Ok(())
    }

    /// Takes `count` bits, 16 at most.
    pub(super) fn take(&mut self, count: u32) -> Read<u16> {
        let value = self.peek() & ((1 << count) - 1);
        self.skip(count)?;
        Ok(u16::try_from(value).expect("masked to 16 bits"))
    }

    /// Drops the bits up to the next byte boundary.
    pub(super) fn align(&mut self) {
        self.at = self.at.next_multiple_of(8);
    }
}

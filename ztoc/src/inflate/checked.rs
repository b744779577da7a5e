//! The fast loop on checked slices, for builds without unsafe code.

use std::cell::Cell;

use super::fast::{self, Leave, Limits, Memory, Place, Plain, WORDS};
use super::tables::BlockTables;

/// Decodes as [`fast::decode`].
pub(super) fn decode(
    input: &[u8],
    out: &mut [u8],
    tables: &BlockTables,
    limits: Limits,
    place: &mut Place,
) -> Leave {
    fast::decode::<Plain>(&mut Checked { input, out, tables }, limits, place)
}

/// Input, output and tables behind bounds checks.
struct Checked<'a> {
    input: &'a [u8],
    out: &'a mut [u8],
    tables: &'a BlockTables,
}

impl Memory for Checked<'_> {
    #[inline(always)]
    fn input_word(&self, at: usize) -> u64 {
        u64::from_le_bytes(
            *self.input[at..]
                .first_chunk()
                .expect("within the input slack"),
        )
    }

    #[inline(always)]
    fn litlen(&self, index: usize) -> u32 {
        self.tables.litlen[index % self.tables.litlen.len()]
    }

    #[inline(always)]
    fn distance(&self, index: usize) -> u64 {
        self.tables.distance[index % self.tables.distance.len()]
    }

    #[inline(always)]
    fn put(&mut self, at: usize, byte: u8) {
        self.out[at] = byte;
    }

    #[inline(always)]
    fn put_word(&mut self, at: usize, word: u64) {
        self.out[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }

    #[inline(always)]
    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(
            *self.out[at..]
                .first_chunk()
                .expect("before the output's end"),
        )
    }

    // One check for all words in place of four for each.
    #[inline(always)]
    fn copy_words(&mut self, from: usize, to: usize) {
        // Seen as cells, both ends may overlap, and their bounds are checked once for all words.
        let region = Cell::from_mut(&mut self.out[from..to + WORDS * 8]).as_slice_of_cells();
        let source = region.first_chunk::<{ WORDS * 8 }>();
        let target = region.last_chunk::<{ WORDS * 8 }>();
        let (source, target) = source.zip(target).expect("`from` is in front of `to`");
        for (source, target) in source.chunks_exact(8).zip(target.chunks_exact(8)) {
            let word: [u8; 8] = std::array::from_fn(|byte| source[byte].get());
            for (byte, target) in word.into_iter().zip(target) {
                target.set(byte);
            }
        }
    }

    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        self.out[at]
    }
}

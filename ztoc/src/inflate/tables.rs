//! Decode tables, filled from code lengths.
//!
//! An entry's low 16 bits say how the *next* look-up's index is cut out of the bit
//! buffer this entry was found with: bits 0-7 how many bits to drop (this code and its
//! extra bits), bits 8-15 how many to keep (the width of the table that comes next).
//! That is the control word of x86's `BEXTR`, so that one instruction leads from entry
//! to entry.
//!
//! | lit/len entry | bits 16-24 | 25-28 | flags |
//! |---|---|---|---|
//! | literal | the byte | code length | `LITERAL` |
//! | length | base | code length | |
//! | end of block | 0 | code length | `SPECIAL` |
//! | no such code | 1, which is `INVALID` | | `SPECIAL` |
//! | to a subtable | its start, up to bit 27 | | `SPECIAL`, `LINK` |
//!
//! | distance entry | bits 16-23 | 24-31 | 32-61 | flags |
//! |---|---|---|---|---|
//! | distance | code length | extra bits | base | |
//! | to a subtable | | | start | `SPECIAL`, `LINK` |
//! | no such code | | | | `SPECIAL`, `INVALID` |
//!
//! Inside a subtable the code length counts from the subtable's first bit.

use std::sync::LazyLock;

use super::codes::{Code, Counts, DISTANCE_CODES, LITLEN_WORDS, Lengths, Space};

/// Index bits of the first lit/len table.
pub(super) const LITLEN_BITS: u32 = 11;
/// Index bits of the first distance table.
pub(super) const DISTANCE_BITS: u32 = 8;
/// Entries of a lit/len table with its subtables: 2342 at most, up to a power of two.
const LITLEN_ENTRIES: usize = 4096;
/// Entries of a distance table with its subtables: 402 at most, up to a power of two.
const DISTANCE_ENTRIES: usize = 512;

/// One kind of table entry.
pub(super) trait Entry: Copy {
    /// No code leads here.
    const INVALID: Self;

    /// Entry of a code of `length` bits.
    fn leaf(self, length: u32) -> Self;
    /// Entry that leads to a subtable at `start` of `bits` index bits, after `width` bits.
    fn link(start: usize, bits: u32, width: u32) -> Self;
}

/// Lit/len entries.
pub(super) mod litlen {
    /// A byte.
    pub(in crate::inflate) const LITERAL: u32 = 1 << 31;
    /// Neither a byte nor a length.
    pub(in crate::inflate) const SPECIAL: u32 = 1 << 30;
    /// Leads to a subtable.
    pub(in crate::inflate) const LINK: u32 = 1 << 29;
    /// Special, and no link: no such code.
    pub(in crate::inflate) const INVALID: u32 = 1 << 16;
}

/// Distance entries.
pub(super) mod distance {
    /// Not a distance.
    pub(in crate::inflate) const SPECIAL: u64 = 1 << 63;
    /// Leads to a subtable.
    pub(in crate::inflate) const LINK: u64 = 1 << 62;
}

impl Entry for u32 {
    const INVALID: Self = litlen::SPECIAL | litlen::INVALID;

    fn leaf(self, length: u32) -> Self {
        self + (1 << 25 | 1) * length
    }

    fn link(start: usize, bits: u32, width: u32) -> Self {
        let start = Self::try_from(start).expect("starts below the table's size");
        litlen::SPECIAL | litlen::LINK | start << 16 | bits << 8 | width
    }
}

impl Entry for u64 {
    const INVALID: Self = distance::SPECIAL;

    fn leaf(self, length: u32) -> Self {
        self + (1 << 16 | 1) * Self::from(length)
    }

    fn link(start: usize, bits: u32, width: u32) -> Self {
        distance::SPECIAL | distance::LINK | (start as Self) << 32 | Self::from(bits << 8 | width)
    }
}

/// Lit/len entries by symbol, without code lengths (RFC 1951, 3.2.5).
static LITLEN_LEAVES: Leaves<u32, LITLEN_WORDS> = {
    let mut leaves = [[u32::INVALID; 64]; LITLEN_WORDS];
    let mut byte = 0;
    while byte < 256 {
        leaves[byte as usize / 64][byte as usize % 64] =
            litlen::LITERAL | byte << 16 | LITLEN_BITS << 8;
        byte += 1;
    }
    // In the last word are the symbols from 256 on.
    leaves[4][0] = litlen::SPECIAL | LITLEN_BITS << 8;
    let mut symbol = 0;
    let mut base = 3;
    while symbol < 28 {
        let extra = if symbol < 8 { 0 } else { symbol / 4 - 1 };
        leaves[4][1 + symbol as usize] = base << 16 | DISTANCE_BITS << 8 | extra;
        base += 1 << extra;
        symbol += 1;
    }
    leaves[4][29] = 258 << 16 | DISTANCE_BITS << 8;
    leaves
};

/// Distance entries by symbol, without code lengths (RFC 1951, 3.2.5).
static DISTANCE_LEAVES: Leaves<u64, 1> = {
    let mut leaves = [u64::INVALID; 64];
    let mut symbol = 0;
    let mut base = 1;
    while symbol < DISTANCE_CODES {
        let extra = if symbol < 4 { 0 } else { symbol as u64 / 2 - 1 };
        leaves[symbol] = base << 32 | extra << 24 | (LITLEN_BITS as u64) << 8 | extra;
        base += 1 << extra;
        symbol += 1;
    }
    [leaves]
};

/// Code lengths that make no code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadCode {
    /// Lengths of the lit/len code.
    Litlen,
    /// Lengths of the distance code.
    Distance,
}

/// The two tables of a block.
#[derive(Debug, Clone)]
pub(super) struct BlockTables {
    pub(super) litlen: [u32; LITLEN_ENTRIES],
    pub(super) distance: [u64; DISTANCE_ENTRIES],
}

impl BlockTables {
    /// Tables of no code.
    pub(super) fn empty() -> Self {
        Self {
            litlen: [u32::INVALID; LITLEN_ENTRIES],
            distance: [u64::INVALID; DISTANCE_ENTRIES],
        }
    }

    /// Fills both tables.
    pub(super) fn fill(&mut self, litlen: &Code<'_>, distance: &Code<'_>) -> Result<(), BadCode> {
        if fill(&mut self.litlen, LITLEN_BITS, litlen, &LITLEN_LEAVES) == Space::Bad {
            return Err(BadCode::Litlen);
        }
        if fill(
            &mut self.distance,
            DISTANCE_BITS,
            distance,
            &DISTANCE_LEAVES,
        ) == Space::Bad
        {
            return Err(BadCode::Distance);
        }
        Ok(())
    }

    /// The tables of blocks without own codes (RFC 1951, 3.2.6).
    pub(super) fn fixed() -> &'static Self {
        static FIXED: LazyLock<Box<BlockTables>> = LazyLock::new(|| {
            let (mut litlen, mut distance) = (Lengths::none(), Lengths::none());
            for symbol in 0..288 {
                let length = match symbol {
                    144..256 => 9,
                    256..280 => 7,
                    _ => 8,
                };
                litlen.give(length, symbol, 1);
            }
            distance.give(5, 0, 32);
            let mut tables = Box::new(BlockTables::empty());
            tables
                .fill(&litlen.code(), &distance.code())
                .expect("the fixed codes are complete");
            tables
        });
        &FIXED
    }
}

/// Entries by symbol, without code lengths.
pub(super) type Leaves<E, const WORDS: usize> = [[E; 64]; WORDS];

/// Fills a table and its subtables, unless the lengths make no code.
pub(super) fn fill<E: Entry, const WORDS: usize>(
    table: &mut [E],
    width: u32,
    code: &Code<'_>,
    leaves: &Leaves<E, WORDS>,
) -> Space {
    let space = code.space();
    match space {
        Space::Bad => {}
        Space::Lone => fill_lone(&mut table[..1 << width], code, leaves),
        Space::Full => fill_full(table, width, code, leaves),
    }
    space
}

/// Fills a table of at most one code, which is a zero bit.
fn fill_lone<E: Entry, const WORDS: usize>(
    table: &mut [E],
    code: &Code<'_>,
    leaves: &Leaves<E, WORDS>,
) {
    table.fill(E::INVALID.leaf(1));
    code.each(1, leaves, |leaf| {
        let leaf = leaf.leaf(1);
        table.iter_mut().step_by(2).for_each(|entry| *entry = leaf);
    });
}

/// Bytes with their bits in reverse.
static REVERSED: [u8; 256] = {
    let mut reversed = [0; 256];
    let mut byte: u8 = 0;
    while byte < u8::MAX {
        byte += 1;
        reversed[byte as usize] = byte.reverse_bits();
    }
    reversed
};

/// A code of `length` bits with its first bit lowest, as it stands in the stream; counted it is
/// with its first bit highest. Two look-ups are quicker than what x86 has for this.
fn reversed(code: u16, length: u32) -> usize {
    let [low, high] = code.to_le_bytes().map(|byte| REVERSED[usize::from(byte)]);
    usize::from(u16::from_be_bytes([low, high]) >> (u16::BITS - length))
}

/// Fills a table from a complete code, shortest codes first.
fn fill_full<E: Entry, const WORDS: usize>(
    table: &mut [E],
    width: u32,
    code: &Code<'_>,
    leaves: &Leaves<E, WORDS>,
) {
    let mut bits = 0;
    for length in 1..=width {
        // What the shorter codes say does not depend on the bit that comes in.
        if bits > 0 {
            table.copy_within(..1 << (length - 1), 1 << (length - 1));
        }
        code.each(length, leaves, |leaf| {
            table[reversed(bits, length)] = leaf.leaf(length);
            bits += 1;
        });
        if bits == 1 << length {
            for filled in length..width {
                table.copy_within(..1 << filled, 1 << filled);
            }
            return;
        }
        bits <<= 1;
    }
    fill_subtables(table, width, code, bits, leaves);
}

/// Fills the subtables of the codes longer than `width`, which begin with `bits`.
fn fill_subtables<E: Entry, const WORDS: usize>(
    table: &mut [E],
    width: u32,
    code: &Code<'_>,
    mut bits: u16,
    leaves: &Leaves<E, WORDS>,
) {
    let mask = (1 << width) - 1;
    let mut prefix = usize::MAX;
    let (mut start, mut end) = (0, 1 << width);
    for (length, &count) in (0..).zip(&code.counts).skip(width as usize + 1) {
        let mut left = count;
        code.each(length, leaves, |leaf| {
            let place = reversed(bits, length);
            if place & mask != prefix {
                prefix = place & mask;
                let more = subtable_bits(&code.counts, length, left, width);
                start = end;
                end += 1 << more;
                table[prefix] = E::link(start, more, width);
            }
            let rest = length - width;
            let leaf = leaf.leaf(rest);
            table[start + (place >> width)..end]
                .iter_mut()
                .step_by(1 << rest)
                .for_each(|entry| *entry = leaf);
            bits += 1;
            left -= 1;
        });
        // Behind the longest code all bits are gone.
        bits <<= 1;
    }
}

/// Index bits of a subtable whose first code has `length` bits, as the first of `left`.
fn subtable_bits(counts: &Counts, length: u32, left: u16, width: u32) -> u32 {
    let mut bits = length - width;
    let mut used = usize::from(left);
    while used < 1 << bits {
        bits += 1;
        used = used * 2 + usize::from(counts[(width + bits) as usize]);
    }
    bits
}

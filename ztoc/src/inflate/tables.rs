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

/// Index bits of the first lit/len table.
pub(super) const LITLEN_BITS: u32 = 11;
/// Index bits of the first distance table.
pub(super) const DISTANCE_BITS: u32 = 8;
/// Longest code.
const MAX_LENGTH: usize = 15;
/// Lit/len codes that a header can give a length.
pub(super) const LITLEN_CODES: usize = 286;
/// Distance codes that a header can give a length.
pub(super) const DISTANCE_CODES: usize = 30;
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
static LITLEN_LEAVES: [u32; 288] = {
    let mut leaves = [u32::INVALID; 288];
    let mut byte = 0;
    while byte < 256 {
        leaves[byte as usize] = litlen::LITERAL | byte << 16 | LITLEN_BITS << 8;
        byte += 1;
    }
    leaves[256] = litlen::SPECIAL | LITLEN_BITS << 8;
    let mut symbol = 0;
    let mut base = 3;
    while symbol < 28 {
        let extra = if symbol < 8 { 0 } else { symbol / 4 - 1 };
        leaves[257 + symbol as usize] = base << 16 | DISTANCE_BITS << 8 | extra;
        base += 1 << extra;
        symbol += 1;
    }
    leaves[285] = 258 << 16 | DISTANCE_BITS << 8;
    leaves
};

/// Distance entries by symbol, without code lengths (RFC 1951, 3.2.5).
static DISTANCE_LEAVES: [u64; 32] = {
    let mut leaves = [u64::INVALID; 32];
    let mut symbol = 0;
    let mut base = 1;
    while symbol < DISTANCE_CODES {
        let extra = if symbol < 4 { 0 } else { symbol as u64 / 2 - 1 };
        leaves[symbol] = base << 32 | extra << 24 | (LITLEN_BITS as u64) << 8 | extra;
        base += 1 << extra;
        symbol += 1;
    }
    leaves
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

    /// Fills both tables from the code lengths of their symbols, which `counts` counts together.
    pub(super) fn fill(
        &mut self,
        counts: &Counts,
        litlen: &[u8],
        distance: &[u8],
    ) -> Result<(), BadCode> {
        let of_distance = count(distance);
        let of_litlen = std::array::from_fn(|length| counts[length] - of_distance[length]);
        let (table, leaves) = (&mut self.litlen, &LITLEN_LEAVES);
        if fill(table, LITLEN_BITS, &of_litlen, litlen, leaves) == Space::Bad {
            return Err(BadCode::Litlen);
        }
        let (table, leaves) = (&mut self.distance, &DISTANCE_LEAVES);
        if fill(table, DISTANCE_BITS, &of_distance, distance, leaves) == Space::Bad {
            return Err(BadCode::Distance);
        }
        Ok(())
    }

    /// The tables of blocks without own codes (RFC 1951, 3.2.6).
    pub(super) fn fixed() -> &'static Self {
        static FIXED: LazyLock<Box<BlockTables>> = LazyLock::new(|| {
            let mut lengths = [8; 288];
            lengths[144..256].fill(9);
            lengths[256..280].fill(7);
            let mut tables = Box::new(BlockTables::empty());
            let mut counts = count(&lengths);
            counts[5] += 32;
            tables
                .fill(&counts, &lengths, &[5; 32])
                .expect("the fixed codes are complete");
            tables
        });
        &FIXED
    }
}

/// How many codes have each length.
pub(super) type Counts = [u16; MAX_LENGTH + 1];

/// What lengths make of the code space.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Space {
    /// All of it is used.
    Full,
    /// None or one code of one bit: accepted, as zlib does.
    Lone,
    /// Too much or too little is used.
    Bad,
}

/// Counts lengths.
pub(super) fn count(lengths: &[u8]) -> Counts {
    let mut counts = [0; MAX_LENGTH + 1];
    for &length in lengths {
        counts[usize::from(length)] += 1;
    }
    counts
}

/// Judges the lengths of a code.
fn space(counts: &Counts) -> Space {
    let used = (1..=MAX_LENGTH).map(|length| u32::from(counts[length]) << (MAX_LENGTH - length));
    let used: u32 = used.sum();
    match used {
        _ if used == 1 << MAX_LENGTH => Space::Full,
        0 => Space::Lone,
        _ if counts[1] == 1 && used == 1 << (MAX_LENGTH - 1) => Space::Lone,
        _ => Space::Bad,
    }
}

/// Fills a table and its subtables, unless the lengths make no code.
pub(super) fn fill<E: Entry, const CODES: usize>(
    table: &mut [E],
    width: u32,
    counts: &Counts,
    lengths: &[u8],
    leaves: &[E; CODES],
) -> Space {
    let space = space(counts);
    match space {
        Space::Bad => {}
        Space::Lone => fill_lone(&mut table[..1 << width], lengths, leaves),
        Space::Full => {
            let mut sorted = [E::INVALID; CODES];
            sort(counts, lengths, leaves, &mut sorted);
            fill_full(
                table,
                width,
                counts,
                &sorted[counts[0].into()..lengths.len()],
            );
        }
    }
    space
}

/// Fills a table of at most one code, which is a zero bit.
fn fill_lone<E: Entry>(table: &mut [E], lengths: &[u8], leaves: &[E]) {
    table.fill(E::INVALID.leaf(1));
    if let Some(symbol) = lengths.iter().position(|&length| length == 1) {
        let leaf = leaves[symbol].leaf(1);
        table.iter_mut().step_by(2).for_each(|entry| *entry = leaf);
    }
}

/// Sorts the leaves of symbols by code length, those without a code first.
fn sort<E: Entry>(counts: &Counts, lengths: &[u8], leaves: &[E], sorted: &mut [E]) {
    let mut starts = [0; MAX_LENGTH + 1];
    for length in 0..MAX_LENGTH {
        starts[length + 1] = starts[length] + counts[length];
    }
    let mut ends: Counts = std::array::from_fn(|length| starts[length] + counts[length]);
    // From both sides: equal lengths often stand together, and their places are waited for.
    let mut symbols = lengths.iter().zip(&leaves[..lengths.len()]);
    while let Some((&length, &leaf)) = symbols.next() {
        let start = &mut starts[usize::from(length)];
        sorted[usize::from(*start)] = leaf;
        *start += 1;
        if let Some((&length, &leaf)) = symbols.next_back() {
            let end = &mut ends[usize::from(length)];
            *end -= 1;
            sorted[usize::from(*end)] = leaf;
        }
    }
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

/// Fills a table from a complete code's symbols, shortest code first.
fn fill_full<E: Entry>(table: &mut [E], width: u32, counts: &Counts, mut leaves: &[E]) {
    let mut code = 0;
    for length in 1..=width {
        // What the shorter codes say does not depend on the bit that comes in.
        if code > 0 {
            table.copy_within(..1 << (length - 1), 1 << (length - 1));
        }
        let (those, longer) = leaves.split_at(counts[length as usize].into());
        for leaf in those {
            table[reversed(code, length)] = leaf.leaf(length);
            code += 1;
        }
        leaves = longer;
        if leaves.is_empty() {
            for bits in length..width {
                table.copy_within(..1 << bits, 1 << bits);
            }
            return;
        }
        code <<= 1;
    }
    fill_subtables(table, width, counts, code, leaves);
}

/// Fills the subtables of the codes longer than `width`, from `code` on.
fn fill_subtables<E: Entry>(
    table: &mut [E],
    width: u32,
    counts: &Counts,
    mut code: u16,
    mut leaves: &[E],
) {
    let mask = (1 << width) - 1;
    let mut prefix = usize::MAX;
    let (mut start, mut end) = (0, 1 << width);
    for (length, &count) in (0..).zip(counts).skip(width as usize + 1) {
        let (those, longer) = leaves.split_at(count.into());
        for (done, leaf) in (0..count).zip(those) {
            let place = reversed(code, length);
            if place & mask != prefix {
                prefix = place & mask;
                let bits = subtable_bits(counts, length, count - done, width);
                start = end;
                end += 1 << bits;
                table[prefix] = E::link(start, bits, width);
            }
            let rest = length - width;
            let leaf = leaf.leaf(rest);
            table[start + (place >> width)..end]
                .iter_mut()
                .step_by(1 << rest)
                .for_each(|entry| *entry = leaf);
            code += 1;
        }
        leaves = longer;
        if leaves.is_empty() {
            return;
        }
        code <<= 1;
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

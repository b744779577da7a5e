//! Block headers (RFC 1951, 3.2.3 to 3.2.7).

use super::bits::{Bits, Halt, Read};
use super::tables::{self, BadCode, BlockTables, DISTANCE_CODES, LITLEN_CODES, Space};
use crate::error::InflateError;

/// Order in which a header gives the lengths of the code length code.
const ORDER: [u8; 19] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];
/// Longest code of the code length code.
const CODE_LENGTH_BITS: u32 = 7;
/// Bytes that a dynamic header can touch: 17 + 19 * 3 + (286 + 30) * 7 bits at any phase.
pub(super) const MAX_BYTES: usize = 287;

/// What a block's first three bits say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Stored,
    Fixed,
    Dynamic,
}

/// Reads whether a block is the last one, and its kind.
pub(super) fn start(bits: &mut Bits<'_>) -> Read<(bool, Kind)> {
    let head = bits.take(3)?;
    let kind = match head >> 1 {
        0 => Kind::Stored,
        1 => Kind::Fixed,
        2 => Kind::Dynamic,
        _ => return Err(InflateError::BlockType.into()),
    };
    Ok((head & 1 == 1, kind))
}

/// Reads the length of a stored block.
pub(super) fn stored(bits: &mut Bits<'_>) -> Read<u16> {
    bits.align();
    let length = bits.take(16)?;
    let complement = bits.take(16)?;
    if length != !complement {
        return Err(InflateError::StoredLength { length, complement }.into());
    }
    Ok(length)
}

/// Reads the codes of a dynamic block, after its first three bits, into `tables`.
pub(super) fn dynamic(bits: &mut Bits<'_>, tables: &mut BlockTables) -> Read<()> {
    let litlen = usize::from(bits.take(5)?) + 257;
    let distance = usize::from(bits.take(5)?) + 1;
    let code_lengths = usize::from(bits.take(4)?) + 4;
    if litlen > LITLEN_CODES || distance > DISTANCE_CODES {
        return Err(InflateError::CodeCounts { litlen, distance }.into());
    }
    let code = CodeLengthCode::read(bits, code_lengths)?;
    let mut lengths = [0; MOST_LENGTHS + OVERRUN];
    code.read_lengths(bits, &mut lengths, litlen + distance)?;
    let lengths = &lengths[..litlen + distance];
    let (litlen, distance) = lengths.split_at(litlen);
    if litlen[256] == 0 {
        return Err(InflateError::NoEndOfBlock.into());
    }
    tables.fill(litlen, distance).map_err(|bad| {
        Halt::Corrupt(match bad {
            BadCode::Litlen => InflateError::LitlenCode,
            BadCode::Distance => InflateError::DistanceCode,
        })
    })
}

/// Code lengths in a header, at most.
const MOST_LENGTHS: usize = LITLEN_CODES + DISTANCE_CODES;
/// Lengths that are written behind the last one: the longest repeat, less one, and the whole
/// of [`RUN`].
const OVERRUN: usize = 137 + RUN;
/// Lengths that are written at once.
const RUN: usize = 16;
/// Instead of a length: the one before.
const BEFORE: u8 = 16;

/// The code in which a dynamic header gives its code lengths.
struct CodeLengthCode {
    /// By the next seven bits.
    entries: [Repeat; 1 << CODE_LENGTH_BITS],
}

/// What a symbol of the code length code says: so many times this length.
#[derive(Debug, Clone, Copy, Default)]
struct Repeat {
    /// Bits of the code and of what follows it, which is added to `count`.
    bits: u8,
    /// Bits of the code alone.
    code: u8,
    /// A length or [`BEFORE`].
    length: u8,
    count: u8,
}

impl Repeat {
    /// Of a symbol whose code has `code` bits.
    fn new(symbol: u8, code: u8) -> Self {
        let (extra, length, count) = match symbol {
            16 => (2, BEFORE, 3),
            17 => (3, 0, 3),
            18 => (7, 0, 11),
            length => (0, length, 1),
        };
        Self {
            bits: code + extra,
            code,
            length,
            count,
        }
    }
}

impl CodeLengthCode {
    /// Reads the first `count` lengths of this code, in [`ORDER`].
    fn read(bits: &mut Bits<'_>, count: usize) -> Read<Self> {
        // One look is good for all: 57 bits.
        let mut word = bits.peek();
        let mut lengths = [0; ORDER.len()];
        for &symbol in &ORDER[..count] {
            lengths[usize::from(symbol)] = word.to_le_bytes()[0] & 7;
            word >>= 3;
        }
        bits.skip(3 * u32::try_from(count).expect("at most 19"))?;
        let (counts, space) = tables::survey(&lengths);
        if space != Space::Full {
            return Err(InflateError::CodeLengthCode.into());
        }
        Ok(Self::new(&lengths, &counts))
    }

    /// Fills the table of a complete code.
    fn new(lengths: &[u8; ORDER.len()], counts: &tables::Counts) -> Self {
        let mut entries = [Repeat::default(); 1 << CODE_LENGTH_BITS];
        let mut next = [0; CODE_LENGTH_BITS as usize + 1];
        for length in 1..CODE_LENGTH_BITS as usize {
            next[length + 1] = (next[length] + counts[length]) << 1;
        }
        for (symbol, &length) in (0..).zip(lengths).filter(|&(_, &length)| length > 0) {
            let code = &mut next[usize::from(length)];
            let first = tables::reversed(*code, length.into());
            *code += 1;
            let entries = entries[first..].iter_mut().step_by(1 << length);
            entries.for_each(|entry| *entry = Repeat::new(symbol, length));
        }
        Self { entries }
    }

    /// Reads `total` code lengths.
    fn read_lengths(
        &self,
        bits: &mut Bits<'_>,
        lengths: &mut [u8; MOST_LENGTHS + OVERRUN],
        total: usize,
    ) -> Read<()> {
        let first = self.entries[(bits.peek() & 0x7f) as usize];
        if first.length == BEFORE {
            bits.skip(first.bits.into())?;
            return Err(InflateError::CodeLengthRepeat.into());
        }
        let (mut filled, mut before) = (0, 0);
        while filled < total {
            // One look at the input is good for four symbols.
            let mut word = bits.peek();
            let mut taken = 0;
            for _ in 0..4 {
                let repeat = self.entries[(word & 0x7f) as usize];
                let extra = (word & ((1 << repeat.bits) - 1)) >> repeat.code;
                let count = usize::from(repeat.count + extra.to_le_bytes()[0]);
                if repeat.length != BEFORE {
                    before = repeat.length;
                }
                lengths[filled..filled + RUN].fill(before);
                if count > RUN {
                    lengths[filled + RUN..filled + count].fill(before);
                }
                filled += count;
                word >>= repeat.bits;
                taken += u32::from(repeat.bits);
                if filled >= total {
                    break;
                }
            }
            bits.skip(taken)?;
        }
        if filled > total {
            return Err(InflateError::CodeLengthRepeat.into());
        }
        Ok(())
    }
}

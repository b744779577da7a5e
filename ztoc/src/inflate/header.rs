//! Block headers (RFC 1951, 3.2.3 to 3.2.7).

use super::bits::{Bits, Halt, Read};
use super::codes::{DISTANCE_CODES, LITLEN_CODES, Lengths, Space};
use super::tables::{self, BadCode, BlockTables, Entry, Leaves};
use crate::error::InflateError;

/// Order in which a header gives the lengths of the code length code.
const ORDER: [u8; 19] = [
    16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15,
];
/// Longest code of the code length code.
const CODE_LENGTH_BITS: u32 = 7;
/// The lit/len symbol at which a block ends.
const END_OF_BLOCK: usize = 256;
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
    let mut lengths = Lengths::none();
    code.read_lengths(bits, &mut lengths, litlen + distance)?;
    let (litlen, distance) = lengths.split(litlen);
    if !litlen.has(END_OF_BLOCK) {
        return Err(InflateError::NoEndOfBlock.into());
    }
    tables.fill(&litlen, &distance).map_err(|bad| {
        Halt::Corrupt(match bad {
            BadCode::Litlen => InflateError::LitlenCode,
            BadCode::Distance => InflateError::DistanceCode,
        })
    })
}

/// Bits of a symbol and of what follows it, at most.
const SYMBOL_BITS: u32 = CODE_LENGTH_BITS + 7;

/// What a symbol of the code length code says: so many times this length.
///
/// Bits 0-7 are the bits that it takes, 8-15 those of the code alone, 16-23 the length or
/// [`BEFORE`](Self::BEFORE), 24-31 how often, to which the bits behind the code are added.
#[derive(Debug, Clone, Copy)]
struct Repeat(u32);

impl Repeat {
    /// Instead of a length: the one before.
    const BEFORE: u8 = 16;

    /// By symbol, without code lengths.
    const LEAVES: Leaves<Self, 1> = {
        let mut leaves = [Self(0); 64];
        let mut length: u32 = 0;
        while length < 16 {
            leaves[length as usize] = Self(1 << 24 | length << 16);
            length += 1;
        }
        leaves[16] = Self(3 << 24 | (Self::BEFORE as u32) << 16 | 2);
        leaves[17] = Self(3 << 24 | 3);
        leaves[18] = Self(11 << 24 | 7);
        [leaves]
    };

    fn bits(self) -> u32 {
        self.0 & 0xff
    }

    fn length(self) -> u8 {
        self.0.to_le_bytes()[2]
    }

    /// How often, if `word` begins with the symbol.
    #[allow(clippy::cast_possible_truncation)]
    fn count(self, word: u64) -> u8 {
        let code_and_more = word & ((1 << (self.0 & 63)) - 1);
        let more = code_and_more >> (self.0 >> 8 & 63);
        // 138 at most.
        (self.0 >> 24) as u8 + more as u8
    }
}

impl Entry for Repeat {
    const INVALID: Self = Self(0);

    fn leaf(self, length: u32) -> Self {
        Self(self.0 + (length << 8 | length))
    }

    fn link(_: usize, _: u32, _: u32) -> Self {
        // The table has room for all codes.
        Self::INVALID
    }
}

/// The code in which a dynamic header gives its code lengths.
struct CodeLengthCode {
    /// By the next seven bits.
    entries: [Repeat; 1 << CODE_LENGTH_BITS],
}

impl CodeLengthCode {
    /// Reads the first `count` lengths of this code, in [`ORDER`].
    fn read(bits: &mut Bits<'_>, count: usize) -> Read<Self> {
        // One look is good for all: 57 bits.
        let mut word = bits.peek();
        let mut lengths = Lengths::none();
        for &symbol in &ORDER[..count] {
            lengths.give(word.to_le_bytes()[0] & 7, symbol.into(), 1);
            word >>= 3;
        }
        bits.skip(3 * u32::try_from(count).expect("at most 19"))?;
        let mut entries = [Repeat::INVALID; 1 << CODE_LENGTH_BITS];
        let leaves = &Repeat::LEAVES;
        match tables::fill(&mut entries, CODE_LENGTH_BITS, &lengths.code(), leaves) {
            Space::Full => Ok(Self { entries }),
            Space::Lone | Space::Bad => Err(InflateError::CodeLengthCode.into()),
        }
    }

    /// Reads the lengths of the first `total` symbols.
    fn read_lengths(&self, bits: &mut Bits<'_>, lengths: &mut Lengths, total: usize) -> Read<()> {
        let first = self.entries[(bits.peek() & 0x7f) as usize];
        if first.length() == Repeat::BEFORE {
            bits.skip(first.bits())?;
            return Err(InflateError::CodeLengthRepeat.into());
        }
        let (mut filled, mut before) = (0, 0);
        while filled < total {
            // One look at the input is good for four symbols and mostly for a dozen.
            let mut word = bits.peek();
            let mut taken = 0;
            while filled < total && taken <= 57 - SYMBOL_BITS {
                let repeat = self.entries[(word & 0x7f) as usize];
                let times = repeat.count(word);
                if repeat.length() != Repeat::BEFORE {
                    before = repeat.length();
                }
                lengths.give(before, filled, times);
                filled += usize::from(times);
                word >>= repeat.bits() & 63;
                taken += repeat.bits();
            }
            bits.skip(taken)?;
        }
        if filled > total {
            return Err(InflateError::CodeLengthRepeat.into());
        }
        Ok(())
    }
}

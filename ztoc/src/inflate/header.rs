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
    let mut lengths = [0; LITLEN_CODES + DISTANCE_CODES];
    let lengths = &mut lengths[..litlen + distance];
    code.read_lengths(bits, lengths)?;
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

/// The code in which a dynamic header gives its code lengths.
struct CodeLengthCode {
    /// By the next seven bits: bits 0-2 the code's length, bits 3-7 its symbol.
    entries: [u8; 1 << CODE_LENGTH_BITS],
}

impl CodeLengthCode {
    /// Reads the first `count` lengths of this code, in [`ORDER`].
    fn read(bits: &mut Bits<'_>, count: usize) -> Read<Self> {
        let mut lengths = [0; ORDER.len()];
        for &symbol in &ORDER[..count] {
            lengths[usize::from(symbol)] = bits.take(3)?.to_le_bytes()[0];
        }
        if tables::survey(&lengths).1 != Space::Full {
            return Err(InflateError::CodeLengthCode.into());
        }
        Ok(Self::new(&lengths))
    }

    /// Fills the table of a complete code.
    fn new(lengths: &[u8; ORDER.len()]) -> Self {
        let mut entries = [0; 1 << CODE_LENGTH_BITS];
        let mut code = 0_u8;
        for length in 1..=CODE_LENGTH_BITS.to_le_bytes()[0] {
            let unused = CODE_LENGTH_BITS - u32::from(length);
            for (symbol, _) in (0_u8..).zip(lengths).filter(|&(_, &own)| own == length) {
                // `code` counts with its first bit highest; the stream has it lowest.
                let reversed = (code << unused).reverse_bits() >> 1;
                let steps = entries[usize::from(reversed)..]
                    .iter_mut()
                    .step_by(1 << length);
                steps.for_each(|entry| *entry = symbol << 3 | length);
                code += 1;
            }
            code <<= 1;
        }
        Self { entries }
    }

    /// Reads code lengths until `lengths` is full.
    fn read_lengths(&self, bits: &mut Bits<'_>, lengths: &mut [u8]) -> Read<()> {
        let mut filled = 0;
        while filled < lengths.len() {
            // One look at the input is good for four symbols.
            let mut word = bits.peek();
            let there = u32::try_from(bits.left().min(57)).expect("at most 57");
            let mut left = there;
            for _ in 0..4 {
                let entry = self.entries[(word & 0x7f) as usize];
                let (code, symbol) = (u32::from(entry & 7), entry >> 3);
                let extra = EXTRA[usize::from(symbol)];
                let taken = code + extra;
                left = left.checked_sub(taken).ok_or(Halt::Exhausted)?;
                if symbol < 16 {
                    lengths[filled] = symbol;
                    filled += 1;
                } else {
                    let more = (word >> code).to_le_bytes()[0] & ((1 << extra) - 1);
                    filled = repeat(lengths, filled, symbol, more.into())?;
                }
                word >>= taken;
                if filled == lengths.len() {
                    break;
                }
            }
            bits.skip(there - left)?;
        }
        Ok(())
    }
}

/// Bits behind each symbol of the code length code.
const EXTRA: [u32; 32] = {
    let mut extra = [0; 32];
    (extra[16], extra[17], extra[18]) = (2, 3, 7);
    extra
};

/// Repeats a length as one of the symbols from 16 on says; where the lengths then end.
fn repeat(lengths: &mut [u8], filled: usize, symbol: u8, more: usize) -> Read<usize> {
    let (length, count) = match symbol {
        16 => {
            let last = filled
                .checked_sub(1)
                .ok_or(InflateError::CodeLengthRepeat)?;
            (lengths[last], 3 + more)
        }
        17 => (0, 3 + more),
        _ => (0, 11 + more),
    };
    let end = filled + count;
    lengths
        .get_mut(filled..end)
        .ok_or(InflateError::CodeLengthRepeat)?
        .fill(length);
    Ok(end)
}

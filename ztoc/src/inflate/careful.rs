//! One token at a time, exact to the bit and to the byte: the ends of input and output,
//! and every stream that is corrupt.

use super::bits::{Bits, Read};
use super::cursor::Cursor;
use super::tables::{BlockTables, DISTANCE_BITS, LITLEN_BITS, distance, litlen};
use crate::error::InflateError;

/// One token of a compressed block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    /// A byte.
    Literal(u8),
    /// `length` bytes that stand `distance` bytes back.
    Match { length: u16, distance: u16 },
    /// The block ends.
    EndOfBlock,
}

/// Decodes tokens until the block ends, which makes `true`, or `out` is full. The cursor
/// stands behind the last whole token, whatever the outcome.
pub(super) fn decode(
    input: &[u8],
    cursor: &mut Cursor,
    out: &mut [u8],
    pos: &mut usize,
    tables: &BlockTables,
) -> Read<bool> {
    let mut bits = Bits::new(input, cursor.bit);
    while *pos < out.len() {
        let token = token(&mut bits, tables)?;
        cursor.bit = bits.at();
        match token {
            Token::Literal(byte) => {
                out[*pos] = byte;
                *pos += 1;
            }
            Token::Match { length, distance } => {
                if usize::from(distance) > *pos {
                    return Err(InflateError::TooFarBack {
                        distance,
                        available: *pos,
                    }
                    .into());
                }
                (cursor.left, cursor.distance) = (length, distance);
                *pos = cursor.finish_match(out, *pos);
            }
            Token::EndOfBlock => return Ok(true),
        }
    }
    Ok(false)
}

/// Reads one token; after an error `bits` stand inside of it.
fn token(bits: &mut Bits<'_>, tables: &BlockTables) -> Read<Token> {
    let mut buffer = bits.peek();
    let mut entry = tables.litlen[low(buffer, LITLEN_BITS)];
    if entry & litlen::LINK != 0 {
        bits.skip(LITLEN_BITS)?;
        buffer >>= LITLEN_BITS;
        entry = tables.litlen[(entry >> 16 & 0xfff) as usize + low(buffer, entry >> 8 & 0xff)];
    }
    bits.skip(entry & 0xff)?;
    if entry & litlen::LITERAL != 0 {
        return Ok(Token::Literal(entry.to_le_bytes()[2]));
    }
    if entry & litlen::SPECIAL != 0 {
        return match entry & litlen::INVALID {
            0 => Ok(Token::EndOfBlock),
            _ => Err(InflateError::LitlenSymbol.into()),
        };
    }
    let extra = low(buffer, entry & 0xff) >> (entry >> 25 & 0xf);
    let length = to_u16(low(u64::from(entry) >> 16, 9) + extra);
    let distance = match_distance(bits, tables)?;
    Ok(Token::Match { length, distance })
}

/// Reads the distance of a match.
fn match_distance(bits: &mut Bits<'_>, tables: &BlockTables) -> Read<u16> {
    let mut buffer = bits.peek();
    let mut entry = tables.distance[low(buffer, DISTANCE_BITS)];
    if entry & distance::LINK != 0 {
        bits.skip(DISTANCE_BITS)?;
        buffer >>= DISTANCE_BITS;
        let [_, width, ..] = entry.to_le_bytes();
        let start = low(entry >> 32, 16);
        entry = tables.distance[start + low(buffer, u32::from(width))];
    }
    let [total, _, code, ..] = entry.to_le_bytes();
    bits.skip(u32::from(total))?;
    if entry & distance::SPECIAL != 0 {
        return Err(InflateError::DistanceSymbol.into());
    }
    let extra = low(buffer, u32::from(total)) >> code;
    Ok(to_u16(low(entry >> 32, 16) + extra))
}

/// The lowest `count` bits.
fn low(buffer: u64, count: u32) -> usize {
    usize::try_from(buffer & ((1 << count) - 1)).expect("indices and extra bits are short")
}

/// A length or distance as read from valid entries.
fn to_u16(value: usize) -> u16 {
    u16::try_from(value).expect("lengths end at 258, distances at 32768")
}

/// Repeats what stands `distance` bytes back at `out[from..to]`; `distance` must not be
/// zero or exceed `from`.
pub(super) fn repeat(out: &mut [u8], from: usize, to: usize, distance: usize) {
    if distance >= to - from {
        out.copy_within(from - distance..to - distance, from);
    } else {
        for at in from..to {
            out[at] = out[at - distance];
        }
    }
}

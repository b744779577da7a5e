//! The loop that decodes nearly everything: several tokens per check of the bounds.
//!
//! It runs while input and output have some slack, so that words can be read and written
//! where bytes are meant, and leaves the rest, at a token, to [`super::careful`].

use super::tables::{BlockTables, DISTANCE_BITS, LITLEN_BITS, distance, litlen};
use crate::error::InflateError;

/// Input that must lie behind a turn's first byte: three refills of seven bytes and the
/// eight that the last one looks at.
const INPUT_SLACK: usize = 32;
/// Output that must have room at a turn's start: three literals, a match of 258, and
/// what the last word writes too much; more than the 40 bytes that a short match writes.
const OUTPUT_SLACK: usize = 3 + 258 + 8;
/// Words that a match of ordinary length is copied with.
const SHORT_WORDS: usize = 5;
/// Longest code with extra bits after the first distance table, and the next look-up.
const DISTANCE_TOTAL: u8 = 8 + 13 + 11;

/// Why the loop was left.
#[derive(Debug)]
pub(super) enum Leave {
    /// Input or output has no slack any more.
    Slack,
    /// The block ended.
    EndOfBlock,
    /// The last token is corrupt.
    Corrupt(InflateError),
}

/// Where the loop stands: bit of the input and byte of the output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) bit: u64,
    pub(super) pos: usize,
}

/// Input, output and tables as the loop sees them. The loop asks for nothing beyond
/// what [`Limits`] leave it.
pub(super) trait Memory {
    /// Eight bytes of input.
    fn input_word(&self, at: usize) -> u64;
    /// An entry of the lit/len table.
    fn litlen(&self, index: usize) -> u32;
    /// An entry of the distance table.
    fn distance(&self, index: usize) -> u64;
    /// Writes a byte of output.
    fn put(&mut self, at: usize, byte: u8);
    /// Writes eight bytes of output.
    fn put_word(&mut self, at: usize, word: u64);
    /// Eight bytes of output.
    fn word(&self, at: usize) -> u64;
    /// A byte of output.
    fn byte(&self, at: usize) -> u8;
}

/// Up to where turns may start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    input: usize,
    output: usize,
}

impl Limits {
    /// Limits of an input and an output of these lengths; `None` if there is no slack.
    pub(super) fn new(input: usize, output: usize) -> Option<Self> {
        let input = input.checked_sub(INPUT_SLACK)?;
        let output = output.checked_sub(OUTPUT_SLACK.max(SHORT_WORDS * 8 + 3))?;
        Some(Self { input, output })
    }

    /// Whether a turn may start at `next` and `pos`.
    #[inline(always)]
    fn allow(self, next: usize, pos: usize) -> bool {
        next <= self.input && pos <= self.output
    }
}

/// The bit buffer. `BEXTR` says that the instruction is there, with all of BMI1 and 2.
struct Reader<const BEXTR: bool> {
    buffer: u64,
    /// Valid bits of `buffer`, in the lowest eight bits. Some more may be valid, they
    /// are then those that the next refill brings again.
    left: u64,
    /// Where the next refill reads.
    next: usize,
}

impl<const BEXTR: bool> Reader<BEXTR> {
    fn new(memory: &impl Memory, bit: u64, first: usize) -> Self {
        let phase = bit % 8;
        Self {
            buffer: memory.input_word(first) >> phase,
            left: 56 - phase,
            next: first + 7,
        }
    }

    fn bit(&self) -> u64 {
        self.next as u64 * 8 - (self.left & 0xff)
    }

    /// Fills up to at least 56 bits.
    #[inline(always)]
    fn refill(&mut self, memory: &impl Memory) {
        self.buffer |= memory.input_word(self.next) << (self.left & 63);
        self.next += 7;
        self.next -= (self.left >> 3 & 7) as usize;
        self.left |= 56;
    }

    /// Whether fewer than `count` bits are there.
    #[inline(always)]
    fn is_below(&self, count: u8) -> bool {
        (self.left as u8) < count
    }

    /// Drops what an entry says and returns the index of the next look-up, in a table of
    /// `width` index bits as the entry says, too.
    #[inline(always)]
    fn advance(&mut self, control: u64, width: u32) -> usize {
        let before = self.buffer;
        self.buffer = before >> (control & 63);
        self.left = self.left.wrapping_sub(control);
        #[cfg(all(target_arch = "x86_64", feature = "fast"))]
        if BEXTR {
            return super::raw::bextr(before, control) as usize;
        }
        (self.buffer & ((1 << width) - 1)) as usize
    }
}

/// The extra bits that `total` bits end with, `code` of which are the code.
#[inline(always)]
fn extra(buffer: u64, total: u64, code: u64) -> usize {
    ((buffer & ((1 << (total & 63)) - 1)) >> (code & 63)) as usize
}

/// Decodes tokens from `place` on until a limit, the end of the block or an error.
#[inline(always)]
pub(super) fn decode<const BEXTR: bool>(
    memory: &mut impl Memory,
    limits: Limits,
    place: &mut Place,
) -> Leave {
    let Some(first) = usize::try_from(place.bit / 8)
        .ok()
        .filter(|&at| at <= limits.input)
    else {
        return Leave::Slack;
    };
    let mut reader = Reader::<BEXTR>::new(memory, place.bit, first);
    let mut pos = place.pos;
    let mut entry = memory.litlen((reader.buffer & ((1 << LITLEN_BITS) - 1)) as usize);
    let leave = loop {
        if !limits.allow(reader.next, pos) {
            break Leave::Slack;
        }
        reader.refill(memory);
        if entry & litlen::LITERAL != 0 {
            entry = literal(memory, &mut reader, &mut pos, entry);
            if entry & litlen::LITERAL != 0 {
                entry = literal(memory, &mut reader, &mut pos, entry);
                if entry & litlen::LITERAL != 0 {
                    entry = literal(memory, &mut reader, &mut pos, entry);
                    continue;
                }
            }
        }
        if entry & litlen::SPECIAL != 0 {
            if entry & litlen::LINK != 0 {
                let width = entry >> 8 & 0xff;
                let index = reader.advance(entry.into(), width) + (entry >> 16 & 0xfff) as usize;
                entry = memory.litlen(index);
                if entry & litlen::LITERAL != 0 {
                    entry = literal(memory, &mut reader, &mut pos, entry);
                    continue;
                }
            }
            if entry & litlen::SPECIAL != 0 {
                reader.advance(entry.into(), LITLEN_BITS);
                break special(entry);
            }
        }
        // A length. The literals and it have taken 42 bits of 56 at most.
        let before = reader.buffer;
        let index = reader.advance(entry.into(), DISTANCE_BITS);
        let length =
            3 + (entry >> 16 & 0xff) as usize + extra(before, entry.into(), (entry >> 24).into());
        let mut far = memory.distance(index);
        if reader.is_below(DISTANCE_TOTAL) {
            reader.refill(memory);
        }
        if far & distance::SPECIAL != 0 {
            if far & distance::LINK == 0 {
                break Leave::Corrupt(InflateError::DistanceSymbol);
            }
            reader.refill(memory);
            let index =
                reader.advance(far, (far >> 8 & 0xff) as u32) + (far >> 32 & 0xffff) as usize;
            far = memory.distance(index);
            if far & distance::SPECIAL != 0 {
                break Leave::Corrupt(InflateError::DistanceSymbol);
            }
        }
        let before = reader.buffer;
        let index = reader.advance(far, LITLEN_BITS);
        entry = memory.litlen(index);
        let distance = (far >> 32) as usize + extra(before, far, far >> 16);
        if distance > pos {
            break Leave::Corrupt(too_far(distance, pos));
        }
        copy(memory, pos, distance, length);
        pos += length;
    };
    *place = Place {
        bit: reader.bit(),
        pos,
    };
    leave
}

/// Writes a literal and returns the next entry.
#[inline(always)]
fn literal<const BEXTR: bool>(
    memory: &mut impl Memory,
    reader: &mut Reader<BEXTR>,
    pos: &mut usize,
    entry: u32,
) -> u32 {
    let index = reader.advance(entry.into(), LITLEN_BITS);
    memory.put(*pos, (entry >> 16) as u8);
    *pos += 1;
    memory.litlen(index)
}

/// Writes a match, and up to 40 bytes behind `pos` or 8 behind its end.
#[inline(always)]
fn copy(memory: &mut impl Memory, pos: usize, distance: usize, length: usize) {
    let end = pos + length;
    let (mut to, mut from) = (pos, pos - distance);
    if distance >= 8 {
        for _ in 0..SHORT_WORDS {
            memory.put_word(to, memory.word(from));
            (to, from) = (to + 8, from + 8);
        }
        while to < end {
            memory.put_word(to, memory.word(from));
            (to, from) = (to + 8, from + 8);
        }
    } else if distance == 1 {
        let word = u64::from(memory.byte(from)) * 0x0101_0101_0101_0101;
        while to < end {
            memory.put_word(to, word);
            to += 8;
        }
    } else {
        // Each word is right in its first `distance` bytes.
        while to < end {
            memory.put_word(to, memory.word(from));
            (to, from) = (to + distance, from + distance);
        }
    }
}

/// What an entry means that is no byte, length or link.
#[cold]
fn special(entry: u32) -> Leave {
    if entry & litlen::INVALID != 0 {
        Leave::Corrupt(InflateError::LitlenSymbol)
    } else {
        Leave::EndOfBlock
    }
}

#[cold]
fn too_far(distance: usize, available: usize) -> InflateError {
    let distance = u16::try_from(distance).expect("distances end at 32768");
    InflateError::TooFarBack {
        distance,
        available,
    }
}

/// Memory behind checked slices.
pub(super) struct Checked<'a> {
    pub(super) input: &'a [u8],
    pub(super) out: &'a mut [u8],
    pub(super) tables: &'a BlockTables,
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

    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        self.out[at]
    }
}

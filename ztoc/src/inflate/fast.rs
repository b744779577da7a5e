//! The loop that decodes nearly everything: several tokens per check of the bounds.
//!
//! It runs while input and output have some slack, so that words can be read and written
//! where bytes are meant, and leaves the rest, at a token, to [`super::careful`].
// Parts of table entries and masked indices are shortened, which loses nothing.
#![allow(clippy::cast_possible_truncation)]

use super::tables::{DISTANCE_BITS, LITLEN_BITS, distance, litlen};
use crate::error::InflateError;

/// Input that must lie behind a turn's first byte: three refills of seven bytes and the
/// eight that the last one looks at.
const INPUT_SLACK: usize = 32;
/// Output that must have room at a turn's start: three literals, a match of 258, and
/// what the last words write too much.
const OUTPUT_SLACK: usize = 3 + 258 + WORDS * 8;
/// Words that are copied at once: nearly all matches are no longer.
const WORDS: usize = 5;
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
    /// The same value, to be computed here and not where it is needed, if that pays.
    fn hold(&self, entry: u32) -> u32 {
        entry
    }
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
        let output = output.checked_sub(OUTPUT_SLACK)?;
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

/// The extra bits of a length: its entry says of how many bits the code takes how many.
#[inline(always)]
fn length_extra<const BEXTR: bool>(buffer: u64, entry: u32) -> usize {
    #[cfg(all(target_arch = "x86_64", feature = "fast"))]
    if BEXTR {
        return (super::raw::bzhi(buffer, entry) >> (entry >> 24 & 63)) as usize;
    }
    ((buffer & ((1 << (entry & 63)) - 1)) >> (entry >> 24 & 63)) as usize
}

/// The extra bits of a distance, as its entry says.
#[inline(always)]
fn distance_extra<const BEXTR: bool>(buffer: u64, entry: u64) -> usize {
    #[cfg(all(target_arch = "x86_64", feature = "fast"))]
    if BEXTR {
        return super::raw::bextr(buffer, entry >> 16) as usize;
    }
    ((buffer & ((1 << (entry & 63)) - 1)) >> (entry >> 16 & 63)) as usize
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
        let mut step = Step::take(memory, &mut reader, entry);
        if step.put_literal(memory, &mut pos) {
            step = Step::take(memory, &mut reader, step.next);
            if step.put_literal(memory, &mut pos) {
                step = Step::take(memory, &mut reader, step.next);
                if step.put_literal(memory, &mut pos) {
                    entry = step.next;
                    continue;
                }
            }
        }
        if step.entry & litlen::SPECIAL != 0 {
            if step.entry & litlen::LINK != 0 {
                let start = (step.entry >> 16 & 0xfff) as usize;
                let width = step.entry >> 8 & 0xff;
                let subentry = memory.litlen(start + narrow::<BEXTR>(step.index, width));
                step = Step::take(memory, &mut reader, subentry);
                if step.put_literal(memory, &mut pos) {
                    entry = step.next;
                    continue;
                }
            }
            if step.entry & litlen::SPECIAL != 0 {
                break special(step.entry);
            }
        }
        // A length. The literals and it have taken 42 bits of 56 at most.
        let length = step.length::<BEXTR>();
        let Some(far) = distance_entry(memory, &mut reader, step.index) else {
            break Leave::Corrupt(InflateError::DistanceSymbol);
        };
        let before = reader.buffer;
        let index = reader.advance(far, LITLEN_BITS);
        entry = memory.litlen(index);
        let distance = (far >> 32) as usize + distance_extra::<BEXTR>(before, far);
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

/// A lit/len entry whose bits are taken, and what may come next.
struct Step {
    entry: u32,
    /// The bit buffer before.
    before: u64,
    /// Index of the next look-up, be it in the lit/len or in the distance table.
    index: usize,
    /// What comes next if this is a literal. It is looked up before that is known: a
    /// third of all guesses at what comes next is wrong, and then this is there already.
    next: u32,
}

impl Step {
    #[inline(always)]
    fn take<const BEXTR: bool>(
        memory: &impl Memory,
        reader: &mut Reader<BEXTR>,
        entry: u32,
    ) -> Self {
        let before = reader.buffer;
        // Without `BEXTR` it may be too wide for other tables than this.
        let index = reader.advance(entry.into(), LITLEN_BITS);
        let next = memory.hold(memory.litlen(index));
        Self {
            entry,
            before,
            index,
            next,
        }
    }

    /// Writes the byte if this is a literal.
    #[inline(always)]
    fn put_literal(&self, memory: &mut impl Memory, pos: &mut usize) -> bool {
        let is_literal = self.entry & litlen::LITERAL != 0;
        if is_literal {
            memory.put(*pos, (self.entry >> 16) as u8);
            *pos += 1;
        }
        is_literal
    }

    /// Length of the match, if this is one.
    #[inline(always)]
    fn length<const BEXTR: bool>(&self) -> usize {
        3 + (self.entry >> 16 & 0xff) as usize + length_extra::<BEXTR>(self.before, self.entry)
    }
}

/// An index as narrow as its table, which `BEXTR` has already made it.
#[inline(always)]
fn narrow<const BEXTR: bool>(index: usize, width: u32) -> usize {
    if BEXTR {
        index
    } else {
        index & ((1 << width) - 1)
    }
}

/// Looks a distance up and leaves bits for it and the look-up after it; `None` if there
/// is no such code.
#[inline(always)]
fn distance_entry<const BEXTR: bool>(
    memory: &impl Memory,
    reader: &mut Reader<BEXTR>,
    index: usize,
) -> Option<u64> {
    let mut entry = memory.distance(narrow::<BEXTR>(index, DISTANCE_BITS));
    if reader.is_below(DISTANCE_TOTAL) {
        reader.refill(memory);
    }
    if entry & distance::SPECIAL != 0 {
        if entry & distance::LINK == 0 {
            return None;
        }
        reader.refill(memory);
        let index = reader.advance(entry, (entry >> 8 & 0xff) as u32);
        entry = memory.distance((entry >> 32 & 0xffff) as usize + index);
        if entry & distance::SPECIAL != 0 {
            return None;
        }
    }
    Some(entry)
}

/// Writes a match, and some of [`WORDS`] behind its end.
#[inline(always)]
fn copy(memory: &mut impl Memory, pos: usize, distance: usize, length: usize) {
    let end = pos + length;
    let (mut to, mut from) = (pos, pos - distance);
    if distance >= 8 {
        loop {
            for _ in 0..WORDS {
                memory.put_word(to, memory.word(from));
                (to, from) = (to + 8, from + 8);
            }
            if to >= end {
                break;
            }
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

//! The loop that decodes nearly everything: several tokens per check of the bounds.
//!
//! It runs while the input has some slack, so that words can be read where bytes are meant,
//! and leaves the rest, at a token, to [`super::careful`]. Near the end of the output it
//! looks at each match before it writes one in words.
// Parts of table entries and masked indices are shortened, which loses nothing.
#![allow(clippy::cast_possible_truncation)]

use super::tables::{DISTANCE_BITS, LITLEN_BITS, distance, litlen};
use crate::error::InflateError;

/// Input that must lie behind a turn's first byte: three refills of seven bytes and the
/// eight that the last one looks at.
const INPUT_SLACK: usize = 32;
/// Literals that a turn writes at most.
const LITERALS: usize = 3;
/// Output that must have room at a turn's start for all that it can write: literals, a match
/// of 258, and what the last words write too much.
const OUTPUT_SLACK: usize = LITERALS + 258 + WORDS * 8;
/// Words that are copied at once: nearly all matches are no longer.
pub(super) const WORDS: usize = 5;
/// Farthest that a match can reach back: the last distance symbol's base and its 13 extra bits (RFC 1951, 3.2.5).
const FARTHEST: usize = 24577 + (1 << 13) - 1;
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
    /// Copies [`WORDS`] words of output, one after the other: `from` may be eight bytes in front of `to`.
    #[inline(always)]
    fn copy_words(&mut self, from: usize, to: usize) {
        for word in 0..WORDS {
            self.put_word(to + word * 8, self.word(from + word * 8));
        }
    }
    /// Lets the loop that follows begin in the middle of a cache line, if that pays.
    fn align(&self) {}
    /// The same value, to be computed here and not where it is needed, if that pays.
    fn hold(&self, entry: u32) -> u32 {
        entry
    }
}

/// How bits are cut out of the bit buffer, which is quickest in a different way on each
/// processor. Starts are below 64.
pub(super) trait Cut {
    /// Whether an entry's control word is the quickest way to the next index.
    const BY_CONTROL: bool = false;

    /// The bits of `value` from bit `control % 256` on, `control / 256 % 256` of them.
    fn field(value: u64, control: u64) -> u64 {
        Self::low(value >> (control & 63), control >> 8)
    }

    /// The lowest `count % 256` bits, which are less than 64.
    fn low(value: u64, count: u64) -> u64;
}

/// Shifts and masks.
pub(super) struct Plain;

impl Cut for Plain {
    #[inline(always)]
    fn low(value: u64, count: u64) -> u64 {
        value & ((1 << (count & 63)) - 1)
    }
}

/// Up to where turns may start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    input: usize,
    output: usize,
    /// Length of the output.
    end: usize,
}

impl Limits {
    /// Limits of an input of this length and an output that ends at `end`, for turns that look
    /// how long a match is; `None` if there is no slack.
    pub(super) fn new(input: usize, end: usize) -> Option<Self> {
        let input = input.checked_sub(INPUT_SLACK)?;
        let output = end.checked_sub(LITERALS)?;
        Some(Self { input, output, end })
    }

    /// The limits of turns that do not look.
    fn far_from_end(self) -> Option<Self> {
        let output = self.end.checked_sub(OUTPUT_SLACK)?;
        Some(Self { output, ..self })
    }

    /// Limits for turns that start in front of `pos`.
    fn until(self, pos: usize) -> Self {
        let output = self.output.min(pos.saturating_sub(1));
        Self { output, ..self }
    }
}

/// The bit buffer.
struct Reader {
    buffer: u64,
    /// Valid bits of `buffer`, in the lowest eight bits. Some more may be valid, they
    /// are then those that the next refill brings again.
    left: u64,
    /// Where the next refill reads.
    next: usize,
}

impl Reader {
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

    /// Drops what an entry says. The lowest bits of what is returned are the index of the next
    /// look-up, see [`narrow`].
    #[inline(always)]
    fn advance<C: Cut>(&mut self, control: u64) -> u64 {
        let before = self.buffer;
        self.buffer = before >> (control & 63);
        self.left = self.left.wrapping_sub(control);
        if C::BY_CONTROL {
            C::field(before, control)
        } else {
            self.buffer
        }
    }
}

/// An index as narrow as its table, which a control word has already made it.
#[inline(always)]
fn narrow<C: Cut>(ahead: u64, width: u32) -> usize {
    if C::BY_CONTROL {
        ahead as usize
    } else {
        // A mask where `width` is known to the compiler.
        (ahead & ((1 << (width & 63)) - 1)) as usize
    }
}

/// Decodes tokens from `place` on until a limit, the end of the block or an error.
#[inline(always)]
pub(super) fn decode<C: Cut>(memory: &mut impl Memory, limits: Limits, place: &mut Place) -> Leave {
    if let Some(far) = limits.far_from_end() {
        if place.pos < FARTHEST {
            match turns::<C, false, true>(memory, far.until(FARTHEST), place) {
                Leave::Slack => {}
                leave => return leave,
            }
        }
        if place.pos >= FARTHEST {
            match turns::<C, false, false>(memory, far, place) {
                Leave::Slack => {}
                leave => return leave,
            }
        }
    }
    turns::<C, true, true>(memory, limits, place)
}

/// Decodes as [`decode`]; `NEAR` the end of the output it looks whether matches have room, and at the `BEGINNING`, before
/// [`FARTHEST`], whether there is what they repeat.
#[inline(always)]
fn turns<C: Cut, const NEAR: bool, const BEGINNING: bool>(
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
    let mut reader = Reader::new(memory, place.bit, first);
    let mut pos = place.pos;
    let mut entry = memory.litlen((reader.buffer & ((1 << LITLEN_BITS) - 1)) as usize);
    reader.refill(memory);
    memory.align();
    // With 56 bits in each turn.
    let leave = loop {
        // Two branches. Unless they are said to be rare the compiler makes one of both when it likes, which costs 3 %.
        if reader.next > limits.input {
            std::hint::cold_path();
            break Leave::Slack;
        }
        if pos > limits.output {
            std::hint::cold_path();
            break Leave::Slack;
        }
        let mut link_bits = 0;
        let mut step = Step::take::<C>(memory, &mut reader, entry);
        if step.put_literal(memory, &mut pos) {
            step = Step::take::<C>(memory, &mut reader, step.next);
            if step.put_literal(memory, &mut pos) {
                step = Step::take::<C>(memory, &mut reader, step.next);
                if step.put_literal(memory, &mut pos) {
                    reader.refill(memory);
                    entry = step.next;
                    continue;
                }
            }
        }
        if step.entry & litlen::SPECIAL != 0 {
            if step.entry & litlen::LINK != 0 {
                link_bits = LITLEN_BITS;
                let start = (step.entry >> 16 & 0xfff) as usize;
                let width = step.entry >> 8 & 0xff;
                let subentry = memory.litlen(start + narrow::<C>(step.ahead, width));
                step = Step::take::<C>(memory, &mut reader, subentry);
                if step.put_literal(memory, &mut pos) {
                    reader.refill(memory);
                    entry = step.next;
                    continue;
                }
            }
            if step.entry & litlen::SPECIAL != 0 {
                break special(step.entry);
            }
        }
        // A length. The literals and it have taken 42 bits of 56 at most.
        let length = step.length::<C>();
        if NEAR && length > limits.end - pos {
            // It is cut, which the careful decoder knows how to do: back to its first bit.
            reader.left += u64::from(link_bits + (step.entry & 0xff));
            break Leave::Slack;
        }
        let Some(far) = distance_entry::<C>(memory, &mut reader, step.ahead) else {
            break Leave::Corrupt(InflateError::DistanceSymbol);
        };
        let before = reader.buffer;
        let ahead = reader.advance::<C>(far);
        // Here and not where the next turn begins: the guess there, at what comes next, is the one that fails most, and the
        // copy would stand between it and what it waits for. Worth 8 %.
        entry = memory.hold(memory.litlen(narrow::<C>(ahead, LITLEN_BITS)));
        reader.refill(memory);
        let distance = (far >> 32) as usize + distance_extra::<C>(before, far);
        if BEGINNING && distance > pos {
            break Leave::Corrupt(too_far(distance, pos));
        }
        if NEAR && limits.end - pos < length + WORDS * 8 {
            copy_exactly(memory, pos, distance, length);
        } else {
            copy(memory, pos, distance, length);
        }
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
    /// In its lowest bits the index of the next look-up, be it in the lit/len or in the
    /// distance table.
    ahead: u64,
    /// What comes next if this is a literal. It is looked up before that is known: a
    /// third of all guesses at what comes next is wrong, and then this is there already.
    next: u32,
}

impl Step {
    #[inline(always)]
    fn take<C: Cut>(memory: &impl Memory, reader: &mut Reader, entry: u32) -> Self {
        let before = reader.buffer;
        let ahead = reader.advance::<C>(entry.into());
        let next = memory.hold(memory.litlen(narrow::<C>(ahead, LITLEN_BITS)));
        Self {
            entry,
            before,
            ahead,
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

    /// Length of the match, if this is one: the entry says of how many bits the code takes
    /// how many, the others are extra bits.
    #[inline(always)]
    fn length<C: Cut>(&self) -> usize {
        let code_and_extra = C::low(self.before, self.entry.into());
        let extra = code_and_extra >> (self.entry >> 25 & 63);
        (self.entry >> 16 & 0x1ff) as usize + extra as usize
    }
}

/// The extra bits of a distance, as its entry says.
#[inline(always)]
fn distance_extra<C: Cut>(buffer: u64, entry: u64) -> usize {
    if C::BY_CONTROL {
        C::field(buffer, entry >> 16) as usize
    } else {
        (C::low(buffer, entry) >> (entry >> 16 & 63)) as usize
    }
}

/// Looks a distance up and leaves bits for it and the look-up after it; `None` if there
/// is no such code.
#[inline(always)]
fn distance_entry<C: Cut>(memory: &impl Memory, reader: &mut Reader, ahead: u64) -> Option<u64> {
    let mut entry = memory.distance(narrow::<C>(ahead, DISTANCE_BITS));
    if reader.is_below(DISTANCE_TOTAL) {
        reader.refill(memory);
    }
    if entry & distance::SPECIAL != 0 {
        if entry & distance::LINK == 0 {
            return None;
        }
        reader.refill(memory);
        let ahead = reader.advance::<C>(entry);
        let index = narrow::<C>(ahead, (entry >> 8 & 0xff) as u32);
        entry = memory.distance((entry >> 32 & 0xffff) as usize + index);
        if entry & distance::SPECIAL != 0 {
            return None;
        }
    }
    Some(entry)
}

/// Writes a match and not a byte behind its end.
#[cold]
fn copy_exactly(memory: &mut impl Memory, pos: usize, distance: usize, length: usize) {
    for at in pos..pos + length {
        memory.put(at, memory.byte(at - distance));
    }
}

/// Writes a match, and some of [`WORDS`] behind its end.
#[inline(always)]
fn copy(memory: &mut impl Memory, pos: usize, distance: usize, length: usize) {
    let end = pos + length;
    let (mut to, mut from) = (pos, pos - distance);
    if distance >= 8 {
        memory.copy_words(from, to);
        // Apart from the loop it needs fewer registers.
        if length > WORDS * 8 {
            (to, from) = (to + WORDS * 8, from + WORDS * 8);
            while to < end {
                memory.copy_words(from, to);
                (to, from) = (to + WORDS * 8, from + WORDS * 8);
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

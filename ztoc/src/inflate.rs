//! Raw DEFLATE (RFC 1951) from any bit.
//!
//! The decoder for one case: a compressed range that lies in memory, a contiguous buffer
//! with the 32 KiB window in front of where the output goes, a known end of the output.
//! No checksum, no gzip framing, no sliding window.
//!
//! A [`Cursor`] is all the state there is: it stands between any two tokens, and with
//! the bytes already decoded it is enough to go on, now or later, on another thread, with
//! the same [`Tables`] or others. [`run`] decodes until the output is full or the stream
//! ends, [`run_block`] also stops between blocks, where a checkpoint can be.
//!
//! ```
//! use ztoc::inflate::{self, Cursor, Stop, Tables};
//!
//! let stored = [0b001, 5, 0, 0xfa, 0xff, b'h', b'e', b'l', b'l', b'o'];
//! let (mut tables, mut cursor, mut out) = (Tables::new(), Cursor::at_bit(0), [0; 8]);
//! let (stop, end) = inflate::run(&mut tables, &stored, &mut cursor, &mut out, 0, 8)?;
//! assert_eq!((stop, &out[..end]), (Stop::StreamEnd, &b"hello"[..]));
//! # Ok::<(), ztoc::error::InflateError>(())
//! ```
//!
//! What is refused is what zlib refuses: codes that are over-subscribed or incomplete
//! (but for a lone one-bit code, or no distance code at all), a block without an
//! end-of-block code, more than 286 lit/len or 30 distance codes, symbols without
//! meaning, distances that reach beyond the first byte of the buffer.

mod bits;
mod careful;
#[cfg(not(feature = "fast"))]
mod checked;
mod codes;
mod cursor;
mod fast;
mod header;
#[cfg(feature = "fast")]
mod raw;
mod tables;

pub use self::cursor::Cursor;

use self::bits::{Bits, Halt, Read};
use self::cursor::Block;
use self::fast::{Leave, Limits, Place};
use self::header::Kind;
use self::tables::BlockTables;
use crate::error::InflateError;

#[cfg(not(feature = "fast"))]
use self::checked::decode as decode_fast;
#[cfg(feature = "fast")]
use self::raw::decode as decode_fast;

/// Why decoding stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The output reached its end. Nothing behind the last byte was looked at: whether
    /// the stream ends here is said by a call with room for one more byte.
    OutputFull,
    /// The next token or header is cut off by the end of the input. The cursor stands
    /// before it: the same input with more behind it goes on.
    InputExhausted,
    /// A block that is not the last one ended (only [`run_block`]).
    BlockEnd,
    /// The last block ended; the cursor stands behind its last bit.
    StreamEnd,
}

/// Decode tables of one block, to be reused: about 21 KiB.
///
/// They remember the header they were built from. A cursor that comes back to them
/// inside the same block needs no rebuild (2 us); with any other it costs only that.
#[derive(Debug, Clone)]
pub struct Tables {
    block: Box<BlockTables>,
    /// Bit of its first byte where the header starts.
    phase: u64,
    /// The header's bytes; none while the tables hold no block.
    header: Vec<u8>,
}

impl Default for Tables {
    fn default() -> Self {
        Self::new()
    }
}

impl Tables {
    /// Tables that hold no block yet.
    pub fn new() -> Self {
        let header = Vec::with_capacity(header::MAX_BYTES);
        Self {
            block: Box::new(BlockTables::empty()),
            phase: 0,
            header,
        }
    }

    /// Reads the dynamic header whose block starts at `start`, with `bits` behind the
    /// three bits that every header has.
    fn read(&mut self, input: &[u8], start: u64, bits: &mut Bits<'_>) -> Read<()> {
        self.header.clear();
        header::dynamic(bits, &mut self.block)?;
        let end = byte(bits.at().div_ceil(8));
        self.phase = start % 8;
        self.header.extend_from_slice(&input[byte(start / 8)..end]);
        Ok(())
    }

    /// Whether the tables were built from the header that stands at bit `start`.
    fn hold(&self, input: &[u8], start: u64) -> bool {
        let at = input.get(byte(start / 8)..).unwrap_or_default();
        !self.header.is_empty() && self.phase == start % 8 && at.starts_with(&self.header)
    }

    /// The tables of the block that `cursor` stands in.
    fn of<'a>(&'a mut self, input: &[u8], cursor: &Cursor) -> Read<&'a BlockTables> {
        if cursor.block == Block::Fixed {
            return Ok(BlockTables::fixed());
        }
        if !self.hold(input, cursor.header) {
            let mut bits = Bits::new(input, cursor.header);
            header::start(&mut bits)?;
            self.read(input, cursor.header, &mut bits)?;
        }
        Ok(&self.block)
    }
}

/// Index of a byte; beyond any slice if it does not fit.
fn byte(index: u64) -> usize {
    usize::try_from(index).unwrap_or(usize::MAX)
}

/// Decodes from `cursor` in `input` to `buf[pos..end]` and returns why and where it
/// stopped. Bytes of `buf` before `pos` are the window; none from `end` on is written.
///
/// # Errors
///
/// What of the stream is corrupt. The bytes before it are written, how many is not told.
///
/// # Panics
///
/// If `end` is beyond `buf`.
pub fn run(
    tables: &mut Tables,
    input: &[u8],
    cursor: &mut Cursor,
    buf: &mut [u8],
    pos: usize,
    end: usize,
) -> Result<(Stop, usize), InflateError> {
    let mut decoder = Decoder {
        tables,
        input,
        cursor,
        out: &mut buf[..end],
        pos,
    };
    loop {
        match decoder.step() {
            Ok(Some(Stop::BlockEnd)) | Ok(None) => {}
            Ok(Some(stop)) => return Ok((stop, decoder.pos)),
            Err(Halt::Exhausted) => return Ok((Stop::InputExhausted, decoder.pos)),
            Err(Halt::Corrupt(error)) => return Err(error),
        }
    }
}

/// Like [`run`], and stops at the end of each block.
///
/// # Errors
///
/// As [`run`].
///
/// # Panics
///
/// As [`run`].
pub fn run_block(
    tables: &mut Tables,
    input: &[u8],
    cursor: &mut Cursor,
    buf: &mut [u8],
    pos: usize,
    end: usize,
) -> Result<(Stop, usize), InflateError> {
    let mut decoder = Decoder {
        tables,
        input,
        cursor,
        out: &mut buf[..end],
        pos,
    };
    loop {
        match decoder.step() {
            Ok(None) => {}
            Ok(Some(stop)) => return Ok((stop, decoder.pos)),
            Err(Halt::Exhausted) => return Ok((Stop::InputExhausted, decoder.pos)),
            Err(Halt::Corrupt(error)) => return Err(error),
        }
    }
}

/// One call's state.
struct Decoder<'a> {
    tables: &'a mut Tables,
    input: &'a [u8],
    cursor: &'a mut Cursor,
    out: &'a mut [u8],
    pos: usize,
}

impl Decoder<'_> {
    /// Reads a header, or of a block as much as there is.
    fn step(&mut self) -> Read<Option<Stop>> {
        if self.cursor.block == Block::End {
            return Ok(Some(Stop::StreamEnd));
        }
        if self.pos >= self.out.len() {
            return Ok(Some(Stop::OutputFull));
        }
        match self.cursor.block {
            Block::Header => self.header().map(|()| None),
            Block::Stored => self.stored(),
            _ => self.compressed(),
        }
    }

    /// Reads a block's header; the cursor moves only if it is complete.
    fn header(&mut self) -> Read<()> {
        let start = self.cursor.bit;
        let mut bits = Bits::new(self.input, start);
        let (last, kind) = header::start(&mut bits)?;
        let (block, left) = match kind {
            Kind::Stored => (Block::Stored, header::stored(&mut bits)?),
            Kind::Fixed => (Block::Fixed, 0),
            Kind::Dynamic => {
                self.tables.read(self.input, start, &mut bits)?;
                (Block::Dynamic, 0)
            }
        };
        *self.cursor = Cursor {
            bit: bits.at(),
            header: start,
            block,
            last,
            left,
            distance: 0,
        };
        Ok(())
    }

    /// Ends a block.
    fn end_block(&mut self) -> Stop {
        let last = self.cursor.last;
        self.cursor.block = if last { Block::End } else { Block::Header };
        if last {
            Stop::StreamEnd
        } else {
            Stop::BlockEnd
        }
    }

    /// Copies of a stored block what there is and has room.
    fn stored(&mut self) -> Read<Option<Stop>> {
        let source = Bits::new(self.input, self.cursor.bit).bytes();
        let room = self.out.len() - self.pos;
        let count = usize::from(self.cursor.left).min(source.len()).min(room);
        self.out[self.pos..self.pos + count].copy_from_slice(&source[..count]);
        self.pos += count;
        self.cursor.bit += count as u64 * 8;
        self.cursor.left -= u16::try_from(count).expect("limited by `left`");
        match self.cursor.left {
            0 => Ok(Some(self.end_block())),
            _ if self.pos == self.out.len() => Ok(None),
            _ => Err(Halt::Exhausted),
        }
    }

    /// Decodes tokens of a compressed block.
    fn compressed(&mut self) -> Read<Option<Stop>> {
        let tables = self.tables.of(self.input, self.cursor)?;
        self.pos = self.cursor.finish_match(self.out, self.pos);
        let mut place = Place {
            bit: self.cursor.bit,
            pos: self.pos,
        };
        let leave = match Limits::new(self.input.len(), self.out.len()) {
            Some(limits) => decode_fast(self.input, self.out, tables, limits, &mut place),
            None => Leave::Slack,
        };
        (self.cursor.bit, self.pos) = (place.bit, place.pos);
        match leave {
            Leave::Slack => {
                let ended =
                    careful::decode(self.input, self.cursor, self.out, &mut self.pos, tables)?;
                Ok(ended.then(|| self.end_block()))
            }
            Leave::EndOfBlock => Ok(Some(self.end_block())),
            Leave::Corrupt(error) => Err(error.into()),
        }
    }
}

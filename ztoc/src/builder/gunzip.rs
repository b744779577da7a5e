//! Inflates a gzip layer and takes checkpoints on the way.
//!
//! The choice of checkpoints is the original's, so that digests can be compared: at the start of a
//! member's deflate stream and at the end of each block that is not a member's last, one is taken
//! if none was taken yet or if more than the span size was put out since the last. The
//! original takes further ones as long as nothing has been put out, and then cannot load its zTOC.

use std::io::Read;

use super::BuildError;
use super::ahead::ReadAhead;
use super::compressed::CompressedPiece;
use super::input::{Chunk, Input};
use super::output::Output;
use super::pipeline::{Halt, Sinks};
use crate::checkpoint::{Checkpoint, GzipZinfo, Zinfo};
use crate::error::SpansError;
use crate::gzip::{self, GzipError, TRAILER_LEN, Trailer};
use crate::inflate::{self, Cursor, Stop, Tables};
use crate::span::SpanTable;
use crate::unit::{SpanId, SpanSize};
use crate::ztoc::Ztoc;

/// The state of one pass.
pub(super) struct Gunzip<'s, R> {
    blob: &'s ReadAhead<R>,
    input: Input,
    output: Output<'s>,
    sinks: &'s Sinks<'s>,
    tables: Tables,
    zinfo: GzipZinfo,
    span_size: u64,
    /// Checkpoints that the hashing side has not been told of.
    untold: Vec<Checkpoint>,
}

impl<'s, R: Read> Gunzip<'s, R> {
    pub(super) fn new(
        (first, blob): (Chunk, &'s ReadAhead<R>),
        sinks: &'s Sinks<'s>,
        span_size: SpanSize,
    ) -> Self {
        let mut input = Input::default();
        input.go_on_with(first);
        Self {
            blob,
            input,
            output: Output::new(sinks),
            sinks,
            tables: Tables::new(),
            zinfo: GzipZinfo::new(span_size.bytes().cast_signed()),
            span_size: span_size.bytes(),
            untold: Vec::new(),
        }
    }

    /// Reads the blob to its end; the checkpoints and the blob's size.
    pub(super) fn run(mut self) -> Result<(Zinfo, u64), Halt> {
        loop {
            self.header()?;
            self.deflate_stream()?;
            self.trailer()?;
            if !self.another_member()? {
                break;
            }
        }
        self.output.flush()?;
        // Only the end of the input ends the loop: `fill` has given away all of it.
        let size = self.input.base();
        Ok((Zinfo::Gzip(self.zinfo), size))
    }

    fn header(&mut self) -> Result<(), Halt> {
        let at = self.input.base();
        loop {
            let len = gzip::header_len(self.input.bytes());
            if let Some(len) = len.map_err(|source| BuildError::Header { at, source })? {
                self.input.release(len);
                return Ok(());
            }
            if !self.fill()? {
                let source = GzipError::CutOff;
                return Err(BuildError::Header { at, source }.into());
            }
        }
    }

    fn deflate_stream(&mut self) -> Result<(), Halt> {
        let mut cursor = Cursor::at_bit(0);
        self.output.begin_member();
        self.boundary(&cursor)?;
        loop {
            match self.decode(&mut cursor)? {
                Stop::OutputFull => {
                    self.output.flush()?;
                    self.check_span_len()?;
                }
                Stop::BlockEnd => self.boundary(&cursor)?,
                Stop::StreamEnd => {
                    self.input.release(cursor.byte_aligned_end());
                    return Ok(());
                }
                Stop::InputExhausted => {
                    let used = cursor.needed_from();
                    self.input.release(used);
                    cursor.rebase(used);
                    if !self.fill()? {
                        return Err(self.cut_off());
                    }
                }
            }
        }
    }

    fn decode(&mut self, cursor: &mut Cursor) -> Result<Stop, Halt> {
        let (window, pos) = self.output.space();
        let end = window.len();
        let input = self.input.bytes();
        let decoded = inflate::run_block(&mut self.tables, input, cursor, window, pos, end);
        let (stop, pos) = decoded.map_err(|source| BuildError::Deflate {
            at: self.input.base() + cursor.bit() / 8,
            source,
        })?;
        self.output.advance_to(pos);
        Ok(stop)
    }

    /// Takes a checkpoint where the cursor stands if it is time for one.
    fn boundary(&mut self, cursor: &Cursor) -> Result<(), Halt> {
        let position = self.output.position();
        self.sinks
            .boundary(self.input.base() * 8 + cursor.bit(), position)?;
        let due = match self.zinfo.checkpoints.last() {
            None => true,
            Some(last) => position - last.uncompressed.0 > self.span_size,
        };
        if !due {
            return Ok(());
        }
        let checkpoint = Checkpoint::at_bit(self.input.base() * 8 + cursor.bit(), position);
        self.zinfo.push(checkpoint, self.output.window());
        self.untold.push(checkpoint);
        if self.zinfo.blob_len() > Ztoc::MAX_ENCODED_LEN {
            return Err(BuildError::TooLarge.into());
        }
        Ok(())
    }

    /// A block without end must be noticed before all of it is in memory.
    fn check_span_len(&self) -> Result<(), BuildError> {
        let (span, start) = match self.zinfo.checkpoints.as_slice() {
            [.., last] => (self.zinfo.checkpoints.len() - 1, last.uncompressed.0),
            [] => (0, 0),
        };
        let len = self.output.position() - start;
        if len <= SpanTable::MAX_SPAN_LEN {
            return Ok(());
        }
        let span = SpanId(u32::try_from(span).unwrap_or(u32::MAX));
        Err(SpansError::TooLong { span, len }.into())
    }

    fn trailer(&mut self) -> Result<(), Halt> {
        while self.input.bytes().len() < TRAILER_LEN {
            if !self.fill()? {
                return Err(self.cut_off());
            }
        }
        let trailer = self.input.bytes()[..TRAILER_LEN]
            .try_into()
            .expect("that many are there");
        self.output.end_member(Trailer::parse(trailer))?;
        self.input.release(TRAILER_LEN);
        Ok(())
    }

    /// Whether another member follows. Zeros up to the end may follow too.
    fn another_member(&mut self) -> Result<bool, Halt> {
        let mut zeros = false;
        while !self.input.bytes().is_empty() || self.fill()? {
            let bytes = self.input.bytes();
            match bytes.iter().position(|byte| *byte != 0) {
                Some(0) if !zeros && bytes[0] == gzip::MAGIC[0] => return Ok(true),
                Some(at) => {
                    return Err(BuildError::Garbage(self.input.base() + at as u64).into());
                }
                None => {
                    zeros = true;
                    self.input.release(bytes.len());
                }
            }
        }
        Ok(false)
    }

    /// Reads more, and gives the hashing side what is used up; whether there was more.
    fn fill(&mut self) -> Result<bool, Halt> {
        let next = self.blob.next()?;
        let more = next.is_some();
        let used = self.input.go_on_with(next.unwrap_or_default());
        self.sinks.compressed(CompressedPiece {
            buffer: self.blob.lend(used.buffer),
            range: used.range,
            checkpoints: std::mem::take(&mut self.untold),
        })?;
        Ok(more)
    }

    fn cut_off(&self) -> Halt {
        BuildError::CutOff(self.input.base() + self.input.bytes().len() as u64).into()
    }
}

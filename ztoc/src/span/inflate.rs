//! From a span's verified bytes to plain ones, at once or in steps.

use std::borrow::BorrowMut;
use std::ops::Range;

use super::VerifiedSpan;
use crate::checkpoint::WINDOW_LEN;
use crate::error::InflateError;
use crate::gzip::{self, GzipError, TRAILER_LEN};
use crate::inflate::{self, Cursor, Stop, Tables};
use crate::unit::{ByteLen as _, SpanId, UncompressedOffset};
use crate::ztoc::Compression;

/// How far a buffer grows at the least: the output of a span of the usual size, which ends at the
/// first block boundary behind 4 MiB.
const USUAL_LEN: usize = (4 << 20) + (256 << 10);

/// A reusable output buffer: 32 KiB of window in front of a span's plain bytes. Make few and keep
/// them: touching fresh memory costs half as much as decoding into it.
#[derive(Debug, Default)]
pub struct SpanBuffer {
    /// Window and output; never shrinks, and what an earlier span left is not cleared.
    bytes: Vec<u8>,
    tables: Tables,
}

impl SpanBuffer {
    /// An empty buffer; the first span that is decoded makes it grow.
    pub fn new() -> Self {
        Self::default()
    }

    /// A buffer with room for spans of `len` plain bytes whose pages have been touched, so that
    /// not even the first of them waits for memory.
    pub fn prefaulted(len: usize) -> Self {
        let mut buffer = Self::new();
        buffer.grow(len, len);
        buffer
    }

    /// Bytes of memory that it holds.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Makes room for a window and `len` bytes of output of a span of `whole` bytes. What is in
    /// the buffer stays.
    fn grow(&mut self, len: usize, whole: usize) {
        let has = self.bytes.len();
        if has < WINDOW_LEN + len {
            let ahead = has.saturating_mul(2).max(USUAL_LEN);
            // Writes, and so touches, every byte.
            self.bytes.resize(WINDOW_LEN + len.max(whole.min(ahead)), 0);
        }
    }
}

impl<B: AsRef<[u8]>> VerifiedSpan<'_, B> {
    /// Which span it is.
    pub fn id(&self) -> SpanId {
        self.id
    }

    /// Restores the decoder at the span's checkpoint and decodes the whole span. The slice
    /// has exactly the length of [`super::SpanTable::uncompressed`]; anything else is an error.
    ///
    /// # Errors
    ///
    /// The bytes are no deflate stream, or one that ends too early: the zTOC is wrong, for the
    /// bytes are those it names.
    pub fn inflate<'b>(&self, buffer: &'b mut SpanBuffer) -> Result<&'b [u8], InflateError> {
        self.inflate_prefix(buffer, self.table.uncompressed(self.id).end)
    }

    /// Like [`Self::inflate`], but stops at `upto`, a position in the layer, where the span
    /// reaches beyond it.
    ///
    /// # Errors
    ///
    /// As [`Self::inflate`].
    pub fn inflate_prefix<'b>(
        &self,
        buffer: &'b mut SpanBuffer,
        upto: UncompressedOffset,
    ) -> Result<&'b [u8], InflateError> {
        let span = VerifiedSpan {
            table: self.table,
            id: self.id,
            bytes: self.bytes.as_ref(),
        };
        let mut decoder = span.decoder(buffer)?;
        let len = decoder.decode_to(upto)?.len();
        Ok(&decoder.into_buffer().bytes[WINDOW_LEN..WINDOW_LEN + len])
    }

    /// Restores the decoder at the span's checkpoint, to decode the span in steps: as far as the
    /// wanted bytes need, and the rest when there is time, here or on another thread. The decoder
    /// borrows nothing of the table; it holds `buffer` (owned or borrowed) and the compressed bytes.
    ///
    /// # Errors
    ///
    /// The window in front of the span cannot be had.
    pub fn decoder<S: BorrowMut<SpanBuffer>>(
        self,
        mut buffer: S,
    ) -> Result<SpanDecoder<B, S>, InflateError> {
        let range = self.table.uncompressed(self.id);
        let place = buffer.borrow_mut();
        place.grow(0, usize::try_from(range.byte_len()).unwrap_or(usize::MAX));
        self.table
            .write_window(self.id, &mut place.bytes[..WINDOW_LEN])?;
        Ok(SpanDecoder {
            id: self.id,
            compression: self.table.compression(),
            cursor: Cursor::at_bit(match self.table.checkpoint(self.id).bits {
                0 => 0,
                bits => 8 - u64::from(bits),
            }),
            range,
            bytes: self.bytes,
            checksum: self.table.checksum(self.id),
            member: 0,
            decoded: 0,
            failed: None,
            buffer,
        })
    }
}

/// A verified span that is decoded step by step.
///
/// Going on costs nothing that matters: the state between two steps is a cursor of a few words and
/// what is decoded already. It may be sent to another thread and kept for as long as its memory is
/// not needed.
#[derive(Debug)]
pub struct SpanDecoder<B, S = SpanBuffer> {
    id: SpanId,
    compression: Compression,
    range: Range<UncompressedOffset>,
    /// CRC32 of all of its plain bytes, if that is known.
    checksum: Option<u32>,
    /// The span's compressed bytes.
    bytes: B,
    /// Where in them the deflate stream of the current gzip member begins (the first: is cut).
    member: usize,
    /// Where in that stream the decoder stands.
    cursor: Cursor,
    /// Plain bytes that there are.
    decoded: usize,
    /// What is wrong with the span, once that is known.
    failed: Option<InflateError>,
    buffer: S,
}

impl<B: AsRef<[u8]>, S: BorrowMut<SpanBuffer>> SpanDecoder<B, S> {
    /// Which span it is.
    pub fn id(&self) -> SpanId {
        self.id
    }

    /// The plain bytes that the whole span has, as positions in the layer.
    pub fn uncompressed(&self) -> Range<UncompressedOffset> {
        self.range.clone()
    }

    /// The position in the layer up to which the span is decoded.
    pub fn decoded_to(&self) -> UncompressedOffset {
        UncompressedOffset(self.range.start.0 + self.decoded as u64)
    }

    /// Whether all of the span is decoded.
    pub fn is_complete(&self) -> bool {
        self.decoded_to() >= self.range.end
    }

    /// What is decoded so far, from the span's first byte on.
    pub fn decoded(&self) -> &[u8] {
        let buffer: &SpanBuffer = self.buffer.borrow();
        &buffer.bytes[WINDOW_LEN..WINDOW_LEN + self.decoded]
    }

    /// Decodes up to `upto`, a position in the layer, or to the end of the span if that comes
    /// first, and returns what is decoded by then, from the span's first byte on. That is more
    /// than asked for if an earlier call went further.
    ///
    /// # Errors
    ///
    /// As [`VerifiedSpan::inflate`], and the same again in each later call that goes further. What
    /// was decoded by earlier calls stays good.
    pub fn decode_to(&mut self, upto: UncompressedOffset) -> Result<&[u8], InflateError> {
        let wanted = (self.range.start..self.range.end.min(upto)).byte_len();
        let wanted = usize::try_from(wanted).expect("a span's length is limited");
        if wanted > self.decoded {
            if let Some(error) = &self.failed {
                return Err(error.clone());
            }
            if let Err(error) = self.advance(wanted) {
                self.failed = Some(error.clone());
                return Err(error);
            }
        }
        Ok(self.decoded())
    }

    /// Decodes the whole span; see [`Self::decode_to`].
    ///
    /// # Errors
    ///
    /// As [`Self::decode_to`].
    pub fn decode_all(&mut self) -> Result<&[u8], InflateError> {
        self.decode_to(self.range.end)
    }

    /// Ends it and gives the buffer back, for the next span.
    pub fn into_buffer(self) -> S {
        self.buffer
    }

    fn advance(&mut self, wanted: usize) -> Result<(), InflateError> {
        let whole = usize::try_from(self.range.byte_len()).unwrap_or(usize::MAX);
        let buffer = self.buffer.borrow_mut();
        buffer.grow(wanted, whole);
        match self.compression {
            Compression::Gzip => self.inflate(wanted)?,
            Compression::Uncompressed => {
                let source = &self.bytes.as_ref()[self.decoded..wanted];
                buffer.bytes[WINDOW_LEN + self.decoded..WINDOW_LEN + wanted]
                    .copy_from_slice(source);
            }
        }
        if wanted == whole {
            self.check(whole)?;
        }
        self.decoded = wanted;
        Ok(())
    }

    /// Checks all of the span's plain bytes, which are in the buffer.
    fn check(&self, whole: usize) -> Result<(), InflateError> {
        let Some(expected) = self.checksum else {
            return Ok(());
        };
        let buffer: &SpanBuffer = self.buffer.borrow();
        let actual = crc32fast::hash(&buffer.bytes[WINDOW_LEN..WINDOW_LEN + whole]);
        match actual == expected {
            true => Ok(()),
            false => Err(InflateError::Checksum { expected, actual }),
        }
    }

    fn inflate(&mut self, wanted: usize) -> Result<(), InflateError> {
        let bytes = self.bytes.as_ref();
        let SpanBuffer { bytes: out, tables } = self.buffer.borrow_mut();
        let (mut pos, end) = (WINDOW_LEN + self.decoded, WINDOW_LEN + wanted);
        while pos < end {
            let input = bytes.get(self.member..).unwrap_or_default();
            let (stop, reached) = inflate::run(tables, input, &mut self.cursor, out, pos, end)?;
            pos = reached;
            match stop {
                Stop::OutputFull | Stop::BlockEnd => {}
                Stop::InputExhausted => return Err(ends_early(pos, wanted)),
                Stop::StreamEnd if pos == end => {}
                Stop::StreamEnd => {
                    let next = self.cursor.byte_aligned_end().saturating_add(TRAILER_LEN);
                    let rest = input.get(next..).filter(|rest| !rest.is_empty());
                    let rest = rest.ok_or_else(|| ends_early(pos, wanted))?;
                    let header = gzip::header_len(rest)?.ok_or(GzipError::CutOff)?;
                    self.member += next + header;
                    self.cursor = Cursor::at_bit(0);
                }
            }
        }
        Ok(())
    }
}

fn ends_early(pos: usize, len: usize) -> InflateError {
    InflateError::EndsEarly {
        decoded: (pos - WINDOW_LEN) as u64,
        expected: len as u64,
    }
}

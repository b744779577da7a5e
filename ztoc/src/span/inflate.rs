//! From a span's verified bytes to plain ones.

use super::VerifiedSpan;
use crate::checkpoint::WINDOW_LEN;
use crate::error::InflateError;
use crate::gzip::{self, GzipError, TRAILER_LEN};
use crate::inflate::{self, Cursor, Stop, Tables};
use crate::unit::{ByteLen as _, SpanId, UncompressedOffset};
use crate::ztoc::Compression;

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

    /// Bytes of memory that it holds.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Makes room for a window and `len` bytes of output.
    fn reserve(&mut self, len: usize) {
        let needed = WINDOW_LEN + len;
        if self.bytes.len() < needed {
            // Nothing in it is worth copying to a new place.
            self.bytes.clear();
            self.bytes.resize(needed, 0);
        }
    }
}

impl VerifiedSpan<'_> {
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
        let span = self.table.uncompressed(self.id);
        let len = (span.start..span.end.min(upto)).byte_len();
        let len = usize::try_from(len).expect("a span's length is limited");
        buffer.reserve(len);
        match self.table.compression() {
            Compression::Gzip => self.inflate_gzip(buffer, len)?,
            Compression::Uncompressed => {
                buffer.bytes[WINDOW_LEN..WINDOW_LEN + len].copy_from_slice(&self.bytes[..len]);
            }
        }
        Ok(&buffer.bytes[WINDOW_LEN..WINDOW_LEN + len])
    }

    fn inflate_gzip(&self, buffer: &mut SpanBuffer, len: usize) -> Result<(), InflateError> {
        self.table
            .write_window(self.id, &mut buffer.bytes[..WINDOW_LEN]);
        let mut input = self.bytes;
        let mut cursor = Cursor::at_bit(match self.table.checkpoint(self.id).bits {
            0 => 0,
            bits => 8 - u64::from(bits),
        });
        let (mut pos, end) = (WINDOW_LEN, WINDOW_LEN + len);
        while pos < end {
            let SpanBuffer { bytes, tables } = &mut *buffer;
            let (stop, reached) = inflate::run(tables, input, &mut cursor, bytes, pos, end)?;
            pos = reached;
            match stop {
                Stop::OutputFull | Stop::BlockEnd => {}
                Stop::InputExhausted => return Err(ends_early(pos, len)),
                Stop::StreamEnd if pos == end => {}
                Stop::StreamEnd => {
                    let next = cursor.byte_aligned_end().saturating_add(TRAILER_LEN);
                    let rest = input.get(next..).filter(|rest| !rest.is_empty());
                    input = rest.ok_or_else(|| ends_early(pos, len))?;
                    let header = gzip::header_len(input)?.ok_or(GzipError::CutOff)?;
                    input = &input[header..];
                    cursor = Cursor::at_bit(0);
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

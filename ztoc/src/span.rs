//! Spans: independently decompressible pieces of a layer, and the way from their compressed
//! bytes to plain ones: [`CompressedSpan`] -> [`VerifiedSpan`] -> bytes.
use std::ops::Range;

use crate::digest::Digest;
use crate::error::{InflateError, VerifyError};
use crate::unit::{CompressedOffset, SpanId, UncompressedOffset};
use crate::ztoc::Compression;

/// The spans of one layer: where each lies, compressed and uncompressed, its digest and the
/// decoder's state at its start. Consistent by construction: positions ascend strictly, the last
/// span ends with the layer.
#[derive(Debug)]
pub struct SpanTable {}

impl SpanTable {
    /// How the layer is compressed.
    pub fn compression(&self) -> Compression {
        todo!()
    }

    /// The number of spans; 0 only for a layer without uncompressed bytes.
    pub fn count(&self) -> u32 {
        todo!()
    }

    /// Size of the layer blob in bytes.
    pub fn compressed_size(&self) -> u64 {
        todo!()
    }

    /// End of the last span: the position where tar parsing stopped.
    pub fn uncompressed_size(&self) -> u64 {
        todo!()
    }

    /// The compressed bytes of a span. Neighbours overlap by one byte where a checkpoint
    /// lies inside a byte. Panics if `span` is not below [`Self::count`].
    pub fn compressed(&self, span: SpanId) -> Range<CompressedOffset> {
        todo!()
    }

    /// The uncompressed bytes of a span. Panics if `span` is not below [`Self::count`].
    pub fn uncompressed(&self, span: SpanId) -> Range<UncompressedOffset> {
        todo!()
    }

    /// The sha256 of the compressed bytes of a span.
    pub fn digest(&self, span: SpanId) -> Digest {
        todo!()
    }

    /// The spans that hold `range`, half-open, clipped to the layer; empty for an empty range.
    pub fn covering(&self, range: Range<UncompressedOffset>) -> Range<SpanId> {
        todo!()
    }
}

/// Bytes that claim to be a span's compressed range.
#[derive(Debug)]
pub struct CompressedSpan<'a> {
    id: SpanId,
    bytes: &'a [u8],
}

/// A span whose compressed bytes match length and digest in its table. Only
/// [`CompressedSpan::verify`] makes one.
#[derive(Debug)]
pub struct VerifiedSpan<'a> {
    table: &'a SpanTable,
    id: SpanId,
    bytes: &'a [u8],
}

impl<'a> CompressedSpan<'a> {
    /// Names `bytes` as span `id`.
    pub fn new(id: SpanId, bytes: &'a [u8]) -> Self {
        Self { id, bytes }
    }

    /// Checks length and sha256 against `table`.
    pub fn verify(self, table: &'a SpanTable) -> Result<VerifiedSpan<'a>, VerifyError> {
        todo!()
    }
}

/// A reusable output buffer: 32 KiB of window in front of a span's plain bytes. Make few and keep
/// them: touching fresh memory costs half as much as decoding into it.
#[derive(Debug, Default)]
pub struct SpanBuffer {}

impl VerifiedSpan<'_> {
    /// Which span it is.
    pub fn id(&self) -> SpanId {
        self.id
    }

    /// Restores the decoder at the span's checkpoint and decodes the whole span. The slice
    /// has exactly the length of [`SpanTable::uncompressed`]; anything else is an error.
    pub fn inflate<'b>(&self, buffer: &'b mut SpanBuffer) -> Result<&'b [u8], InflateError> {
        todo!()
    }
}

//! Spans: independently decompressible pieces of a layer, and the way from their compressed
//! bytes to plain ones: [`CompressedSpan`] -> [`VerifiedSpan`] -> bytes.

mod inflate;

use std::ops::Range;

pub use self::inflate::{SpanBuffer, SpanDecoder};
use crate::checkpoint::{Checkpoint, WINDOW_LEN, Zinfo, ZinfoVersion};
use crate::compact::GroupedWindows;
use crate::digest::Digest;
use crate::error::{SpansError, VerifyError, WindowError};
use crate::unit::{ByteLen as _, CompressedOffset, SpanId, SpanSize, UncompressedOffset};
use crate::ztoc::Compression;

/// A byte of deflate becomes at most this many: two bits for a match of 258.
const MAX_EXPANSION: u64 = 1032;

/// The spans of one layer: where each lies, compressed and uncompressed, its digest and the
/// decoder's state at its start.
///
/// Consistent by construction: the first span begins with the layer, each lies strictly behind
/// the one before, the last ends with the layer. Two kinds of span have no uncompressed bytes,
/// because zTOCs of the original hold them: those in front of the first byte of output (empty
/// blocks or members there), and those behind the end of the tar archive (padding).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanTable {
    zinfo: Zinfo,
    digests: Vec<Digest>,
    /// CRC32 of the uncompressed bytes of each span; none in a zTOC.
    checksums: Vec<u32>,
    compressed_size: u64,
    uncompressed_size: u64,
}

impl SpanTable {
    /// The most uncompressed bytes a span may have: 1 GiB. A buffer of that length must be found
    /// to decode it, so a zTOC with longer ones is neither read nor built.
    pub const MAX_SPAN_LEN: u64 = 1 << 30;

    /// Checks the parts against each other. `max_id` is what the zTOC states beside them.
    pub(crate) fn new(
        zinfo: Zinfo,
        digests: Vec<Digest>,
        max_id: i32,
        compressed_size: u64,
        uncompressed_size: u64,
    ) -> Result<Self, SpansError> {
        let checkpoints = zinfo.count();
        let stated = u64::try_from(i64::from(max_id) + 1);
        if checkpoints != digests.len() as u64 || stated != Ok(checkpoints) {
            let digests = digests.len();
            return Err(SpansError::Count {
                checkpoints,
                digests,
                max_id,
            });
        }
        let table = Self {
            zinfo,
            digests,
            checksums: Vec::new(),
            compressed_size,
            uncompressed_size,
        };
        table.check_size()?;
        for id in table.ids() {
            table.check(id)?;
        }
        Ok(table)
    }

    /// The same with a checksum for each span.
    pub(crate) fn with_checksums(self, checksums: Vec<u32>) -> Self {
        assert_eq!(checksums.len(), self.digests.len());
        Self { checksums, ..self }
    }

    /// Sizes, as far as they are no matter of a single span.
    fn check_size(&self) -> Result<(), SpansError> {
        let (layer, zinfo) = match &self.zinfo {
            Zinfo::Tar(zinfo) if zinfo.size != self.compressed_size => {
                (self.compressed_size, zinfo.size)
            }
            Zinfo::Tar(zinfo) if self.uncompressed_size > zinfo.size => {
                (self.uncompressed_size, zinfo.size)
            }
            _ => return Ok(()),
        };
        Err(SpansError::Size { layer, zinfo })
    }

    fn check(&self, id: SpanId) -> Result<(), SpansError> {
        let start = self.checkpoint(id);
        if id.0 == 0 && start.uncompressed.0 != 0 {
            return Err(SpansError::First(start.uncompressed.0));
        }
        let (offset, size) = (start.compressed.0, self.compressed_size);
        if offset > size {
            return Err(SpansError::OutOfRange {
                span: id,
                offset,
                size,
            });
        }
        if id.0 + 1 < self.count() {
            let next = self.checkpoint(SpanId(id.0 + 1));
            let advances = next.uncompressed > start.uncompressed || next.uncompressed.0 == 0;
            if next.first_bit() <= start.first_bit() || !advances {
                return Err(SpansError::Order(SpanId(id.0 + 1)));
            }
        }
        self.check_len(id)
    }

    /// What must be allocated for a span is bounded, absolutely and by what must be fetched.
    fn check_len(&self, span: SpanId) -> Result<(), SpansError> {
        let len = self.uncompressed(span).byte_len();
        if len > Self::MAX_SPAN_LEN {
            return Err(SpansError::TooLong { span, len });
        }
        let compressed = self.compressed(span).byte_len();
        let expansion = match self.compression() {
            Compression::Gzip => MAX_EXPANSION,
            Compression::Uncompressed => 1,
        };
        if len > compressed.saturating_mul(expansion) {
            return Err(SpansError::Expansion {
                span,
                compressed,
                len,
            });
        }
        Ok(())
    }

    /// How the layer is compressed.
    pub fn compression(&self) -> Compression {
        match self.zinfo {
            Zinfo::Gzip(_) => Compression::Gzip,
            Zinfo::Tar(_) => Compression::Uncompressed,
        }
    }

    /// Generation of the checkpoint blob; `None` for a plain tar.
    pub fn zinfo_version(&self) -> Option<ZinfoVersion> {
        match &self.zinfo {
            Zinfo::Gzip(zinfo) => Some(zinfo.version),
            Zinfo::Tar(_) => None,
        }
    }

    /// The size that was asked for when the spans were made, as far as it is a size.
    pub fn span_size(&self) -> Option<SpanSize> {
        SpanSize::new(match &self.zinfo {
            Zinfo::Gzip(zinfo) => u64::try_from(zinfo.span_size).ok()?,
            Zinfo::Tar(zinfo) => zinfo.span_size,
        })
    }

    /// The number of spans; 0 only for a layer without any bytes.
    pub fn count(&self) -> u32 {
        u32::try_from(self.digests.len()).expect("checked against an i32")
    }

    /// All spans in order.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = SpanId> + use<> {
        (0..self.count()).map(SpanId)
    }

    /// The number of the last span; -1 if there is none.
    pub(crate) fn max_id(&self) -> i32 {
        i32::try_from(self.digests.len()).expect("checked against an i32") - 1
    }

    /// Size of the layer blob in bytes.
    pub fn compressed_size(&self) -> u64 {
        self.compressed_size
    }

    /// End of the last span: the position where tar parsing stopped.
    pub fn uncompressed_size(&self) -> u64 {
        self.uncompressed_size
    }

    /// Where a span begins. Panics if `span` is not below [`Self::count`].
    pub fn checkpoint(&self, span: SpanId) -> Checkpoint {
        match &self.zinfo {
            Zinfo::Gzip(zinfo) => zinfo.checkpoints[span.0 as usize],
            Zinfo::Tar(zinfo) => {
                assert!(span.0 < self.count(), "no span {span}");
                let start = zinfo.start(u64::from(span.0));
                Checkpoint {
                    compressed: CompressedOffset(start),
                    uncompressed: UncompressedOffset(start),
                    bits: 0,
                }
            }
        }
    }

    /// Writes the [`WINDOW_LEN`] uncompressed bytes in front of a span, as far as they exist, behind
    /// zeros. All zeros for a plain tar. Panics if `into` has another length, or if `span` is not
    /// below [`Self::count`].
    ///
    /// # Errors
    ///
    /// Only of windows that were left in their zTOC ([`crate::Ztoc::decode_lean`]).
    pub fn write_window(&self, span: SpanId, into: &mut [u8]) -> Result<(), WindowError> {
        assert_eq!(into.len(), WINDOW_LEN);
        assert!(span.0 < self.count(), "no span {span}");
        match &self.zinfo {
            Zinfo::Gzip(zinfo) => zinfo.write_window(span.0 as usize, into),
            Zinfo::Tar(_) => {
                into.fill(0);
                Ok(())
            }
        }
    }

    /// Bytes of memory that the table takes, as far as they depend on the number of spans.
    pub fn memory(&self) -> usize {
        let checkpoints = match &self.zinfo {
            Zinfo::Gzip(zinfo) => zinfo.memory(),
            Zinfo::Tar(_) => 0,
        };
        checkpoints
            + self.digests.capacity() * size_of::<Digest>()
            + self.checksums.capacity() * size_of::<u32>()
    }

    /// The compressed bytes of a span. Neighbours overlap by one byte where a checkpoint
    /// lies inside a byte. Panics if `span` is not below [`Self::count`].
    pub fn compressed(&self, span: SpanId) -> Range<CompressedOffset> {
        let start = self.checkpoint(span).first_byte();
        let end = self
            .next(span)
            .map_or(CompressedOffset(self.compressed_size), |next| {
                next.compressed
            });
        start..end
    }

    /// The uncompressed bytes of a span, none behind [`Self::uncompressed_size`]. Panics if `span`
    /// is not below [`Self::count`].
    pub fn uncompressed(&self, span: SpanId) -> Range<UncompressedOffset> {
        let size = UncompressedOffset(self.uncompressed_size);
        let start = self.checkpoint(span).uncompressed;
        let end = self.next(span).map_or(size, |next| next.uncompressed);
        start.min(size)..end.min(size)
    }

    fn next(&self, span: SpanId) -> Option<Checkpoint> {
        let next = SpanId(span.0 + 1);
        (next.0 < self.count()).then(|| self.checkpoint(next))
    }

    /// The sha256 of the compressed bytes of a span. Panics if `span` is not below
    /// [`Self::count`].
    pub fn digest(&self, span: SpanId) -> Digest {
        self.digests[span.0 as usize]
    }

    /// The CRC32 of the uncompressed bytes of a span: only a compact zTOC has it. A span that was
    /// decoded to its end has been found to have it.
    pub fn checksum(&self, span: SpanId) -> Option<u32> {
        self.checksums.get(span.0 as usize).copied()
    }

    /// Where in its compact zTOC the window of a span is, in a group with others; `None` if it
    /// is somewhere else, or nothing is before the span. Panics if `span` is not below [`Self::count`].
    pub fn window_group(&self, span: SpanId) -> Option<Range<u64>> {
        assert!(span.0 < self.count(), "no span {span}");
        let groups = self.groups().filter(|_| span.0 > 0)?;
        Some(groups.range(span.0 as usize))
    }

    /// Whether `bytes` are those that belong at [`Self::window_group`] of `span`.
    pub fn is_window_group(&self, span: SpanId, bytes: &[u8]) -> bool {
        span.0 < self.count()
            && self
                .groups()
                .is_some_and(|groups| groups.is_group_of(span.0 as usize, bytes))
    }

    fn groups(&self) -> Option<&GroupedWindows> {
        match &self.zinfo {
            Zinfo::Gzip(zinfo) => zinfo.groups(),
            Zinfo::Tar(_) => None,
        }
    }

    pub(crate) fn digests(&self) -> &[Digest] {
        &self.digests
    }

    pub(crate) fn zinfo(&self) -> &Zinfo {
        &self.zinfo
    }

    /// The spans that hold `range`, half-open, clipped to the layer; empty for an empty range.
    pub fn covering(&self, range: Range<UncompressedOffset>) -> Range<SpanId> {
        let end = range.end.0.min(self.uncompressed_size);
        if range.start.0 >= end {
            return SpanId(0)..SpanId(0);
        }
        let first = self.first_from(range.start.0 + 1) - 1;
        SpanId(first)..SpanId(self.first_from(end))
    }

    /// The first span that begins at or behind `offset`.
    fn first_from(&self, offset: u64) -> u32 {
        match &self.zinfo {
            Zinfo::Gzip(zinfo) => {
                let before = |point: &Checkpoint| point.uncompressed.0 < offset;
                let index = zinfo.checkpoints.partition_point(before);
                u32::try_from(index).expect("no more than there are spans")
            }
            Zinfo::Tar(zinfo) => {
                let (index, count) = (offset.div_ceil(zinfo.span_size), self.count());
                u32::try_from(index).unwrap_or(count).min(count)
            }
        }
    }
}

/// Bytes that claim to be a span's compressed range: borrowed, or held by whoever decodes them
/// later ([`VerifiedSpan::decoder`]).
#[derive(Debug)]
pub struct CompressedSpan<B> {
    id: SpanId,
    bytes: B,
}

/// A span whose compressed bytes match length and digest in its table. Only
/// [`CompressedSpan::verify`] makes one.
#[derive(Debug)]
pub struct VerifiedSpan<'t, B = &'t [u8]> {
    table: &'t SpanTable,
    id: SpanId,
    bytes: B,
}

impl<B: AsRef<[u8]>> CompressedSpan<B> {
    /// Names `bytes` as span `id`.
    pub fn new(id: SpanId, bytes: B) -> Self {
        Self { id, bytes }
    }

    /// Checks length and sha256 against `table`.
    ///
    /// # Errors
    ///
    /// The bytes are not this span's, or there is no such span.
    pub fn verify(self, table: &SpanTable) -> Result<VerifiedSpan<'_, B>, VerifyError> {
        let Self { id: span, bytes } = self;
        if span.0 >= table.count() {
            return Err(VerifyError::NoSuchSpan {
                span,
                count: table.count(),
            });
        }
        let plain = bytes.as_ref();
        let (expected, actual) = (table.compressed(span).byte_len(), plain.len() as u64);
        if expected != actual {
            return Err(VerifyError::Length {
                span,
                expected,
                actual,
            });
        }
        let (expected, actual) = (table.digest(span), Digest::of(plain));
        if expected != actual {
            return Err(VerifyError::Digest {
                span,
                expected,
                actual,
            });
        }
        Ok(VerifiedSpan {
            table,
            id: span,
            bytes,
        })
    }
}

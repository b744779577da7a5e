//! The compact zTOC: what a zTOC tells, on a tenth of the bytes. `docs/compact-ztoc.md` specifies it.
//!
//! A blob is a head and a body. The head holds all that a mount needs: table of contents, places, digests and
//! checksums of the spans. The body holds the windows of the checkpoints, in groups, each with its digest in the
//! head: a group is needed only when one of its spans is decoded, and may be fetched then.
//!
//! ```
//! use std::sync::Arc;
//! use ztoc::builder::{self, BuildOptions};
//! use ztoc::compact::{self, InMemory};
//! use ztoc::{Compression, Digest, SpanSize};
//!
//! let layer = vec![0; 1024];
//! let options = BuildOptions { span_size: SpanSize::DEFAULT, build_tool: String::new() };
//! let built = builder::build_both(Compression::Uncompressed, &layer[..], &options, compact::SPAN_SIZE)?;
//! let blob = built.encode_compact().expect("it was asked for")?;
//! let decoded = compact::decode(&blob, Arc::new(InMemory::new(blob.clone())))?;
//! assert_eq!(decoded.layer, Digest::of(&layer));
//! assert_eq!(decoded.toc, *built.ztoc.toc());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod column;
mod entries;
mod head;
mod spans;
mod window;

use std::io;
use std::sync::Arc;

pub use self::entries::ColumnToc;
use self::head::{Header, Sections};
pub(crate) use self::spans::CompactSpan;
pub(crate) use self::window::{GroupedWindows, SparseWindow, Used};
use crate::checkpoint::ZtocBytes;
use crate::digest::Digest;
use crate::error::{DecodeError, SpansError};
use crate::span::SpanTable;
use crate::toc::Toc;
use crate::unit::SpanSize;
use crate::ztoc::Compression;

/// The span size that compact zTOCs are built with unless told otherwise: 1 MiB. Starting programs need 1.1 to 1.8
/// times fewer bytes than with 4 MiB.
pub const SPAN_SIZE: SpanSize = SpanSize::constant(1 << 20);

/// The smallest span size: 16 KiB; smaller ones are taken as this.
pub const MIN_SPAN_SIZE: SpanSize = SpanSize::constant(16 << 10);

/// Media type of a compact zTOC.
pub const MEDIA_TYPE: &str = "application/vnd.spanshot.ztoc.v1";

/// Bytes of a blob from which [`head_len`] tells how long its head is.
pub const HEADER_LEN: usize = head::HEADER_LEN;

/// The longest head, in bytes: 256 MiB.
pub const MAX_HEAD_LEN: usize = head::MAX_HEAD_LEN;

/// Most entries of a table of contents: 4 Mi.
pub const MAX_ENTRIES: usize = 1 << 22;

/// Most bytes of all names, links and PAX records, unpacked: 256 MiB.
pub const MAX_TEXT_LEN: usize = 256 << 20;

/// Bytes that are no compact zTOC, or a layer for which there is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompactError {
    /// Something else.
    #[error("it does not begin like a compact zTOC")]
    Magic,
    /// Of a version that this program does not know.
    #[error("version {0} is not known")]
    Version(u16),
    /// Of a compression that this program does not know.
    #[error("compression {0} is not known")]
    Compression(u8),
    /// Fewer bytes than the header promises.
    #[error("it ends after {actual} of {expected} bytes")]
    CutOff {
        /// Bytes there should be.
        expected: u64,
        /// Bytes there are.
        actual: u64,
    },
    /// A field of the header that cannot be.
    #[error("header: {0} is wrong")]
    Header(&'static str),
    /// A section that is not what the header says.
    #[error("section {0:?} is malformed")]
    Section(&'static str),
    /// Values of a column that cannot be.
    #[error("column {0:?} is malformed")]
    Column(&'static str),
    /// More than is supported; a zTOC must do.
    #[error("more entries or longer texts than a compact zTOC may have")]
    TooLarge,
    /// Spans, digests and sizes contradict each other.
    #[error("spans: {0}")]
    Spans(#[from] SpansError),
    /// Entries that contradict each other or the layer.
    #[error(transparent)]
    Entries(#[from] Box<DecodeError>),
}

/// What a compact zTOC tells; its table of contents in memory, or as a [`ColumnToc`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compact<T = Toc> {
    /// The layer it is for: the digest of its blob.
    pub layer: Digest,
    /// The table of contents.
    pub toc: T,
    /// The spans, with a checksum each; their windows stay in the blob.
    pub spans: SpanTable,
    /// Bytes of the head.
    pub head_len: usize,
    /// Bytes of the whole blob.
    pub blob_len: u64,
}

/// Whether `bytes` begin like a compact zTOC.
pub fn is_compact(bytes: &[u8]) -> bool {
    bytes.len() >= HEADER_LEN && !matches!(Header::read(bytes), Err(CompactError::Magic))
}

/// The length of the head of a blob that begins with `bytes`; `None` if these are less than
/// [`HEADER_LEN`].
///
/// # Errors
///
/// They are no beginning of a compact zTOC.
pub fn head_len(bytes: &[u8]) -> Result<Option<usize>, CompactError> {
    Ok(Header::read(bytes)?.map(|header| header.head_len as usize))
}

/// Decodes and checks a blob by its head, with which `bytes` begin; what follows is not looked at. The windows are
/// read from `blob` when a span is decoded, and are checked then.
///
/// # Errors
///
/// Which part is malformed, contradicts another, or exceeds a limit.
pub fn decode(bytes: &[u8], blob: Arc<dyn ZtocBytes>) -> Result<Compact, CompactError> {
    let lean = decode_lean(bytes, blob)?;
    Ok(Compact {
        layer: lean.layer,
        toc: lean.toc.to_toc()?,
        spans: lean.spans,
        head_len: lean.head_len,
        blob_len: lean.blob_len,
    })
}

/// The same, but for the entries, which are checked when they are looked at.
///
/// # Errors
///
/// As [`decode`], but for what is wrong with entries.
pub fn decode_lean(
    bytes: &[u8],
    blob: Arc<dyn ZtocBytes>,
) -> Result<Compact<ColumnToc>, CompactError> {
    let cut_off = |expected: usize| CompactError::CutOff {
        expected: expected as u64,
        actual: bytes.len() as u64,
    };
    let header = Header::read(bytes)?.ok_or_else(|| cut_off(HEADER_LEN))?;
    let head_len = header.head_len as usize;
    let head = bytes.get(..head_len).ok_or_else(|| cut_off(head_len))?;
    let sections = Sections::unpack(head)?;
    let spans = spans::decode(&header, &sections.spans, blob)?;
    let count = header.entries as usize;
    Ok(Compact {
        layer: header.layer,
        toc: ColumnToc::new(sections.entries, count, header.uncompressed_size)?,
        spans,
        head_len,
        blob_len: header.blob_len,
    })
}

/// What is encoded: a table of contents, and the spans of one build.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) layer: Digest,
    pub(crate) toc: &'a Toc,
    pub(crate) spans: &'a [CompactSpan],
    pub(crate) span_size: SpanSize,
    pub(crate) compression: Compression,
    pub(crate) compressed_size: u64,
    pub(crate) uncompressed_size: u64,
}

/// The bytes of a compact zTOC: the same for the same parts and the same version of this crate.
pub(crate) fn encode(parts: &Parts<'_>) -> Result<Vec<u8>, CompactError> {
    let count = |len: usize| u32::try_from(len).map_err(|_| CompactError::TooLarge);
    let header = Header {
        compression: parts.compression,
        head_len: 0,
        blob_len: 0,
        compressed_size: parts.compressed_size,
        uncompressed_size: parts.uncompressed_size,
        span_size: parts.span_size.bytes(),
        spans: count(parts.spans.len())?,
        entries: count(parts.toc.entries().len())?,
        layer: parts.layer,
    };
    let (spans, body) = spans::encode(parts.compression, parts.spans);
    let sections = Sections {
        spans,
        entries: entries::encode(parts.toc)?,
    };
    let mut blob = sections.pack(header, body.len() as u64)?;
    blob.extend_from_slice(&body);
    Ok(blob)
}

/// The bytes of a compact zTOC in memory.
#[derive(Debug)]
pub struct InMemory(Vec<u8>);

impl InMemory {
    /// Holds `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl ZtocBytes for InMemory {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let held = at
            .checked_add(into.len())
            .and_then(|end| self.0.get(at..end));
        into.copy_from_slice(held.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

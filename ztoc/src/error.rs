//! What can be wrong, by structure.

use crate::digest::{Digest, ParseDigestError};
pub use crate::gzip::GzipError;
use crate::unit::SpanId;
pub use crate::wire::WireError;

/// Compressed bytes that are not the span they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The layer has no such span.
    #[error("span {span} does not exist: the layer has {count} spans")]
    NoSuchSpan {
        /// The span.
        span: SpanId,
        /// Number of spans of the layer.
        count: u32,
    },
    /// Wrong number of bytes.
    #[error("span {span}: {actual} bytes where {expected} belong")]
    Length {
        /// The span.
        span: SpanId,
        /// Bytes that its range has.
        expected: u64,
        /// Bytes given.
        actual: u64,
    },
    /// Wrong content.
    #[error("span {span}: digest is {actual} instead of {expected}")]
    Digest {
        /// The span.
        span: SpanId,
        /// Digest in the zTOC.
        expected: Digest,
        /// Digest of the bytes.
        actual: Digest,
    },
}

/// A buffer that is no zTOC, or one whose parts contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Not a FlatBuffer of the zTOC's shape.
    #[error("cannot unmarshal zTOC: {0}")]
    Wire(#[from] WireError),
    /// A part without which a zTOC means nothing is not there.
    #[error("the zTOC has no {0}")]
    Missing(&'static str),
    /// A zTOC larger than [`crate::Ztoc::MAX_ENCODED_LEN`].
    #[error("the zTOC has {0} bytes: more than is supported")]
    TooLarge(usize),
    /// A number that counts bytes is negative or too large.
    #[error("the zTOC's {field} is {value}")]
    Number {
        /// Which number.
        field: &'static str,
        /// What it is.
        value: i64,
    },
    /// A compression algorithm this program does not know.
    #[error("the zTOC's compression algorithm {0} is not known")]
    Algorithm(i8),
    /// A span digest that is no sha256 digest.
    #[error("digest of span {span}: {source}")]
    SpanDigest {
        /// The span.
        span: usize,
        /// What is wrong with the text.
        source: ParseDigestError,
    },
    /// The checkpoint blob is malformed.
    #[error("checkpoints: {0}")]
    Zinfo(#[from] ZinfoError),
    /// Spans, digests and sizes contradict each other.
    #[error("spans: {0}")]
    Spans(#[from] SpansError),
    /// The entries of the table of contents are to be read in the order of the tar and have another.
    #[error("the entries of the table of contents are not in the order of the tar")]
    Disorder,
    /// An entry of the table of contents is malformed or contradicts its neighbours.
    #[error("entry {index} ({name:?}) of the table of contents: {source}")]
    Entry {
        /// Its number in the order of offsets.
        index: usize,
        /// Its name, as far as it can be shown.
        name: String,
        /// What is wrong.
        source: EntryError,
    },
}

/// An entry of a table of contents that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// A type that tar entries do not have.
    #[error("the file type {0:?} is not known")]
    Kind(String),
    /// A negative offset or size.
    #[error("its {field} is {value}")]
    Number {
        /// Which number.
        field: &'static str,
        /// What it is.
        value: i64,
    },
    /// It begins before the previous entry ends.
    #[error("its data begins at {offset}, before its header at {header}")]
    Overlap {
        /// Where its data begins.
        offset: u64,
        /// Where its header must lie.
        header: u64,
    },
    /// It ends behind the layer.
    #[error("its data ends at {end}, behind the end of the layer at {size}")]
    OutOfRange {
        /// Where its data ends.
        end: u64,
        /// Where the layer ends.
        size: u64,
    },
    /// Its sparse map is malformed.
    #[error(transparent)]
    Sparse(#[from] SparseError),
}

/// A malformed map of a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("sparse map: {0}")]
pub struct SparseError(pub(crate) &'static str);

/// A malformed checkpoint blob (zinfo).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ZinfoError {
    /// The blob's length fits no format version.
    #[error("{len} bytes cannot hold {have} checkpoints")]
    Length {
        /// The blob's length.
        len: usize,
        /// The number of checkpoints it states.
        have: i32,
    },
    /// Shorter than its own header.
    #[error("{0} bytes are too few for a header")]
    Header(usize),
    /// A checkpoint with a negative offset or more than 7 bits.
    #[error("checkpoint {index}: {field} is {value}")]
    Checkpoint {
        /// Which checkpoint.
        index: usize,
        /// Which of its numbers.
        field: &'static str,
        /// What it is.
        value: i64,
    },
    /// The FlatBuffer of an uncompressed layer's span size is malformed.
    #[error("cannot unmarshal: {0}")]
    Wire(#[from] WireError),
    /// Span size or file size of an uncompressed layer is impossible.
    #[error("{field} is {value}")]
    Number {
        /// Which number.
        field: &'static str,
        /// What it is.
        value: i64,
    },
}

/// Spans that contradict each other or their layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpansError {
    /// Checkpoints, digests and the stated number of spans differ.
    #[error("{checkpoints} checkpoints, {digests} digests and a largest span number of {max_id}")]
    Count {
        /// Number of checkpoints.
        checkpoints: u64,
        /// Number of digests.
        digests: usize,
        /// The largest span number stated.
        max_id: i32,
    },
    /// The first span does not begin with the layer.
    #[error("the first span begins at uncompressed offset {0}")]
    First(u64),
    /// A span does not lie behind the one before.
    #[error("span {0} does not lie behind the span before it")]
    Order(SpanId),
    /// A span begins behind the end of the layer blob.
    #[error("span {span} begins at {offset}, behind the end of the layer at {size}")]
    OutOfRange {
        /// The span.
        span: SpanId,
        /// Where it begins in the blob.
        offset: u64,
        /// Size of the blob.
        size: u64,
    },
    /// More uncompressed bytes than [`crate::SpanTable::MAX_SPAN_LEN`].
    #[error("span {span} has {len} uncompressed bytes: more than is supported")]
    TooLong {
        /// The span.
        span: SpanId,
        /// Its uncompressed length.
        len: u64,
    },
    /// More uncompressed bytes than deflate can make of the compressed ones.
    #[error("span {span}: {compressed} bytes cannot expand to {len}")]
    Expansion {
        /// The span.
        span: SpanId,
        /// Its compressed length.
        compressed: u64,
        /// Its uncompressed length.
        len: u64,
    },
    /// The layer's size differs from the size in the checkpoint blob.
    #[error("the layer has {layer} bytes, the checkpoints are for {zinfo}")]
    Size {
        /// Size of the layer.
        layer: u64,
        /// Size in the checkpoint blob.
        zinfo: u64,
    },
}

/// Compressed bytes that are not the DEFLATE stream they should be (RFC 1951).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InflateError {
    /// A block of the reserved kind 3.
    #[error("deflate block header: reserved block type 3")]
    BlockType,
    /// A stored block whose length is not confirmed.
    #[error("deflate stored block: length {length:#06x} with complement {complement:#06x}")]
    StoredLength {
        /// The length field.
        length: u16,
        /// The field that should be its complement.
        complement: u16,
    },
    /// A header that announces codes which do not exist.
    #[error("deflate block header: {litlen} literal/length and {distance} distance codes")]
    CodeCounts {
        /// Literal/length codes, 286 at most.
        litlen: usize,
        /// Distance codes, 30 at most.
        distance: usize,
    },
    /// A code length code that is over-subscribed or incomplete.
    #[error("deflate block header: the code length code is over-subscribed or incomplete")]
    CodeLengthCode,
    /// A repeated code length without a first one, or with more repeats than codes.
    #[error("deflate block header: a repeat of code lengths outside of the codes")]
    CodeLengthRepeat,
    /// A block that could not end.
    #[error("deflate block header: no end-of-block code")]
    NoEndOfBlock,
    /// A literal/length code that is over-subscribed or incomplete.
    #[error("deflate block header: the literal/length code is over-subscribed or incomplete")]
    LitlenCode,
    /// A distance code that is over-subscribed or incomplete.
    #[error("deflate block header: the distance code is over-subscribed or incomplete")]
    DistanceCode,
    /// A literal/length code without meaning.
    #[error("deflate block: invalid literal/length code")]
    LitlenSymbol,
    /// A distance code without meaning.
    #[error("deflate block: invalid distance code")]
    DistanceSymbol,
    /// A match that refers to what was before the window.
    #[error("deflate block: distance {distance} with {available} bytes of window")]
    TooFarBack {
        /// How far back the match is.
        distance: u16,
        /// Bytes before it.
        available: usize,
    },
    /// The compressed bytes of a span end before its uncompressed ones are complete.
    #[error("the compressed bytes end after {decoded} of {expected} uncompressed bytes")]
    EndsEarly {
        /// Bytes decoded.
        decoded: u64,
        /// Bytes that belong to the span.
        expected: u64,
    },
    /// What follows the end of a gzip member is no gzip member.
    #[error("behind the end of a gzip member: {0}")]
    Member(#[from] GzipError),
    /// The plain bytes of a span are not those its checksum is of: its window is wrong, or this decoder.
    #[error("the uncompressed bytes have checksum {actual:#010x} instead of {expected:#010x}")]
    Checksum {
        /// CRC32 in the compact zTOC.
        expected: u32,
        /// CRC32 of the bytes.
        actual: u32,
    },
    /// The decoder cannot be restored.
    #[error("the window of the checkpoint: {0}")]
    Window(#[from] WindowError),
}

/// A window that was left in its zTOC and cannot be had from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WindowError {
    /// It cannot be read.
    #[error("cannot read it from the zTOC: {0}")]
    Read(std::io::ErrorKind),
    /// It is not what it was when the zTOC was decoded.
    #[error("the zTOC has changed at byte {offset}")]
    Changed {
        /// Where in the zTOC the window is.
        offset: u64,
    },
    /// It is what it was, and that is no group of windows.
    #[error("the windows at byte {offset} of the compact zTOC are malformed")]
    Malformed {
        /// Where in the zTOC they are.
        offset: u64,
    },
}

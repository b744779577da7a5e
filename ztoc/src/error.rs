//! What can be wrong, by structure.

use crate::digest::Digest;
use crate::unit::SpanId;

/// Compressed bytes that are not the span they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
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
}

/// A buffer that is no zTOC.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Filled in with the decoder.
    #[error("cannot unmarshal zTOC")]
    Malformed,
}

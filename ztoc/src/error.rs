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

/// Verified bytes that do not decode to what the zTOC says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InflateError {
    /// Placeholder variants are filled in by the inflater.
    #[error("the deflate stream is corrupt")]
    Corrupt,
}

/// A buffer that is no zTOC.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Filled in with the decoder.
    #[error("cannot unmarshal zTOC")]
    Malformed,
}

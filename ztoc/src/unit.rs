//! Offsets, span numbers and sizes as types, so that compressed and uncompressed
//! positions cannot be mixed up. Ranges are half-open everywhere.

use std::fmt;
use std::num::NonZeroU64;
use std::ops::Range;

/// A position in the layer blob as the registry holds it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CompressedOffset(pub u64);

/// A position in the layer's uncompressed tar stream, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UncompressedOffset(pub u64);

/// The number of a span within its layer, counted from zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SpanId(pub u32);

impl fmt::Display for CompressedOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for UncompressedOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of bytes in a range of offsets; 0 for an inverted range.
pub trait ByteLen {
    /// Length in bytes.
    fn byte_len(&self) -> u64;
}

impl ByteLen for Range<CompressedOffset> {
    fn byte_len(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }
}

impl ByteLen for Range<UncompressedOffset> {
    fn byte_len(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }
}

/// The wanted size of a span: a checkpoint is taken at the first block boundary that
/// lies more than this many uncompressed bytes behind the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanSize(NonZeroU64);

impl SpanSize {
    /// 4 MiB, the size the original builds with unless told otherwise.
    pub const DEFAULT: Self = Self(NonZeroU64::new(4 << 20).expect("not zero"));

    /// A span size in bytes; `None` for zero or more than `i64::MAX` (the field on the wire).
    pub fn new(bytes: u64) -> Option<Self> {
        if i64::try_from(bytes).is_err() {
            return None;
        }
        NonZeroU64::new(bytes).map(Self)
    }

    /// A size known when compiling; panics if it is zero.
    pub(crate) const fn constant(bytes: u64) -> Self {
        Self(NonZeroU64::new(bytes).expect("not zero"))
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0.get()
    }
}

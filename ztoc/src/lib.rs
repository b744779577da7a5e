//! SOCI formats and the decoder under them: bytes in, values out.
//!
//! This crate opens no file and no socket; only a build starts threads, which end with it. It knows
//!
//! * [`Ztoc`]: a layer's table of contents ([`toc`]) and its spans with their
//!   checkpoints ([`span`], [`checkpoint`]), decoded from and encoded to zTOC 0.9;
//! * [`compact`]: the same on fewer bytes, for smaller spans;
//! * [`builder`]: one pass over a layer that makes a zTOC, or both;
//! * [`gunzip`]: a whole gzip stream, piece by piece;
//! * [`inflate`]: raw DEFLATE from any bit with a 32 KiB window in front of the output;
//! * [`index`]: SOCI index v1 and v2, OCI manifests and indexes as canonical JSON.
//!
//! A value that exists is consistent: decoding checks offsets, order and sizes, and
//! only a [`span::VerifiedSpan`] can be inflated.

pub mod builder;
pub mod checkpoint;
pub mod compact;
pub mod digest;
pub mod error;
pub mod gunzip;
mod gzip;
pub mod index;
pub mod inflate;
pub mod span;
pub mod tar;
pub mod toc;
pub mod unit;
mod wire;
mod ztoc;

pub use crate::digest::Digest;
pub use crate::span::{CompressedSpan, SpanBuffer, SpanDecoder, SpanTable, VerifiedSpan};
pub use crate::toc::{Entry, EntryKind, Toc};
pub use crate::unit::{CompressedOffset, SpanId, SpanSize, UncompressedOffset};
pub use crate::ztoc::{Compression, LeanToc, Ztoc};

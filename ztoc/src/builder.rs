//! Builds a zTOC in one pass over a layer blob.

use std::io::Read;

use crate::digest::Digest;
use crate::unit::SpanSize;
use crate::ztoc::{Compression, Ztoc};

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Wanted size of a span.
    pub span_size: SpanSize,
    /// Goes into the zTOC; the original writes `AWS SOCI CLI v0.2`.
    pub build_tool: String,
}

/// What one pass over a layer found.
#[derive(Debug)]
pub struct Built {
    /// The zTOC.
    pub ztoc: Ztoc,
    /// sha256 of the blob as read.
    pub layer_digest: Digest,
    /// sha256 of the uncompressed tar, including padding behind the end of the archive.
    pub diff_id: Digest,
}

/// Why no zTOC could be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Reading the layer failed.
    #[error("cannot read the layer")]
    Read(#[from] std::io::Error),
}

/// Reads the whole layer from `layer`. Memory is bounded by a few spans.
pub fn build(
    compression: Compression,
    layer: impl Read,
    options: &BuildOptions,
) -> Result<Built, BuildError> {
    todo!()
}

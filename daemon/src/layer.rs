//! Layers and their spans on this node: `<root>/layers/<sha256 hex>/{ztoc,data,map}`.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use ztoc::CompressedOffset;

/// Where a layer's compressed bytes come from.
#[async_trait]
pub trait BlobSource: Send + Sync + 'static {
    /// Exactly the bytes of `range`, or an error; retries within its own budget have been made.
    /// Cancelled by dropping the future. The bytes are not verified.
    async fn fetch(&self, range: Range<CompressedOffset>) -> Result<Bytes, FetchError>;
}

/// Why bytes of a blob could not be fetched; says host, repository and digest, never a query string.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{detail}")]
pub struct FetchError {
    /// The whole story in one line.
    pub detail: String,
}

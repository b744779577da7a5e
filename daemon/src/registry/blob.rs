//! Ranges of a blob.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use ztoc::CompressedOffset;

use crate::layer::{BlobSource, FetchError};

/// A blob in a registry, read by ranges.
#[derive(Debug)]
pub struct Blob {}

#[async_trait]
impl BlobSource for Blob {
    async fn fetch(&self, _range: Range<CompressedOffset>) -> Result<Bytes, FetchError> {
        todo!()
    }
}

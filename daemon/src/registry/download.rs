//! Whole blobs as streams.

use bytes::Bytes;
use futures::Stream;

use super::RegistryError;

/// A whole blob on its way. Ends with an error when the bytes do not hash to its digest; whoever
/// uses them before the end must be able to undo that.
#[derive(Debug)]
pub struct Download {}

impl Download {
    /// The next bytes; `None` after the last, when length and digest are right.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        todo!()
    }

    /// The same as a stream, for `tokio_util::io::StreamReader`.
    pub fn into_stream(self) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
        futures::stream::try_unfold(self, |mut download| async move {
            let chunk = download.chunk().await.map_err(std::io::Error::other)?;
            Ok(chunk.map(|bytes| (bytes, download)))
        })
    }
}

//! Where the content of images is read from.

use std::io::{self, Read};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::{Buf, Bytes};
use daemon::containerd::Containerd;
use daemon::content::{ContainerdStore, ContentStore};
use daemon::layout::Layout;
use daemon::registry::{Reference, Registry};
use futures::StreamExt;
use tokio::sync::mpsc;
use ztoc::Digest;
use ztoc::index::{Descriptor, MAX_DOCUMENT_SIZE};

/// Parts of a blob on their way from the runtime to a blocking reader.
const PARTS_IN_FLIGHT: usize = 8;

/// Content of images: containerd's, or an OCI layout.
#[derive(Debug, Clone)]
pub(crate) enum Blobs {
    Containerd(Containerd),
    Layout(Arc<Layout>),
    Registry(Registry, Reference),
}

impl Blobs {
    /// A manifest, index or config; `None` if it is not there.
    pub(crate) async fn find_document(&self, digest: &Digest) -> Result<Option<Bytes>> {
        let limit = MAX_DOCUMENT_SIZE as u64;
        match self {
            Self::Containerd(containerd) => {
                let store = ContainerdStore::new(containerd.clone());
                Ok(store.get(digest, limit).await?)
            }
            Self::Layout(layout) => {
                let (layout, digest) = (Arc::clone(layout), *digest);
                let read = move || layout.read_blob(&digest, limit);
                let bytes = tokio::task::spawn_blocking(read).await??;
                Ok(bytes.map(Bytes::from))
            }
            Self::Registry(registry, reference) => {
                // A config is a blob, everything else a manifest.
                if let Ok(found) = registry.manifest(reference, digest).await {
                    return Ok(Some(found.bytes));
                }
                Ok(Some(registry.fetch(reference, digest, limit).await?))
            }
        }
    }

    /// A manifest, index or config that has to be there.
    pub(crate) async fn document(&self, what: &str, descriptor: &Descriptor) -> Result<Bytes> {
        let digest = descriptor.digest;
        let Some(bytes) = self.find_document(&digest).await? else {
            bail!("{what} {digest}: not found; was the image pulled for this platform?");
        };
        Ok(bytes)
    }

    /// A blocking reader of a blob from `offset` on, unverified.
    pub(crate) async fn reader(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<Box<dyn Read + Send>> {
        let missing =
            || format!("layer {digest}: not found; was the image pulled with all its layers?");
        match self {
            Self::Containerd(containerd) => {
                let parts = containerd.content_read(digest, offset).await;
                // Reading starts late: that the content is missing shows in the first part.
                let mut parts = Box::pin(parts?.peekable());
                if let Some(Err(error)) = parts.as_mut().peek().await
                    && error.is_not_found()
                {
                    bail!(missing());
                }
                let parts = parts.map(|part| part.map_err(io::Error::other));
                Ok(Box::new(PartReader::start(parts)))
            }
            Self::Layout(layout) => {
                let mut blob = layout.open_blob(digest)?.with_context(missing)?;
                io::copy(&mut Read::by_ref(&mut blob).take(offset), &mut io::sink())?;
                Ok(Box::new(blob))
            }
            Self::Registry(registry, reference) => {
                let parts = registry.download(reference, digest).into_stream();
                let parts = parts.map(|part| part.map_err(io::Error::other));
                let mut blob = PartReader::start(parts);
                let skipped = tokio::task::spawn_blocking(move || {
                    io::copy(&mut Read::by_ref(&mut blob).take(offset), &mut io::sink())?;
                    io::Result::Ok(blob)
                });
                Ok(Box::new(skipped.await??))
            }
        }
    }
}

/// A stream read by blocking code. Must not be read on the runtime's own threads.
struct PartReader {
    parts: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl PartReader {
    /// Forwards `parts` until they or the reader end.
    fn start(parts: impl futures::Stream<Item = io::Result<Bytes>> + Send + 'static) -> Self {
        let (sender, receiver) = mpsc::channel(PARTS_IN_FLIGHT);
        tokio::spawn(async move {
            let mut parts = std::pin::pin!(parts);
            while let Some(part) = parts.next().await {
                if sender.send(part).await.is_err() {
                    break;
                }
            }
        });
        Self {
            parts: receiver,
            current: Bytes::new(),
        }
    }
}

impl Read for PartReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.parts.blocking_recv() {
                Some(part) => self.current = part?,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

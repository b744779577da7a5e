//! containerd's content store, with its labels and leases.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use tokio_util::io::StreamReader;
use ztoc::Digest;

use super::{Content, ContentReader, ContentStore, Labels, StoreError, StoreErrorKind};
use crate::containerd::{Containerd, ContainerdError, ContentInfo};
use crate::registry::Descriptor;

/// containerd's content store. What is written belongs to the client's lease, if it has one.
#[derive(Debug, Clone)]
pub struct ContainerdStore {
    containerd: Containerd,
}

impl ContainerdStore {
    /// The store behind this client.
    pub fn new(containerd: Containerd) -> Self {
        Self { containerd }
    }

    fn error(&self, subject: &impl ToString, kind: StoreErrorKind) -> StoreError {
        StoreError {
            store: self.containerd.address().display().to_string(),
            digest: subject.to_string(),
            kind,
        }
    }

    fn failed(&self, digest: &Digest) -> impl Fn(ContainerdError) -> StoreError {
        move |error| {
            let detail = error.to_string();
            self.error(digest, StoreErrorKind::Service { detail })
        }
    }
}

#[async_trait]
impl ContentStore for ContainerdStore {
    async fn get(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, StoreError> {
        let Some(ContentInfo { size, .. }) = self
            .containerd
            .content_info(digest)
            .await
            .map_err(self.failed(digest))?
        else {
            return Ok(None);
        };
        if size > limit {
            return Err(self.error(digest, StoreErrorKind::TooLarge { size, limit }));
        }
        let parts = self.containerd.content_read(digest, 0).await;
        let bytes: BytesMut = parts
            .map_err(self.failed(digest))?
            .try_fold(BytesMut::new(), |mut bytes, part| async move {
                bytes.extend_from_slice(&part);
                Ok(bytes)
            })
            .await
            .map_err(self.failed(digest))?;
        let bytes = bytes.freeze();
        if Digest::of(&bytes) != *digest {
            return Err(self.error(digest, StoreErrorKind::Corrupt));
        }
        Ok(Some(bytes))
    }

    async fn put(
        &self,
        descriptor: &Descriptor,
        bytes: Bytes,
        labels: &Labels,
    ) -> Result<(), StoreError> {
        let size = bytes.len() as u64;
        let source = futures::stream::iter([Ok(bytes)]);
        self.containerd
            .content_write(&descriptor.digest, size, labels, source)
            .await
            .map_err(self.failed(&descriptor.digest))
    }

    async fn open(&self, digest: &Digest) -> Result<Option<ContentReader>, StoreError> {
        let info = self.containerd.content_info(digest).await;
        let Some(info) = info.map_err(self.failed(digest))? else {
            return Ok(None);
        };
        let parts = self.containerd.content_read(digest, 0).await;
        let parts = parts.map_err(self.failed(digest))?;
        Ok(Some(ContentReader {
            size: info.size,
            bytes: Box::pin(StreamReader::new(parts.map_err(std::io::Error::other))),
        }))
    }

    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let info = self.containerd.content_info(digest).await;
        Ok(info.map_err(self.failed(digest))?.map(|info| info.size))
    }

    async fn delete(&self, digest: &Digest) -> Result<bool, StoreError> {
        self.containerd
            .content_delete(digest)
            .await
            .map_err(self.failed(digest))
    }

    async fn label(&self, digest: &Digest, labels: &Labels) -> Result<(), StoreError> {
        self.containerd
            .content_label(digest, labels)
            .await
            .map_err(self.failed(digest))
    }

    async fn list(&self) -> Result<Vec<Content>, StoreError> {
        let infos = self.containerd.content_list().await;
        let infos = infos.map_err(|error| {
            let detail = error.to_string();
            self.error(&"list", StoreErrorKind::Service { detail })
        })?;
        Ok(infos
            .into_iter()
            .map(|info| Content {
                digest: info.digest,
                size: info.size,
                labels: info.labels,
            })
            .collect())
    }
}

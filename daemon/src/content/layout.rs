//! The `soci` content store: a directory in OCI layout form.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use ztoc::Digest;

use super::{Content, ContentReader, ContentStore, Labels, StoreError};
use crate::registry::Descriptor;

/// `<root>/content`: `oci-layout`, `index.json`, `blobs/sha256/<hex>`, `ingest/`. Has no labels.
#[derive(Debug)]
pub struct OciLayoutStore {
    root: PathBuf,
}

impl OciLayoutStore {
    /// Opens the store at `root`, making what is missing. Blocks on file I/O.
    pub fn open_at(root: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            root: root.to_owned(),
        })
    }
}

#[async_trait]
impl ContentStore for OciLayoutStore {
    async fn get(&self, _digest: &Digest, _limit: u64) -> Result<Option<Bytes>, StoreError> {
        let _ = &self.root;
        todo!()
    }

    async fn put(
        &self,
        _descriptor: &Descriptor,
        _bytes: Bytes,
        _labels: &Labels,
    ) -> Result<(), StoreError> {
        todo!()
    }

    async fn open(&self, _digest: &Digest) -> Result<Option<ContentReader>, StoreError> {
        todo!()
    }

    async fn size(&self, _digest: &Digest) -> Result<Option<u64>, StoreError> {
        todo!()
    }

    async fn delete(&self, _digest: &Digest) -> Result<bool, StoreError> {
        todo!()
    }

    async fn label(&self, _digest: &Digest, _labels: &Labels) -> Result<(), StoreError> {
        todo!()
    }

    async fn list(&self) -> Result<Vec<Content>, StoreError> {
        todo!()
    }
}

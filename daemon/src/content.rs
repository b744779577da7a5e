//! The store of artifacts: SOCI indexes and zTOCs by digest.
//!
//! `soci` ([`OciLayoutStore`]) is a directory in OCI layout form under the daemon's root; `containerd` is
//! containerd's content store. Artifacts of one are invisible in the other.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncRead;
use ztoc::Digest;

use crate::registry::Descriptor;

mod containerd;
mod layout;

pub use containerd::ContainerdStore;
pub use layout::OciLayoutStore;

/// Labels of a piece of content; containerd's garbage collector follows them.
pub type Labels = BTreeMap<String, String>;

/// A store of content by digest.
#[async_trait]
pub trait ContentStore: Send + Sync + fmt::Debug + 'static {
    /// The whole content, verified against its digest; `None` if it is not there.
    /// More than `limit` bytes are [`StoreErrorKind::TooLarge`]. What does not hash to its digest is
    /// [`StoreErrorKind::Corrupt`].
    async fn get(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, StoreError>;

    /// Stores `bytes`, which must hash to the descriptor's digest. Content that is there already is left
    /// as it is, its labels are added.
    async fn put(
        &self,
        descriptor: &Descriptor,
        bytes: Bytes,
        labels: &Labels,
    ) -> Result<(), StoreError>;

    /// A reader of content of any size, not verified; `None` if it is not there.
    async fn open(&self, digest: &Digest) -> Result<Option<ContentReader>, StoreError>;

    /// The size in bytes of what is stored under `digest`; `None` if it is not there.
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError>;

    /// Removes it; whether it was there.
    async fn delete(&self, digest: &Digest) -> Result<bool, StoreError>;

    /// Adds `labels` to it, replacing those of the same name; nothing in a store without labels.
    async fn label(&self, digest: &Digest, labels: &Labels) -> Result<(), StoreError>;

    /// Everything there is, in no order.
    async fn list(&self) -> Result<Vec<Content>, StoreError>;
}

/// One piece of content in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// What it hashes to.
    pub digest: Digest,
    /// How many bytes.
    pub size: u64,
    /// Its labels; empty in a store without labels.
    pub labels: Labels,
}

/// Reads one piece of content from its start.
pub struct ContentReader {
    /// How many bytes there are.
    pub size: u64,
    /// The bytes.
    pub bytes: Pin<Box<dyn AsyncRead + Send>>,
}

impl fmt::Debug for ContentReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContentReader")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// A content store failed.
#[derive(Debug, thiserror::Error)]
#[error("{store}: {digest}: {kind}")]
pub struct StoreError {
    /// Which store: its directory or address.
    pub store: String,
    /// Which content; the digest's text, or what was being done when it is not about one.
    pub digest: String,
    /// What happened.
    pub kind: StoreErrorKind,
}

/// What happened in a content store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// The bytes do not hash to the digest.
    #[error("the bytes do not match the digest")]
    Corrupt,
    /// More bytes than the caller accepts.
    #[error("{size} bytes are more than the {limit} accepted")]
    TooLarge {
        /// How many there are.
        size: u64,
        /// How many are accepted.
        limit: u64,
    },
    /// Reading or writing failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The service behind the store failed.
    #[error("{detail}")]
    Service {
        /// What it said.
        detail: String,
    },
}

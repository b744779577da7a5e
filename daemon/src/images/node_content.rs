//! Content that this node has already: in our own store, or in containerd's.
//!
//! containerd fetches an image's manifest and configuration before it asks for layers, and has layers
//! that it pulled for another snapshotter: none of that is fetched again.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use ztoc::Digest;

use crate::containerd::Containerd;
use crate::content::{ContainerdStore, ContentReader, ContentStore, Labels};
use crate::registry::Reference;

/// Namespaces whose clients are kept.
const NAMESPACES: NonZeroUsize = NonZeroUsize::new(16).expect("not zero");
/// Longest wait for containerd's answer: it is asked while it waits for us.
const PATIENCE: Duration = Duration::from_secs(2);

/// The stores of this node, ours first.
#[derive(Debug)]
pub struct NodeContent {
    own: Arc<dyn ContentStore>,
    /// containerd's socket, if it may be asked.
    containerd: Option<PathBuf>,
    clients: Mutex<LruCache<String, ContainerdStore>>,
}

/// A blob being written into containerd's store beside its use here.
#[derive(Debug)]
pub(super) struct Ingest {
    parts: mpsc::Sender<std::io::Result<Bytes>>,
    writing: AbortOnDropHandle<Result<(), String>>,
}

impl NodeContent {
    /// `own`, and containerd's store behind the socket `containerd`.
    pub fn new(own: Arc<dyn ContentStore>, containerd: Option<PathBuf>) -> Self {
        Self {
            own,
            containerd,
            clients: Mutex::new(LruCache::new(NAMESPACES)),
        }
    }

    /// Verified content of at most `limit` bytes. A store that fails is one without it.
    pub(super) async fn get(&self, namespace: &str, digest: &Digest, limit: u64) -> Option<Bytes> {
        if let Ok(Some(bytes)) = self.own.get(digest, limit).await {
            return Some(bytes);
        }
        let store = self.containerd(namespace)?;
        let asked = tokio::time::timeout(PATIENCE, store.get(digest, limit)).await;
        asked.ok()?.ok()?
    }

    /// A reader of content of any size, not verified.
    pub(super) async fn open(&self, namespace: &str, digest: &Digest) -> Option<ContentReader> {
        if let Ok(Some(reader)) = self.own.open(digest).await {
            return Some(reader);
        }
        let store = self.containerd(namespace)?;
        let asked = tokio::time::timeout(PATIENCE, store.open(digest)).await;
        asked.ok()?.ok()?
    }

    /// Begins to write a layer of `image` into containerd's store; containerd verifies it. The image's manifest
    /// keeps it from containerd's garbage collector.
    pub(super) fn ingest(
        &self,
        namespace: &str,
        image: &Reference,
        digest: &Digest,
        size: u64,
    ) -> Option<Ingest> {
        let client = Containerd::new(self.containerd.as_deref()?, namespace).ok()?;
        let source = format!("containerd.io/distribution.source.{}", image.host());
        let labels = Labels::from([(source, image.repository().to_owned())]);
        let (parts, received) = mpsc::channel(1);
        let digest = *digest;
        let writing = tokio::spawn(async move {
            let parts = ReceiverStream::new(received);
            let written = client.content_write(&digest, size, &labels, parts).await;
            written.map_err(|error| error.to_string())
        });
        Some(Ingest {
            parts,
            writing: AbortOnDropHandle::new(writing),
        })
    }

    fn containerd(&self, namespace: &str) -> Option<ContainerdStore> {
        let address = self.containerd.as_deref()?;
        let mut clients = self.clients.lock();
        if let Some(store) = clients.get(namespace) {
            return Some(store.clone());
        }
        let client = Containerd::new(address, namespace).ok()?;
        let store = ContainerdStore::new(client);
        clients.put(namespace.to_owned(), store.clone());
        Some(store)
    }
}

impl Ingest {
    /// Writes the next bytes. What cannot be written is told at the end.
    pub(super) async fn write(&self, bytes: Bytes) {
        // The writer has ended: containerd has the blob, or failed.
        let _ = self.parts.send(Ok(bytes)).await;
    }

    /// Waits until containerd has the blob.
    pub(super) async fn finish(self) -> Result<(), String> {
        drop(self.parts);
        self.writing
            .await
            .unwrap_or_else(|ended| Err(ended.to_string()))
    }
}

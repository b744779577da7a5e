//! Where a layer's compressed bytes come from.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
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

/// Most sources kept for one layer.
const MOST: usize = 8;

/// One source for each image that has the layer. The one that answered last is asked first.
#[derive(Default)]
pub(crate) struct Sources {
    known: Mutex<Vec<Known>>,
    preferred: AtomicUsize,
}

struct Known {
    name: String,
    source: Arc<dyn BlobSource>,
}

impl Sources {
    /// Adds a source, unless one of this name is known. The oldest makes room.
    pub(crate) fn add(&self, name: String, source: Arc<dyn BlobSource>) {
        let mut known = self.known.lock();
        if known.iter().any(|known| known.name == name) {
            return;
        }
        if known.len() == MOST {
            known.remove(0);
        }
        known.push(Known { name, source });
    }

    /// Their names, the oldest first.
    pub(crate) fn names(&self) -> Vec<String> {
        let known = self.known.lock();
        known.iter().map(|known| known.name.clone()).collect()
    }

    /// Fetches from the first source that gives anything. `attempt` counts from 0; later ones begin
    /// with another source.
    pub(crate) async fn fetch(
        &self,
        range: Range<CompressedOffset>,
        attempt: usize,
    ) -> Result<Bytes, FetchError> {
        let sources: Vec<_> = {
            let known = self.known.lock();
            known
                .iter()
                .map(|known| Arc::clone(&known.source))
                .collect()
        };
        let first = self.preferred.load(Ordering::Relaxed).wrapping_add(attempt);
        let mut failures = Vec::new();
        for turn in 0..sources.len() {
            let choice = first.wrapping_add(turn) % sources.len();
            match sources[choice].fetch(range.clone()).await {
                Ok(bytes) => {
                    self.preferred.store(choice, Ordering::Relaxed);
                    return Ok(bytes);
                }
                Err(failure) => failures.push(failure.detail),
            }
        }
        if failures.is_empty() {
            failures.push(String::from("no image is known to have this layer"));
        }
        Err(FetchError {
            detail: failures.join("; then "),
        })
    }
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let known = self.known.lock();
        f.debug_list()
            .entries(known.iter().map(|known| &known.name))
            .finish()
    }
}

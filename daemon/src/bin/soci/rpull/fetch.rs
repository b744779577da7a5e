//! Layer blobs from the registry into containerd.

use std::sync::Arc;

use anyhow::{Context, Result};
use daemon::containerd::Containerd;
use daemon::content::Labels;
use daemon::registry::{Reference, Registry};
use futures::StreamExt;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;
use ztoc::index::Descriptor;

use crate::progress::{Progress, short};

/// Layers downloaded at a time, as containerd does.
const DOWNLOADS: usize = 3;

/// Downloads layers, some at a time.
#[derive(Debug, Clone)]
pub(super) struct Fetcher {
    containerd: Containerd,
    registry: Registry,
    reference: Reference,
    progress: Progress,
    permits: Arc<Semaphore>,
}

/// A download under way; stopped when dropped. Gives the bytes fetched.
pub(super) type Fetch = AbortOnDropHandle<Result<u64>>;

impl Fetcher {
    pub(super) fn new(
        containerd: Containerd,
        registry: Registry,
        reference: Reference,
        progress: Progress,
    ) -> Self {
        Self {
            containerd,
            registry,
            reference,
            progress,
            permits: Arc::new(Semaphore::new(DOWNLOADS)),
        }
    }

    /// Starts fetching `layer`, unless containerd has it.
    pub(super) fn start(&self, layer: &Descriptor) -> Fetch {
        let (fetcher, layer) = (self.clone(), layer.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            let _permit = fetcher.permits.acquire().await?;
            let fetched = fetcher.fetch(&layer).await;
            fetched.with_context(|| format!("layer {}", layer.digest))
        }))
    }

    async fn fetch(&self, layer: &Descriptor) -> Result<u64> {
        if self.containerd.content_info(&layer.digest).await?.is_some() {
            return Ok(0);
        }
        let bar = self
            .progress
            .bytes(&format!("layer {}", short(&layer.digest)), layer.size);
        let meter = bar.clone();
        let parts = self
            .registry
            .download(&self.reference, &layer.digest)
            .into_stream()
            .inspect(move |part| {
                if let Ok(part) = part {
                    meter.advance(part.len() as u64);
                }
            });
        let labels = source_label(&self.reference);
        let written = self
            .containerd
            .content_write(&layer.digest, layer.size, &labels, parts)
            .await;
        bar.done();
        written?;
        Ok(layer.size)
    }
}

/// Tells containerd where content came from, so that it can be mounted across repositories or fetched
/// again.
pub(super) fn source_label(reference: &Reference) -> Labels {
    let key = format!("containerd.io/distribution.source.{}", reference.host());
    Labels::from([(key, reference.repository().to_owned())])
}

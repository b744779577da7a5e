//! One layer of a pull: from wherever it is into a directory.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio_util::io::ReaderStream;

use super::super::manifest::KnownLayer;
use super::super::node_content::Ingest;
use super::Shared;
use super::pull::Pull;
use crate::registry::Share;
use crate::unpack::{Expected, Site, UnpackError, Unpacked, unpack};

/// How often a layer whose bytes came wrong is pulled.
const TRIES: u32 = 2;

impl Shared {
    /// Pulls and unpacks a layer.
    pub(super) async fn pull(
        &self,
        pull: &Pull,
        layer: &KnownLayer,
        lowest: bool,
    ) -> Result<Unpacked, UnpackError> {
        let expected = Expected {
            layer: layer.digest,
            diff_id: layer.diff_id,
        };
        let site = Site {
            beside: &self.dir,
            lowest,
        };
        if let Some(unpacked) = self.leftovers.take(expected, lowest) {
            tracing::info!(layer = %layer.digest, "the layer was unpacked by an earlier daemon");
            return Ok(unpacked);
        }
        let stored = self.content.open(&pull.namespace, &layer.digest).await;
        if let Some(stored) = stored {
            let blob = ReaderStream::with_capacity(stored.bytes, 256 << 10);
            match unpack(blob, expected, site).await {
                Ok(unpacked) => return Ok(unpacked),
                Err(error) => tracing::warn!(
                    layer = %layer.digest,
                    "the layer in the content store is unusable, it is pulled: {error}"
                ),
            }
        }
        let mut tries = 1;
        loop {
            match self.out_of_registry(pull, layer, expected, site).await {
                Err(error) if error.is_of_the_blob() && tries < TRIES => {
                    tries += 1;
                    tracing::warn!(layer = %layer.digest, image = %pull.image, "the layer is pulled again: {error}");
                }
                done => return done,
            }
        }
    }

    async fn out_of_registry(
        &self,
        pull: &Pull,
        layer: &KnownLayer,
        expected: Expected,
        site: Site<'_>,
    ) -> Result<Unpacked, UnpackError> {
        let share = Share {
            chunk: self.options.chunk,
            permits: vec![Arc::clone(&pull.downloads), Arc::clone(&self.downloads)],
            ahead: Arc::clone(&pull.ahead),
        };
        let blob = self
            .registry
            .download_in_ranges(&pull.image, &layer.digest, layer.size, share);
        let ingest = match layer.size {
            Some(size) if self.options.ingest => {
                self.content
                    .ingest(&pull.namespace, &pull.image, &layer.digest, size)
            }
            _ => None,
        };
        let Some(ingest) = ingest else {
            return unpack(blob.boxed(), expected, site).await;
        };
        let unpacked = unpack(shown_to(&ingest, blob.boxed()), expected, site).await?;
        if let Err(error) = ingest.finish().await {
            tracing::warn!(
                layer = %layer.digest, image = %pull.image,
                "containerd's content store does not get the layer: {error}"
            );
        }
        Ok(unpacked)
    }
}

/// `blob`, with everything that comes of it written to `ingest` too.
fn shown_to<'a>(
    ingest: &'a Ingest,
    blob: BoxStream<'a, io::Result<Bytes>>,
) -> BoxStream<'a, io::Result<Bytes>> {
    let shown = blob.then(move |part| async move {
        if let Ok(bytes) = &part {
            ingest.write(bytes.clone()).await;
        }
        part
    });
    shown.boxed()
}

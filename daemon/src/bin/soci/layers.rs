//! From an image's layers to zTOCs in a store.

use std::io::{self, Read};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use daemon::artifacts::{Artifact, ArtifactKind, Artifacts};
use daemon::content::{ContentStore, Labels};
use daemon::registry;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use ztoc::builder::{self, BuildOptions};
use ztoc::index::{self, Descriptor, LayerKind, Manifest, ZtocDescriptor};
use ztoc::{Compression, Digest, Ztoc};

use crate::blobs::Blobs;
use crate::options::{BuildArguments, Optimization};
use crate::progress::{Bar, Progress, short};

/// Layers built at a time: one reads while the other inflates.
const LAYERS_AT_A_TIME: usize = 2;
/// Larger zTOCs are not taken from a store.
const MAX_ZTOC_SIZE: u64 = 1 << 30;

/// Builds the zTOCs of images.
#[derive(Debug)]
pub(crate) struct LayerIndexer<'a> {
    pub(crate) options: &'a BuildArguments,
    pub(crate) blobs: Blobs,
    /// Where zTOCs go, all of them to each.
    pub(crate) stores: Vec<Arc<dyn ContentStore>>,
    /// Remembers what was built; without it nothing is reused.
    pub(crate) artifacts: Option<&'a Artifacts>,
    pub(crate) progress: Progress,
}

/// What came of a layer, and the line that says so.
struct Indexed {
    ztoc: Option<ZtocDescriptor>,
    line: String,
    value: Value,
}

/// A zTOC to be stored.
struct BuiltZtoc {
    bytes: Bytes,
    disable_xattrs: bool,
}

impl LayerIndexer<'_> {
    /// The zTOCs of a manifest's layers, in their order. Layers that can have none are left out.
    pub(crate) async fn ztocs(&self, manifest: &Manifest) -> Result<Vec<ZtocDescriptor>> {
        stream::iter(&manifest.layers)
            .map(|layer| async move {
                self.ztoc(layer)
                    .await
                    .with_context(|| format!("layer {}", layer.digest))
            })
            .buffered(LAYERS_AT_A_TIME)
            .try_filter_map(|indexed| async move {
                self.progress.result(&indexed.line, &indexed.value);
                Ok(indexed.ztoc)
            })
            .try_collect()
            .await
    }

    async fn ztoc(&self, layer: &Descriptor) -> Result<Indexed> {
        let compression = match index::layer_kind(&layer.media_type) {
            LayerKind::Tar(compression) => compression,
            LayerKind::Unsupported => {
                return Ok(skipped(layer, "has an unsupported compression"));
            }
            LayerKind::NotALayer => anyhow::bail!("{:?} is no layer", layer.media_type),
        };
        if layer.size < self.options.min_layer_size {
            let limit = self.options.min_layer_size;
            let reason = format!("size {} is less than min-layer-size {limit}", layer.size);
            return Ok(skipped(layer, &reason));
        }
        if let Some(ztoc) = self.reuse(layer).await? {
            return Ok(indexed(layer, ztoc, true));
        }
        let built = self.build(layer, compression).await?;
        let ztoc = self.describe(layer, &built);
        self.store(&ztoc, built.bytes).await?;
        self.remember(&ztoc)?;
        Ok(indexed(layer, ztoc, false))
    }

    /// An earlier zTOC of the layer, if it was made with the same span size and is still there.
    async fn reuse(&self, layer: &Descriptor) -> Result<Option<ZtocDescriptor>> {
        let Some(artifacts) = self.artifacts.filter(|_| !self.options.force) else {
            return Ok(None);
        };
        let span_size = self.options.span_size.bytes();
        let Some(record) = artifacts.ztoc_of(&layer.digest, span_size)? else {
            return Ok(None);
        };
        let Some(bytes) = self.find_stored(&record.digest).await else {
            return Ok(None);
        };
        let ztoc = decode(bytes.clone()).await;
        let Ok(disable_xattrs) = ztoc.map(|ztoc| self.may_disable_xattrs(&ztoc)) else {
            return Ok(None);
        };
        let descriptor = self.describe(
            layer,
            &BuiltZtoc {
                bytes: bytes.clone(),
                disable_xattrs,
            },
        );
        self.store(&descriptor, bytes).await?;
        Ok(Some(descriptor))
    }

    /// A damaged zTOC counts as absent: it is built anew.
    pub(crate) async fn find_stored(&self, digest: &Digest) -> Option<Bytes> {
        for store in &self.stores {
            if let Ok(Some(bytes)) = store.get(digest, MAX_ZTOC_SIZE).await {
                return Some(bytes);
            }
        }
        None
    }

    async fn build(&self, layer: &Descriptor, compression: Compression) -> Result<BuiltZtoc> {
        let label = format!("index {}", short(&layer.digest));
        let bar = self.progress.bytes(&label, layer.size);
        let reader = Metered {
            inner: self.blobs.reader(&layer.digest, 0).await?,
            bar: bar.clone(),
        };
        let options = BuildOptions {
            span_size: self.options.span_size,
            build_tool: index::BUILD_TOOL.to_owned(),
        };
        let (expected, xattr) = (layer.digest, self.wants_xattr());
        let build = move || {
            let built =
                builder::build(compression, reader, &options).context("cannot build a zTOC")?;
            ensure!(
                built.layer_digest == expected,
                "the content hashes to {}; remove the image and pull it again",
                built.layer_digest
            );
            Ok(BuiltZtoc {
                disable_xattrs: xattr && has_no_xattrs(&built.ztoc),
                bytes: built.ztoc.encode().into(),
            })
        };
        let outcome = tokio::task::spawn_blocking(build).await;
        bar.done();
        outcome.context("building a zTOC")?
    }

    fn wants_xattr(&self) -> bool {
        self.options.optimizations.contains(&Optimization::Xattr)
    }

    fn may_disable_xattrs(&self, ztoc: &Ztoc) -> bool {
        self.wants_xattr() && has_no_xattrs(ztoc)
    }

    fn describe(&self, layer: &Descriptor, built: &BuiltZtoc) -> ZtocDescriptor {
        ZtocDescriptor {
            digest: Digest::of(&built.bytes),
            size: built.bytes.len() as u64,
            layer_digest: layer.digest,
            layer_media_type: layer.media_type.clone(),
            span_size: Some(self.options.span_size),
            disable_xattrs: built.disable_xattrs,
        }
    }

    async fn store(&self, ztoc: &ZtocDescriptor, bytes: Bytes) -> Result<()> {
        let descriptor = registry::Descriptor::of(index::ZTOC, &bytes);
        for store in &self.stores {
            store
                .put(&descriptor, bytes.clone(), &Labels::new())
                .await
                .with_context(|| format!("cannot store zTOC {}", ztoc.digest))?;
        }
        Ok(())
    }

    fn remember(&self, ztoc: &ZtocDescriptor) -> Result<()> {
        let Some(artifacts) = self.artifacts else {
            return Ok(());
        };
        artifacts.put(&Artifact {
            digest: ztoc.digest,
            size: ztoc.size,
            created_at: now(),
            kind: ArtifactKind::Ztoc {
                layer: ztoc.layer_digest,
                span_size: self.options.span_size.bytes(),
            },
        })?;
        Ok(())
    }
}

fn skipped(layer: &Descriptor, reason: &str) -> Indexed {
    let (digest, media_type) = (layer.digest, &layer.media_type);
    Indexed {
        ztoc: None,
        line: format!("ztoc skipped - layer {digest} ({media_type}) {reason}"),
        value: json!({"event": "skipped", "layer": digest, "media_type": media_type, "reason": reason}),
    }
}

fn indexed(layer: &Descriptor, ztoc: ZtocDescriptor, reused: bool) -> Indexed {
    let (layer, digest) = (layer.digest, ztoc.digest);
    let suffix = if reused { " (already exists)" } else { "" };
    Indexed {
        line: format!("layer {layer} -> ztoc {digest}{suffix}"),
        value: json!({
            "event": "ztoc", "layer": layer, "ztoc": digest, "size": ztoc.size, "reused": reused,
        }),
        ztoc: Some(ztoc),
    }
}

/// Nanoseconds since 1970; ends in 2262.
pub(crate) fn now() -> i64 {
    let nanos = time::OffsetDateTime::now_utc().unix_timestamp_nanos();
    i64::try_from(nanos).unwrap_or(i64::MAX)
}

/// Decodes off the runtime's threads: a large layer's zTOC takes a while.
pub(crate) async fn decode(bytes: Bytes) -> Result<Ztoc> {
    Ok(tokio::task::spawn_blocking(move || Ztoc::decode(&bytes)).await??)
}

fn has_no_xattrs(ztoc: &Ztoc) -> bool {
    ztoc.toc()
        .entries()
        .iter()
        .all(|entry| entry.xattrs().next().is_none() && !entry.name.ends_with(b".wh..wh..opq"))
}

/// Counts what is read on a bar.
struct Metered<R> {
    inner: R,
    bar: Bar,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bar.advance(read as u64);
        Ok(read)
    }
}

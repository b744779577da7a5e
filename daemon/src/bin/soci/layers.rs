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
use ztoc::compact::{self, Compact, InMemory};
use ztoc::index::{self, CompactDescriptor, Descriptor, Head, LayerKind, Manifest, ZtocDescriptor};
use ztoc::{Compression, Digest, SpanSize, SpanTable, Toc, Ztoc};

use crate::blobs::Blobs;
use crate::options::{BuildArguments, CompactChoice, Optimization};
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

/// What the layers of a manifest have, each in the order of the layers.
#[derive(Debug, Default)]
pub(crate) struct Indexed {
    pub(crate) ztocs: Vec<ZtocDescriptor>,
    pub(crate) compact: Vec<CompactDescriptor>,
}

/// What came of a layer, and the lines that say so.
#[derive(Default)]
struct IndexedLayer {
    ztoc: Option<ZtocDescriptor>,
    compact: Option<CompactDescriptor>,
    /// The lines are the original's, which programs read: of both forms only the zTOC has one.
    lines: Vec<(String, Value)>,
    events: Vec<Value>,
}

/// What is to be stored for a layer.
struct BuiltLayer {
    ztoc: Option<Bytes>,
    compact: Option<Bytes>,
    disable_xattrs: bool,
    reused: bool,
}

impl LayerIndexer<'_> {
    /// What a manifest's layers have, by what the arguments want. Layers that can have nothing are left out.
    pub(crate) async fn index(&self, manifest: &Manifest) -> Result<Indexed> {
        let mut layers = stream::iter(&manifest.layers)
            .map(|layer| async move {
                let indexed = self.layer(layer).await;
                indexed.with_context(|| format!("layer {}", layer.digest))
            })
            .buffered(LAYERS_AT_A_TIME);
        let mut indexed = Indexed::default();
        while let Some(layer) = layers.try_next().await? {
            for (line, value) in &layer.lines {
                self.progress.result(line, value);
            }
            for event in &layer.events {
                self.progress.machine(event);
            }
            indexed.ztocs.extend(layer.ztoc);
            indexed.compact.extend(layer.compact);
        }
        Ok(indexed)
    }

    async fn layer(&self, layer: &Descriptor) -> Result<IndexedLayer> {
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
        let built = match self.reuse(layer).await? {
            Some(built) => built,
            None => self.build(layer, compression).await?,
        };
        let mut indexed = IndexedLayer::default();
        if let Some(bytes) = &built.ztoc {
            let ztoc = self.describe(layer, bytes, built.disable_xattrs, self.options.span_size);
            self.store(index::ZTOC, &ztoc, bytes).await?;
            self.remember(
                &ztoc,
                ArtifactKind::Ztoc {
                    layer: layer.digest,
                    span_size: self.options.span_size.bytes(),
                },
            )?;
            indexed.lines.push(line(layer, "ztoc", &ztoc, built.reused));
            indexed.ztoc = Some(ztoc);
        }
        if let Some(bytes) = &built.compact {
            let span_size = self.options.compact_span_size;
            let ztoc = self.describe(layer, bytes, built.disable_xattrs, span_size);
            let head = Head::of(bytes).context("the compact zTOC has no head")?;
            self.store(compact::MEDIA_TYPE, &ztoc, bytes).await?;
            self.remember(&ztoc, self.compact_kind(layer))?;
            let (line, event) = line(layer, "compact ztoc", &ztoc, built.reused);
            match indexed.ztoc {
                Some(_) => indexed.events.push(event),
                None => indexed.lines.push((line, event)),
            }
            indexed.compact = Some(CompactDescriptor { ztoc, head });
        }
        Ok(indexed)
    }

    fn compact_kind(&self, layer: &Descriptor) -> ArtifactKind {
        ArtifactKind::CompactZtoc {
            layer: layer.digest,
            span_size: self.options.compact_span_size.bytes(),
        }
    }

    /// What was made of the layer earlier, if all that is wanted was made with the same span sizes and is still there.
    async fn reuse(&self, layer: &Descriptor) -> Result<Option<BuiltLayer>> {
        let Some(artifacts) = self.artifacts.filter(|_| !self.options.force) else {
            return Ok(None);
        };
        let choice = self.options.compact;
        let mut built = BuiltLayer {
            ztoc: None,
            compact: None,
            disable_xattrs: false,
            reused: true,
        };
        if choice != CompactChoice::Only {
            let record = artifacts.ztoc_of(&layer.digest, self.options.span_size.bytes())?;
            let Some((bytes, toc)) = self.stored(record).await else {
                return Ok(None);
            };
            built.disable_xattrs = self.may_disable_xattrs(&toc);
            built.ztoc = Some(bytes);
        }
        if choice != CompactChoice::No {
            let record = artifacts.of_kind(&self.compact_kind(layer))?;
            let Some((bytes, toc)) = self.stored(record).await else {
                return Ok(None);
            };
            built.disable_xattrs = self.may_disable_xattrs(&toc);
            built.compact = Some(bytes);
        }
        Ok(Some(built))
    }

    /// The bytes of a zTOC of either form, and what they list, if they are there and good.
    async fn stored(&self, record: Option<Artifact>) -> Option<(Bytes, Toc)> {
        let bytes = self.find_stored(&record?.digest).await?;
        let (toc, _) = decode(bytes.clone()).await.ok()?.into_parts();
        Some((bytes, toc))
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

    async fn build(&self, layer: &Descriptor, compression: Compression) -> Result<BuiltLayer> {
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
        let (choice, compact_size) = (self.options.compact, self.options.compact_span_size);
        let build = move || {
            let built = match choice {
                CompactChoice::No => builder::build(compression, reader, &options),
                _ => builder::build_both(compression, reader, &options, compact_size),
            };
            let built = built.context("cannot build a zTOC")?;
            ensure!(
                built.layer_digest == expected,
                "the content hashes to {}; remove the image and pull it again",
                built.layer_digest
            );
            // A layer that is too much for a compact zTOC has a zTOC.
            let compact = built.encode_compact().and_then(Result::ok);
            let ztoc = (choice != CompactChoice::Only).then(|| built.ztoc.encode());
            Ok(BuiltLayer {
                disable_xattrs: xattr && has_no_xattrs(built.ztoc.toc()),
                ztoc: ztoc.map(Bytes::from),
                compact: compact.map(Bytes::from),
                reused: false,
            })
        };
        let outcome = tokio::task::spawn_blocking(build).await;
        bar.done();
        outcome.context("building a zTOC")?
    }

    fn wants_xattr(&self) -> bool {
        self.options.optimizations.contains(&Optimization::Xattr)
    }

    fn may_disable_xattrs(&self, toc: &Toc) -> bool {
        self.wants_xattr() && has_no_xattrs(toc)
    }

    fn describe(
        &self,
        layer: &Descriptor,
        bytes: &[u8],
        disable_xattrs: bool,
        span_size: SpanSize,
    ) -> ZtocDescriptor {
        ZtocDescriptor {
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            layer_digest: layer.digest,
            layer_media_type: layer.media_type.clone(),
            span_size: Some(span_size),
            disable_xattrs,
        }
    }

    async fn store(&self, media_type: &str, ztoc: &ZtocDescriptor, bytes: &Bytes) -> Result<()> {
        let descriptor = registry::Descriptor::of(media_type, bytes);
        for store in &self.stores {
            store
                .put(&descriptor, bytes.clone(), &Labels::new())
                .await
                .with_context(|| format!("cannot store zTOC {}", ztoc.digest))?;
        }
        Ok(())
    }

    fn remember(&self, ztoc: &ZtocDescriptor, kind: ArtifactKind) -> Result<()> {
        let Some(artifacts) = self.artifacts else {
            return Ok(());
        };
        artifacts.put(&Artifact {
            digest: ztoc.digest,
            size: ztoc.size,
            created_at: now(),
            kind,
        })?;
        Ok(())
    }
}

fn skipped(layer: &Descriptor, reason: &str) -> IndexedLayer {
    let (digest, media_type) = (layer.digest, &layer.media_type);
    let line = format!("ztoc skipped - layer {digest} ({media_type}) {reason}");
    let value =
        json!({"event": "skipped", "layer": digest, "media_type": media_type, "reason": reason});
    IndexedLayer {
        lines: vec![(line, value)],
        ..IndexedLayer::default()
    }
}

/// The line that says what form of zTOC a layer has got.
fn line(layer: &Descriptor, form: &str, ztoc: &ZtocDescriptor, reused: bool) -> (String, Value) {
    let (layer, digest) = (layer.digest, ztoc.digest);
    let suffix = if reused { " (already exists)" } else { "" };
    let event = form.replace(' ', "_");
    (
        format!("layer {layer} -> {form} {digest}{suffix}"),
        json!({
            "event": event, "layer": layer, "ztoc": digest, "size": ztoc.size, "reused": reused,
        }),
    )
}

/// Nanoseconds since 1970; ends in 2262.
pub(crate) fn now() -> i64 {
    let nanos = time::OffsetDateTime::now_utc().unix_timestamp_nanos();
    i64::try_from(nanos).unwrap_or(i64::MAX)
}

/// A zTOC of either form.
pub(crate) enum AnyZtoc {
    Ztoc(Box<Ztoc>),
    Compact(Box<Compact>),
}

impl AnyZtoc {
    /// What both forms tell.
    pub(crate) fn into_parts(self) -> (Toc, SpanTable) {
        match self {
            Self::Ztoc(ztoc) => (*ztoc).into_parts(),
            Self::Compact(compact) => (compact.toc, compact.spans),
        }
    }
}

/// Decodes off the runtime's threads: a large layer's zTOC takes a while.
pub(crate) async fn decode(bytes: Bytes) -> Result<AnyZtoc> {
    let decode = move || {
        if !compact::is_compact(&bytes) {
            return Ok(AnyZtoc::Ztoc(Box::new(Ztoc::decode(&bytes)?)));
        }
        let blob = Arc::new(InMemory::new(bytes.to_vec()));
        Ok(AnyZtoc::Compact(Box::new(compact::decode(&bytes, blob)?)))
    };
    tokio::task::spawn_blocking(decode).await?
}

fn has_no_xattrs(toc: &Toc) -> bool {
    toc.entries()
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

//! Files that are wanted first: from a list or a recorded start-up to prefetch artifacts.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use daemon::artifacts::{Artifact, ArtifactKind};
use daemon::content::Labels;
use daemon::registry;
use serde_json::json;
use ztoc::index::{self, Prefetch, PrefetchDescriptor, ZtocDescriptor};
use ztoc::{Digest, Entry, EntryKind, SpanId, SpanTable, Toc, UncompressedOffset};

use crate::layers::{LayerIndexer, decode, now};
use crate::member::components;
use crate::trace_file::TraceFile;

/// The kernel gives up after as many symbolic links.
const MAX_LINKS: usize = 40;
/// Largest list of files read.
const MAX_LIST: u64 = 64 << 20;

#[derive(Debug, Clone, Args)]
pub(crate) struct PrefetchArguments {
    /// File of the image to be fetched as soon as the image is there; repeat it or separate by commas
    #[arg(long = "prefetch-file", value_delimiter = ',', value_name = "PATH")]
    files: Vec<String>,
    /// JSON array of such files
    #[arg(long, value_name = "FILE")]
    prefetch_files_json: Option<PathBuf>,
    /// What `soci trace` recorded: its spans are fetched in the order of their first use
    #[arg(long, value_name = "TRACE")]
    prefetch_from: Option<PathBuf>,
}

/// What is wanted, read from where the arguments say.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    files: Vec<String>,
    trace: Option<TraceFile>,
}

impl PrefetchArguments {
    pub(crate) fn read(&self) -> Result<Wanted> {
        let mut files = self.files.clone();
        if let Some(path) = &self.prefetch_files_json {
            let listed = crate::trace_file::read_json::<Vec<String>>(path, MAX_LIST);
            files.extend(
                listed.with_context(|| {
                    format!("{}: expected a JSON array of paths", path.display())
                })?,
            );
        }
        let trace = self
            .prefetch_from
            .as_deref()
            .map(TraceFile::read)
            .transpose()?;
        Ok(Wanted { files, trace })
    }
}

impl Wanted {
    fn is_empty(&self) -> bool {
        self.files.is_empty() && self.trace.is_none()
    }
}

/// An indexed layer and what its zTOC, of either form, tells.
struct IndexedLayer {
    digest: Digest,
    toc: Toc,
    spans: SpanTable,
}

impl LayerIndexer<'_> {
    /// Makes and stores the prefetch artifacts for what is wanted, in the order of `ztocs`. What no layer
    /// has is only warned of. They are told of and recorded if they are `told`: of two forms only the first.
    pub(crate) async fn prefetch(
        &self,
        ztocs: impl IntoIterator<Item = &ZtocDescriptor>,
        wanted: &Wanted,
        told: bool,
    ) -> Result<Vec<PrefetchDescriptor>> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let mut layers = Vec::new();
        for ztoc in ztocs {
            let bytes = self.find_stored(&ztoc.digest).await;
            let bytes =
                bytes.with_context(|| format!("zTOC {} is gone from the store", ztoc.digest))?;
            let (toc, spans) = decode(bytes).await?.into_parts();
            layers.push(IndexedLayer {
                digest: ztoc.layer_digest,
                toc,
                spans,
            });
        }
        let lists = self.lists(&layers, wanted, told)?;
        let mut made = Vec::new();
        for layer in &layers {
            if let Some(list) = lists.get(&layer.digest) {
                made.push(self.store_prefetch(&layer.digest, list, told).await?);
            }
        }
        if made.is_empty() && told {
            self.progress
                .note("soci: warning: nothing of what is to be prefetched is in an indexed layer");
        }
        Ok(made)
    }

    fn lists(
        &self,
        layers: &[IndexedLayer],
        wanted: &Wanted,
        told: bool,
    ) -> Result<BTreeMap<Digest, Prefetch>> {
        let mut ranked: BTreeMap<Digest, Vec<(u32, SpanId)>> = BTreeMap::new();
        for (rank, read) in (0..).zip(wanted.trace.iter().flat_map(|trace| &trace.reads)) {
            let layer = layers.iter().find(|layer| layer.digest == read.layer);
            let Some(layer) = layer else { continue };
            let spans = covering(&layer.spans, read.range());
            let spans = (spans.start.0..spans.end.0).map(|span| (rank, SpanId(span)));
            ranked.entry(layer.digest).or_default().extend(spans);
        }
        let mut files: BTreeMap<Digest, Vec<Range<SpanId>>> = BTreeMap::new();
        for path in &wanted.files {
            match find(layers, path) {
                Some((layer, entry)) => {
                    let end = entry.offset.0.saturating_add(entry.size);
                    let spans = covering(&layer.spans, entry.offset..UncompressedOffset(end));
                    files.entry(layer.digest).or_default().push(spans);
                }
                None if !told => {}
                None => self.progress.note(&format!(
                    "soci: warning: {path}: no indexed layer has such a file; it is not prefetched"
                )),
            }
        }
        let mut lists = BTreeMap::new();
        for layer in layers.iter().map(|layer| layer.digest) {
            let list = match (ranked.remove(&layer), files.remove(&layer)) {
                (None, None) => continue,
                (None, Some(files)) => Prefetch::merged(files),
                (Some(ranked), files) => {
                    let listed = files.into_iter().flatten();
                    let listed = listed.flat_map(|range| range.start.0..range.end.0);
                    let last = listed.map(|span| (u32::MAX, SpanId(span)));
                    Prefetch::in_order(ranked.into_iter().chain(last))
                }
            };
            // Empty files lie in no span.
            if let Ok(list) = list {
                lists.insert(layer, list);
            }
        }
        Ok(lists)
    }

    async fn store_prefetch(
        &self,
        layer: &Digest,
        list: &Prefetch,
        told: bool,
    ) -> Result<PrefetchDescriptor> {
        let bytes = list.encode();
        let descriptor = registry::Descriptor::of(index::PREFETCH, &bytes);
        for store in &self.stores {
            store
                .put(&descriptor, bytes.clone().into(), &Labels::new())
                .await?;
        }
        let made = PrefetchDescriptor {
            digest: descriptor.digest,
            size: descriptor.size,
            layer_digest: *layer,
        };
        if !told {
            return Ok(made);
        }
        if let Some(artifacts) = self.artifacts {
            artifacts.put(&Artifact {
                digest: descriptor.digest,
                size: descriptor.size,
                created_at: now(),
                kind: ArtifactKind::Prefetch {
                    layer: *layer,
                    spans: list.span_count(),
                },
            })?;
        }
        let digest = descriptor.digest;
        self.progress.result(
            &format!("Created prefetch artifact for layer {layer}: {digest}"),
            &json!({"event": "prefetch", "layer": layer, "digest": digest, "spans": list.span_count()}),
        );
        Ok(made)
    }
}

/// The spans of a range, of which the layer may have less.
fn covering(spans: &SpanTable, range: Range<UncompressedOffset>) -> Range<SpanId> {
    let end = range.end.0.min(spans.uncompressed_size());
    spans.covering(UncompressedOffset(range.start.0.min(end))..UncompressedOffset(end))
}

/// The regular file at `path` in the top-most layer that has it, through links.
fn find<'a>(layers: &'a [IndexedLayer], path: &str) -> Option<(&'a IndexedLayer, &'a Entry)> {
    let mut wanted = components(path.as_bytes());
    let mut seen = HashSet::new();
    for _ in 0..MAX_LINKS {
        if !seen.insert(wanted.clone()) {
            return None;
        }
        let mut top_down = layers.iter().rev();
        let (layer, entry) = top_down.find_map(|layer| Some((layer, member(layer, &wanted)?)))?;
        match entry.kind {
            EntryKind::Regular => return Some((layer, entry)),
            EntryKind::HardLink => wanted = components(&entry.link),
            EntryKind::SymLink => wanted = crate::member::link_target(&wanted, &entry.link),
            _ => return None,
        }
    }
    None
}

/// The last member of that name.
fn member<'a>(layer: &'a IndexedLayer, wanted: &[Vec<u8>]) -> Option<&'a Entry> {
    let entries = layer.toc.entries();
    let last = entries.iter().rev();
    last.into_iter()
        .find(|entry| components(&entry.name) == wanted)
}

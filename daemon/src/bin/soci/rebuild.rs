//! `soci rebuild-db`: the records, from what the content store holds.

use std::collections::{BTreeSet, HashMap};

use anyhow::Result;
use daemon::artifacts::{Artifact, ArtifactKind, IndexedImage};
use daemon::content::ContentStore;
use serde_json::json;
use ztoc::Digest;
use ztoc::index::{
    CompactIndex, MAX_DOCUMENT_SIZE, Manifest, Platform, Prefetch, PrefetchDescriptor, SociIndex,
    annotation,
};

use crate::blobs::Blobs;
use crate::image::SourceImage;
use crate::layers::now;
use crate::options::Globals;
use crate::progress::Progress;
use crate::session::Session;

/// No index is smaller.
const SMALLEST: u64 = 10;

pub(crate) async fn run(globals: &Globals) -> Result<()> {
    let session = Session::open(globals)?;
    let progress = Progress::new(globals.json);
    let store = session.store(&session.containerd)?;
    let content = store.list().await?;
    let there: BTreeSet<Digest> = content.iter().map(|it| it.digest).collect();
    let mut removed = 0_usize;
    for artifact in session.artifacts.list()? {
        if !there.contains(&artifact.digest) {
            session.artifacts.remove(&artifact.digest)?;
            removed += 1;
        }
    }
    let images = Images::load(&session, &progress).await?;
    let bar = progress.bytes("reading documents", content.iter().map(|it| it.size).sum());
    let mut added = 0_usize;
    for blob in &content {
        bar.advance(blob.size);
        // Everything larger is a layer or a zTOC, and is not read.
        if blob.size < SMALLEST || blob.size > MAX_DOCUMENT_SIZE as u64 {
            continue;
        }
        let Ok(Some(bytes)) = store.get(&blob.digest, MAX_DOCUMENT_SIZE as u64).await else {
            continue;
        };
        if let Ok(index) = SociIndex::parse(&bytes) {
            added += record(
                &session,
                &*store,
                &images,
                &blob.digest,
                bytes.len() as u64,
                &index,
            )
            .await?;
        } else if let Ok(index) = CompactIndex::parse(&bytes) {
            let size = bytes.len() as u64;
            added +=
                record_compact(&session, &*store, &images, (blob.digest, size), &index).await?;
        }
    }
    bar.done();
    progress.machine(&json!({"event": "rebuilt", "added": added, "removed": removed}));
    Ok(())
}

/// Records an index and what it lists; how many records are new.
async fn record(
    session: &Session,
    store: &dyn ContentStore,
    images: &Images,
    digest: &Digest,
    size: u64,
    index: &SociIndex,
) -> Result<usize> {
    let mut artifacts = vec![Artifact {
        digest: *digest,
        size,
        created_at: now(),
        kind: ArtifactKind::Index {
            version: index.version(),
            images: images.of(digest, index.subject().map(|subject| &subject.digest)),
        },
    }];
    artifacts.extend(index.ztocs().iter().map(|ztoc| Artifact {
        digest: ztoc.digest,
        size: ztoc.size,
        created_at: now(),
        kind: ArtifactKind::Ztoc {
            layer: ztoc.layer_digest,
            span_size: ztoc.span_size.map_or(0, ztoc::SpanSize::bytes),
        },
    }));
    artifacts.extend(prefetches(store, index.prefetch()).await);
    put_all(session, artifacts)
}

/// The same of a compact index, by digest and size.
async fn record_compact(
    session: &Session,
    store: &dyn ContentStore,
    images: &Images,
    (digest, size): (Digest, u64),
    index: &CompactIndex,
) -> Result<usize> {
    let subject = index.subject().map(|subject| subject.digest);
    let mut artifacts = vec![Artifact {
        digest,
        size,
        created_at: now(),
        kind: ArtifactKind::CompactIndex {
            images: images.of(&digest, subject.as_ref()),
        },
    }];
    artifacts.extend(index.ztocs().iter().map(|compact| Artifact {
        digest: compact.ztoc.digest,
        size: compact.ztoc.size,
        created_at: now(),
        kind: ArtifactKind::CompactZtoc {
            layer: compact.ztoc.layer_digest,
            span_size: compact.ztoc.span_size.map_or(0, ztoc::SpanSize::bytes),
        },
    }));
    artifacts.extend(prefetches(store, index.prefetch()).await);
    put_all(session, artifacts)
}

/// The records of prefetch artifacts that are there.
async fn prefetches(store: &dyn ContentStore, listed: &[PrefetchDescriptor]) -> Vec<Artifact> {
    let mut artifacts = Vec::new();
    for prefetch in listed {
        let bytes = store.get(&prefetch.digest, MAX_DOCUMENT_SIZE as u64).await;
        let Ok(Some(bytes)) = bytes else { continue };
        let Ok(list) = Prefetch::parse(&bytes) else {
            continue;
        };
        artifacts.push(Artifact {
            digest: prefetch.digest,
            size: prefetch.size,
            created_at: now(),
            kind: ArtifactKind::Prefetch {
                layer: prefetch.layer_digest,
                spans: list.span_count(),
            },
        });
    }
    artifacts
}

/// How many records are new.
fn put_all(session: &Session, artifacts: Vec<Artifact>) -> Result<usize> {
    let mut added = 0;
    for mut artifact in artifacts {
        match session.artifacts.get(&artifact.digest)? {
            // The newest index wins: its age is not to be forgotten.
            Some(known) => artifact.created_at = known.created_at,
            None => added += 1,
        }
        session.artifacts.put(&artifact)?;
    }
    Ok(added)
}

/// The images of containerd by what ties an index to them.
#[derive(Default)]
struct Images {
    by_manifest: HashMap<Digest, Vec<IndexedImage>>,
    by_index: HashMap<Digest, Vec<IndexedImage>>,
}

impl Images {
    async fn load(session: &Session, progress: &Progress) -> Result<Self> {
        let mut images = Self::default();
        for image in session.containerd.images().await? {
            let blobs = Blobs::Containerd(session.containerd.clone());
            match SourceImage::load(&image.name, &image.target, blobs).await {
                Ok(source) => images.add(&source).await?,
                Err(error) => progress.note(&format!(
                    "soci: warning: {error:#}; its indexes are recorded without it"
                )),
            }
        }
        Ok(images)
    }

    async fn add(&mut self, source: &SourceImage) -> Result<()> {
        for entry in &source.index.manifests {
            let Some(platform) = entry.platform.as_ref().map(Platform::normalized) else {
                continue;
            };
            let image = IndexedImage {
                target: source.target.digest,
                manifest: entry.digest,
                platform,
            };
            if let Some(bytes) = source.blobs.find_document(&entry.digest).await?
                && let Ok(manifest) = Manifest::parse(&bytes)
            {
                for key in [annotation::INDEX_DIGEST, annotation::COMPACT_INDEX_DIGEST] {
                    let index = manifest.annotations.get(key);
                    if let Some(Ok(index)) = index.map(|index| index.parse()) {
                        self.by_index.entry(index).or_default().push(image.clone());
                    }
                }
            }
            self.by_manifest
                .entry(entry.digest)
                .or_default()
                .push(image);
        }
        Ok(())
    }

    /// Those of the index `digest`, which has this subject.
    fn of(&self, digest: &Digest, subject: Option<&Digest>) -> Vec<IndexedImage> {
        let found = match subject {
            Some(subject) => self.by_manifest.get(subject),
            None => self.by_index.get(digest),
        };
        found.cloned().unwrap_or_default()
    }
}

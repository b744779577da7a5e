//! `soci create`: a v1 index for an image of containerd.

use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use daemon::artifacts::{Artifact, ArtifactKind, IndexedImage};
use daemon::containerd::{Containerd, Image};
use daemon::content::{ContentStore, Labels};
use daemon::registry;
use serde_json::json;
use ztoc::index::{
    CompactIndex, Descriptor, EMPTY_CONFIG, IndexError, OCI_MANIFEST, Platform, SociIndex, Subject,
};

use crate::blobs::Blobs;
use crate::image::{PlatformManifest, SourceImage};
use crate::layers::{LayerIndexer, now};
use crate::options::{BuildArguments, Globals, PlatformArguments};
use crate::progress::Progress;
use crate::session::{Session, leased};
use crate::wanted::{PrefetchArguments, Wanted};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Image in containerd
    image: String,
    #[command(flatten)]
    build: BuildArguments,
    #[command(flatten)]
    platforms: PlatformArguments,
    #[command(flatten)]
    prefetch: PrefetchArguments,
}

pub(crate) async fn run(globals: &Globals, arguments: Arguments) -> Result<()> {
    let wanted = arguments.prefetch.read()?;
    let session = Session::open(globals)?;
    let image = session.image(&arguments.image).await?;
    leased(&session.containerd, async |containerd| {
        let progress = Progress::new(globals.json);
        create(&session, containerd, &image, &arguments, &wanted, progress).await
    })
    .await
}

async fn create(
    session: &Session,
    containerd: &Containerd,
    image: &Image,
    arguments: &Arguments,
    wanted: &Wanted,
    progress: Progress,
) -> Result<()> {
    let blobs = Blobs::Containerd(containerd.clone());
    let source = SourceImage::load(&image.name, &image.target, blobs.clone()).await?;
    let store = session.store(containerd)?;
    let indexer = LayerIndexer {
        options: &arguments.build,
        blobs,
        stores: vec![Arc::clone(&store)],
        artifacts: Some(&session.artifacts),
        progress,
    };
    let mut labels = Labels::new();
    for platform in source.choose(&arguments.platforms)? {
        let manifest = source.manifest(&platform).await?;
        let indexes = Indexes::build(&indexer, &manifest, wanted, Some(subject(&manifest))).await;
        let indexes =
            indexes.with_context(|| format!("image {}, platform {platform}", image.name))?;
        if indexes.is_empty() {
            return Err(IndexError::Empty)
                .with_context(|| format!("image {}, platform {platform}", image.name));
        }
        for (index, event, suffix) in indexes.all() {
            let stored = store_index(&*store, &index).await?;
            indexer.progress.machine(&json!({
                "event": event, "image": image.name, "platform": platform.to_string(), "digest": stored.digest,
            }));
            session
                .artifacts
                .put(&record(&stored, &index, &source, &manifest))?;
            let label = format!("{}{suffix}", gc_label(&source, &platform));
            labels.insert(label, stored.digest.to_string());
        }
    }
    Ok(containerd.label_image(&image.name, labels).await?)
}

fn subject(manifest: &PlatformManifest) -> Subject {
    Subject {
        media_type: manifest.descriptor.media_type.clone(),
        digest: manifest.descriptor.digest,
        size: manifest.descriptor.size,
    }
}

/// The indexes of one manifest.
pub(crate) struct Indexes {
    pub(crate) soci: Option<SociIndex>,
    pub(crate) compact: Option<CompactIndex>,
}

/// An index of either form.
#[derive(Clone, Copy)]
pub(crate) enum Index<'a> {
    Soci(&'a SociIndex),
    Compact(&'a CompactIndex),
}

impl Indexes {
    /// Builds what the arguments want: v1 indexes of a subject, else v2. A form of which no layer has a zTOC is left out.
    pub(crate) async fn build(
        indexer: &LayerIndexer<'_>,
        manifest: &PlatformManifest,
        wanted: &Wanted,
        subject: Option<Subject>,
    ) -> Result<Self> {
        let indexed = indexer.index(&manifest.manifest).await?;
        let mut indexes = Self {
            soci: None,
            compact: None,
        };
        if !indexed.ztocs.is_empty() {
            let prefetch = indexer.prefetch(&indexed.ztocs, wanted, true).await?;
            indexes.soci = Some(match &subject {
                Some(subject) => SociIndex::v1(subject, indexed.ztocs, prefetch)?,
                None => SociIndex::v2(indexed.ztocs, prefetch)?,
            });
        }
        if !indexed.compact.is_empty() {
            let ztocs = indexed.compact.iter().map(|compact| &compact.ztoc);
            let told = indexes.soci.is_none();
            let prefetch = indexer.prefetch(ztocs, wanted, told).await?;
            indexes.compact = Some(CompactIndex::new(indexed.compact, prefetch, subject)?);
        }
        Ok(indexes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.soci.is_none() && self.compact.is_none()
    }

    /// What there is, the name of the event that says so, and what its label ends with.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Index<'_>, &'static str, &'static str)> {
        let soci = self
            .soci
            .iter()
            .map(|index| (Index::Soci(index), "index", ""));
        let compact = self.compact.iter();
        soci.chain(compact.map(|index| (Index::Compact(index), "compact_index", ".compact")))
    }
}

impl<'a> Index<'a> {
    fn parts(self) -> (Vec<u8>, &'a Descriptor, &'a [Descriptor]) {
        match self {
            Self::Soci(index) => (index.encode(), index.config(), index.blobs()),
            Self::Compact(index) => (index.encode(), index.config(), index.blobs()),
        }
    }

    /// Everything it lists.
    pub(crate) fn blobs(self) -> &'a [Descriptor] {
        self.parts().2
    }

    /// How it is stored.
    pub(crate) fn descriptor(self) -> registry::Descriptor {
        registry::Descriptor::of(OCI_MANIFEST, &self.parts().0)
    }
}

/// Stores an index and its config, labelled so that the index keeps its zTOCs from being
/// collected.
pub(crate) async fn store_index(
    store: &dyn ContentStore,
    index: &Index<'_>,
) -> Result<registry::Descriptor> {
    let (bytes, config, blobs) = index.parts();
    let config = registry::Descriptor::of(&config.media_type, EMPTY_CONFIG);
    store
        .put(&config, EMPTY_CONFIG.into(), &Labels::new())
        .await?;
    let descriptor = registry::Descriptor::of(OCI_MANIFEST, &bytes);
    let blobs = blobs.iter().enumerate().map(|(i, blob)| {
        let key = format!("containerd.io/gc.ref.content.ztoc.{i}");
        (key, blob.digest.to_string())
    });
    let config = (
        "containerd.io/gc.ref.content.config".to_owned(),
        config.digest.to_string(),
    );
    let labels: Labels = blobs.chain([config]).collect();
    store.put(&descriptor, bytes.into(), &labels).await?;
    Ok(descriptor)
}

/// The record of an index made for `source`.
pub(crate) fn record(
    stored: &registry::Descriptor,
    index: &Index<'_>,
    source: &SourceImage,
    manifest: &PlatformManifest,
) -> Artifact {
    let images = vec![IndexedImage {
        target: source.target.digest,
        manifest: manifest.descriptor.digest,
        platform: manifest.platform.clone(),
    }];
    Artifact {
        digest: stored.digest,
        size: stored.size,
        created_at: now(),
        kind: match index {
            Index::Soci(index) => ArtifactKind::Index {
                version: index.version(),
                images,
            },
            Index::Compact(_) => ArtifactKind::CompactIndex { images },
        },
    }
}

/// The image's label that keeps an index from being collected: one for each platform, else the
/// last index would be the only one that is safe. The host's has the name the original gives.
fn gc_label(source: &SourceImage, platform: &Platform) -> String {
    const LABEL: &str = "containerd.io/gc.ref.content.soci-index";
    if source.single || platform.matches(&Platform::host()) {
        LABEL.to_owned()
    } else {
        format!("{LABEL}.{}", platform.to_string().replace('/', "-"))
    }
}

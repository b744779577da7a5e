//! `soci create`: a v1 index for an image of containerd.

use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use daemon::artifacts::{Artifact, ArtifactKind, IndexedImage};
use daemon::containerd::{Containerd, Image};
use daemon::content::{ContentStore, Labels};
use daemon::registry;
use serde_json::json;
use ztoc::index::{EMPTY_CONFIG, OCI_MANIFEST, Platform, SociIndex, Subject};

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
        let index = async {
            let ztocs = indexer.ztocs(&manifest.manifest).await?;
            let prefetch = indexer.prefetch(&ztocs, wanted).await?;
            Ok::<_, anyhow::Error>(SociIndex::v1(&subject(&manifest), ztocs, prefetch)?)
        };
        let index = index.await;
        let index = index.with_context(|| format!("image {}, platform {platform}", image.name))?;
        let stored = store_index(&*store, &index).await?;
        indexer.progress.machine(&json!({
            "event": "index", "image": image.name, "platform": platform.to_string(), "digest": stored.digest,
        }));
        session
            .artifacts
            .put(&record(&stored, &index, &source, &manifest))?;
        labels.insert(gc_label(&source, &platform), stored.digest.to_string());
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

/// Stores an index and its config, labelled so that the index keeps its zTOCs from being
/// collected.
pub(crate) async fn store_index(
    store: &dyn ContentStore,
    index: &SociIndex,
) -> Result<registry::Descriptor> {
    let config = registry::Descriptor::of(index.version().artifact_type(), EMPTY_CONFIG);
    store
        .put(&config, EMPTY_CONFIG.into(), &Labels::new())
        .await?;
    let bytes = index.encode();
    let descriptor = registry::Descriptor::of(OCI_MANIFEST, &bytes);
    let blobs = index.blobs().iter().enumerate().map(|(i, blob)| {
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
    index: &SociIndex,
    source: &SourceImage,
    manifest: &PlatformManifest,
) -> Artifact {
    Artifact {
        digest: stored.digest,
        size: stored.size,
        created_at: now(),
        kind: ArtifactKind::Index {
            version: index.version(),
            images: vec![IndexedImage {
                target: source.target.digest,
                manifest: manifest.descriptor.digest,
                platform: manifest.platform.clone(),
            }],
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

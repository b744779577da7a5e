//! `soci convert`: an image whose manifests name their v2 index.

mod standalone;

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use daemon::artifacts::ArtifactKind;
use daemon::containerd::{Containerd, Image};
use daemon::content::{ContainerdStore, ContentStore, Labels};
use daemon::layout::LayoutFormat;
use daemon::registry::{self, Reference};
use serde_json::json;
use ztoc::index::{self, Conversion, Document, IndexedManifest};

use crate::blobs::Blobs;
use crate::create::{Indexes, record, store_index};
use crate::image::{PlatformManifest, SourceImage};
use crate::layers::LayerIndexer;
use crate::options::{BuildArguments, Globals, PlatformArguments, StoreChoice};
use crate::progress::Progress;
use crate::session::{Session, leased};
use crate::wanted::{PrefetchArguments, Wanted};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Image in containerd; with --standalone an OCI layout, directory or tar
    source: String,
    /// Name of the converted image, with a tag; with --standalone a file or directory
    destination: String,
    #[command(flatten)]
    build: BuildArguments,
    #[command(flatten)]
    platforms: PlatformArguments,
    #[command(flatten)]
    prefetch: PrefetchArguments,
    /// Work on files, without containerd
    #[arg(long)]
    standalone: bool,
    /// Form of the output of --standalone
    #[arg(
        long,
        value_enum,
        default_value = "oci-archive",
        requires = "standalone"
    )]
    format: Format,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// A tar of an OCI layout
    OciArchive,
    /// An OCI layout directory
    OciDir,
}

impl From<Format> for LayoutFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::OciArchive => Self::Archive,
            Format::OciDir => Self::Directory,
        }
    }
}

pub(crate) async fn run(globals: &Globals, arguments: Arguments) -> Result<()> {
    if arguments.standalone {
        return standalone::run(&arguments, globals.json).await;
    }
    let destination = destination(&arguments.destination)?;
    let wanted = arguments.prefetch.read()?;
    let session = Session::open(globals)?;
    let image = session.image(&arguments.source).await?;
    let soci_store = globals.content_store == StoreChoice::Soci;
    leased(&session.containerd, async |containerd| {
        let mut stores: Vec<Arc<dyn ContentStore>> =
            vec![Arc::new(ContainerdStore::new(containerd.clone()))];
        // The converted image refers to its artifacts, so containerd has them in any case.
        if soci_store {
            stores.push(session.store(containerd)?);
        }
        let source = load(containerd, &image).await?;
        let indexer = LayerIndexer {
            options: &arguments.build,
            blobs: source.blobs.clone(),
            stores,
            artifacts: Some(&session.artifacts),
            progress: Progress::new(globals.json),
        };
        let converted = convert(&source, &indexer, &arguments.platforms, &wanted).await?;
        let target = store(containerd, &converted.conversion).await?;
        remember(&session, &converted, &source)?;
        let line = format!("image {destination} -> {}", target.digest);
        let value = json!({"event": "image", "image": destination, "digest": target.digest});
        let image = Image {
            name: destination,
            target,
            labels: Labels::new(),
        };
        containerd.put_image(&image).await?;
        indexer.progress.result(&line, &value);
        Ok(())
    })
    .await
}

async fn load(containerd: &Containerd, image: &Image) -> Result<SourceImage> {
    let blobs = Blobs::Containerd(containerd.clone());
    SourceImage::load(&image.name, &image.target, blobs).await
}

/// The name of the new image: it must have a tag, and no digest (which is not known yet).
fn destination(name: &str) -> Result<String> {
    let reference: Reference = name.parse()?;
    let tagged = name
        .rsplit('/')
        .next()
        .is_some_and(|last| last.contains(':'));
    ensure!(
        reference.digest().is_none() && !name.contains('@'),
        "destination {name:?} must not have a digest"
    );
    ensure!(tagged, "destination {name:?} must have a tag");
    Ok(if name.contains('/') {
        name.to_owned()
    } else {
        reference.to_string()
    })
}

/// A converted image and where its indexes come from.
struct Converted {
    conversion: Conversion,
    indexed: Vec<(PlatformManifest, Indexes)>,
}

/// Builds the indexes of the chosen platforms, stores them and makes the new image.
async fn convert(
    source: &SourceImage,
    indexer: &LayerIndexer<'_>,
    platforms: &PlatformArguments,
    wanted: &Wanted,
) -> Result<Converted> {
    let mut indexed: Vec<(PlatformManifest, Indexes)> = Vec::new();
    for platform in source.choose(platforms)? {
        let manifest = source.manifest(&platform).await?;
        let same =
            |(it, _): &(PlatformManifest, _)| it.descriptor.digest == manifest.descriptor.digest;
        if indexed.iter().any(same) {
            continue;
        }
        let at = || format!("image {}, platform {platform}", source.name);
        let indexes = Indexes::build(indexer, &manifest, wanted, None).await;
        let indexes = indexes.with_context(at)?;
        if indexes.is_empty() {
            let note = format!("soci: {}: no layer has a zTOC; not converted", at());
            indexer.progress.note(&note);
            continue;
        }
        indexed.push((manifest, indexes));
    }
    if indexed.is_empty() {
        bail!(
            "image {}: empty index: no layer of any chosen platform has a zTOC",
            source.name
        );
    }
    for (index, ..) in indexed.iter().flat_map(|(_, indexes)| indexes.all()) {
        for store in &indexer.stores {
            store_index(&**store, &index).await?;
        }
    }
    let manifests = indexed.iter().map(|(manifest, indexes)| IndexedManifest {
        digest: manifest.descriptor.digest,
        manifest: manifest.manifest.clone(),
        platform: manifest.platform.clone(),
        index: indexes.soci.clone(),
        compact: indexes.compact.clone(),
    });
    let conversion = index::convert(source.index.clone(), manifests.collect())
        .with_context(|| format!("image {}", source.name))?;
    Ok(Converted {
        conversion,
        indexed,
    })
}

/// Stores manifests and image index in containerd, each labelled with what it refers to.
async fn store(containerd: &Containerd, conversion: &Conversion) -> Result<index::Descriptor> {
    let store = ContainerdStore::new(containerd.clone());
    for (document, manifest) in &conversion.manifests {
        let layers = manifest.layers.iter().enumerate();
        let layers = layers.map(|(i, layer)| (format!("l.{i}"), layer.digest));
        let config = [("config".to_owned(), manifest.config.digest)];
        put(&store, document, layers.chain(config)).await?;
    }
    let listed = conversion.image_index.manifests.iter().enumerate();
    let listed = listed.map(|(i, entry)| (format!("m.{i}"), entry.digest));
    put(&store, &conversion.index, listed).await?;
    Ok(conversion.index.descriptor.clone())
}

async fn put(
    store: &dyn ContentStore,
    document: &Document,
    children: impl Iterator<Item = (String, ztoc::Digest)>,
) -> Result<()> {
    let labels: Labels = children
        .map(|(name, digest)| {
            (
                format!("containerd.io/gc.ref.content.{name}"),
                digest.to_string(),
            )
        })
        .collect();
    let descriptor = registry::Descriptor::of(&document.descriptor.media_type, &document.bytes);
    let bytes = document.bytes.clone().into();
    Ok(store.put(&descriptor, bytes, &labels).await?)
}

/// Records the indexes under the new image: that is the one they can be found by.
fn remember(session: &Session, converted: &Converted, source: &SourceImage) -> Result<()> {
    let target = converted.conversion.index.descriptor.digest;
    let manifests = converted.conversion.manifests.iter();
    for ((manifest, indexes), (document, _)) in converted.indexed.iter().zip(manifests) {
        for (index, ..) in indexes.all() {
            let mut record = record(&index.descriptor(), &index, source, manifest);
            if let ArtifactKind::Index { images, .. } | ArtifactKind::CompactIndex { images } =
                &mut record.kind
            {
                for image in images {
                    image.target = target;
                    image.manifest = document.descriptor.digest;
                }
            }
            session.artifacts.put(&record)?;
        }
    }
    Ok(())
}

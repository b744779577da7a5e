//! Conversion of OCI layouts, without containerd.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use daemon::content::OciLayoutStore;
use daemon::layout::{Layout, LayoutWriter};
use serde_json::json;
use ztoc::Digest;
use ztoc::index::{
    Annotations, Descriptor, EMPTY_CONFIG, ImageIndex, Manifest, OCI_INDEX, is_image_index,
    is_manifest,
};

use super::{Arguments, Converted, convert};
use crate::blobs::Blobs;
use crate::image::SourceImage;
use crate::layers::LayerIndexer;
use crate::progress::Progress;

pub(super) async fn run(arguments: &Arguments, as_json: bool) -> Result<()> {
    let wanted = arguments.prefetch.read()?;
    let destination = PathBuf::from(&arguments.destination);
    let layout = Arc::new(Layout::open(Path::new(&arguments.source))?);
    let root = Root::find(&arguments.source, &layout).await?;
    let fresh = tempfile::Builder::new()
        .prefix("soci-convert-")
        .tempdir_in(scratch_parent(&destination))
        .context("cannot make a temporary directory; set TMPDIR to where there is room")?;
    let indexer = LayerIndexer {
        options: &arguments.build,
        blobs: root.image.blobs.clone(),
        stores: vec![Arc::new(OciLayoutStore::open_at(fresh.path())?)],
        artifacts: None,
        progress: Progress::new(as_json),
    };
    let converted = convert(&root.image, &indexer, &arguments.platforms, &wanted).await?;

    let mut target = converted.conversion.index.descriptor.clone();
    target.annotations = root.annotations;
    let contents = Contents::collect(&converted, &root.image).await?;
    let line = format!("image {} -> {}", destination.display(), target.digest);
    let value = json!({"event": "image", "image": destination, "digest": target.digest});
    let format = arguments.format.into();
    let write = move || -> Result<()> {
        let index = ImageIndex::new(vec![target]);
        let mut writer = LayoutWriter::create(&destination, format, &index)?;
        contents.write(&mut writer, fresh.path(), &layout)?;
        Ok(writer.finish()?)
    };
    tokio::task::spawn_blocking(write).await??;
    indexer.progress.result(&line, &value);
    Ok(())
}

/// `TMPDIR`, else beside the output, where there has to be room anyway.
fn scratch_parent(destination: &Path) -> PathBuf {
    if let Some(dir) = std::env::var_os("TMPDIR") {
        return dir.into();
    }
    match destination.parent() {
        Some(parent) if parent.is_dir() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The image of a layout.
struct Root {
    image: SourceImage,
    /// Annotations of its entry in `index.json`: its name.
    annotations: Annotations,
}

impl Root {
    /// The one entry of `index.json`; if there are several manifests they are the platforms of
    /// one image. Manifests that are not in the layout (of platforms that were not copied) are left
    /// out.
    async fn find(name: &str, layout: &Arc<Layout>) -> Result<Self> {
        let listed = layout.index()?;
        let blobs = Blobs::Layout(Arc::clone(layout));
        let (mut image, annotations) = match &listed.manifests[..] {
            [] => bail!("{name}: the layout holds no image"),
            [only] => {
                let image = SourceImage::load(name, only, blobs).await?;
                (image, only.annotations.clone())
            }
            several if several.iter().all(|entry| is_manifest(&entry.media_type)) => {
                (flat(name, listed, blobs), Annotations::new())
            }
            _ => bail!("{name}: the layout holds several images; copy out one of them first"),
        };
        image
            .index
            .manifests
            .retain(|entry| layout.has(&entry.digest));
        if image.index.manifests.is_empty() {
            bail!("{name}: none of the manifests that the image lists is in the layout");
        }
        Ok(Self { image, annotations })
    }
}

fn flat(name: &str, index: ImageIndex, blobs: Blobs) -> SourceImage {
    SourceImage {
        name: name.to_owned(),
        target: Descriptor::of(OCI_INDEX, &index.encode()),
        index,
        single: false,
        blobs,
    }
}

/// Everything the converted image refers to.
#[derive(Default)]
struct Contents {
    documents: BTreeMap<Digest, Vec<u8>>,
    /// Blobs that must be there.
    needed: BTreeMap<Digest, u64>,
    /// Blobs of platforms that were not converted: what the source lacks, the result may lack.
    optional: BTreeSet<Digest>,
}

impl Contents {
    async fn collect(converted: &Converted, source: &SourceImage) -> Result<Self> {
        let mut contents = Self::default();
        contents
            .documents
            .insert(Digest::of(EMPTY_CONFIG), EMPTY_CONFIG.to_vec());
        let conversion = &converted.conversion;
        let manifests = conversion.manifests.iter().map(|(document, _)| document);
        let documents = conversion.soci_indexes.iter().chain(manifests);
        for document in documents.chain([&conversion.index]) {
            contents
                .documents
                .insert(document.descriptor.digest, document.bytes.clone());
        }
        for (_, manifest) in &conversion.manifests {
            contents.need(manifest.layers.iter().chain([&manifest.config]));
        }
        for (index, ..) in converted
            .indexed
            .iter()
            .flat_map(|(_, indexes)| indexes.all())
        {
            contents.need(index.blobs());
        }
        for entry in &conversion.image_index.manifests {
            if !contents.documents.contains_key(&entry.digest) {
                contents.keep(entry, source).await?;
            }
        }
        Ok(contents)
    }

    fn need<'a>(&mut self, descriptors: impl IntoIterator<Item = &'a Descriptor>) {
        for descriptor in descriptors {
            // Foreign layers are fetched from their URLs and need not be in a layout.
            if descriptor.urls.is_empty() {
                self.needed.insert(descriptor.digest, descriptor.size);
            } else {
                self.optional.insert(descriptor.digest);
            }
        }
    }

    /// Keeps an entry that was not converted, with what it refers to.
    async fn keep(&mut self, entry: &Descriptor, source: &SourceImage) -> Result<()> {
        let Some(bytes) = source.blobs.find_document(&entry.digest).await? else {
            return Ok(());
        };
        if is_image_index(&entry.media_type) {
            let (name, digest) = (&source.name, entry.digest);
            bail!("image {name}: index {digest} within an index is not supported");
        }
        if let Ok(manifest) = Manifest::parse(&bytes) {
            let children = manifest.layers.iter().chain([&manifest.config]);
            self.optional.extend(children.map(|child| child.digest));
        }
        self.documents.insert(entry.digest, bytes.into());
        Ok(())
    }

    fn write(&self, writer: &mut LayoutWriter, fresh: &Path, layout: &Layout) -> Result<()> {
        for (digest, bytes) in &self.documents {
            writer.add_blob(digest, bytes.len() as u64, &bytes[..])?;
        }
        let optional = self.optional.iter().map(|digest| (digest, false));
        let needed = self.needed.keys().map(|digest| (digest, true));
        let blobs: BTreeMap<_, _> = optional.chain(needed).collect();
        for (digest, needed) in blobs {
            if self.documents.contains_key(digest) {
                continue;
            }
            let made = fresh.join("blobs/sha256").join(digest.hex());
            if let Ok(file) = File::open(&made) {
                writer.add_blob(digest, file.metadata()?.len(), file)?;
            } else if let Some(blob) = layout.open_blob(digest)? {
                writer.add_blob(digest, blob.size, blob)?;
            } else if needed {
                bail!("blob {digest}: not found in the layout");
            }
        }
        Ok(())
    }
}

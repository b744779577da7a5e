//! Images opened lazily by the CLI itself, without containerd and without the daemon.

mod blob;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::Args;
use daemon::content::OciLayoutStore;
use daemon::discovery::{Discovery, DiscoveryError, ImageQuery, Modes, SociIndex};
use daemon::layer::{BlobSource, Layer, LayerOptions, LayerStore, NewLayer};
use daemon::layout::Layout;
use daemon::registry::{Reference, Registry};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use ztoc::index::{Descriptor, Manifest, Platform, annotation};
use ztoc::{Digest, SpanSize};

use crate::blobs::Blobs;
use crate::image::SourceImage;
use crate::options::{PlatformArguments, RegistryArguments};
use crate::progress::Progress;

use self::blob::{BuiltLayer, FileSource};

/// Layers opened at a time.
const AT_A_TIME: usize = 4;
/// Larger zTOCs are not read.
const MAX_ZTOC_SIZE: u64 = 512 << 20;

#[derive(Debug, Args)]
pub(crate) struct ImageArguments {
    /// Image in a registry, or an OCI layout: a directory or tar
    #[arg(value_name = "IMAGE|LAYOUT")]
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) options: ImageOptions,
}

/// Which image of that name, and how to get at it.
#[derive(Debug, Args)]
pub(crate) struct ImageOptions {
    /// Platform of the image [default: the host's]
    #[arg(long, short, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// SOCI index to use instead of the one the image names
    #[arg(long, value_name = "DIGEST")]
    soci_index_digest: Option<Digest>,
    #[command(flatten)]
    registry: RegistryArguments,
}

/// Where an image is.
#[derive(Debug, Clone)]
enum Place {
    Registry(Registry, Reference),
    Layout(Arc<Layout>),
}

/// An image whose layers can be opened.
pub(crate) struct LazyImage {
    place: Place,
    blobs: Blobs,
    manifest: Manifest,
    index: Option<Arc<SociIndex>>,
    discovery: Discovery,
    store: LayerStore,
    state: PathBuf,
    progress: Progress,
    pub(crate) name: String,
}

impl LazyImage {
    /// Finds the image `name` and its index; what is fetched is kept in `state`.
    pub(crate) async fn find(
        name: &str,
        arguments: &ImageOptions,
        state: &Path,
        readahead: bool,
        progress: Progress,
    ) -> Result<Self> {
        let name = name.to_owned();
        let registry = Registry::new(arguments.registry.config()?)?;
        let (place, blobs, target) = if Path::new(&name).exists() {
            let layout = Arc::new(Layout::open(Path::new(&name))?);
            let listed = layout.index()?.manifests;
            ensure!(
                listed.len() == 1,
                "{name}: the layout holds {} images, not one",
                listed.len()
            );
            (
                Place::Layout(Arc::clone(&layout)),
                Blobs::Layout(layout),
                listed[0].clone(),
            )
        } else {
            let reference: Reference = name.parse()?;
            let resolved = registry.resolve(&reference).await?;
            let (media_type, digest) = (resolved.descriptor.media_type, resolved.descriptor.digest);
            let target = Descriptor::new(media_type, digest, resolved.bytes.len() as u64);
            let blobs = Blobs::Registry(registry.clone(), reference.clone());
            (Place::Registry(registry.clone(), reference), blobs, target)
        };
        let source = SourceImage::load(&name, &target, blobs.clone()).await?;
        let platforms = PlatformArguments {
            platforms: arguments.platform.clone().into_iter().collect(),
            all_platforms: false,
        };
        let platform = source.choose(&platforms)?.remove(0);
        let found = source.manifest(&platform).await?;
        let content = Arc::new(OciLayoutStore::open_at(&state.join("content"))?);
        let modes = Modes {
            v1: true,
            ..Modes::default()
        };
        let options = LayerOptions {
            readahead,
            fill: None,
            ..LayerOptions::default()
        };
        let runtime = tokio::runtime::Handle::current();
        let mut image = Self {
            discovery: Discovery::new(registry, content, modes),
            store: LayerStore::start(&state.join("layers"), options, runtime)?,
            state: state.to_owned(),
            index: None,
            manifest: found.manifest,
            place,
            blobs,
            progress,
            name,
        };
        image.index = image
            .find_index(found.descriptor.digest, arguments.soci_index_digest)
            .await;
        Ok(image)
    }

    /// The image's SOCI index; without one, layers are indexed here.
    async fn find_index(&self, manifest: Digest, wanted: Option<Digest>) -> Option<Arc<SociIndex>> {
        let found = match &self.place {
            Place::Registry(_, reference) => {
                let query = ImageQuery {
                    image: reference.clone(),
                    manifest: Some(manifest),
                    index: wanted,
                };
                match self.discovery.find(&query).await {
                    Err(DiscoveryError::NoIndex) => Ok(None),
                    found => found.map(Some).map_err(anyhow::Error::from),
                }
            }
            Place::Layout(_) => self
                .index_in_layout(wanted)
                .await
                .map(|it| it.map(Arc::new)),
        };
        match found {
            Ok(Some(index)) => return Some(index),
            Ok(None) => self
                .progress
                .note("soci: warning: the image has no SOCI index: its layers are read whole"),
            Err(error) => self.progress.note(&format!(
                "soci: warning: {error:#}; the image's layers are read whole"
            )),
        }
        None
    }

    async fn index_in_layout(&self, wanted: Option<Digest>) -> Result<Option<SociIndex>> {
        let named = self.manifest.annotations.get(annotation::INDEX_DIGEST);
        let digest = match (wanted, named) {
            (Some(digest), _) => digest,
            (None, Some(named)) => named.parse()?,
            (None, None) => return Ok(None),
        };
        let bytes = self.blobs.find_document(&digest).await?;
        let bytes = bytes.with_context(|| format!("SOCI index {digest}: not in the layout"))?;
        Ok(Some(SociIndex::parse(digest, &bytes)?))
    }

    /// The image's configuration, JSON.
    pub(crate) async fn config(&self) -> Result<bytes::Bytes> {
        self.blobs.document("config", &self.manifest.config).await
    }

    /// Opens all layers.
    pub(crate) async fn open_all(&self) -> Result<Opened> {
        let opening = stream::iter(0..self.layers())
            .map(|number| async move { anyhow::Ok((number, self.open(number).await?)) })
            .buffered(AT_A_TIME);
        opening.try_collect().await
    }

    /// How many layers there are.
    pub(crate) fn layers(&self) -> usize {
        self.manifest.layers.len()
    }

    /// The layer, counted from the bottom.
    pub(crate) async fn open(&self, number: usize) -> Result<Arc<Layer>> {
        let layer = &self.manifest.layers[number];
        let opened = self.open_layer(layer).await;
        opened.with_context(|| format!("layer {}", layer.digest))
    }

    async fn open_layer(&self, layer: &Descriptor) -> Result<Arc<Layer>> {
        let built = BuiltLayer::path(&self.state, &layer.digest);
        let listed = self
            .index
            .as_ref()
            .and_then(|index| index.forms(&layer.digest).into_iter().next());
        if self.store.stored(&layer.digest).is_none() {
            let (ztoc, bytes, size) = match (&listed, &self.place) {
                (Some(listed), Place::Registry(_, reference)) => {
                    let bytes = self.discovery.fetch_ztoc(reference, listed).await?;
                    (listed.ztoc, bytes, Some(layer.size))
                }
                (Some(listed), Place::Layout(layout)) => {
                    let bytes = layout.read_blob(&listed.ztoc, MAX_ZTOC_SIZE)?;
                    let bytes = bytes
                        .with_context(|| format!("zTOC {}: not in the layout", listed.ztoc))?;
                    (listed.ztoc, bytes.into(), Some(layer.size))
                }
                (None, _) => {
                    let fresh = self.build(layer, &built).await?;
                    (fresh.ztoc, fresh.bytes, None)
                }
            };
            let new = NewLayer {
                layer: layer.digest,
                size,
                ztoc,
                bytes,
                image: self.name.clone(),
            };
            self.store.insert(new).await?;
        }
        let source = self.source(layer, &built)?;
        let opened = self
            .store
            .open(&layer.digest, self.name.clone(), |_| source);
        Ok(opened.await?)
    }

    /// Where the bytes come from: the file made here, the layout, or the registry.
    fn source(&self, layer: &Descriptor, built: &Path) -> Result<Arc<dyn BlobSource>> {
        if built.exists() {
            return Ok(Arc::new(FileSource::open(built, 0)?));
        }
        Ok(match &self.place {
            Place::Registry(registry, reference) => {
                Arc::new(registry.blob(reference, &layer.digest, layer.size))
            }
            Place::Layout(layout) => {
                let (path, start) = layout
                    .locate(&layer.digest)
                    .context("not in the layout; was the image copied for this platform?")?;
                Arc::new(FileSource::open(&path, start)?)
            }
        })
    }

    /// Reads a layer without a zTOC whole, into a file, and indexes it.
    async fn build(&self, layer: &Descriptor, into: &Path) -> Result<BuiltLayer> {
        let label = format!("read {}", crate::progress::short(&layer.digest));
        let bar = self.progress.bytes(&label, layer.size);
        let reader = self.blobs.reader(&layer.digest, 0).await?;
        let (descriptor, into) = (layer.clone(), into.to_owned());
        let counted = bar.clone();
        let built = tokio::task::spawn_blocking(move || {
            BuiltLayer::make(&descriptor, reader, &into, SpanSize::DEFAULT, &counted)
        });
        let built = built.await;
        bar.done();
        built?
    }

    /// What the layers have fetched: requests, and compressed bytes.
    pub(crate) fn fetched(&self) -> (u64, u64) {
        let counters = self.store.counters();
        let numbers = counters
            .iter()
            .map(|(_, it)| (it.requests, it.bytes_fetched));
        numbers.fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1))
    }

    /// Ends all fetches.
    pub(crate) async fn stop(&self) {
        self.store.stop().await;
    }
}

/// Directory of what is fetched: the user's, kept; or a temporary one.
pub(crate) enum State {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

impl State {
    pub(crate) fn open(kept: Option<&Path>) -> Result<Self> {
        match kept {
            Some(path) => {
                std::fs::create_dir_all(path)
                    .with_context(|| format!("cannot make {}", path.display()))?;
                Ok(Self::Kept(path.to_owned()))
            }
            None => {
                let made = tempfile::Builder::new().prefix("soci-lazy-").tempdir();
                let made = made.context(
                    "cannot make a temporary directory; set TMPDIR to where there is room",
                );
                Ok(Self::Temporary(made?))
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(dir) => dir.path(),
        }
    }
}

/// Layers by number, bottom first.
pub(crate) type Opened = BTreeMap<usize, Arc<Layer>>;

/// The layers as a view wants them.
pub(crate) fn view_layers(opened: &Opened) -> Vec<fuse::Layer> {
    let layers = opened.values().map(|layer| fuse::Layer {
        tree: Arc::clone(layer.tree()),
        content: Arc::clone(layer) as Arc<dyn fuse::content::LayerContent>,
    });
    layers.collect()
}

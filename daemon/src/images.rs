//! How image layers come to be there: lazily by their zTOC, unpacked by us, or left to containerd.
//!
//! ```text
//! no index, lazy loading off, labels missing, index unusable  -> deferred: containerd pulls the image
//! no zTOC for the layer, below min_layer_size, zTOC unusable  -> unpacked by us, deferred if that fails
//! otherwise                                                   -> lazy
//! ```
//! An index that cannot be had is containerd's business, since then no layer is lazy and containerd
//! pulls all of them at once; a single layer that is not lazy is ours, since the first layer that we do not
//! provide makes containerd download all those above it.

mod manifest;
mod settings;
mod ztocs;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::Semaphore;
use tokio_util::io::ReaderStream;
use ztoc::Digest;

use self::manifest::Manifests;
use self::ztocs::Ztocs;
use crate::content::ContentStore;
use crate::discovery::{Discovery, ImageQuery};
use crate::layer::{BlobSource, Layer, LayerError, LayerStore};
use crate::registry::Registry;
use crate::snapshot::images::{
    Images, LayerRequest, LazyLayer, LazyRun, MountError, MountedView, NotLazy, Prepared,
};
use crate::snapshot::lowers::LowerDirs;
use crate::unpack::{Expected, unpack};
use crate::view::Views;

/// Limits of preparing layers.
#[derive(Debug, Clone)]
pub struct ImageOptions {
    /// Layers with fewer compressed bytes are not served lazily (`snapshotter.min_layer_size`).
    pub min_layer_size: u64,
    /// Longest time for finding out whether a layer can be lazy (`mount_timeout_sec`).
    pub prepare_timeout: Duration,
    /// Longest time for pulling and unpacking a layer.
    pub unpack_timeout: Duration,
    /// zTOCs of one image fetched ahead at a time.
    pub concurrent_ztocs: usize,
    /// Layers unpacked at a time.
    pub concurrent_unpacks: usize,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            min_layer_size: 0,
            prepare_timeout: Duration::from_secs(30),
            unpack_timeout: Duration::from_secs(2 * 3600),
            concurrent_ztocs: 8,
            concurrent_unpacks: 4,
        }
    }
}

/// Provides the layers of images.
#[derive(Debug)]
pub struct ImageLayers {
    options: ImageOptions,
    registry: Registry,
    content: Arc<dyn ContentStore>,
    discovery: Discovery,
    ztocs: Ztocs,
    manifests: Manifests,
    layers: LayerStore,
    views: Views,
    unpacks: Semaphore,
}

/// What layers are made with.
#[derive(Debug)]
pub struct Sources {
    /// Where images are.
    pub registry: Registry,
    /// SOCI artifacts that are here already.
    pub content: Arc<dyn ContentStore>,
    /// Finds an image's SOCI index.
    pub discovery: Discovery,
}

/// Why a layer is not lazy, and who should provide it.
enum Verdict {
    Unpack(NotLazy),
    Defer(NotLazy),
}

impl ImageLayers {
    /// Layers from `sources`, kept in `layers`, shown by `views`.
    pub fn new(sources: Sources, layers: LayerStore, views: Views, options: ImageOptions) -> Self {
        let Sources {
            registry,
            content,
            discovery,
        } = sources;
        Self {
            ztocs: Ztocs::new(
                discovery.clone(),
                Arc::clone(&content),
                layers.clone(),
                options.concurrent_ztocs,
            ),
            manifests: Manifests::new(registry.clone(), Arc::clone(&content)),
            unpacks: Semaphore::new(options.concurrent_unpacks.max(1)),
            options,
            registry,
            content,
            discovery,
            layers,
            views,
        }
    }

    /// The layers on this node, for metrics and inspection.
    pub fn layers(&self) -> &LayerStore {
        &self.layers
    }

    /// The mounted views, for inspection and shutdown.
    pub fn views(&self) -> &Views {
        &self.views
    }

    /// Goes on with the mounted views of the daemon before this one. Answers how many.
    ///
    /// # Errors
    /// The directory of views cannot be read.
    pub async fn adopt(&self) -> io::Result<usize> {
        let opener = self.opener();
        let opener = &opener;
        // No network: a daemon that starts must not depend on a registry.
        let open = |layer: LazyLayer| async move {
            let opened = opener.open_from_disk(&layer).await;
            let opened = opened.map_err(|error| failed(&layer, &error.to_string()))?;
            Ok(shown(opened))
        };
        self.views.adopt(open).await
    }

    fn opener(&self) -> Opener {
        Opener {
            registry: self.registry.clone(),
            layers: self.layers.clone(),
            ztocs: self.ztocs.clone(),
        }
    }

    /// Gives up all fetches. Views go on showing what is local.
    pub async fn stop(&self) {
        self.ztocs.stop().await;
        self.layers.stop().await;
    }

    async fn lazily(&self, request: &LayerRequest) -> Result<(), Verdict> {
        let minimum = self.options.min_layer_size;
        let small = |size: Option<u64>| size.is_some_and(|size| size < minimum);
        if small(request.size) {
            return Err(Verdict::Unpack(NotLazy::TooSmall));
        }
        let query = ImageQuery {
            image: request.image.clone(),
            manifest: request.manifest,
            index: request.index,
        };
        let found = self.discovery.find(&query).await;
        let index = found.map_err(|error| Verdict::Defer(error.into()))?;
        let ztoc = index.ztoc(&request.layer);
        let ztoc = ztoc.ok_or(Verdict::Unpack(NotLazy::NoZtoc))?;
        self.ztocs.fetch_ahead(&request.image, &index);
        let size = match request.size {
            Some(size) => Some(size),
            None => self.manifests.size(request).await,
        };
        if small(size) {
            return Err(Verdict::Unpack(NotLazy::TooSmall));
        }
        let stored = self.ztocs.ensure(&request.image, ztoc, size).await;
        stored.map_err(Verdict::Unpack)
    }

    /// Pulls the layer and unpacks it; `false` if that failed, which is logged.
    async fn unpack(&self, request: &LayerRequest, dir: &Path, parents: &LowerDirs) -> bool {
        let work = async {
            let _turn = self
                .unpacks
                .acquire()
                .await
                .map_err(|error| error.to_string())?;
            let parents = parents.paths().await.map_err(|error| error.to_string())?;
            self.unpack_from_somewhere(request, dir, parents).await
        };
        let limit = self.options.unpack_timeout;
        let done = tokio::time::timeout(limit, work).await;
        let failure = match done {
            Ok(Ok(())) => return true,
            Ok(Err(failure)) => failure,
            Err(_) => format!("it took longer than {limit:?}"),
        };
        tracing::warn!(
            layer = %request.layer, image = %request.image,
            "a layer cannot be pulled and unpacked here, containerd has to: {failure}"
        );
        false
    }

    async fn unpack_from_somewhere(
        &self,
        request: &LayerRequest,
        dir: &Path,
        parents: &[PathBuf],
    ) -> Result<(), String> {
        let expected = Expected {
            layer: request.layer,
            diff_id: self.manifests.diff_id(request).await,
        };
        if let Ok(Some(stored)) = self.content.open(&request.layer).await {
            let blob = ReaderStream::with_capacity(stored.bytes, 64 << 10);
            match unpack(blob, expected, dir, parents).await {
                Ok(()) => return Ok(()),
                Err(error) => tracing::warn!(
                    layer = %request.layer,
                    "the layer in the content store is unusable, it is pulled: {error}"
                ),
            }
        }
        let download = self.registry.download(&request.image, &request.layer);
        let blob: BoxStream<'static, io::Result<Bytes>> = download.into_stream().boxed();
        let unpacked = unpack(blob, expected, dir, parents).await;
        unpacked.map_err(|error| error.to_string())
    }
}

#[async_trait]
impl Images for ImageLayers {
    async fn prepare(&self, request: &LayerRequest, dir: &Path, parents: &LowerDirs) -> Prepared {
        let limit = self.options.prepare_timeout;
        let tried = tokio::time::timeout(limit, self.lazily(request)).await;
        let verdict = tried.unwrap_or_else(|_| {
            Err(Verdict::Defer(NotLazy::Artifact {
                detail: format!(
                    "no SOCI index and zTOC from {} within {limit:?}",
                    request.image.host()
                ),
            }))
        });
        match verdict {
            Ok(()) => Prepared::Lazy,
            Err(Verdict::Defer(reason)) => Prepared::Deferred { reason },
            Err(Verdict::Unpack(reason)) => match self.unpack(request, dir, parents).await {
                true => Prepared::Unpacked { reason },
                false => Prepared::Deferred { reason },
            },
        }
    }

    async fn mount(
        &self,
        run: &LazyRun,
        below: &[PathBuf],
    ) -> Result<Arc<dyn MountedView>, MountError> {
        let open = || {
            let opener = self.opener();
            let wanted = run.layers.clone();
            async move {
                let opened = wanted.iter().map(|layer| opener.open(layer));
                futures::future::try_join_all(opened).await
            }
        };
        self.views.mount(run, below, open).await
    }

    fn mounted(&self, run: &LazyRun, below: &[PathBuf]) -> Option<Arc<dyn MountedView>> {
        self.views.mounted(run, below)
    }

    fn settle(&self) {
        let unused = self.views.settle();
        if unused > 0 {
            tracing::info!(unused, "unmounting adopted views that no snapshot needs");
        }
    }

    async fn close(&self) {
        self.views.close().await;
    }

    async fn collect(&self, live: &BTreeSet<Digest>) {
        self.layers.retain(live).await;
    }
}

/// Opens the layers of a view.
struct Opener {
    registry: Registry,
    layers: LayerStore,
    ztocs: Ztocs,
}

impl Opener {
    /// From disk, without a network; only what is gone from disk is fetched again.
    async fn open(&self, wanted: &LazyLayer) -> Result<fuse::Layer, MountError> {
        let opened = match self.open_from_disk(wanted).await {
            Err(error) if repairable(&error) => {
                tracing::warn!(
                    layer = %wanted.digest, image = %wanted.image,
                    "a layer's zTOC must be fetched again: {error}"
                );
                let found = self.ztocs.recover(&wanted.image, &wanted.digest).await;
                found.map_err(|reason| failed(wanted, &format!("{error}; {reason}")))?;
                self.open_from_disk(wanted).await
            }
            opened => opened,
        };
        let layer = opened.map_err(|error| failed(wanted, &error.to_string()))?;
        Ok(shown(layer))
    }

    async fn open_from_disk(&self, wanted: &LazyLayer) -> Result<Arc<Layer>, LayerError> {
        let (image, digest) = (&wanted.image, &wanted.digest);
        let source = |size| {
            let blob = self.registry.blob(image, digest, size);
            Arc::new(blob) as Arc<dyn BlobSource>
        };
        self.layers.open(digest, image.to_string(), source).await
    }
}

/// A layer as a view shows it.
fn shown(layer: Arc<Layer>) -> fuse::Layer {
    fuse::Layer {
        tree: Arc::clone(layer.tree()),
        content: layer,
    }
}

fn repairable(error: &LayerError) -> bool {
    matches!(
        error,
        LayerError::Missing(_) | LayerError::Damaged { .. } | LayerError::Ztoc { .. }
    )
}

fn failed(wanted: &LazyLayer, detail: &str) -> MountError {
    MountError::Layer {
        layer: wanted.digest,
        image: wanted.image.to_string(),
        detail: detail.to_owned(),
    }
}

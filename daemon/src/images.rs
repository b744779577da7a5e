//! How image layers come to be there: lazily by their zTOC, pulled and unpacked by us, or left to
//! containerd.
//!
//! ```text
//! whole images wanted (`parallel_pull_unpack.enable`)          -> unpacked by us
//! no index, lazy loading off, index unusable                   -> the same, unless that is switched off
//! no zTOC for the layer, below min_layer_size, zTOC unusable   -> the same
//! labels missing, or we cannot unpack it                       -> deferred: containerd pulls the image
//! otherwise                                                    -> lazy
//! ```

mod manifest;
mod node_content;
mod prefetch;
mod pulls;
mod settings;
mod ztocs;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tracing::Instrument as _;
use ztoc::Digest;

use self::manifest::{KnownLayer, Manifests};
use self::prefetch::Prefetcher;
use self::pulls::Pulls;
use self::ztocs::Ztocs;
use crate::content::ContentStore;
use crate::discovery::{Discovery, ImageQuery, SociIndex};
use crate::layer::{BlobSource, Layer, LayerError, LayerStore};
use crate::registry::Registry;
use crate::snapshot::images::{
    Images, LayerRequest, LazyLayer, LazyRun, MountError, MountedView, NotLazy, Prepared,
};
use crate::snapshot::lowers::LowerDirs;
use crate::snapshot::record::Usage;
use crate::traces::step;
use crate::unpack::Unpacked;
use crate::view::Views;

pub use self::node_content::NodeContent;
pub use self::pulls::PullOptions;
pub use self::settings::reconfigure;
#[cfg(any(test, fuzzing))]
pub(crate) use self::{manifest::probe, prefetch::probe as probe_prefetch};

/// How long the end of the process waits for answers that cannot come later.
const FAREWELL: Duration = Duration::from_secs(5);

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
    /// Which images we pull and unpack whole.
    pub whole: WholeImages,
    /// How layers are pulled whole.
    pub pull: PullOptions,
    /// Whether prefetch artifacts are followed, and of how many images at a time.
    pub prefetch: Option<usize>,
}

/// Which images are pulled and unpacked by us instead of by containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WholeImages {
    /// None: only single layers of an image that is lazy otherwise.
    Never,
    /// Those that have no usable SOCI index (`experimental_parallel_pull_as_fallback`).
    Unindexed,
    /// All: nothing is lazy (`parallel_pull_unpack.enable`).
    All,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            min_layer_size: 0,
            prepare_timeout: Duration::from_secs(30),
            unpack_timeout: Duration::from_secs(2 * 3600),
            concurrent_ztocs: 8,
            whole: WholeImages::Unindexed,
            pull: PullOptions::default(),
            prefetch: None,
        }
    }
}

/// Provides the layers of images.
#[derive(Debug)]
pub struct ImageLayers {
    options: ImageOptions,
    registry: Registry,
    discovery: Discovery,
    ztocs: Ztocs,
    prefetcher: Option<Prefetcher>,
    manifests: Arc<Manifests>,
    pulls: Pulls,
    layers: LayerStore,
    views: Views,
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
    /// containerd's socket, if its content store may be used.
    pub containerd: Option<PathBuf>,
}

/// Why a layer is not lazy, and who should provide it.
enum Verdict {
    Unpack(NotLazy, Option<Arc<SociIndex>>),
    /// The image has no usable index: none of its layers is lazy.
    Whole(NotLazy),
    Defer(NotLazy),
}

impl ImageLayers {
    /// Layers from `sources`, kept in `layers`, shown by `views`, unpacked below `staging`, which is on
    /// the snapshots' file system.
    ///
    /// # Errors
    /// `staging` cannot be made.
    pub fn new(
        sources: Sources,
        layers: LayerStore,
        views: Views,
        staging: &Path,
        options: ImageOptions,
    ) -> io::Result<Self> {
        let Sources {
            registry,
            content,
            discovery,
            containerd,
        } = sources;
        let node = Arc::new(NodeContent::new(Arc::clone(&content), containerd));
        let pull = options.pull.clone();
        let ztocs = Ztocs::new(
            discovery.clone(),
            content,
            layers.clone(),
            options.concurrent_ztocs,
        );
        let prefetcher = options.prefetch.map(|at_once| {
            let (registry, discovery) = (registry.clone(), discovery.clone());
            Prefetcher::new(registry, discovery, ztocs.clone(), layers.clone(), at_once)
        });
        Ok(Self {
            ztocs,
            prefetcher,
            manifests: Arc::new(Manifests::new(registry.clone(), Arc::clone(&node))),
            pulls: Pulls::start(staging, registry.clone(), node, pull)?,
            options,
            registry,
            discovery,
            layers,
            views,
        })
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
        let adopted = self.views.adopt(open).await?;
        for (_, layers) in self.views.list() {
            self.layers.fill_up(&layers);
        }
        Ok(adopted)
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
        if let Some(prefetcher) = &self.prefetcher {
            prefetcher.stop().await;
        }
        self.ztocs.stop().await;
        self.pulls.stop().await;
        self.layers.stop().await;
    }

    async fn lazily(&self, request: &LayerRequest) -> Result<(), Verdict> {
        if self.options.whole == WholeImages::All {
            return Err(Verdict::Whole(NotLazy::Disabled));
        }
        if self.is_small(request.size) {
            return Err(Verdict::Unpack(NotLazy::TooSmall, None));
        }
        let query = ImageQuery {
            image: request.image.clone(),
            manifest: request.manifest,
            index: request.index,
        };
        let manifest = self.manifests.here(request);
        let found = self.discovery.find_with(&query, manifest);
        let found = found.instrument(step!("find index")).await;
        let index = found.map_err(|error| match error.into() {
            reason @ NotLazy::Labels { .. } => Verdict::Defer(reason),
            reason => Verdict::Whole(reason),
        })?;
        let unpack = |reason| Verdict::Unpack(reason, Some(Arc::clone(&index)));
        let forms = index.forms(&request.layer);
        if forms.is_empty() {
            return Err(unpack(NotLazy::NoZtoc));
        }
        self.ztocs.fetch_ahead(&request.image, &index);
        if let Some(prefetcher) = &self.prefetcher {
            prefetcher.begin(&request.image, &index);
        }
        let size = match request.size {
            Some(size) => Some(size),
            None => self.manifests.size(request).await,
        };
        if self.is_small(size) {
            return Err(unpack(NotLazy::TooSmall));
        }
        let layer = request.layer;
        let stored = self.ztocs.ensure(&request.image, layer, forms, size);
        stored.instrument(step!("zTOC")).await.map_err(unpack)
    }

    fn is_small(&self, size: Option<u64>) -> bool {
        size.is_some_and(|size| size < self.options.min_layer_size)
    }

    async fn provide(&self, request: &LayerRequest, dir: &Path, parents: &LowerDirs) -> Prepared {
        let limit = self.options.prepare_timeout;
        let tried = tokio::time::timeout(limit, self.lazily(request)).await;
        let verdict = tried.unwrap_or_else(|_| {
            Err(Verdict::Whole(NotLazy::Artifact {
                detail: format!(
                    "no SOCI index and zTOC from {} within {limit:?}",
                    request.image.host()
                ),
            }))
        });
        let (unpacked, reason) = match verdict {
            Ok(()) => {
                let (manifests, of) = (Arc::clone(&self.manifests), request.clone());
                let diff_id = async move { manifests.diff_id(&of).await };
                self.layers.expect(request.layer, diff_id);
                return Prepared::Lazy;
            }
            Err(Verdict::Defer(reason)) => (false, reason),
            Err(Verdict::Whole(reason)) => {
                let ours = self.options.whole != WholeImages::Never;
                let done = ours && self.unpack(request, dir, parents, |_| true).await;
                (done, reason)
            }
            Err(Verdict::Unpack(reason, index)) => {
                // Those above that will not be lazy either.
                let wanted = |layer: &KnownLayer| {
                    let known = |index: &Arc<SociIndex>| index.has(&layer.digest);
                    self.is_small(layer.size) || index.as_ref().is_some_and(|index| !known(index))
                };
                let done = self.unpack(request, dir, parents, wanted).await;
                (done, reason)
            }
        };
        match unpacked {
            true => Prepared::Unpacked { reason },
            false => Prepared::Deferred { reason },
        }
    }

    /// Pulls the layer and unpacks it into `dir`, and begins to pull those above that are `wanted`;
    /// `false` if that failed, which is logged.
    async fn unpack(
        &self,
        request: &LayerRequest,
        dir: &Path,
        parents: &LowerDirs,
        wanted: impl Fn(&KnownLayer) -> bool + Send,
    ) -> bool {
        let work = async {
            let layers = self.manifests.layers(request).await;
            let lowest = parents.is_empty();
            let unpacked = self.pulls.layer(request, layers, lowest, wanted).await?;
            move_to(unpacked, dir, parents).await
        };
        let limit = self.options.unpack_timeout;
        let work = work.instrument(step!("pull and unpack"));
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
}

/// Puts the layer in the place of `dir`.
async fn move_to(unpacked: Unpacked, dir: &Path, parents: &LowerDirs) -> Result<(), String> {
    let below = match unpacked.wants_parents() {
        true => parents.paths().await.map_err(|error| error.to_string())?,
        false => &[],
    };
    if unpacked.is_lowest() != parents.is_empty() {
        return Err(String::from(
            "it was unpacked for another place in the image",
        ));
    }
    let (dir, below) = (dir.to_owned(), below.to_vec());
    let moved = tokio::task::spawn_blocking(move || unpacked.move_to(&dir, &below)).await;
    match moved {
        Ok(moved) => moved.map_err(|error| error.to_string()),
        Err(ended) => Err(ended.to_string()),
    }
}

#[async_trait]
impl Images for ImageLayers {
    async fn prepare(&self, request: &LayerRequest, dir: &Path, parents: &LowerDirs) -> Prepared {
        // Layers above this one may be on their way: they are wanted as long as this one is.
        let pull = self.pulls.interest(request);
        let prepared = self.provide(request, dir, parents).await;
        if let Some(pull) = pull {
            pull.over();
        }
        prepared
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
        let view = self.views.mount(run, below, open);
        let view = view.instrument(step!("mount view", layers = run.layers.len()));
        let view = view.await?;
        let digests: Vec<Digest> = run.layers.iter().map(|layer| layer.digest).collect();
        self.layers.fill_up(&digests);
        Ok(view)
    }

    fn mounted(&self, run: &LazyRun, below: &[PathBuf]) -> Option<Arc<dyn MountedView>> {
        self.views.mounted(run, below)
    }

    fn usage(&self, layer: &Digest) -> std::io::Result<Usage> {
        self.layers.usage(layer)
    }

    fn settle(&self) {
        let unused = self.views.settle();
        if unused > 0 {
            tracing::info!(unused, "unmounting adopted views that no snapshot needs");
        }
    }

    async fn hand_over(&self) {
        if fuse::kernel_resends() {
            // What reads wait for ends with this process, which they are not to notice.
            self.views.withhold_failures();
        } else {
            let left = self.views.answered(FAREWELL).await;
            tracing::info!(
                unanswered = left,
                "waited for reads that the next process will not be asked for"
            );
        }
    }

    async fn close(&self) {
        self.views.close().await;
    }

    async fn collect(&self, live: &BTreeSet<Digest>) -> bool {
        self.layers.retain(live).await
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
        let layer = self.layers.open(digest, image.to_string(), source).await?;
        if let Some((ztoc, size)) = layer.compact_ztoc() {
            let windows = Arc::new(self.registry.blob(image, &ztoc, size));
            layer.add_window_source(image.to_string(), windows);
        }
        Ok(layer)
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
        LayerError::Missing(_)
            | LayerError::Damaged { .. }
            | LayerError::Ztoc { .. }
            | LayerError::Compact { .. }
    )
}

fn failed(wanted: &LazyLayer, detail: &str) -> MountError {
    MountError::Layer {
        layer: wanted.digest,
        image: wanted.image.to_string(),
        detail: detail.to_owned(),
    }
}

//! Whole layers: all of an image that are not lazy are pulled and unpacked ahead, several at a time.
//!
//! containerd asks for one layer after another, from the bottom. With the first, a pull of the image begins:
//! its layers are downloaded and unpacked beside the snapshots, in order, as many at a time as the
//! limits allow. Each `Prepare` then waits for its own and moves it into place.
//!
//! A pull lives as long as someone waits for it. When the last one gives up, what is under way ends;
//! what is finished is kept for a while, since the client will come back for it: also by the next daemon. On
//! a full disk it is not.

mod job;
mod leftovers;
mod pull;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use ztoc::Digest;

use self::leftovers::Leftovers;
use self::pull::{Pull, Waiting};
use super::manifest::KnownLayer;
use super::node_content::NodeContent;
use crate::registry::{Reference, Registry};
use crate::snapshot::images::LayerRequest;
use crate::unpack::Unpacked;

/// Limits of pulling whole layers.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// Bytes of one request (`concurrent_download_chunk_size`); `None`: a whole layer.
    pub chunk: Option<u64>,
    /// Requests at once (`max_concurrent_downloads`).
    pub downloads: usize,
    /// Requests at once for one image (`max_concurrent_downloads_per_image`).
    pub downloads_per_image: usize,
    /// Layers unpacked at once (`max_concurrent_unpacks`).
    pub unpacks: usize,
    /// Layers of one image unpacked at once (`max_concurrent_unpacks_per_image`).
    pub unpacks_per_image: usize,
    /// Layers are also written into containerd's content store (not `discard_unpacked_layers`).
    pub ingest: bool,
    /// How long a pull goes on that nobody waits for: containerd asks for the next layer at once, or was
    /// told to stop in between.
    pub idle: Duration,
    /// How long finished layers are kept that nobody waits for; those of an earlier daemon from the start on.
    pub keep: Duration,
}

impl Default for PullOptions {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            chunk: Some(4 << 20),
            downloads: 24,
            downloads_per_image: 12,
            unpacks: processors.max(2) + 2,
            unpacks_per_image: processors.max(2) + 1,
            ingest: false,
            idle: Duration::from_secs(5),
            keep: Duration::from_secs(300),
        }
    }
}

/// The pulls under way.
#[derive(Debug)]
pub(super) struct Pulls {
    shared: Arc<Shared>,
}

/// What all pulls have in common.
#[derive(Debug)]
struct Shared {
    options: PullOptions,
    registry: Registry,
    content: Arc<NodeContent>,
    /// Where layers are unpacked; empty when no pull is under way and nothing finished is kept.
    dir: PathBuf,
    leftovers: Arc<Leftovers>,
    /// Locked before a pull's own state.
    running: Mutex<HashMap<Key, Arc<Pull>>>,
    downloads: Arc<Semaphore>,
    unpacks: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// An image as it is pulled: namespace, host, repository, and the digest of the manifest, or of the only
/// layer that is known.
type Key = (String, String, String, Digest);

impl Pulls {
    /// Unpacks below `dir`, which is made if it is missing. What an earlier process has finished in it
    /// is used, the rest is removed in the background.
    pub(super) fn start(
        dir: &Path,
        registry: Registry,
        content: Arc<NodeContent>,
        options: PullOptions,
    ) -> io::Result<Self> {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let leftovers = Leftovers::start(dir, options.keep, &tasks, stop.clone())?;
        Ok(Self {
            shared: Arc::new(Shared {
                downloads: Arc::new(Semaphore::new(options.downloads.max(1))),
                unpacks: Arc::new(Semaphore::new(options.unpacks.max(1))),
                options,
                registry,
                content,
                dir: dir.to_owned(),
                leftovers,
                running: Mutex::new(HashMap::new()),
                tasks,
                stop,
            }),
        })
    }

    /// The layer of `request`, unpacked. `layers` are those of the image, lowest first, if they are
    /// known; with the one requested, those above it that are `wanted` are begun. Dropping the
    /// future gives the pull up, unless someone else waits for it.
    ///
    /// # Errors
    /// What failed, for the log.
    pub(super) async fn layer(
        &self,
        request: &LayerRequest,
        layers: Option<Vec<KnownLayer>>,
        lowest: bool,
        wanted: impl Fn(&KnownLayer) -> bool,
    ) -> Result<Unpacked, String> {
        let waiting = Pull::join(&self.shared, request, layers);
        let at = waiting.want(&request.layer, lowest, wanted)?;
        waiting.layer(at).await
    }

    /// The pull under way of the image of `request`, if there is one: it goes on while the answer is held, and ends with
    /// it unless that was [given up in peace](Waiting::over).
    pub(super) fn interest(&self, request: &LayerRequest) -> Option<Waiting> {
        Pull::running(&self.shared, request)
    }

    /// Gives everything up that is not finished, and waits until it is gone.
    pub(super) async fn stop(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

fn key(request: &LayerRequest, known: bool) -> Key {
    let image: &Reference = &request.image;
    let manifest = request.manifest.or_else(|| image.digest());
    let manifest = manifest.filter(|_| known);
    (
        request.namespace.clone(),
        image.host().to_owned(),
        image.repository().to_owned(),
        manifest.unwrap_or(request.layer),
    )
}

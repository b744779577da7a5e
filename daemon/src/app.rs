//! The daemon as a whole: built from its settings, serving until a signal, then drained.

mod activation;
pub mod heap;
pub mod root;
pub mod socket;
mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use self::activation::Passed;
use self::root::Root;
pub use self::socket::Address;
use crate::config::Config;
use crate::cri::ImageService;
use crate::error::chain;
use crate::metrics::{Metrics, MetricsServer};
use crate::snapshot::images::Images;
use crate::snapshot::service::Service;
use crate::snapshot::snapshotter::Snapshotter;
use crate::view::holder;
use crate::view::keeper::{self, Keep};

/// How long calls may take to finish once a signal came.
const DRAIN: Duration = Duration::from_secs(10);
/// How long unmounting everything may take.
const UNMOUNT: Duration = Duration::from_secs(30);

/// What comes from the command line.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where containerd calls.
    pub address: Address,
    /// Directory of all state.
    pub root: PathBuf,
}

/// The daemon, built and listening, not serving yet.
#[derive(Debug)]
pub struct App {
    snapshotter: Arc<Snapshotter>,
    listener: UnixListener,
    /// To be removed at the end, if it is ours.
    socket: Option<PathBuf>,
    metrics: Option<MetricsServer>,
    signals: Signals,
    root: Root,
    images: Option<ImageService>,
}

/// What SIGHUP asks for. Blocks on file I/O.
type Reload = Arc<dyn Fn() + Send + Sync>;

struct Signals {
    interrupt: Signal,
    hangup: Signal,
    terminate: Signal,
    reload: Option<Reload>,
}

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signals").finish_non_exhaustive()
    }
}

/// Why the daemon is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// Someone pressed Ctrl-C: nothing is left mounted.
    Interrupt,
    /// A service manager is about to start us again: mounts stay.
    Terminate,
}

impl App {
    /// Builds the daemon: claims the root, checks the system, opens the snapshots, listens.
    /// `images` provides layers; it is asked for once the root is ours.
    ///
    /// # Errors
    /// What is wrong with the system or the settings, and what to do.
    pub async fn build(
        settings: &Settings,
        config: &Config,
        images: impl AsyncFnOnce(&Root, &Arc<Metrics>, Arc<dyn Keep>) -> Result<Arc<dyn Images>>,
    ) -> Result<Self> {
        // First, so that no signal falls between.
        let signals = Signals::catch().context("cannot catch signals")?;
        let mut passed = Passed::take()?;
        if !config.skip_check_snapshotter_supported {
            support::check_rights()?;
        }
        let root = Root::claim(&settings.root)?;
        holder::raise_descriptor_limit();
        if !config.skip_check_snapshotter_supported {
            support::check(root.path())?;
        }
        let metrics = Arc::new(Metrics::new());
        let keeper = keeper::choose(root.path(), std::mem::take(&mut passed.views))
            .context("cannot have descriptors of mounts kept")?;
        let images = images(&root, &metrics, keeper).await?;
        let overlay = support::overlay_options();
        let mapped_by = support::mapped_by(config.snapshotter.map_ids);
        let shared = Arc::clone(&metrics);
        let snapshotter = Snapshotter::open(root.path(), images, overlay, mapped_by, shared)
            .with_context(|| format!("cannot open the snapshots in {}", root.path().display()))?;
        snapshotter.restore().await?;
        let metrics = MetricsServer::bind(config.metrics_address(), metrics).await?;
        let (listener, socket) = settings.address.listen(&mut passed)?;
        Ok(Self {
            snapshotter: Arc::new(snapshotter),
            listener,
            socket,
            metrics,
            signals,
            root,
            images: None,
        })
    }

    /// Has SIGHUP call `reload`, on a thread for blocking work.
    #[must_use]
    pub fn reloading(mut self, reload: impl Fn() + Send + Sync + 'static) -> Self {
        self.signals.reload = Some(Arc::new(reload));
        self
    }

    /// Serves the runtime interface's image service too, on the same socket.
    #[must_use]
    pub fn with_image_service(self, images: Option<ImageService>) -> Self {
        Self { images, ..self }
    }

    /// Serves until SIGINT (everything is unmounted) or SIGTERM (mounts stay).
    ///
    /// # Errors
    /// The server failed.
    pub async fn run(self) -> Result<()> {
        let Self {
            snapshotter,
            listener,
            socket,
            metrics,
            mut signals,
            root,
            images,
        } = self;
        let mut background = JoinSet::new();
        if let Some(metrics) = metrics {
            background.spawn(async { match metrics.serve().await {} });
        }
        background.spawn(clean_up(Arc::clone(&snapshotter)));
        let (stop, stopped) = oneshot::channel::<()>();
        let service = Service::server(Arc::clone(&snapshotter));
        let mut serving = tokio::spawn(
            Server::builder()
                .add_service(service)
                .add_optional_service(images)
                .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
                    // A sender that went away means the same.
                    let _ = stopped.await;
                }),
        );
        if !fuse::kernel_resends() {
            tracing::warn!(
                "this kernel is older than 6.9: a read that waits for the registry when this process is killed \
                 will not be answered by the next one"
            );
        }
        notify(&[sd_notify::NotifyState::Ready]);
        tracing::info!(root = %root.path().display(), "soci-snapshotter-grpc successfully started");
        let why = tokio::select! {
            why = signals.next() => why,
            ended = &mut serving => {
                ended.context("the gRPC server broke down")?.context("the gRPC server failed")?;
                anyhow::bail!("the gRPC server ended by itself");
            }
        };
        tracing::info!(reason = ?why, "stopping");
        notify(&[sd_notify::NotifyState::Stopping]);
        drop(stop);
        drain(serving, &mut signals).await;
        background.shutdown().await;
        finish(why, &snapshotter).await;
        if let Some(socket) = socket {
            // It is stale from here on; the next start would remove it as well.
            let _ = std::fs::remove_file(socket);
        }
        Ok(())
    }
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            reload: None,
        })
    }

    async fn next(&mut self) -> Stop {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return Stop::Interrupt,
                _ = self.terminate.recv() => return Stop::Terminate,
                // A terminal that is closed is no reason to end.
                _ = self.hangup.recv() => {
                    if let Some(reload) = self.reload.clone() {
                        tokio::task::spawn_blocking(move || reload());
                    }
                }
            }
        }
    }
}

/// Lets calls that are under way finish, for a while, or until a second signal.
async fn drain(
    mut serving: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
    signals: &mut Signals,
) {
    tokio::select! {
        ended = &mut serving => match ended {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "the gRPC server failed"),
            Err(error) => tracing::warn!(error = chain(&error), "the gRPC server broke down"),
        },
        () = tokio::time::sleep(DRAIN) => {
            tracing::warn!(seconds = DRAIN.as_secs(), "calls still under way are given up");
        }
        _ = signals.next() => tracing::warn!("calls under way are given up"),
    }
    serving.abort();
}

async fn finish(why: Stop, snapshotter: &Snapshotter) {
    match why {
        Stop::Terminate => snapshotter.abandon().await,
        Stop::Interrupt => match tokio::time::timeout(UNMOUNT, snapshotter.close()).await {
            Ok(Ok(())) => tracing::info!("everything is unmounted"),
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "could not unmount"),
            Err(_) => tracing::warn!(seconds = UNMOUNT.as_secs(), "unmounting takes too long"),
        },
    }
}

/// Takes away what an earlier process left, and later what could not be taken away at once.
async fn clean_up(snapshotter: Arc<Snapshotter>) {
    if let Err(error) = snapshotter.cleanup().await {
        tracing::warn!(error = chain(&error), "left-overs could not be cleaned up");
    }
    snapshotter.finish_cleanups().await;
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager could not be notified");
    }
}

//! Mounted views: one FUSE mount for each distinct run of lazy layers, shared by all who name it.
//!
//! Mount points are `<root>/<number>`. The last handle to go unmounts its view on a thread of the runtime's
//! blocking pool; an overlay that still uses it as a lowerdir is served until the kernel lets go.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use fuse::{MountOptions, Session, View};
use nix::mount::{MntFlags, umount2};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use ztoc::Digest;

use crate::registry::flight::Flights;
use crate::snapshot::images::{LazyRun, MountError, MountedView};

/// Most mounts taken off one mount point at start.
const MOST_STACKED: usize = 64;

/// The views that are mounted.
#[derive(Debug, Clone)]
pub struct Views {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    options: MountOptions,
    runtime: Handle,
    mounted: Mutex<HashMap<Key, Weak<Mounted>>>,
    mounting: Flights<Key, Result<Arc<Mounted>, Failed>>,
    last: AtomicU64,
    leaving: Arc<AtomicBool>,
}

/// What a view shows, and above which directories; the images its layers were prepared for do not matter.
type Key = (Vec<Digest>, Vec<PathBuf>);

/// A mounted view, seen from outside. Keeping it keeps the view's names in memory, not the mount.
#[derive(Debug, Clone)]
pub struct OpenView {
    /// Its number, the name of its mount point.
    pub id: u64,
    /// Where it is mounted.
    pub path: PathBuf,
    /// Bottom first.
    pub layers: Vec<Digest>,
    /// The lowerdirs below it, nearest first.
    pub below: Vec<PathBuf>,
    /// Names, counters and reads.
    pub inside: fuse::Inspection,
}

/// One mounted view.
#[derive(Debug)]
struct Mounted {
    path: PathBuf,
    /// Whose layers it shows, bottom first.
    layers: Vec<Digest>,
    /// `None` once it is being unmounted.
    session: Option<Session>,
    runtime: Handle,
    leaving: Arc<AtomicBool>,
}

/// [`MountError`] that can be given to several callers.
#[derive(Debug, Clone)]
enum Failed {
    Layers(Arc<MountError>),
    Kernel(PathBuf, Arc<io::Error>),
}

impl Views {
    /// The views under `root`, which is made if missing and cleared of what an earlier daemon left.
    /// Blocks on file I/O.
    pub fn start(root: &Path, options: MountOptions, runtime: Handle) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        sweep(root)?;
        Ok(Self {
            shared: Arc::new(Shared {
                root: root.to_owned(),
                options,
                runtime,
                mounted: Mutex::default(),
                mounting: Flights::new(),
                last: AtomicU64::new(0),
                leaving: Arc::default(),
            }),
        })
    }

    /// The view of `run` above the lowerdirs `below` (nearest first): the one there is, or a new one of the
    /// layers that `open` gives, bottom first.
    pub async fn mount<F>(
        &self,
        run: &LazyRun,
        below: &[PathBuf],
        open: impl FnOnce() -> F,
    ) -> Result<Arc<dyn MountedView>, MountError>
    where
        F: Future<Output = Result<Vec<fuse::Layer>, MountError>> + Send + 'static,
    {
        let key: Key = (
            run.layers.iter().map(|layer| layer.digest).collect(),
            below.to_owned(),
        );
        if let Some(mounted) = self.shared.find(&key) {
            return Ok(mounted);
        }
        let work = || {
            let (shared, key, layers) = (Arc::clone(&self.shared), key.clone(), open());
            async move {
                if let Some(mounted) = shared.find(&key) {
                    return Ok(mounted);
                }
                let layers = layers
                    .await
                    .map_err(|error| Failed::Layers(Arc::new(error)))?;
                shared.mount(key, layers).await
            }
        };
        let mounted = self.shared.mounting.join(key.clone(), work).await;
        mounted
            .map(|mounted| mounted as Arc<dyn MountedView>)
            .map_err(MountError::from)
    }

    /// From now on views stay mounted when their last handle goes: the daemon is about to be started again,
    /// and containers keep their root.
    pub fn leave_mounted(&self) {
        self.shared.leaving.store(true, Ordering::Release);
    }

    /// The mounted views, to be looked into.
    pub fn open(&self) -> Vec<OpenView> {
        let mounted = self.shared.mounted.lock();
        let alive = mounted
            .iter()
            .filter_map(|(key, view)| Some((key, view.upgrade()?)));
        alive
            .filter_map(|((_, below), view)| {
                let inside = view.session.as_ref()?.inspection().clone();
                Some(OpenView {
                    id: view.path.file_name()?.to_str()?.parse().ok()?,
                    path: view.path.clone(),
                    layers: view.layers.clone(),
                    below: below.clone(),
                    inside,
                })
            })
            .collect()
    }

    /// The mount points, and the layers that each shows.
    pub fn list(&self) -> Vec<(PathBuf, Vec<Digest>)> {
        let mounted = self.shared.mounted.lock();
        let alive = mounted.values().filter_map(Weak::upgrade);
        alive
            .map(|view| (view.path.clone(), view.layers.clone()))
            .collect()
    }
}

impl Shared {
    /// The mounted view of `key`, unless somebody else has unmounted it.
    fn find(&self, key: &Key) -> Option<Arc<Mounted>> {
        let mounted = self.mounted.lock().get(key)?.upgrade()?;
        let alive = mounted.session.as_ref().is_some_and(Session::is_alive);
        alive.then_some(mounted)
    }

    async fn mount(
        self: Arc<Self>,
        key: Key,
        layers: Vec<fuse::Layer>,
    ) -> Result<Arc<Mounted>, Failed> {
        let path = self
            .root
            .join((self.last.fetch_add(1, Ordering::Relaxed) + 1).to_string());
        let failed = |error: io::Error| Failed::Kernel(path.clone(), Arc::new(error));
        let (at, below, options) = (path.clone(), key.1.clone(), self.options.clone());
        let session = tokio::task::spawn_blocking(move || {
            let view = View::new(layers, !below.is_empty()).with_lower(&below)?;
            fs::create_dir(&at)?;
            fuse::mount(view, &at, &options).inspect_err(|_| {
                let _ = fs::remove_dir(&at);
            })
        });
        let session = session
            .await
            .map_err(|panic| failed(io::Error::other(panic)))?;
        let mounted = Arc::new(Mounted {
            layers: key.0.clone(),
            session: Some(session.map_err(failed)?),
            path,
            runtime: self.runtime.clone(),
            leaving: Arc::clone(&self.leaving),
        });
        let mut all = self.mounted.lock();
        all.retain(|_, view| view.strong_count() > 0);
        all.insert(key, Arc::downgrade(&mounted));
        Ok(mounted)
    }
}

impl MountedView for Mounted {
    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let (session, path) = (self.session.take(), std::mem::take(&mut self.path));
        if self.leaving.load(Ordering::Acquire) {
            return session.into_iter().for_each(Session::leave_mounted);
        }
        // Run in any case: a pool that has been shut down drops the closure, and with it the session.
        self.runtime.spawn_blocking(move || {
            drop(session);
            if let Err(error) = fs::remove_dir(&path) {
                tracing::warn!(path = %path.display(), "cannot remove an unmounted view's directory: {error}");
            }
        });
    }
}

impl From<Failed> for MountError {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Kernel(path, error) => Self::Kernel {
                path,
                source: again(&error),
            },
            Failed::Layers(error) => match Arc::try_unwrap(error) {
                Ok(error) => error,
                Err(shared) => copy(&shared),
            },
        }
    }
}

fn copy(error: &MountError) -> MountError {
    match error {
        MountError::Layer {
            layer,
            image,
            detail,
        } => MountError::Layer {
            layer: *layer,
            image: image.clone(),
            detail: detail.clone(),
        },
        MountError::Kernel { path, source } => MountError::Kernel {
            path: path.clone(),
            source: again(source),
        },
    }
}

fn again(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// Takes off the mounts of an earlier daemon, which answer ENOTCONN if it is dead, and removes
/// their mount points.
fn sweep(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        let unmounted = (0..MOST_STACKED).take_while(|_| umount2(&path, flags).is_ok());
        if unmounted.count() > 0 {
            tracing::info!(path = %path.display(), "unmounted a view of an earlier daemon");
        }
        if let Err(error) = fs::remove_dir(&path) {
            tracing::warn!(path = %path.display(), "cannot remove the mount point of an earlier view: {error}");
        }
    }
    Ok(())
}

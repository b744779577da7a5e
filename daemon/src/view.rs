//! Mounted views: one FUSE mount for each distinct run of lazy layers, shared by all who name it. A view that shows mapped ids
//! by itself is another one than that with the image's.
//!
//! Mount points are `<root>/<number>`. The last handle to go unmounts its view on a thread of the runtime's
//! blocking pool; an overlay that still uses it as a lowerdir is served until the kernel lets go.
//!
//! A view outlives the daemon, however that ends: beside each mount point lies a record, a
//! [`keeper`] has its descriptor, and the next daemon adopts it.

mod adoption;
pub mod holder;
pub mod keeper;
mod key;
mod record;
mod rights;
mod share;
mod sweep;
mod sync;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use fuse::{IdMapping, MountOptions, Passthrough, Session};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use ztoc::Digest;

use self::keeper::{Keep, Nobody};
use self::key::Key;
use self::record::ViewRecord;
#[cfg(any(test, fuzzing))]
pub(crate) use self::record::probe;
use self::share::Shares;
pub use self::sweep::unmount_all;
use crate::registry::flight::Flights;
use crate::snapshot::images::{LazyLayer, LazyRun, MountError, MountedView};

/// How soon it is noticed that a read was answered.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// The views that are mounted.
#[derive(Debug, Clone)]
pub struct Views {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    options: MountOptions,
    /// Files of at least so many bytes are read by the kernel itself in views that are mounted from now on; 0: none.
    passthrough: AtomicU64,
    /// Those that an earlier process left are held until the snapshots that need them have been given them.
    mounted: Shares<Key, Mounted>,
    mounting: Flights<Key, Result<Arc<Mounted>, Failed>>,
    last: AtomicU64,
    after: Arc<Afterwards>,
}

/// What views need when they go.
#[derive(Debug)]
struct Afterwards {
    keeper: Arc<dyn Keep>,
    runtime: Handle,
    /// Unmounts under way.
    unmounts: TaskTracker,
    leaving: AtomicBool,
}

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
    /// The users and groups that it shows instead of the image's.
    pub ids: Option<IdMapping>,
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
    after: Arc<Afterwards>,
}

/// [`MountError`] that can be given to several callers.
#[derive(Debug, Clone)]
enum Failed {
    Layers(Arc<MountError>),
    Kernel(PathBuf, Arc<io::Error>),
}

impl Views {
    /// The views under `root`, which is made if missing and cleared of what an earlier daemon left. Blocks on
    /// file I/O.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn start(root: &Path, options: MountOptions, runtime: Handle) -> io::Result<Self> {
        let views = Self::start_kept(root, options, runtime, Arc::new(Nobody))?;
        sweep::sweep(root)?;
        Ok(views)
    }

    /// The views under `root`, which is made if missing, with a `keeper` of their descriptors. What an
    /// earlier daemon left is there until it is [adopted](Self::adopt). Blocks on file I/O.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub fn start_kept(
        root: &Path,
        options: MountOptions,
        runtime: Handle,
        keeper: Arc<dyn Keep>,
    ) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        let last = sweep::numbers(root)?.last().copied().unwrap_or(0);
        Ok(Self {
            shared: Arc::new(Shared {
                root: root.to_owned(),
                options,
                passthrough: AtomicU64::new(0),
                mounted: Shares::new(),
                mounting: Flights::new(),
                last: AtomicU64::new(last),
                after: Arc::new(Afterwards {
                    keeper,
                    runtime,
                    unmounts: TaskTracker::new(),
                    leaving: AtomicBool::new(false),
                }),
            }),
        })
    }

    /// The kernel may read files of at least `min_size` bytes by itself, where it can, in views that are mounted from
    /// now on. Those that are adopted stay as they were mounted.
    #[must_use]
    pub fn passing_through(self, min_size: Option<u64>) -> Self {
        let min_size = min_size.unwrap_or(0);
        self.shared.passthrough.store(min_size, Ordering::Relaxed);
        self
    }

    /// Goes on with the views that an earlier daemon left, of the layers that `open` gives. To be called
    /// before anything is mounted. A view that cannot be adopted is reported and taken off. Those that
    /// are adopted stay until they have been [given](Self::mounted) to who needs them and then
    /// [settled](Self::settle). Answers how many they are.
    ///
    /// # Errors
    /// The directory of views cannot be read.
    pub async fn adopt<F>(&self, open: impl Fn(LazyLayer) -> F) -> io::Result<usize>
    where
        F: Future<Output = Result<fuse::Layer, MountError>>,
    {
        adoption::adopt(&self.shared, open).await
    }

    /// The view of `run` above the lowerdirs `below`, if it is mounted.
    pub fn mounted(&self, run: &LazyRun, below: &[PathBuf]) -> Option<Arc<dyn MountedView>> {
        let mounted = self.shared.find(&Key::of(run, below))?;
        Some(mounted)
    }

    /// Adopted views that nobody holds by now are unmounted. Answers how many.
    pub fn settle(&self) -> usize {
        self.shared.mounted.settle()
    }

    /// Waits until every view whose handles are gone is unmounted. If that leaves none, the keeper ends.
    pub async fn close(&self) {
        let after = &self.shared.after;
        after.unmounts.close();
        after.unmounts.wait().await;
        after.unmounts.reopen();
        if self.list().is_empty() {
            let keeper = Arc::clone(&after.keeper);
            // It ends in a moment or not at all; what is unmounted is unmounted.
            let _ = tokio::task::spawn_blocking(move || keeper.end()).await;
        }
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
        let key = Key::of(run, below);
        if let Some(mounted) = self.shared.find(&key) {
            return Ok(mounted);
        }
        let work = || {
            let (shared, key, layers) = (Arc::clone(&self.shared), key.clone(), open());
            let named = run.layers.clone();
            async move {
                if let Some(mounted) = shared.find(&key) {
                    return Ok(mounted);
                }
                let layers = layers
                    .await
                    .map_err(|error| Failed::Layers(Arc::new(error)))?;
                shared.mount(key, named, layers).await
            }
        };
        let mounted = self.shared.mounting.join(key.clone(), work).await;
        mounted
            .map(|mounted| mounted as Arc<dyn MountedView>)
            .map_err(MountError::from)
    }

    /// Waits until every read that has come is answered, but no longer than `limit`. Answers how many are not.
    pub async fn answered(&self, limit: Duration) -> u64 {
        let until = tokio::time::Instant::now() + limit;
        loop {
            let open = self.open();
            let left = open
                .iter()
                .map(|view| view.inside.counters.unanswered_reads());
            let left = left.sum();
            if left == 0 || tokio::time::Instant::now() >= until {
                return left;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// From now on a read that fails stays unanswered, for the next daemon to be asked again.
    pub fn withhold_failures(&self) {
        for (_, view) in self.shared.mounted.alive() {
            view.session.iter().for_each(Session::withhold_failures);
        }
    }

    /// From now on views stay mounted when their last handle goes: the daemon is about to be started again,
    /// and containers keep their root.
    pub fn leave_mounted(&self) {
        self.shared.after.leaving.store(true, Ordering::Release);
    }

    /// The mounted views, to be looked into.
    pub fn open(&self) -> Vec<OpenView> {
        let alive = self.shared.mounted.alive().into_iter();
        alive
            .filter_map(|(key, view)| {
                let inside = view.session.as_ref()?.inspection().clone();
                Some(OpenView {
                    id: view.path.file_name()?.to_str()?.parse().ok()?,
                    path: view.path.clone(),
                    layers: view.layers.clone(),
                    below: key.below,
                    ids: key.ids,
                    inside,
                })
            })
            .collect()
    }

    /// The mount points, and the layers that each shows.
    pub fn list(&self) -> Vec<(PathBuf, Vec<Digest>)> {
        let alive = self.shared.mounted.alive().into_iter();
        alive
            .map(|(_, view)| (view.path.clone(), view.layers.clone()))
            .collect()
    }
}

impl Shared {
    /// The mounted view of `key`, unless somebody else has unmounted it.
    fn find(&self, key: &Key) -> Option<Arc<Mounted>> {
        let mounted = self.mounted.find(key)?;
        let alive = mounted.session.as_ref().is_some_and(Session::is_alive);
        alive.then_some(mounted)
    }

    async fn mount(
        self: Arc<Self>,
        key: Key,
        named: Vec<LazyLayer>,
        layers: Vec<fuse::Layer>,
    ) -> Result<Arc<Mounted>, Failed> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let path = self.root.join(number.to_string());
        let failed = |error: io::Error| Failed::Kernel(path.clone(), Arc::new(error));
        let (at, of, this) = (path.clone(), key.clone(), Arc::clone(&self));
        let session = tokio::task::spawn_blocking(move || {
            let view = of.view(layers, &this.root)?;
            fs::create_dir(&at)?;
            let min_size = this.passthrough.load(Ordering::Relaxed);
            let options = this.options_at(&at, (min_size > 0).then_some(min_size));
            let mounted = fuse::mount(view, &at, &options).and_then(|session| {
                this.note(&session, &at, &named, &of)?;
                Ok(session)
            });
            mounted.inspect_err(|_| {
                // The failure that led here is the one to report.
                let _ = this.after.keeper.forget(&sweep::kept_name(&at));
                sweep::remove(&at);
            })
        });
        let session = session
            .await
            .map_err(|panic| failed(io::Error::other(panic)))?;
        Ok(self.publish(key, path.clone(), session.map_err(failed)?))
    }

    /// How the view at `path` is served.
    fn options_at(&self, path: &Path, passthrough: Option<u64>) -> MountOptions {
        let passthrough = passthrough.map(|min_size| Passthrough {
            min_size,
            opens: sweep::opens_path(path),
        });
        MountOptions {
            passthrough,
            ..self.options.clone()
        }
    }

    /// Has a view survive this process.
    fn note(
        &self,
        session: &Session,
        path: &Path,
        layers: &[LazyLayer],
        key: &Key,
    ) -> io::Result<()> {
        let keeper = &self.after.keeper;
        if let Err(error) = keeper.keep(&sweep::kept_name(path), session.descriptor()) {
            tracing::error!(
                path = %path.display(),
                "nobody keeps a view's descriptor, containers would not survive a crash: {error}"
            );
        }
        let (offer, device_number) = (session.offer(), session.device_number());
        let passthrough = session.passthrough().map(|large| large.min_size);
        let record = ViewRecord::new(layers, &key.below, offer, device_number)
            .passing_through(passthrough)
            .showing(key.ids.as_ref());
        record.write(&sweep::record_path(path))
    }

    /// Makes a mounted view known to those who ask for it.
    fn publish(&self, key: Key, path: PathBuf, session: Session) -> Arc<Mounted> {
        let mounted = Mounted {
            layers: key.layers.clone(),
            session: Some(session),
            path,
            after: Arc::clone(&self.after),
        };
        self.mounted.publish(key, mounted)
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
        if self.after.leaving.load(Ordering::Acquire) {
            return session.into_iter().for_each(Session::leave_mounted);
        }
        let after = Arc::clone(&self.after);
        let unmount = move || {
            drop(session);
            if let Err(error) = after.keeper.forget(&sweep::kept_name(&path)) {
                tracing::warn!(path = %path.display(), "an unmounted view's descriptor is still kept: {error}");
            }
            sweep::remove(&path);
        };
        // Run in any case: a pool that has been shut down drops the closure, and with it the session.
        let (unmounts, runtime) = (&self.after.unmounts, &self.after.runtime);
        unmounts.spawn_blocking_on(unmount, runtime);
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

#[cfg(test)]
mod tests;

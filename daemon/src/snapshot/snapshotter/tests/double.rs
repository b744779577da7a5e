//! Images that do as they are told, with views that are plain directories.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use ztoc::Digest;

use crate::snapshot::images::{
    Images, LayerRequest, LazyRun, MountError, MountedView, NotLazy, Prepared,
};
use crate::snapshot::lowers::LowerDirs;

#[derive(Debug, Clone, Copy)]
pub(super) enum Outcome {
    Lazy,
    Unpacked,
    Deferred,
}

#[derive(Debug)]
pub(super) struct Scripted {
    views: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    outcome: Outcome,
    pause: Duration,
    broken: bool,
    prepared: usize,
    live: BTreeSet<Digest>,
    busy: usize,
    mounted: HashMap<LazyRun, Weak<View>>,
}

#[derive(Debug)]
struct View(PathBuf);

impl MountedView for View {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Scripted {
    pub(super) fn new(outcome: Outcome, views: PathBuf) -> Self {
        Self {
            views,
            state: Mutex::new(State {
                outcome,
                pause: Duration::ZERO,
                broken: false,
                prepared: 0,
                live: BTreeSet::new(),
                busy: 0,
                mounted: HashMap::new(),
            }),
        }
    }

    pub(super) fn set(&self, outcome: Outcome) {
        self.state.lock().outcome = outcome;
    }

    pub(super) fn slow_down(&self, pause: Duration) {
        self.state.lock().pause = pause;
    }

    pub(super) fn break_mounts(&self, broken: bool) {
        self.state.lock().broken = broken;
    }

    /// Layers asked for.
    pub(super) fn prepared(&self) -> usize {
        self.state.lock().prepared
    }

    /// What the last collection was told to spare.
    /// So many collections find what is in use, but for the last.
    pub(super) fn be_busy(&self, collections: usize) {
        self.state.lock().busy = collections;
    }

    pub(super) fn busy(&self) -> usize {
        self.state.lock().busy
    }

    pub(super) fn live(&self) -> BTreeSet<Digest> {
        self.state.lock().live.clone()
    }

    /// Views that someone holds.
    pub(super) fn mounted(&self) -> usize {
        let state = self.state.lock();
        let held = |view: &&Weak<View>| view.strong_count() > 0;
        state.mounted.values().filter(held).count()
    }

    /// The layers of all views there ever were, bottom first.
    pub(super) fn runs(&self) -> Vec<Vec<Digest>> {
        let state = self.state.lock();
        let digests = |run: &LazyRun| run.layers.iter().map(|layer| layer.digest).collect();
        state.mounted.keys().map(digests).collect()
    }
}

#[async_trait]
impl Images for Scripted {
    async fn prepare(&self, _: &LayerRequest, dir: &Path, _: &LowerDirs) -> Prepared {
        let (outcome, pause) = {
            let mut state = self.state.lock();
            state.prepared += 1;
            (state.outcome, state.pause)
        };
        tokio::time::sleep(pause).await;
        let reason = NotLazy::NoZtoc;
        match outcome {
            Outcome::Lazy => Prepared::Lazy,
            Outcome::Deferred => Prepared::Deferred { reason },
            Outcome::Unpacked => {
                std::fs::write(dir.join("unpacked"), [1; 4096]).unwrap();
                Prepared::Unpacked { reason }
            }
        }
    }

    async fn mount(
        &self,
        run: &LazyRun,
        _: &[PathBuf],
    ) -> Result<Arc<dyn MountedView>, MountError> {
        let mut state = self.state.lock();
        if state.broken {
            return Err(MountError::Kernel {
                path: self.views.clone(),
                source: std::io::Error::other("broken"),
            });
        }
        if let Some(view) = state.mounted.get(run).and_then(Weak::upgrade) {
            return Ok(view);
        }
        let path = self.views.join(run.layers[0].digest.hex());
        std::fs::create_dir_all(&path).unwrap();
        let view = Arc::new(View(path));
        state.mounted.insert(run.clone(), Arc::downgrade(&view));
        Ok(view)
    }

    async fn collect(&self, live: &BTreeSet<Digest>) -> bool {
        let mut state = self.state.lock();
        state.live.clone_from(live);
        state.busy = state.busy.saturating_sub(1);
        state.busy > 0
    }
}

//! The pull of one image.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use ztoc::Digest;

use super::super::manifest::KnownLayer;
use super::{Key, Shared, key};
use crate::registry::Reference;
use crate::snapshot::images::LayerRequest;
use crate::unpack::{UnpackError, Unpacked};

/// As good as never.
const LONG: Duration = Duration::from_secs(1 << 30);

/// An image whose layers are being pulled. Its task begins layers as their turn comes, and takes the pull out of
/// the running ones when nobody has wanted it for long enough.
#[derive(Debug)]
pub(super) struct Pull {
    key: Key,
    pub(super) image: Reference,
    pub(super) namespace: String,
    layers: Vec<KnownLayer>,
    pub(super) downloads: Arc<Semaphore>,
    /// Requests for one layer at a time: an equal share of `downloads`, so that no layer waits for
    /// those above it.
    pub(super) ahead: Arc<AtomicUsize>,
    unpacks: Arc<Semaphore>,
    state: Mutex<State>,
    /// After every change of `state` that someone may wait for.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// One for each layer.
    jobs: Vec<Job>,
    /// Layers to be begun.
    queue: VecDeque<usize>,
    waiters: usize,
    /// Since when there is no waiter, if there is none.
    idle_since: Instant,
    /// The layer that failed: containerd pulls those above it by itself.
    failed: Option<usize>,
    /// It failed because the disk is full: what is finished is no use there.
    no_room: bool,
}

enum Job {
    /// Nobody wants it, or it is with whoever wanted it.
    None,
    Queued {
        lowest: bool,
    },
    Running(CancellationToken),
    Done(Unpacked),
    Failed(String),
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Queued { .. } => "Queued",
            Self::Running(_) => "Running",
            Self::Done(_) => "Done",
            Self::Failed(_) => "Failed",
        })
    }
}

/// Someone who waits for a layer of a pull, or for another layer of its image.
pub(in super::super) struct Waiting {
    pull: Arc<Pull>,
    /// It has what it waited for, or knows why not.
    answered: bool,
}

impl Pull {
    /// Waits with others for the image of `request`; its pull begins if it is not under way.
    pub(super) fn join(
        shared: &Arc<Shared>,
        request: &LayerRequest,
        layers: Option<Vec<KnownLayer>>,
    ) -> Waiting {
        let key = key(request, layers.is_some());
        let layers = layers.unwrap_or_else(|| vec![KnownLayer::unknown(request.layer)]);
        let mut running = shared.running.lock();
        let pull = match running.get(&key) {
            Some(pull) => Arc::clone(pull),
            None => {
                let pull = Arc::new(Self::new(shared, key.clone(), request, layers));
                running.insert(key, Arc::clone(&pull));
                let (pull_task, shared_task) = (Arc::clone(&pull), Arc::clone(shared));
                shared
                    .tasks
                    .spawn(async move { pull_task.drive(&shared_task).await });
                pull
            }
        };
        Waiting::new(pull)
    }

    /// Waits for whatever the pull under way of an image brings.
    pub(super) fn running(shared: &Shared, request: &LayerRequest) -> Option<Waiting> {
        let running = shared.running.lock();
        let pull = running.get(&key(request, true))?;
        Some(Waiting::new(Arc::clone(pull)))
    }

    fn new(shared: &Shared, key: Key, request: &LayerRequest, layers: Vec<KnownLayer>) -> Self {
        let semaphore = |permits: usize| Arc::new(Semaphore::new(permits.max(1)));
        Self {
            key,
            image: request.image.clone(),
            namespace: request.namespace.clone(),
            state: Mutex::new(State {
                jobs: layers.iter().map(|_| Job::None).collect(),
                queue: VecDeque::new(),
                waiters: 0,
                idle_since: Instant::now(),
                failed: None,
                no_room: false,
            }),
            layers,
            downloads: semaphore(shared.options.downloads_per_image),
            ahead: Arc::new(AtomicUsize::new(1)),
            unpacks: semaphore(shared.options.unpacks_per_image),
            changed: Notify::new(),
        }
    }

    /// Begins layers and ends the pull, until it is over.
    async fn drive(self: Arc<Self>, shared: &Arc<Shared>) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (queued, deadline) = {
                let state = self.state.lock();
                (!state.queue.is_empty(), state.deadline(shared))
            };
            tokio::select! {
                biased;
                () = shared.stop.cancelled() => break,
                () = tokio::time::sleep_until(deadline) => {
                    if self.expire(shared) {
                        break;
                    }
                }
                turn = self.turn(shared), if queued => self.begin(shared, turn),
                () = changed => {}
            }
        }
        let left = self.state.lock().clear();
        if shared.stop.is_cancelled() {
            left.into_iter().for_each(Unpacked::leave);
        } else {
            shared.tasks.spawn_blocking(move || drop(left));
        }
        // Whoever waits still learns that it is over.
        self.changed.notify_waiters();
    }

    async fn turn(&self, shared: &Shared) -> Vec<OwnedSemaphorePermit> {
        let mut permits = Vec::with_capacity(2);
        for semaphore in [&self.unpacks, &shared.unpacks] {
            // Nobody closes it.
            permits.extend(Arc::clone(semaphore).acquire_owned().await.ok());
        }
        permits
    }

    /// Begins the layer that is next.
    fn begin(self: &Arc<Self>, shared: &Arc<Shared>, turn: Vec<OwnedSemaphorePermit>) {
        let cancel = shared.stop.child_token();
        let mut state = self.state.lock();
        let Some(at) = state.queue.pop_front() else {
            return;
        };
        let running = Job::Running(cancel.clone());
        let Job::Queued { lowest } = std::mem::replace(&mut state.jobs[at], running) else {
            state.jobs[at] = Job::None;
            return;
        };
        self.share_out(shared, &state);
        drop(state);
        let (pull, context) = (Arc::clone(self), Arc::clone(shared));
        shared.tasks.spawn(async move {
            let done = tokio::select! {
                biased;
                () = cancel.cancelled() => None,
                done = context.pull(&pull, &pull.layers[at], lowest) => Some(done),
            };
            drop(turn);
            if let Some(done) = done {
                pull.end(&context, at, &cancel, done);
            }
        });
    }

    fn share_out(&self, shared: &Shared, state: &State) {
        let under_way = state.unfinished().min(shared.options.unpacks_per_image);
        let fair = shared.options.downloads_per_image / under_way.max(1);
        self.ahead.store(fair, Ordering::Relaxed);
    }

    fn end(
        &self,
        shared: &Shared,
        at: usize,
        cancel: &CancellationToken,
        done: Result<Unpacked, UnpackError>,
    ) {
        let mut state = self.state.lock();
        // Cancelling and forgetting a job are one step.
        if cancel.is_cancelled() {
            drop(state);
            shared.tasks.spawn_blocking(move || drop(done));
            return;
        }
        match done {
            Ok(unpacked) => state.jobs[at] = Job::Done(unpacked),
            Err(error) => {
                state.jobs[at] = Job::Failed(error.to_string());
                state.failed = Some(at);
                state.no_room = error.is_for_want_of_room();
                state.cancel_above(at);
            }
        }
        self.share_out(shared, &state);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Ends what nobody has waited for lately; whether that is all there was.
    fn expire(&self, shared: &Shared) -> bool {
        let mut running = shared.running.lock();
        let mut state = self.state.lock();
        if state.deadline(shared) > Instant::now() {
            return false;
        }
        if state.unfinished() > 0 {
            state.cancel_above(0);
            return false;
        }
        running.remove(&self.key);
        true
    }
}

impl State {
    /// When it is time to look whether the pull is wanted still.
    fn deadline(&self, shared: &Shared) -> Instant {
        let kept = || self.jobs.iter().any(|job| matches!(job, Job::Done(_)));
        let after = match self.waiters {
            0 if self.unfinished() > 0 || self.no_room => shared.options.idle,
            0 if kept() || self.failed.is_some() => shared.options.keep,
            0 => Duration::ZERO,
            _ => LONG,
        };
        self.idle_since + after
    }

    fn unfinished(&self) -> usize {
        let unfinished = |job: &&Job| matches!(job, Job::Queued { .. } | Job::Running(_));
        self.jobs.iter().filter(unfinished).count()
    }

    /// Gives up what is not finished of the layers from `at` on.
    fn cancel_above(&mut self, at: usize) {
        for job in &mut self.jobs[at..] {
            match job {
                Job::Running(cancel) => cancel.cancel(),
                Job::Queued { .. } => {}
                _ => continue,
            }
            *job = Job::None;
        }
        let jobs = &self.jobs;
        self.queue
            .retain(|queued| matches!(jobs[*queued], Job::Queued { .. }));
    }

    /// Gives up everything; what was finished is the caller's to leave, or to drop, which blocks.
    fn clear(&mut self) -> Vec<Unpacked> {
        self.cancel_above(0);
        let over = |job| {
            let over = Job::Failed(String::from("the pull is over"));
            match std::mem::replace(job, over) {
                Job::Done(unpacked) => Some(unpacked),
                _ => None,
            }
        };
        self.jobs.iter_mut().filter_map(over).collect()
    }

    /// The position of a layer: an image may have it several times, and takes one after the other.
    fn position(&self, layers: &[KnownLayer], digest: &Digest) -> Option<usize> {
        let mut all = layers.iter().enumerate();
        let is_it = |(_, layer): &(usize, &KnownLayer)| layer.digest == *digest;
        let mut same = all.by_ref().filter(is_it).map(|(at, _)| at);
        let first = same.next()?;
        let ready = |at: &usize| !matches!(self.jobs[*at], Job::None);
        std::iter::once(first)
            .chain(same)
            .find(ready)
            .or(Some(first))
    }

    fn queue(&mut self, at: usize, lowest: bool) {
        if matches!(self.jobs[at], Job::None) {
            self.jobs[at] = Job::Queued { lowest };
            self.queue.push_back(at);
        }
    }
}

impl Waiting {
    fn new(pull: Arc<Pull>) -> Self {
        pull.state.lock().waiters += 1;
        Self {
            pull,
            answered: false,
        }
    }

    /// Nobody gives up: the client will ask for more.
    pub(in super::super) fn over(mut self) {
        self.answered = true;
    }

    /// Has the layer begun, and those above it that are `wanted`; where it is in the image.
    pub(super) fn want(
        &self,
        layer: &Digest,
        lowest: bool,
        wanted: impl Fn(&KnownLayer) -> bool,
    ) -> Result<usize, String> {
        let pull = &self.pull;
        let mut state = pull.state.lock();
        let at = state.position(&pull.layers, layer);
        let at = at.ok_or("the image's manifest does not have the layer")?;
        // What failed ahead is told once, and tried anew by the next who asks.
        match (state.failed, &state.jobs[at]) {
            (Some(failed), Job::None) if at > failed => {
                return Err(String::from("a layer below it failed"));
            }
            (Some(_), Job::None) => (state.failed, state.no_room) = (None, false),
            _ => {}
        }
        state.queue(at, lowest);
        for (above, layer) in pull.layers.iter().enumerate().skip(at + 1) {
            if wanted(layer) && state.failed.is_none() {
                state.queue(above, false);
            }
        }
        // Whoever waits is served first.
        if let Some(place) = state.queue.iter().position(|queued| *queued == at) {
            state.queue.remove(place);
            state.queue.push_front(at);
        }
        drop(state);
        pull.changed.notify_waiters();
        Ok(at)
    }

    /// Waits for the layer at `at`.
    pub(super) async fn layer(mut self, at: usize) -> Result<Unpacked, String> {
        loop {
            let changed = self.pull.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(answer) = self.pull.state.lock().answer(at) {
                self.answered = true;
                return answer;
            }
            changed.await;
        }
    }
}

impl State {
    /// What came of a layer, if it is over. It is given away only once.
    fn answer(&mut self, at: usize) -> Option<Result<Unpacked, String>> {
        match std::mem::replace(&mut self.jobs[at], Job::None) {
            Job::Done(unpacked) => Some(Ok(unpacked)),
            Job::Failed(reason) => Some(Err(reason)),
            // Given to someone else, or given up with a layer below it.
            Job::None => Some(Err(String::from("another pull of the image took it"))),
            job => {
                self.jobs[at] = job;
                None
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.pull.state.lock();
        state.waiters -= 1;
        if state.waiters == 0 {
            state.idle_since = Instant::now();
            if !self.answered {
                state.cancel_above(0);
            }
        }
        drop(state);
        self.pull.changed.notify_waiters();
    }
}

//! The background fill: everything that nobody has read yet, behind whatever somebody waits for.
//!
//! One task for all layers. It first takes what is left of files that have been read, then the layers in
//! the order in which they were mounted, from their first span to their last: neighbouring missing spans
//! are one request, and several are in flight, as many as the line takes (see [`super::link`]). It holds no layer:
//! a layer that is closed is filled no further.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use ztoc::unit::ByteLen as _;
use ztoc::{Digest, SpanId};

use super::Layer;
use super::link::Link;
use super::pace::FillOptions;
use super::schedule::compressed;

/// First wait after a failure; doubled with each further one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait after a failure: whatever is wrong may be over.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// The layers that are to be filled.
#[derive(Debug)]
pub(crate) struct Filler {
    /// `None` while it is switched off.
    options: RwLock<Option<FillOptions>>,
    queue: Mutex<Queue>,
    /// There is something new to do.
    wake: Notify,
    turned_away: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Nothing may be begun before.
    rest_until: Option<Instant>,
}

/// One layer to be filled.
#[derive(Debug)]
struct Job {
    digest: Digest,
    layer: Weak<Layer>,
    /// All before has been asked for.
    next: SpanId,
    failures: u32,
    not_before: Option<Instant>,
}

/// What is to be done next.
enum Step {
    Fetch(Arc<Layer>, Range<SpanId>),
    /// Nothing before this, or before something new comes.
    Wait(Option<Instant>),
}

impl Filler {
    pub(crate) fn new(options: FillOptions) -> Self {
        Self {
            options: RwLock::new(Some(options)),
            queue: Mutex::default(),
            wake: Notify::new(),
            turned_away: AtomicU64::new(0),
        }
    }

    /// Goes on as `options` say; without any, what waits is given up.
    pub(crate) fn set(&self, options: Option<FillOptions>) {
        let off = options.is_none();
        *self.options.write() = options;
        if off {
            self.queue.lock().jobs.clear();
        }
        self.wake.notify_one();
    }

    /// Has the rest of `layer` fetched, unless that is under way.
    pub(crate) fn add(&self, layer: &Arc<Layer>) {
        let Some(options) = self.options.read().clone() else {
            return;
        };
        let mut queue = self.queue.lock();
        let quiet = Instant::now() + options.silence;
        queue.rest_until = queue.rest_until.max(Some(quiet));
        let again = |job: &Job| job.digest == layer.digest && job.layer.strong_count() > 0;
        if queue.jobs.iter().any(again) {
            return;
        }
        queue.jobs.retain(|job| job.layer.strong_count() > 0);
        if queue.jobs.len() >= options.most_waiting {
            self.turned_away.fetch_add(1, Ordering::Relaxed);
            if !options.drop_oldest {
                return;
            }
            queue.jobs.pop_front();
        }
        queue.jobs.push_back(Job::new(layer, SpanId(0)));
        drop(queue);
        self.wake.notify_one();
    }

    /// Layers that wait or are being filled.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.lock().jobs.len()
    }

    /// Layers that found the queue full, or made room in it.
    pub(crate) fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }

    /// Fills until it is dropped.
    pub(crate) async fn run(self: Arc<Self>, link: Arc<Link>) {
        loop {
            let rest = self.queue.lock().rest_until;
            if let Some(until) = rest.filter(|&until| until > Instant::now()) {
                tokio::time::sleep_until(until.into()).await;
                continue;
            }
            let Some(room) = link.room() else {
                link.arrival().await;
                continue;
            };
            let new = self.wake.notified();
            match self.step(room, Instant::now()) {
                Step::Fetch(layer, spans) => self.fetch(&layer, spans),
                Step::Wait(None) => new.await,
                Step::Wait(Some(until)) => {
                    // Whichever comes first; there is something to look for either way.
                    let _ = tokio::time::timeout_at(until.into(), new).await;
                }
            }
        }
    }

    fn fetch(self: &Arc<Self>, layer: &Arc<Layer>, spans: Range<SpanId>) {
        let Some(spans) = self.fitting(layer, spans) else {
            return self.give_up();
        };
        let bytes = compressed(&layer.spans, &spans).byte_len();
        let pause = (self.options.read().as_ref()).map_or(Duration::ZERO, |options| {
            options.pause(spans.end.0 - spans.start.0, bytes)
        });
        self.queue.lock().rest(Instant::now(), pause);
        layer.fill(spans, self);
    }

    /// `spans`, or the first of them, if there is room for them on disk.
    fn fitting(&self, layer: &Layer, spans: Range<SpanId>) -> Option<Range<SpanId>> {
        let ledger = &layer.engine.ledger;
        if ledger.has_room(layer.plain_bytes(&spans)) {
            return Some(spans);
        }
        let first = spans.start..SpanId(spans.start.0 + 1);
        if !ledger.has_room(layer.plain_bytes(&first)) {
            return None;
        }
        let mut queue = self.queue.lock();
        let job = queue.jobs.iter_mut().find(|job| job.digest == layer.digest);
        if let Some(job) = job {
            job.next = job.next.min(first.end);
        }
        Some(first)
    }

    /// There is no room on disk. What is filled must not make go what is read, nor fill up the disk.
    fn give_up(&self) {
        let layers = std::mem::take(&mut self.queue.lock().jobs).len();
        tracing::warn!(
            layers,
            "the disk or the cache's limit leaves no room: layers are fetched as they are read, no further"
        );
    }

    /// What is best fetched now, in a request of about `room` bytes.
    fn step(&self, room: u64, now: Instant) -> Step {
        let Some(bytes) = self.options.read().as_ref().map(|it| it.largest(room)) else {
            return Step::Wait(None);
        };
        let mut queue = self.queue.lock();
        queue.jobs.retain(|job| job.layer.strong_count() > 0);
        let ready = |job: &&mut Job| job.not_before.is_none_or(|at| at <= now);
        for job in queue.jobs.iter_mut().filter(ready) {
            if let Some(layer) = job.layer.upgrade()
                && let Some(spans) = layer.hot.next(|file| layer.missing(file, bytes))
            {
                return Step::Fetch(layer, spans);
            }
        }
        let mut position = 0;
        while let Some(job) = queue.jobs.get_mut(position) {
            if job.not_before.is_some_and(|at| at > now) {
                position += 1;
                continue;
            }
            let Some(layer) = job.layer.upgrade() else {
                queue.jobs.remove(position);
                continue;
            };
            let rest = job.next..SpanId(layer.spans.count());
            if let Some(spans) = layer.missing(&rest, bytes) {
                job.next = spans.end;
                return Step::Fetch(layer, spans);
            }
            if job.failures > 0 {
                // What has failed may be in flight, and may fail again.
                position += 1;
                continue;
            }
            queue.jobs.remove(position);
        }
        let later = |job: &Job| job.not_before.filter(|&at| at > now);
        Step::Wait(queue.jobs.iter().filter_map(later).min())
    }

    /// The layer that would be worked on now.
    #[cfg(test)]
    pub(crate) fn next_layer(&self, now: Instant) -> Option<Digest> {
        match self.step(1 << 20, now) {
            Step::Fetch(layer, _) => Some(layer.digest),
            Step::Wait(_) => None,
        }
    }

    /// A request has ended; the first of its spans that did not come, if any.
    pub(crate) fn landed(&self, layer: &Arc<Layer>, lost: Option<SpanId>, now: Instant) {
        let mut queue = self.queue.lock();
        let job = queue.jobs.iter_mut().find(|job| job.digest == layer.digest);
        let Some(span) = lost else {
            if let Some(job) = job {
                job.failures = 0;
            }
            return;
        };
        let wait = |failures: u32| {
            FIRST_WAIT
                .saturating_mul(1 << failures.min(16))
                .min(LONGEST_WAIT)
        };
        match job {
            Some(job) => {
                job.next = job.next.min(span);
                // Requests that were in flight together fail together.
                if job.not_before.is_none_or(|at| at <= now) {
                    job.not_before = Some(now + wait(job.failures));
                    job.failures = job.failures.saturating_add(1);
                }
            }
            None => queue.jobs.push_back(Job {
                failures: 1,
                not_before: Some(now + wait(0)),
                ..Job::new(layer, span)
            }),
        }
        drop(queue);
        self.wake.notify_one();
    }
}

impl Queue {
    fn rest(&mut self, now: Instant, pause: Duration) {
        if pause > Duration::ZERO {
            let from = self.rest_until.map_or(now, |until| until.max(now));
            self.rest_until = Some(from + pause);
        }
    }
}

impl Job {
    fn new(layer: &Arc<Layer>, next: SpanId) -> Self {
        Self {
            digest: layer.digest,
            layer: Arc::downgrade(layer),
            next,
            failures: 0,
            not_before: None,
        }
    }
}

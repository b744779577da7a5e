//! The decode pool: a few threads that hash, inflate and write spans, most urgent first.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use ztoc::SpanBuffer;

use super::schedule::Lane;

/// Largest buffer kept by a thread between two jobs, in bytes.
const KEPT: usize = 16 << 20;

/// What a thread of the pool lends to its jobs.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// For inflating.
    pub(crate) span: SpanBuffer,
    /// For reading from disk.
    pub(crate) plain: Vec<u8>,
    largest: usize,
}

type Job = Box<dyn FnOnce(&mut Scratch) + Send>;

/// Threads of their own, since a job takes milliseconds of CPU. The queue is bounded by the callers: each job
/// holds its compressed bytes, and those are bounded.
pub(crate) struct DecodePool {
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    jobs: Mutex<Jobs>,
    work: Condvar,
}

#[derive(Default)]
struct Jobs {
    lanes: [VecDeque<Job>; Lane::COUNT],
    /// Jobs of the fill that run now, and how many may: with more than one thread, one is always left
    /// for what somebody waits for.
    filling: usize,
    most_filling: usize,
    closed: bool,
}

impl Scratch {
    /// To be told how many bytes a job put into a buffer.
    pub(crate) fn used(&mut self, bytes: usize) {
        self.largest = self.largest.max(bytes);
    }

    fn tidy(&mut self) {
        if self.largest > KEPT {
            *self = Self::default();
        }
    }
}

impl DecodePool {
    /// A pool of `threads` threads, which end when the pool is dropped.
    pub(crate) fn start(threads: usize) -> std::io::Result<Self> {
        let pool = Self {
            queue: Arc::default(),
        };
        pool.queue.jobs.lock().most_filling = threads.saturating_sub(1).max(1);
        for number in 0..threads.max(1) {
            let queue = Arc::clone(&pool.queue);
            std::thread::Builder::new()
                .name(format!("decode-{number}"))
                .spawn(move || queue.work_off())?;
        }
        Ok(pool)
    }

    /// Runs `job` when a thread is free and nothing more urgent waits. After the pool's end it is dropped.
    pub(crate) fn submit(&self, lane: Lane, job: impl FnOnce(&mut Scratch) + Send + 'static) {
        let mut jobs = self.queue.jobs.lock();
        if !jobs.closed {
            jobs.lanes[lane as usize].push_back(Box::new(job));
            self.queue.work.notify_one();
        }
    }
}

impl Queue {
    fn work_off(&self) {
        let mut scratch = Scratch::default();
        while let Some((job, lane)) = self.next() {
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(&mut scratch))) {
                tracing::error!(
                    panic = text(&*panic),
                    "a decode job panicked; its span is given up"
                );
                scratch = Scratch::default();
            }
            if lane == Lane::Fill {
                self.jobs.lock().filling -= 1;
            }
            scratch.tidy();
        }
    }

    fn next(&self) -> Option<(Job, Lane)> {
        let mut jobs = self.jobs.lock();
        loop {
            if let Some(next) = jobs.take() {
                return Some(next);
            }
            if jobs.closed {
                return None;
            }
            self.work.wait(&mut jobs);
        }
    }
}

impl Jobs {
    fn take(&mut self) -> Option<(Job, Lane)> {
        for lane in [Lane::Demand, Lane::Readahead] {
            if let Some(job) = self.lanes[lane as usize].pop_front() {
                return Some((job, lane));
            }
        }
        if self.filling >= self.most_filling {
            return None;
        }
        let job = self.lanes[Lane::Fill as usize].pop_front()?;
        self.filling += 1;
        Some((job, Lane::Fill))
    }
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no text")
}

impl Drop for DecodePool {
    fn drop(&mut self) {
        let mut jobs = self.queue.jobs.lock();
        jobs.closed = true;
        let left = std::mem::take(&mut jobs.lanes);
        self.queue.work.notify_all();
        drop(jobs);
        drop(left);
    }
}

impl fmt::Debug for DecodePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecodePool").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn the_most_urgent_job_runs_first_and_a_panic_ends_no_thread() {
        let pool = DecodePool::start(1).unwrap();
        let (go, gate) = channel::<()>();
        let (done, order) = channel();
        pool.submit(Lane::Demand, move |_| gate.recv().unwrap());
        for (lane, number) in [(Lane::Fill, 3), (Lane::Readahead, 2), (Lane::Demand, 1)] {
            let done = done.clone();
            pool.submit(lane, move |_| done.send(number).unwrap());
        }
        pool.submit(Lane::Demand, |_| panic!("on purpose"));
        go.send(()).unwrap();
        let order: Vec<i32> = order.iter().take(3).collect();
        assert_eq!(order, [1, 2, 3]);
    }
}

//! Reads of what is on disk and not in memory: they wait for the disk, and so not on the kernel's threads.
//!
//! A view has two of those. If both wait for the disk, no more than two reads are under way, and nobody's name is
//! looked up meanwhile. One read at a time may wait where it came, as handing it over costs a third of what
//! a fast disk takes; the others go to threads that are started when they are needed.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::LINE;
use super::disk_ahead::DiskAhead;
use super::large::LargeBuffers;

/// Most threads: as many reads as common disks work on at a time.
const THREADS: usize = 16;
/// Reads that may wait for a thread. There is one for each process that reads, and a few for each file that is
/// read ahead; beyond, who brings one waits himself.
const MOST_WAITING: usize = 1024;
/// Bytes of stack of a thread: a read needs little.
const STACK: usize = 256 << 10;
/// Largest buffer kept by a thread without work, in bytes: for a read of 64 KiB.
const KEPT: usize = (64 << 10) + LINE;

/// How long large buffers are kept without work.
const KEEP: Duration = match cfg!(test) {
    false => Duration::from_secs(10),
    true => Duration::from_millis(200),
};

/// Does one read; the buffer is lent.
type Read = Box<dyn FnOnce(&mut Vec<u8>) + Send>;

/// Threads that wait for the disk. They end when it is dropped.
pub(crate) struct ColdReads {
    queue: Arc<Queue>,
    /// A read waits on a thread of the kernel's.
    on_the_spot: AtomicBool,
}

#[derive(Default)]
struct Queue {
    /// Nothing is locked under it.
    state: Mutex<State>,
    work: Condvar,
    /// For reads past the page cache; given back to the kernel when there was nothing to read for a while.
    large: Arc<LargeBuffers>,
    /// What such reads bring before it is asked for, given up with them.
    ahead: DiskAhead,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Read>,
    threads: usize,
    free: usize,
    closed: bool,
}

/// The right to wait where one is; given back when dropped.
#[derive(Debug)]
pub(crate) struct Spot<'c>(&'c AtomicBool);

impl ColdReads {
    /// Without a thread yet.
    pub(crate) fn new() -> Self {
        Self {
            queue: Arc::default(),
            on_the_spot: AtomicBool::new(false),
        }
    }

    /// Buffers for reads past the page cache.
    pub(crate) fn large(&self) -> &Arc<LargeBuffers> {
        &self.queue.large
    }

    /// What such reads bring before it is asked for.
    pub(crate) fn ahead(&self) -> &DiskAhead {
        &self.queue.ahead
    }

    /// The right to wait for the disk on the calling thread, if nobody has it.
    pub(crate) fn spot(&self) -> Option<Spot<'_>> {
        let taken = self.on_the_spot.swap(true, Ordering::Acquire);
        (!taken).then(|| Spot(&self.on_the_spot))
    }

    /// Has `read` done by a thread that may wait; gives it back if the caller must do it.
    pub(crate) fn submit(&self, read: Read) -> Option<Read> {
        let mut state = self.queue.state.lock();
        if state.closed || state.waiting.len() >= MOST_WAITING {
            return Some(read);
        }
        if state.waiting.len() >= state.free && state.threads < THREADS {
            let queue = Arc::clone(&self.queue);
            let thread = std::thread::Builder::new()
                .name(format!("disk-{}", state.threads))
                .stack_size(STACK);
            if thread.spawn(move || queue.work_off()).is_ok() {
                state.threads += 1;
            } else if state.threads == 0 {
                return Some(read);
            }
        }
        state.waiting.push_back(read);
        self.queue.work.notify_one();
        None
    }
}

impl Queue {
    fn work_off(&self) {
        let mut buffer = Vec::new();
        let mut state = self.state.lock();
        loop {
            if let Some(read) = state.waiting.pop_front() {
                MutexGuard::unlocked(&mut state, || {
                    let read = std::panic::AssertUnwindSafe(|| read(&mut buffer));
                    if std::panic::catch_unwind(read).is_err() {
                        tracing::error!("a read of the layer cache panicked; it has failed");
                    }
                });
                continue;
            }
            if state.closed {
                return;
            }
            if buffer.capacity() > KEPT {
                buffer = Vec::new();
            }
            state.free += 1;
            self.wait(&mut state);
            state.free -= 1;
        }
    }

    /// Waits for something to do.
    fn wait(&self, state: &mut MutexGuard<'_, State>) {
        let kept = || self.ahead.holds_any() || self.large.are_kept();
        let kept = MutexGuard::unlocked(state, kept);
        if !state.waiting.is_empty() || state.closed {
            return;
        }
        if !kept {
            self.work.wait(state);
        } else if self.work.wait_for(state, KEEP).timed_out() {
            MutexGuard::unlocked(state, || {
                self.ahead.forget();
                self.large.forget();
            });
        }
    }
}

impl Drop for Spot<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Drop for ColdReads {
    /// What waits is still read.
    fn drop(&mut self) {
        self.queue.state.lock().closed = true;
        self.queue.work.notify_all();
    }
}

impl fmt::Debug for ColdReads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.queue.state.lock();
        f.debug_struct("ColdReads")
            .field("threads", &state.threads)
            .field("waiting", &state.waiting.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn one_read_may_wait_on_the_spot_and_then_the_next() {
        let cold = ColdReads::new();
        let spot = cold.spot();
        assert!(spot.is_some() && cold.spot().is_none());
        drop(spot);
        assert!(cold.spot().is_some());
    }

    #[test]
    fn as_many_reads_as_there_may_be_threads_wait_at_once_and_the_rest_after_them() {
        let cold = ColdReads::new();
        let (done, came) = channel();
        let (begun, begins) = channel();
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock();
        for number in 0..THREADS * 2 {
            let (done, begun, gate) = (done.clone(), begun.clone(), Arc::clone(&gate));
            let read = Box::new(move |_: &mut Vec<u8>| {
                begun.send(()).unwrap();
                drop(gate.lock());
                done.send(number).unwrap();
            });
            assert!(cold.submit(read).is_none());
        }
        for _ in 0..THREADS {
            begins.recv().unwrap();
        }
        assert!(begins.try_recv().is_err(), "no more threads than that");
        drop(closed);
        let mut all: Vec<usize> = came.iter().take(THREADS * 2).collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..THREADS * 2));
    }

    #[test]
    fn large_buffers_are_given_back_when_there_was_nothing_to_read_for_a_while() {
        let cold = ColdReads::new();
        let large = Arc::clone(cold.large());
        let read = Box::new(move |_: &mut Vec<u8>| drop(large.take()));
        assert!(cold.submit(read).is_none());
        let given_back = || !cold.large().are_kept() && cold.queue.state.lock().free == 1;
        let begun = std::time::Instant::now();
        while !given_back() || begun.elapsed() < KEEP / 2 {
            assert!(begun.elapsed() < Duration::from_secs(30), "they stay");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn too_many_reads_are_given_back_and_those_that_wait_outlive_the_end() {
        let cold = ColdReads::new();
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock();
        let (done, came) = channel();
        let read = || -> Read {
            let (done, gate) = (done.clone(), Arc::clone(&gate));
            Box::new(move |_| {
                drop(gate.lock());
                done.send(()).unwrap();
            })
        };
        let mut taken = 0;
        while cold.submit(read()).is_none() {
            taken += 1;
            assert!(taken <= MOST_WAITING + THREADS);
        }
        assert!(taken >= MOST_WAITING);
        drop((cold, closed));
        assert_eq!(came.iter().take(taken).count(), taken);
    }
}

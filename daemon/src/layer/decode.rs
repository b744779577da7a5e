//! The decode pool: threads that hash, inflate and write spans, most urgent first.
//!
//! The fill has threads of its own, which run while nobody else wants a CPU, and rest when they had to wait
//! for one all the same: CPUs are shared out by control group first, and a container's is another than ours. They
//! do not rest while readers wait for the line: then it is what the fill brings that spares them the next wait. What
//! such a thread has begun, or has not, may be waited for suddenly: see [`DecodePool::hurry`].

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use parking_lot::{Condvar, Mutex, MutexGuard};
use ztoc::SpanBuffer;

use super::idle::{self, Thread};
use super::link::Link;
use super::schedule::{Lane, Ticket};

/// Largest buffer kept by a thread between two jobs, in bytes.
const KEPT: usize = 16 << 20;
/// How many times as long as it was kept from running a thread of the fill rests.
const REST: u32 = 4;
/// Longest rest after a job.
const LONGEST_REST: Duration = Duration::from_millis(50);
/// How soon a rest ends when there is no more reason for it.
const LOOK: Duration = Duration::from_millis(2);

/// What a thread of the pool lends to its jobs.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// For inflating.
    pub(crate) span: SpanBuffer,
    /// For reading from disk.
    pub(crate) plain: Vec<u8>,
    largest: usize,
}

type Work = Box<dyn FnOnce(&mut Scratch) + Send>;

/// Threads of their own, since a job takes milliseconds of CPU. The queue is bounded by the callers: each job
/// holds its compressed bytes, and those are bounded.
pub(crate) struct DecodePool {
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    /// Nothing else is locked under it.
    jobs: Mutex<Jobs>,
    /// For the threads that somebody waits for.
    urgent: Condvar,
    /// For those of the fill.
    leisure: Condvar,
    /// The pool's end, for those that rest.
    end: Condvar,
    link: Arc<Link>,
    /// Whether the fill's threads may be kept from running as long as others want to.
    yielding: bool,
}

#[derive(Default)]
struct Jobs {
    demand: VecDeque<Work>,
    readahead: VecDeque<Work>,
    fill: VecDeque<Job>,
    /// What each of the fill's threads does.
    filling: Vec<Filling>,
    closed: bool,
}

/// Work that nobody waited for when it came.
struct Job {
    ticket: Arc<Ticket>,
    work: Work,
}

/// A thread of the fill.
struct Filling {
    thread: Thread,
    ticket: Option<Arc<Ticket>>,
    hurried: bool,
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

    fn run(&mut self, work: Work) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(self))) {
            tracing::error!(
                panic = text(&*panic),
                "a decode job panicked; its span is given up"
            );
            *self = Self::default();
        }
        self.tidy();
    }
}

impl DecodePool {
    /// A pool of `threads` threads, and as many for the fill, for what comes over `link`. They end when the pool is
    /// dropped.
    pub(crate) fn start(threads: usize, link: Arc<Link>) -> std::io::Result<Self> {
        let pool = Self {
            queue: Arc::new(Queue {
                link,
                yielding: idle::is_reversible(),
                ..Queue::default()
            }),
        };
        for number in 0..threads.max(1) {
            let queue = Arc::clone(&pool.queue);
            let thread = std::thread::Builder::new().name(format!("decode-{number}"));
            thread.spawn(move || queue.work_off())?;
            let queue = Arc::clone(&pool.queue);
            let thread = std::thread::Builder::new().name(format!("fill-{number}"));
            thread.spawn(move || queue.fill())?;
        }
        Ok(pool)
    }

    /// Runs `job` when a thread is free and nothing more urgent than `ticket` waits. After the pool's end it
    /// is dropped.
    pub(crate) fn submit(
        &self,
        ticket: &Arc<Ticket>,
        job: impl FnOnce(&mut Scratch) + Send + 'static,
    ) {
        let mut jobs = self.queue.jobs.lock();
        if jobs.closed {
            return;
        }
        let ticket = Arc::clone(ticket);
        match jobs.add(ticket, Box::new(job)) {
            Lane::Fill => self.queue.leisure.notify_one(),
            Lane::Demand | Lane::Readahead => self.queue.urgent.notify_one(),
        };
    }

    /// To be called when somebody waits for something that nobody waited for when it came: what has not begun is
    /// taken out of the fill's queue, and who works on it competes for a CPU.
    pub(crate) fn hurry(&self) {
        let mut jobs = self.queue.jobs.lock();
        for job in std::mem::take(&mut jobs.fill) {
            if jobs.add(job.ticket, job.work) != Lane::Fill {
                self.queue.urgent.notify_one();
            }
        }
        for filling in &mut jobs.filling {
            let wanted = filling.ticket.as_ref();
            let wanted = wanted.is_some_and(|ticket| ticket.lane() != Lane::Fill);
            if self.queue.yielding && wanted && !filling.hurried {
                // It has been tried that this can be done.
                filling.hurried = filling.thread.competes().is_ok();
            }
        }
    }
}

impl Queue {
    fn work_off(&self) {
        let mut scratch = Scratch::default();
        let mut jobs = self.jobs.lock();
        while !jobs.closed {
            match jobs.urgent() {
                Some(work) => MutexGuard::unlocked(&mut jobs, || scratch.run(work)),
                None => self.urgent.wait(&mut jobs),
            }
        }
    }

    fn fill(&self) {
        let mut scratch = Scratch::default();
        let mut jobs = self.jobs.lock();
        let number = jobs.filling.len();
        let thread = Thread::current();
        self.give_way(thread);
        jobs.filling.push(Filling {
            thread,
            ticket: None,
            hurried: false,
        });
        while !jobs.closed {
            let Some(Job { ticket, work }) = jobs.fill.pop_front() else {
                self.leisure.wait(&mut jobs);
                continue;
            };
            jobs.filling[number].ticket = Some(ticket);
            let kept_waiting = MutexGuard::unlocked(&mut jobs, || {
                let before = Moment::now();
                scratch.run(work);
                before.kept_waiting()
            });
            let mine = &mut jobs.filling[number];
            mine.ticket = None;
            if std::mem::take(&mut mine.hurried) {
                self.give_way(thread);
            }
            let until = Instant::now() + kept_waiting.saturating_mul(REST).min(LONGEST_REST);
            self.rest(&mut jobs, until);
        }
    }

    fn rest(&self, jobs: &mut MutexGuard<'_, Jobs>, until: Instant) {
        while !jobs.closed
            && Instant::now() < until
            && !MutexGuard::unlocked(jobs, || self.link.holds_up_readers())
        {
            let look = until.min(Instant::now() + LOOK);
            self.end.wait_until(jobs, look);
        }
    }

    fn give_way(&self, thread: Thread) {
        if self.yielding
            && let Err(error) = thread.yields()
        {
            tracing::debug!("the fill's threads compete for the CPU: {error}");
        }
    }
}

impl Jobs {
    /// Queues work, and says in which lane.
    fn add(&mut self, ticket: Arc<Ticket>, work: Work) -> Lane {
        let lane = ticket.lane();
        match lane {
            Lane::Demand => self.demand.push_back(work),
            Lane::Readahead => self.readahead.push_back(work),
            Lane::Fill => self.fill.push_back(Job { ticket, work }),
        }
        lane
    }

    fn urgent(&mut self) -> Option<Work> {
        let work = self.demand.pop_front();
        work.or_else(|| self.readahead.pop_front())
    }
}

/// By the clock, and by what this thread has run.
struct Moment {
    clock: Instant,
    run: Duration,
}

impl Moment {
    fn now() -> Self {
        let run = getrusage(UsageWho::RUSAGE_THREAD).map_or(0, |usage| {
            usage.user_time().num_microseconds() + usage.system_time().num_microseconds()
        });
        Self {
            clock: Instant::now(),
            run: Duration::from_micros(u64::try_from(run).unwrap_or_default()),
        }
    }

    /// How long since then this thread has not run.
    fn kept_waiting(&self) -> Duration {
        let now = Self::now();
        let run = now.run.saturating_sub(self.run);
        now.clock
            .saturating_duration_since(self.clock)
            .saturating_sub(run)
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
        let left = (
            std::mem::take(&mut jobs.demand),
            std::mem::take(&mut jobs.readahead),
            std::mem::take(&mut jobs.fill),
        );
        self.queue.urgent.notify_all();
        self.queue.leisure.notify_all();
        self.queue.end.notify_all();
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

    fn ticket(lane: Lane) -> Arc<Ticket> {
        Arc::new(Ticket::new(lane))
    }

    #[test]
    fn the_most_urgent_job_runs_first_and_a_panic_ends_no_thread() {
        let pool = DecodePool::start(1, Arc::default()).unwrap();
        let (go, gate) = channel::<()>();
        let (done, order) = channel();
        pool.submit(&ticket(Lane::Demand), move |_| gate.recv().unwrap());
        for (lane, number) in [(Lane::Readahead, 2), (Lane::Demand, 1)] {
            let done = done.clone();
            pool.submit(&ticket(lane), move |_| done.send(number).unwrap());
        }
        pool.submit(&ticket(Lane::Demand), |_| panic!("on purpose"));
        go.send(()).unwrap();
        let order: Vec<i32> = order.iter().take(2).collect();
        assert_eq!(order, [1, 2]);
    }

    #[test]
    fn a_rest_of_the_fill_ends_when_somebody_waits_for_the_line() {
        let link = Arc::<Link>::default();
        let pool = DecodePool::start(1, Arc::clone(&link)).unwrap();
        let (done, ended) = channel();
        let queue = Arc::clone(&pool.queue);
        let resting = std::thread::spawn(move || {
            let until = Instant::now() + Duration::from_secs(120);
            queue.rest(&mut queue.jobs.lock(), until);
            done.send(()).unwrap();
        });
        // The line takes longer than decoding does.
        let known = link.depart(1 << 20, Lane::Readahead);
        std::thread::sleep(Duration::from_millis(60));
        assert!(known.arrive(1 << 20).is_none());
        assert!(ended.try_recv().is_err(), "nobody waits yet");
        let _read = link.depart(10, Lane::Demand);
        ended.recv_timeout(Duration::from_secs(60)).unwrap();
        resting.join().unwrap();
    }

    #[test]
    fn the_fill_holds_up_nobody_and_nobody_holds_up_the_fill() {
        let pool = DecodePool::start(1, Arc::default()).unwrap();
        let (done, came) = channel();
        for busy in [Lane::Fill, Lane::Demand] {
            let (go, gate) = channel::<()>();
            pool.submit(&ticket(busy), move |_| gate.recv().unwrap());
            let other = if busy == Lane::Fill {
                Lane::Demand
            } else {
                Lane::Fill
            };
            let done = done.clone();
            pool.submit(&ticket(other), move |_| done.send(other).unwrap());
            assert_eq!(came.recv().unwrap(), other);
            go.send(()).unwrap();
        }
    }

    #[test]
    fn what_waits_for_the_fill_and_is_wanted_suddenly_goes_to_who_is_free() {
        let pool = DecodePool::start(1, Arc::default()).unwrap();
        let (go, gate) = channel::<()>();
        pool.submit(&ticket(Lane::Fill), move |_| gate.recv().unwrap());
        let (done, came) = channel();
        let wanted = ticket(Lane::Fill);
        for (ticket, number) in [(&ticket(Lane::Fill), 1), (&wanted, 2)] {
            let done = done.clone();
            pool.submit(ticket, move |_| done.send(number).unwrap());
        }
        wanted.promote(Lane::Demand);
        pool.hurry();
        assert_eq!(came.recv().unwrap(), 2);
        assert!(came.try_recv().is_err(), "the other is nobody's business");
        go.send(()).unwrap();
        assert_eq!(came.recv().unwrap(), 1);
    }

    #[test]
    fn who_works_on_what_is_wanted_suddenly_competes_until_it_is_done() {
        let pool = DecodePool::start(1, Arc::default()).unwrap();
        if !pool.queue.yielding {
            return;
        }
        let policy = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let (_, rest) = stat.rsplit_once(')').unwrap();
            rest.split_whitespace().nth(38).unwrap().to_owned()
        };
        let (tell, told) = channel();
        let (go, gate) = channel::<()>();
        let wanted = ticket(Lane::Fill);
        let before = tell.clone();
        pool.submit(&wanted, move |_| {
            before.send(policy()).unwrap();
            gate.recv().unwrap();
            before.send(policy()).unwrap();
        });
        assert_eq!(told.recv().unwrap(), "5", "SCHED_IDLE");
        wanted.promote(Lane::Demand);
        pool.hurry();
        go.send(()).unwrap();
        assert_eq!(told.recv().unwrap(), "0", "SCHED_OTHER");
        pool.submit(&ticket(Lane::Fill), move |_| tell.send(policy()).unwrap());
        assert_eq!(told.recv().unwrap(), "5", "SCHED_IDLE again");
    }
}

//! What has been read of a view, in the order it was asked for, and who had to wait.
//!
//! Files are opened without a message and pages are kept by the kernel, so that reads are all that is seen
//! of a file, and each part of it once. A read costs one short lock here; one that waited, a second.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Reads kept from the start of a record on: at 32 bytes each, one MiB for a view.
const MOST_READS: usize = 32 << 10;
/// Reads that waited kept, the newest.
const MOST_FAULTS: usize = 1024;
/// Times are told apart by their power of two, in microseconds.
const BUCKETS: usize = 40;

/// The reads of one view.
#[derive(Debug)]
pub struct AccessLog {
    mounted: Instant,
    record: Mutex<Record>,
    faults: Mutex<Faults>,
    waits: [AtomicU64; BUCKETS],
}

/// One read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// When it came, since the view was mounted or taken over.
    pub at: Duration,
    /// The inode's number.
    pub ino: u64,
    /// Position in the file, in bytes.
    pub offset: u64,
    /// Bytes wanted.
    pub len: u32,
    /// How long it waited, if it was not answered at once.
    pub waited: Option<Duration>,
    /// It could not be answered.
    pub failed: bool,
}

/// The first reads since a record was begun.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// In the order they came.
    pub reads: Vec<Access>,
    /// How many more there were.
    pub left_out: u64,
    /// Which record: begun anew, it is another.
    generation: u64,
}

#[derive(Debug, Default)]
struct Faults {
    /// Number of the first kept.
    first: u64,
    kept: VecDeque<Access>,
}

/// A read under way.
#[derive(Debug)]
pub(crate) struct Reading {
    log: Arc<AccessLog>,
    access: Access,
    begun: Instant,
    thread: ThreadId,
    /// Record and place in it.
    place: Option<(u64, usize)>,
}

impl AccessLog {
    pub(crate) fn new() -> Self {
        Self {
            mounted: Instant::now(),
            record: Mutex::default(),
            faults: Mutex::default(),
            waits: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }

    /// Notes a read that has come.
    pub(crate) fn came(self: &Arc<Self>, ino: u64, offset: u64, len: u32) -> Reading {
        let begun = Instant::now();
        let access = Access {
            at: begun.duration_since(self.mounted),
            ino,
            offset,
            len,
            waited: None,
            failed: false,
        };
        Reading {
            log: Arc::clone(self),
            place: self.record.lock().push(access),
            access,
            begun,
            thread: std::thread::current().id(),
        }
    }

    /// The time since the view was mounted or taken over.
    pub fn age(&self) -> Duration {
        self.mounted.elapsed()
    }

    /// What has been read since the view was mounted, or [`restart`](Self::restart) was called.
    pub fn record(&self) -> Record {
        self.record.lock().clone()
    }

    /// Forgets what has been read, so that the record begins now.
    pub fn restart(&self) {
        let mut record = self.record.lock();
        *record = Record {
            generation: record.generation + 1,
            ..Record::default()
        };
    }

    /// The reads that waited, from number `from` on as far as they are kept, and the number to go on with.
    pub fn faults(&self, from: u64) -> (Vec<Access>, u64) {
        let faults = self.faults.lock();
        let skip = usize::try_from(from.saturating_sub(faults.first)).unwrap_or(usize::MAX);
        let next = faults.first + faults.kept.len() as u64;
        (faults.kept.iter().skip(skip).copied().collect(), next)
    }

    /// How long the reads that waited waited, at most, of the fraction `quantile` of them that waited least;
    /// exact to a factor of two. `None` if none has waited.
    pub fn wait(&self, quantile: f64) -> Option<Duration> {
        let counts = self
            .waits
            .each_ref()
            .map(|count| count.load(Ordering::Relaxed));
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return None;
        }
        let mut seen = 0;
        let reached = counts.iter().position(|count| {
            seen += count;
            // Counts stay far below what a double holds exactly.
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let share = seen as f64 / total as f64;
            share >= quantile
        });
        let bucket = reached.unwrap_or(BUCKETS - 1);
        Some(Duration::from_micros(1 << bucket))
    }

    /// Reads that waited.
    pub fn waited(&self) -> u64 {
        let counts = self.waits.iter();
        counts.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    fn ended(&self, access: Access, place: Option<(u64, usize)>) {
        let micros =
            u64::try_from(access.waited.unwrap_or_default().as_micros()).unwrap_or(u64::MAX);
        // The bucket whose upper end is the next power of two.
        let bucket = (u64::BITS - micros.leading_zeros()) as usize;
        self.waits[bucket.min(BUCKETS - 1)].fetch_add(1, Ordering::Relaxed);
        if let Some((generation, place)) = place {
            let mut record = self.record.lock();
            if record.generation == generation {
                record.reads[place] = access;
            }
        }
        let mut faults = self.faults.lock();
        if faults.kept.len() == MOST_FAULTS {
            faults.kept.pop_front();
            faults.first += 1;
        }
        faults.kept.push_back(access);
    }
}

impl Record {
    fn push(&mut self, access: Access) -> Option<(u64, usize)> {
        if self.reads.len() == MOST_READS {
            self.left_out += 1;
            return None;
        }
        self.reads.push(access);
        Some((self.generation, self.reads.len() - 1))
    }
}

impl Reading {
    /// Notes that the read was answered, on the thread that calls; whether it waited. One that is answered on
    /// the thread it came on did not.
    pub(crate) fn ended(mut self, failed: bool) -> bool {
        if !failed && std::thread::current().id() == self.thread {
            return false;
        }
        self.access.waited = Some(self.begun.elapsed());
        self.access.failed = failed;
        self.log.ended(self.access, self.place);
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn later(reading: Reading, failed: bool) {
        let waited = std::thread::spawn(move || reading.ended(failed));
        assert!(waited.join().unwrap());
    }

    #[test]
    fn reads_are_recorded_in_their_order_and_those_that_waited_say_so() {
        let log = Arc::new(AccessLog::new());
        let slow = log.came(7, 4096, 512);
        assert!(!log.came(8, 0, 100).ended(false));
        later(slow, false);
        later(log.came(9, 0, 1), true);
        let record = log.record();
        let seen: Vec<_> = record
            .reads
            .iter()
            .map(|read| {
                (
                    read.ino,
                    read.offset,
                    read.len,
                    read.waited.is_some(),
                    read.failed,
                )
            })
            .collect();
        let expected = [
            (7, 4096, 512, true, false),
            (8, 0, 100, false, false),
            (9, 0, 1, true, true),
        ];
        assert_eq!(seen, expected);
        let (faults, next) = log.faults(0);
        assert_eq!(faults.iter().map(|it| it.ino).collect::<Vec<_>>(), [7, 9]);
        assert_eq!((log.faults(1).0.len(), log.faults(next).0.len()), (1, 0));
        assert_eq!(log.waited(), 2);
        assert!(log.wait(0.99).unwrap() >= log.wait(0.5).unwrap());
    }

    #[test]
    fn a_read_that_ends_in_a_later_record_is_not_written_into_it() {
        let log = Arc::new(AccessLog::new());
        let slow = log.came(7, 0, 1);
        log.restart();
        log.came(8, 0, 1).ended(false);
        later(slow, false);
        let record = log.record();
        assert_eq!(record.reads.len(), 1);
        assert_eq!((record.reads[0].ino, record.reads[0].waited), (8, None));
    }

    #[test]
    fn both_logs_are_bounded_and_say_what_they_left_out() {
        let log = Arc::new(AccessLog::new());
        for ino in 0..MOST_READS as u64 + 5 {
            log.came(ino, 0, 1).ended(ino % 8 == 0);
        }
        let record = log.record();
        assert_eq!((record.reads.len(), record.left_out), (MOST_READS, 5));
        let (faults, next) = log.faults(0);
        assert_eq!(faults.len(), MOST_FAULTS);
        assert_eq!(next, (MOST_READS as u64 + 5).div_ceil(8));
        assert_eq!(faults.last().unwrap().ino, MOST_READS as u64);
    }
}

//! The way to the registry: how fast it is, how long it is, and how much is on it now.
//!
//! Background work keeps the line full and no fuller: what is in flight beyond bandwidth times delay only
//! queues somewhere, in front of the next demand read. Both are measured from the requests themselves, as
//! congestion control does it: the highest delivery rate and the shortest request of the last while. A rate
//! that was measured with little in flight is too low; so at the start background work may have more in
//! flight than that, also beside readers, for as long as this makes the rate grow.

mod search;

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use self::search::Search;
use super::schedule::Lane;

/// How long a measured rate counts.
const RATE_EPOCH: Duration = Duration::from_secs(5);
/// How long a measured delay counts: longer, since a full line shows only delays that it makes itself.
const DELAY_EPOCH: Duration = Duration::from_secs(30);
/// A request of fewer bytes says nothing about the rate.
const TELLING: u64 = 64 << 10;
/// Smallest request of the fill, in bytes; a single span may have fewer.
const SMALLEST: u64 = 1 << 20;
/// Requests that background work may have in flight while nothing is known and nobody else wants the line.
const FEW: usize = 2;
/// Requests that share the room in flight.
const SHARES: u64 = 8;
/// Compressed bytes of the fill that may have come and wait for a CPU before more is asked for: receiving them
/// takes CPU too.
const MOST_UNDECODED: u64 = 4 << 20;

/// How long after somebody has asked for something background work leaves him the CPU on a quick line.
const COURTESY: Duration = Duration::from_millis(250);
/// What decoding a MiB takes, about (docs/benchmarks.md: 600 MB/s of plain bytes, compressed to a third).
const DECODING: Duration = Duration::from_millis(5);

/// Measures and counts what is in flight.
#[derive(Debug, Default)]
pub(crate) struct Link {
    state: Mutex<State>,
    /// Something has arrived: there may be room.
    arrived: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Compressed bytes that readers wait for.
    demand: u64,
    /// Compressed bytes that are known to be wanted soon, and that nobody waited for when they were asked for.
    ahead: u64,
    /// Compressed bytes of background work, and in how many requests.
    filling: u64,
    fills: usize,
    /// Compressed bytes of background work that have come and are not yet decoded.
    undecoded: u64,
    /// When somebody asked for something last.
    asked: Option<Instant>,
    /// Bytes that have arrived since the start.
    delivered: u64,
    /// Bytes per second, the best.
    rate: Epochs,
    /// Nanoseconds per request, the fewest; kept negated, so that both are maxima.
    delay: Epochs,
    search: Search,
}

/// The largest value of this epoch and the one before.
#[derive(Debug, Default)]
struct Epochs {
    since: Option<Instant>,
    now: Option<i64>,
    before: Option<i64>,
}

/// One request in flight; counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Passage {
    link: Arc<Link>,
    bytes: u64,
    lane: Lane,
    started: Instant,
    /// What had arrived when it started.
    delivered: u64,
    /// The line had as much to carry then as it was known to take.
    full: bool,
}

/// Bytes of background work that wait for a CPU; counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Undecoded {
    link: Arc<Link>,
    bytes: u64,
}

impl Link {
    /// A request for `bytes` begins.
    pub(crate) fn depart(self: &Arc<Self>, bytes: u64, lane: Lane) -> Passage {
        let mut state = self.state.lock();
        match lane {
            Lane::Demand => state.demand += bytes,
            Lane::Readahead => state.ahead += bytes,
            Lane::Fill => {
                state.filling += bytes;
                state.fills += 1;
            }
        }
        if lane != Lane::Fill {
            state.asked = Some(Instant::now());
        }
        Passage {
            link: Arc::clone(self),
            bytes,
            lane,
            started: Instant::now(),
            delivered: state.delivered,
            full: state.is_full(),
        }
    }

    /// How many bytes background work may ask for in one more request; `None` while it must wait.
    pub(crate) fn room(&self) -> Option<u64> {
        self.state.lock().room(Instant::now())
    }

    /// Waits until [`Self::room`] may have become larger.
    pub(crate) async fn arrival(&self) {
        // Courtesy ends without an event.
        let _ = tokio::time::timeout(COURTESY, self.arrived.notified()).await;
    }

    /// Whether readers wait, and for the line: the CPU that they leave is free. While more comes that they are known
    /// to want, it is for that.
    pub(crate) fn holds_up_readers(&self) -> bool {
        let state = self.state.lock();
        state.demand > 0 && state.ahead == 0 && !state.is_quick()
    }

    /// How long an answer of `bytes` may take with all that is in flight before it, if anything is known.
    pub(crate) fn expected(&self, bytes: u64) -> Option<Duration> {
        self.state.lock().expected(bytes)
    }

    /// Compressed bytes that fill the line without queueing: bandwidth times delay, as far as it is known.
    pub(crate) fn capacity(&self) -> Option<u64> {
        self.state.lock().capacity()
    }
}

impl State {
    fn capacity(&self) -> Option<u64> {
        let rate = u64::try_from(self.rate.best()?).ok()?;
        let nanos = u64::try_from(-self.delay.best()?).ok()?;
        let bytes = u128::from(rate) * u128::from(nanos) / 1_000_000_000;
        u64::try_from(bytes).ok()
    }

    /// All compressed bytes on the line.
    fn in_flight(&self) -> u64 {
        self.demand + self.ahead + self.filling
    }

    /// Whether as much is in flight as the line takes without queueing.
    fn is_full(&self) -> bool {
        let capacity = self.capacity();
        capacity.is_some_and(|capacity| self.in_flight() >= capacity)
    }

    fn expected(&self, bytes: u64) -> Option<Duration> {
        let rate = u128::try_from(self.rate.best()?).ok()?.max(1);
        let nanos = u128::try_from(-self.delay.best()?).ok()?;
        let queued = u128::from(self.in_flight() + bytes);
        let nanos = nanos + queued * 1_000_000_000 / rate;
        u64::try_from(nanos).ok().map(Duration::from_nanos)
    }

    /// Whether a span comes sooner than it is decoded: then it is the CPU that readers wait for, and having bytes
    /// fetched early does not help them. A line is taken for quick until more is known.
    fn is_quick(&self) -> bool {
        let (Some(rate), Some(nanos)) = (self.rate.best(), self.delay.best()) else {
            return true;
        };
        let transfer = (1_000_000_000_i64 << 20) / rate.max(1);
        u128::try_from(transfer.saturating_sub(nanos))
            .is_ok_and(|nanos| nanos < DECODING.as_nanos())
    }

    fn room(&self, now: Instant) -> Option<u64> {
        let asked = self.asked.map(|asked| now.saturating_duration_since(asked));
        let courteous = asked.is_some_and(|ago| ago < COURTESY) && self.is_quick();
        if self.undecoded >= MOST_UNDECODED || courteous {
            return None;
        }
        let capacity = self.capacity().unwrap_or(0);
        let quiet = self.demand + self.ahead == 0;
        // Twice as much hides the gaps between requests; so much lets the rate be found out while it grows. What is
        // known to be wanted soon does that by itself, and is not to be held up.
        let limit = if self.search.goes_on() && self.ahead == 0 {
            capacity.saturating_mul(3)
        } else if quiet {
            capacity.saturating_mul(2)
        } else {
            capacity
        };
        let size = (limit / SHARES).max(SMALLEST);
        let fits = self.in_flight() + size <= limit;
        (fits || (quiet && self.fills < FEW)).then_some(size)
    }

    fn arrive(&mut self, bytes: u64, passage: &Passage, now: Instant) {
        self.delivered += bytes;
        let took = now.saturating_duration_since(passage.started);
        let nanos = i64::try_from(took.as_nanos()).unwrap_or(i64::MAX).max(1);
        if bytes < TELLING {
            return;
        }
        let since = u128::from(self.delivered - passage.delivered);
        let rate = since * 1_000_000_000 / nanos.unsigned_abs() as u128;
        let rate = i64::try_from(rate).unwrap_or(i64::MAX);
        self.rate.note(rate, now, RATE_EPOCH);
        self.search
            .note(rate, passage.delivered, self.delivered, passage.full, now);
        self.delay.note(-nanos, now, DELAY_EPOCH);
    }
}

impl Epochs {
    fn note(&mut self, value: i64, now: Instant, length: Duration) {
        let age = self.since.map(|since| now.saturating_duration_since(since));
        if age.is_none_or(|age| age >= length) {
            let recent = age.is_some_and(|age| age < length * 2);
            self.before = self.now.take().filter(|_| recent);
            self.since = Some(now);
        }
        self.now = self.now.max(Some(value));
    }

    fn best(&self) -> Option<i64> {
        self.now.max(self.before)
    }
}

impl Passage {
    /// The request has brought `bytes`, which are to be decoded.
    pub(crate) fn arrive(self, bytes: u64) -> Option<Undecoded> {
        self.arrive_at(bytes, Instant::now())
    }

    fn arrive_at(self, bytes: u64, now: Instant) -> Option<Undecoded> {
        let mut state = self.link.state.lock();
        state.arrive(bytes, &self, now);
        if self.lane != Lane::Fill {
            return None;
        }
        state.undecoded += bytes;
        let link = Arc::clone(&self.link);
        drop(state);
        Some(Undecoded { link, bytes })
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let mut state = self.link.state.lock();
        match self.lane {
            Lane::Demand => state.demand -= self.bytes,
            Lane::Readahead => state.ahead -= self.bytes,
            Lane::Fill => {
                state.filling -= self.bytes;
                state.fills -= 1;
            }
        }
        drop(state);
        self.link.arrived.notify_one();
    }
}

impl Drop for Undecoded {
    fn drop(&mut self) {
        self.link.state.lock().undecoded -= self.bytes;
        self.link.arrived.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A line of so many bytes a second and so much delay, in a time of its own.
    struct Line {
        link: Arc<Link>,
        rate: u64,
        delay: Duration,
        now: Instant,
        free: Instant,
        flying: Vec<(Passage, Instant)>,
    }

    impl Line {
        fn new(rate: u64, delay: Duration) -> Self {
            let now = Instant::now();
            Self {
                link: Arc::default(),
                rate,
                delay,
                now,
                free: now,
                flying: Vec::new(),
            }
        }

        fn ask(&mut self, bytes: u64, lane: Lane) {
            let mut passage = self.link.depart(bytes, lane);
            passage.started = self.now;
            let sent = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
            self.free = self.free.max(self.now + self.delay) + sent;
            self.flying.push((passage, self.free));
        }

        /// Background work asks for as much as there is room for.
        fn fill(&mut self) {
            while let Some(bytes) = self.link.room() {
                self.ask(bytes, Lane::Fill);
            }
        }

        /// What was asked for first comes. Its bytes.
        fn receive(&mut self) -> u64 {
            let (passage, at) = self.flying.remove(0);
            self.now = at;
            let bytes = passage.bytes;
            passage.arrive_at(bytes, at);
            bytes
        }
    }

    /// What is known of a line when background work has had so many answers.
    fn fill_up(rate: u64, delay: Duration, rounds: usize) -> Arc<Link> {
        let mut line = Line::new(rate, delay);
        for _ in 0..rounds {
            line.fill();
            line.receive();
        }
        line.link
    }

    #[test]
    fn a_long_line_is_filled_and_a_short_one_is_not_overfilled() {
        let gigabit = 125_000_000;
        for (delay, fewest, most) in [(1, MIB / 2, 8 * MIB), (80, 10 * MIB, 40 * MIB)] {
            let link = fill_up(gigabit, Duration::from_millis(delay), 200);
            let capacity = link.capacity().unwrap_or_default();
            assert!(
                (fewest..most).contains(&capacity),
                "{delay} ms: {capacity} bytes in flight"
            );
        }
    }

    /// Somebody always waits for a MiB: which part of `time` of the line is used.
    fn beside_a_reader(rate: u64, delay: Duration, time: Duration) -> f64 {
        let mut line = Line::new(rate, delay);
        let (end, mut arrived) = (line.now + time, 0);
        while line.now < end {
            if !line.flying.iter().any(|(it, _)| it.lane == Lane::Demand) {
                line.ask(MIB, Lane::Demand);
            }
            line.fill();
            arrived += line.receive();
        }
        arrived as f64 / (rate as f64 * time.as_secs_f64())
    }

    #[test]
    fn a_reader_who_always_waits_does_not_keep_the_line_from_being_found_out() {
        for (rate, delay) in [(125_000_000, 20), (125_000_000, 80), (25_000_000, 80)] {
            let delay = Duration::from_millis(delay);
            let used = beside_a_reader(rate, delay, Duration::from_secs(4));
            // A MiB per delay would be 0.29, 0.1 and 0.34.
            assert!(used > 0.6, "{rate} bytes/s, {delay:?}: {used}");
        }
    }

    #[test]
    fn background_work_gets_what_demand_leaves_of_the_line() {
        let link = fill_up(125_000_000, Duration::from_millis(80), 200);
        let capacity = link.capacity().unwrap_or_default();
        let demand = link.depart(MIB, Lane::Demand);
        assert!(link.room().is_some(), "most of the line is free");
        let more = link.depart(capacity, Lane::Demand);
        assert_eq!(link.room(), None, "demand has all of it");
        drop((demand, more));
        assert!(link.room().is_some());
    }

    #[test]
    fn on_a_quick_line_readers_have_the_cpu_for_themselves_and_on_a_slow_one_the_line_is_used() {
        for (rate, delay, used) in [
            (1_000_000_000, 0, false),
            (1_000_000_000, 20, true),
            (125_000_000, 0, true),
        ] {
            let link = fill_up(rate, Duration::from_millis(delay), 200);
            drop(link.depart(10, Lane::Demand));
            let state = link.state.lock();
            let now = Instant::now();
            assert_eq!(state.room(now).is_some(), used, "{rate}, {delay} ms");
            assert!(state.room(now + COURTESY).is_some(), "nobody asks any more");
        }
    }

    #[test]
    fn readers_are_held_up_by_a_long_line_and_not_by_one_that_brings_more_than_is_decoded() {
        let long = fill_up(125_000_000, Duration::from_millis(80), 200);
        assert!(!long.holds_up_readers(), "nobody waits");
        let read = long.depart(10, Lane::Demand);
        assert!(long.holds_up_readers());
        let ahead = long.depart(10, Lane::Readahead);
        assert!(!long.holds_up_readers(), "the CPU is for what comes");
        drop((read, ahead));
        assert!(!long.holds_up_readers());
        let quick = fill_up(1_000_000_000, Duration::ZERO, 200);
        let _read = quick.depart(10, Lane::Demand);
        assert!(!quick.holds_up_readers());
    }

    #[test]
    fn nothing_is_asked_for_while_what_has_come_waits_for_a_cpu() {
        let link = fill_up(125_000_000, Duration::from_millis(80), 200);
        // As slowly as it comes through a line that is not quick.
        let later = Instant::now() + Duration::from_millis(200);
        let came = link.depart(MOST_UNDECODED, Lane::Fill);
        let waits = came.arrive_at(MOST_UNDECODED, later);
        assert_eq!(link.room(), None);
        drop(waits);
        assert!(link.room().is_some());
        let read = link.depart(MOST_UNDECODED, Lane::Demand);
        let waits = read.arrive_at(MOST_UNDECODED, later);
        assert!(waits.is_none(), "what somebody waits for");
        assert!(link.room().is_some());
    }

    #[test]
    fn an_unknown_line_is_tried_with_few_requests_and_not_beside_demand() {
        let link = Arc::new(Link::default());
        let first: Vec<_> = std::iter::from_fn(|| {
            let bytes = link.room()?;
            Some(link.depart(bytes, Lane::Fill))
        })
        .take(10)
        .collect();
        assert_eq!(first.len(), FEW);
        drop(first);
        let _demand = link.depart(10, Lane::Demand);
        assert_eq!(link.room(), None);
    }
}

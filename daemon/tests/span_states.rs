//! The state machine of spans on threads whose every order is tried, memory orders included: nobody relies on
//! bytes that are not the span's, and everybody who waits is answered once.
#![allow(clippy::unwrap_used)]
// The daemon uses more of it than the model.
#![allow(dead_code, unreachable_pub)]

use std::ops::Range;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU8, Ordering};
use loom::thread;
use ztoc::SpanId;

use self::flight::{Flights, Joined};
use self::schedule::{Lane, Ticket};

#[path = "../src/layer/flight.rs"]
mod flight;

/// Locks and atomics that the model watches.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU32, Ordering, fence};

    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T: Default> Default for Mutex<T> {
        fn default() -> Self {
            Self(loom::sync::Mutex::new(T::default()))
        }
    }

    impl<T> Mutex<T> {
        pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }
    }
}

/// How urgent something is does not matter here.
mod schedule {
    #[derive(Debug, Clone, Copy)]
    pub(crate) enum Lane {
        Demand,
        Fill,
    }

    #[derive(Debug)]
    pub(crate) struct Ticket;

    impl Ticket {
        pub(crate) fn new(_: Lane) -> Self {
            Self
        }

        pub(crate) fn lane(&self) -> Lane {
            Lane::Demand
        }

        pub(crate) fn promote(&self, _: Lane) {}

        pub(crate) fn is_withdrawn(&self) -> bool {
            false
        }
    }
}

const SPAN: SpanId = SpanId(0);
const ONLY: Range<SpanId> = SPAN..SpanId(1);
const WRONG: u8 = 0;
const RIGHT: u8 = 1;

/// One span, and a disk of one byte that nothing orders but the states.
struct World {
    flights: Flights<u8>,
    disk: AtomicU8,
    /// How often each of those who wait was answered.
    answered: [AtomicU8; 3],
}

impl World {
    fn new(claimed: bool) -> Arc<Self> {
        Arc::new(Self {
            flights: Flights::new(&[claimed]),
            disk: AtomicU8::new(if claimed { RIGHT } else { WRONG }),
            answered: std::array::from_fn(|_| AtomicU8::new(0)),
        })
    }

    fn answer(&self, waiters: impl IntoIterator<Item = u8>) {
        for waiter in waiters {
            self.answered[usize::from(waiter)].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reads without a lock, as a hit does.
    fn hit(&self) {
        let Some(seen) = self.flights.sight(ONLY) else {
            return;
        };
        let read = self.disk.load(Ordering::Relaxed);
        if self.flights.still(ONLY, &seen) {
            assert_eq!(read, RIGHT, "a span that was not there");
        }
    }

    /// Gets the span for `waiter`, or waits for who gets it.
    fn get(&self, waiter: u8) {
        let ticket = std::sync::Arc::new(Ticket::new(Lane::Demand));
        match self.flights.join(SPAN, Some(waiter), &ticket) {
            Joined::Present => self.answer([waiter]),
            Joined::Waiting => {}
            Joined::Started(_) => {
                self.disk.store(WRONG, Ordering::Relaxed);
                self.disk.store(RIGHT, Ordering::Relaxed);
                self.answer(self.flights.take_waiters(SPAN));
                let late = self.flights.finish(SPAN, true);
                self.answer(late);
            }
        }
    }

    /// Gives the span up, and gets it again for who came meanwhile.
    fn evict(&self) {
        if !self.flights.recall(SPAN) {
            return;
        }
        self.disk.store(WRONG, Ordering::Relaxed);
        for waiter in self.flights.finish(SPAN, false) {
            self.get(waiter);
        }
    }

    fn assert_answered(&self, waiters: usize) {
        for (waiter, answers) in self.answered.iter().enumerate() {
            let wanted = u8::from(waiter < waiters);
            assert_eq!(answers.load(Ordering::Relaxed), wanted, "waiter {waiter}");
        }
        let ticket = std::sync::Arc::new(Ticket::new(Lane::Demand));
        assert_ne!(self.flights.join(SPAN, None, &ticket), Joined::Waiting);
    }
}

/// Tries all orders of these threads, with at most three changes of thread that nothing forces.
fn every_order(claimed: bool, waiters: usize, threads: &[fn(&World)]) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    let threads = threads.to_vec();
    model.check(move || {
        let world = World::new(claimed);
        let running: Vec<_> = threads
            .iter()
            .map(|&work| {
                let world = Arc::clone(&world);
                thread::spawn(move || work(&world))
            })
            .collect();
        for thread in running {
            thread.join().unwrap();
        }
        world.assert_answered(waiters);
    });
}

#[test]
fn a_read_beside_an_eviction_and_a_fetch_relies_on_no_wrong_byte() {
    for claimed in [true, false] {
        every_order(
            claimed,
            1,
            &[
                |it| {
                    it.get(0);
                    it.evict();
                },
                World::hit,
            ],
        );
        every_order(claimed, 1, &[World::hit, World::evict, |it| it.get(0)]);
    }
}

#[test]
fn a_read_beside_a_loss_and_a_fetch_relies_on_no_wrong_byte() {
    let lose: fn(&World) = |it| {
        it.get(0);
        it.flights.leave(SPAN);
        it.get(1);
    };
    for claimed in [true, false] {
        every_order(claimed, 2, &[lose, World::hit]);
    }
}

#[test]
fn whoever_waits_is_answered_once_whoever_gets_the_span_or_gives_it_up() {
    for claimed in [true, false] {
        every_order(claimed, 2, &[|it| it.get(0), |it| it.get(1), World::evict]);
        every_order(claimed, 1, &[|it| it.get(0), World::evict, World::evict]);
    }
}

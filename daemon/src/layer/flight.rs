//! The state of each span and who waits for it.
//!
//! ```text
//! Absent ----start----> InFlight --finish(true)--> Present
//! Unverified --start--> InFlight --finish(false)-> Absent
//! Present --leave--> Absent
//! Present, Unverified --recall--> InFlight --finish(false)-> Absent
//! ```
//! States are read without a lock; they change only under the lock on the waiters. Nothing here does I/O.
//!
//! A span's bytes are not of this module, and the fences between them and its state are: `tests/span_states.rs`
//! goes through all orders in which threads may see them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use ztoc::SpanId;

use super::schedule::{Lane, Ticket};
use super::sync::{AtomicU32, Mutex, Ordering, fence};

const ABSENT: u32 = 0;
const UNVERIFIED: u32 = 1;
const IN_FLIGHT: u32 = 2;
const PRESENT: u32 = 3;
const STATE: u32 = 3;
/// The rest of a state word counts how often the span ceased to be present.
const GENERATION: u32 = 4;

/// The spans of one layer. `W` is whoever waits for one.
#[derive(Debug)]
pub(crate) struct Flights<W> {
    words: Box<[AtomicU32]>,
    /// Spans in flight. Innermost lock: nothing is locked, answered or awaited under it.
    flying: Mutex<HashMap<SpanId, Flight<W>>>,
}

#[derive(Debug)]
struct Flight<W> {
    ticket: Arc<Ticket>,
    waiters: Vec<W>,
}

/// What joining a span came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Joined {
    /// It is in the cache; the waiter was not kept.
    Present,
    /// Somebody is getting it and will answer the waiter.
    Waiting,
    /// The caller must get it, from here, and [`Flights::finish`] it; the waiter is kept.
    Started(Origin),
}

/// Where a span that was started is to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The cache claims it, unverified since the daemon started.
    Disk,
    /// Nobody has it here.
    Registry,
}

/// Proof that some spans were all present at one moment; see [`Flights::still`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sighting(u64);

impl<W> Flights<W> {
    /// All spans; those `claimed` must be checked at first use.
    pub(crate) fn new(claimed: &[bool]) -> Self {
        let state = |&claimed: &bool| AtomicU32::new(if claimed { UNVERIFIED } else { ABSENT });
        Self {
            words: claimed.iter().map(state).collect(),
            flying: Mutex::default(),
        }
    }

    fn word(&self, span: SpanId) -> &AtomicU32 {
        &self.words[span.0 as usize]
    }

    /// Whether all of `spans` are present now.
    pub(crate) fn sight(&self, spans: Range<SpanId>) -> Option<Sighting> {
        let mut sum = 0;
        for id in spans.start.0..spans.end.0 {
            let word = self.word(SpanId(id)).load(Ordering::Acquire);
            if word & STATE != PRESENT {
                return None;
            }
            sum += u64::from(word / GENERATION);
        }
        Some(Sighting(sum))
    }

    /// Whether the spans have been present without a break since `before` was taken: bytes read in
    /// between are theirs.
    pub(crate) fn still(&self, spans: Range<SpanId>, before: &Sighting) -> bool {
        // What was read in between was read before this.
        fence(Ordering::Acquire);
        // Generations only grow, so equal sums mean equal generations.
        self.sight(spans).as_ref() == Some(before)
    }

    /// Whether `span` is neither here nor on its way.
    pub(crate) fn is_absent(&self, span: SpanId) -> bool {
        self.word(span).load(Ordering::Relaxed) & STATE == ABSENT
    }

    /// Whether all spans are in the cache.
    pub(crate) fn is_full(&self) -> bool {
        self.words
            .iter()
            .all(|word| matches!(word.load(Ordering::Relaxed) & STATE, PRESENT | UNVERIFIED))
    }

    /// Whether nothing is in flight.
    #[cfg(test)]
    pub(crate) fn is_quiet(&self) -> bool {
        self.flying.lock().is_empty()
    }

    /// Whether `span` is in the cache, checked since start or not.
    pub(crate) fn is_held(&self, span: SpanId) -> bool {
        let word = self.word(span).load(Ordering::Relaxed);
        matches!(word & STATE, PRESENT | UNVERIFIED)
    }

    /// Number of spans present, checked since start or not.
    pub(crate) fn present(&self) -> usize {
        let held = |word: &&AtomicU32| {
            matches!(word.load(Ordering::Relaxed) & STATE, PRESENT | UNVERIFIED)
        };
        self.words.iter().filter(held).count()
    }

    /// Whether any of `spans` is in flight.
    pub(crate) fn any_in_flight(&self, spans: &Range<SpanId>) -> bool {
        let words = &self.words[spans.start.0 as usize..spans.end.0 as usize];
        let flies = |word: &AtomicU32| word.load(Ordering::Relaxed) & STATE == IN_FLIGHT;
        words.iter().any(flies)
    }

    /// The state of each span: 0 absent, 1 in flight, 2 claimed by the cache and not yet checked, 3 present.
    pub(crate) fn states(&self) -> Vec<u8> {
        let state = |word: &AtomicU32| match word.load(Ordering::Relaxed) & STATE {
            ABSENT => 0,
            IN_FLIGHT => 1,
            UNVERIFIED => 2,
            _ => 3,
        };
        self.words.iter().map(state).collect()
    }

    /// Waits for `span`, or makes the caller the one who gets it. A more urgent ticket than the flight's
    /// own hurries the flight.
    pub(crate) fn join(&self, span: SpanId, waiter: Option<W>, ticket: &Arc<Ticket>) -> Joined {
        let mut flying = self.flying.lock();
        let word = self.word(span);
        let now = word.load(Ordering::Acquire);
        let origin = match now & STATE {
            PRESENT => return Joined::Present,
            IN_FLIGHT => {
                if let Some(flight) = flying.get_mut(&span) {
                    flight.waiters.extend(waiter);
                    flight.ticket.promote(ticket.lane());
                }
                return Joined::Waiting;
            }
            UNVERIFIED => Origin::Disk,
            _ => Origin::Registry,
        };
        word.store(now & !STATE | IN_FLIGHT, Ordering::Release);
        // What the caller writes comes after this.
        fence(Ordering::Release);
        let flight = Flight {
            ticket: Arc::clone(ticket),
            waiters: waiter.into_iter().collect(),
        };
        flying.insert(span, flight);
        Joined::Started(origin)
    }

    /// Takes those who wait for a span in flight, which goes on flying.
    pub(crate) fn take_waiters(&self, span: SpanId) -> Vec<W> {
        let mut flying = self.flying.lock();
        let flight = flying.get_mut(&span);
        flight.map_or_else(Vec::new, |flight| std::mem::take(&mut flight.waiters))
    }

    /// Those who wait for a span in flight, and go on waiting.
    pub(crate) fn waiting(&self, span: SpanId) -> Vec<W>
    where
        W: Clone,
    {
        let flying = self.flying.lock();
        flying
            .get(&span)
            .map_or_else(Vec::new, |flight| flight.waiters.clone())
    }

    /// Lets go of those who wait for `span` and whom `stays` does not name. Answers how many are left.
    pub(crate) fn retain_waiting(&self, span: SpanId, stays: impl Fn(&W) -> bool) -> usize {
        let mut flying = self.flying.lock();
        flying.get_mut(&span).map_or(0, |flight| {
            flight.waiters.retain(stays);
            flight.waiters.len()
        })
    }

    /// Whether the flight of `span` is about to be given up.
    pub(crate) fn is_withdrawn(&self, span: SpanId) -> bool {
        let flying = self.flying.lock();
        flying
            .get(&span)
            .is_some_and(|flight| flight.ticket.is_withdrawn())
    }

    /// Ends a flight and returns who still waits.
    pub(crate) fn finish(&self, span: SpanId, present: bool) -> Vec<W> {
        let mut flying = self.flying.lock();
        let Some(flight) = flying.remove(&span) else {
            return Vec::new();
        };
        let word = self.word(span);
        let state = if present { PRESENT } else { ABSENT };
        let now = word.load(Ordering::Acquire);
        word.store(now & !STATE | state, Ordering::Release);
        flight.waiters
    }

    /// Takes a span that is in the cache out of use, as if it were on its way: the caller removes it and
    /// then [`finish`](Self::finish)es it, and looks after who waits. `false` if it is not in the cache.
    pub(crate) fn recall(&self, span: SpanId) -> bool {
        let mut flying = self.flying.lock();
        let word = self.word(span);
        let now = word.load(Ordering::Acquire);
        if !matches!(now & STATE, PRESENT | UNVERIFIED) {
            return false;
        }
        let next = (now & !STATE).wrapping_add(GENERATION) | IN_FLIGHT;
        word.store(next, Ordering::Release);
        // What the caller writes comes after this.
        fence(Ordering::Release);
        let flight = Flight {
            ticket: Arc::new(Ticket::new(Lane::Fill)),
            waiters: Vec::new(),
        };
        flying.insert(span, flight);
        true
    }

    /// Declares a present span absent; `false` if it was not present.
    pub(crate) fn leave(&self, span: SpanId) -> bool {
        let _flying = self.flying.lock();
        let word = self.word(span);
        let now = word.load(Ordering::Acquire);
        if now & STATE != PRESENT {
            return false;
        }
        let next = (now & !STATE).wrapping_add(GENERATION) | ABSENT;
        word.store(next, Ordering::Release);
        true
    }
}

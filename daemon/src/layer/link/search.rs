//! The start on a line of which little is known: more and more in flight, for as long as more comes of it.
//!
//! As BBR's start-up does it (draft-ietf-ccwg-bbr, 5.3.1): the line is known when three rounds with a full line have not
//! raised the rate by a quarter.

use std::time::{Duration, Instant};

/// Rounds without growth that end the search.
const ROUNDS: u32 = 3;
/// After so long without an answer the line may be another.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// Whether the rate of a line still grows with what is in flight.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// Bytes per second that growth is measured against.
    base: i64,
    /// Rounds since it grew.
    rounds: u32,
    /// The round ends with the first request that starts when so many bytes have arrived.
    round_end: u64,
    last: Option<Instant>,
}

impl Search {
    pub(super) fn goes_on(&self) -> bool {
        self.rounds < ROUNDS
    }

    /// A request has come that started when `before` bytes had arrived, with the line `full` or not. Now `arrived`
    /// bytes have, at this `rate` since then.
    pub(super) fn note(&mut self, rate: i64, before: u64, arrived: u64, full: bool, now: Instant) {
        let silence = self.last.map(|last| now.saturating_duration_since(last));
        if silence.is_some_and(|silence| silence >= FORGOTTEN) {
            *self = Self::default();
        }
        self.last = Some(now);
        if rate > self.base.saturating_add(self.base / 4) {
            (self.base, self.rounds, self.round_end) = (rate, 0, arrived);
        } else if full && before >= self.round_end {
            // That a line which is not full gives no more says nothing of it.
            self.rounds = self.rounds.saturating_add(1);
            self.round_end = arrived;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds of a MiB with these rates.
    fn after(rates: &[i64], full: bool) -> Search {
        let (mut search, now) = (Search::default(), Instant::now());
        for (&rate, round) in rates.iter().zip(0..) {
            search.note(rate, round << 20, (round + 1) << 20, full, now);
        }
        search
    }

    #[test]
    fn it_goes_on_while_the_rate_grows_and_ends_after_three_rounds_without() {
        assert!(after(&[10, 20, 40, 80, 160], true).goes_on());
        assert!(after(&[10, 20, 22, 24], true).goes_on());
        assert!(
            after(&[10, 20, 22, 24, 26, 28, 30], true).goes_on(),
            "by a quarter in the end"
        );
        assert!(!after(&[10, 20, 22, 24, 25], true).goes_on());
    }

    #[test]
    fn what_starts_within_a_round_does_not_end_it() {
        let (mut search, now) = (Search::default(), Instant::now());
        search.note(10, 0, 100, true, now);
        for arrived in 101..200 {
            search.note(10, 99, arrived, true, now);
        }
        assert!(search.goes_on());
    }

    #[test]
    fn a_line_that_was_not_full_is_not_known() {
        assert!(after(&[10; 50], false).goes_on());
    }

    #[test]
    fn it_begins_again_after_a_while_without_answers() {
        let mut search = after(&[10; 10], true);
        assert!(!search.goes_on());
        search.note(10, 20 << 20, 21 << 20, true, Instant::now() + FORGOTTEN * 2);
        assert!(search.goes_on());
    }
}

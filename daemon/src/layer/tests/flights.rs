//! The states of spans, one step at a time.

use super::super::flight::{Flights, Joined, Origin};
use super::super::schedule::Ticket;
use super::*;

const A: SpanId = SpanId(0);
const BOTH: Range<SpanId> = SpanId(0)..SpanId(2);

fn ticket(lane: Lane) -> Arc<Ticket> {
    Arc::new(Ticket::new(lane))
}

#[test]
fn the_first_to_ask_starts_a_span_and_the_others_wait() {
    let flights = Flights::new(&[false, true]);
    let demand = ticket(Lane::Demand);
    assert_eq!(
        flights.join(A, Some(1), &demand),
        Joined::Started(Origin::Registry)
    );
    assert_eq!(flights.join(A, Some(2), &demand), Joined::Waiting);
    assert_eq!(flights.take_waiters(A), [1, 2]);
    assert_eq!(flights.join(A, Some(3), &demand), Joined::Waiting);
    assert_eq!(flights.finish(A, true), [3]);
    assert_eq!(flights.join(A, Some(4), &demand), Joined::Present);
}

#[test]
fn a_span_claimed_by_the_disk_is_checked_before_it_is_present() {
    let flights = Flights::new(&[true]);
    assert!(flights.sight(A..SpanId(1)).is_none());
    let started = flights.join(A, Some(1), &ticket(Lane::Demand));
    assert_eq!(started, Joined::Started(Origin::Disk));
    assert_eq!(flights.finish(A, false), [1]);
    let again = flights.join(A, Some(1), &ticket(Lane::Demand));
    assert_eq!(
        again,
        Joined::Started(Origin::Registry),
        "a failure is never permanent"
    );
}

#[test]
fn a_demand_read_hurries_a_background_flight() {
    let flights = Flights::new(&[false]);
    let fill = ticket(Lane::Fill);
    flights.join(A, None::<u8>, &fill);
    flights.join(A, Some(1), &ticket(Lane::Readahead));
    assert_eq!(fill.lane(), Lane::Readahead);
    flights.join(A, Some(1), &ticket(Lane::Demand));
    assert_eq!(fill.lane(), Lane::Demand);
    flights.join(A, None, &ticket(Lane::Fill));
    assert_eq!(fill.lane(), Lane::Demand, "never slowed down");
}

#[test]
fn a_recalled_span_is_nobodys_until_it_is_finished_and_ends_a_sighting() {
    let flights = Flights::new(&[true, false]);
    assert!(!flights.recall(SpanId(1)), "it is not there");
    flights.join(SpanId(1), None, &ticket(Lane::Demand));
    assert!(!flights.recall(SpanId(1)), "it is on its way");
    flights.finish(SpanId(1), true);
    let only = SpanId(1)..SpanId(2);
    let seen = flights.sight(only.clone());
    assert!(flights.recall(SpanId(1)));
    assert!(!flights.recall(SpanId(1)));
    assert!(flights.sight(only.clone()).is_none());
    let joined = flights.join(SpanId(1), Some(7), &ticket(Lane::Demand));
    assert_eq!(joined, Joined::Waiting);
    assert_eq!(flights.finish(SpanId(1), false), [7]);
    flights.join(SpanId(1), None, &ticket(Lane::Demand));
    flights.finish(SpanId(1), true);
    assert!(!seen.is_some_and(|seen| flights.still(only, &seen)));
    assert!(flights.recall(A), "claimed, unverified");
}

#[test]
fn a_sighting_ends_when_a_span_leaves_even_if_it_comes_back() {
    let flights = Flights::<u8>::new(&[false, false]);
    let demand = ticket(Lane::Demand);
    for span in [A, SpanId(1)] {
        flights.join(span, None, &demand);
        flights.finish(span, true);
    }
    let seen = flights.sight(BOTH);
    assert!(seen.as_ref().is_some_and(|seen| flights.still(BOTH, seen)));
    assert!(flights.leave(A));
    assert!(!flights.leave(A));
    flights.join(A, None, &demand);
    flights.finish(A, true);
    assert!(flights.sight(BOTH).is_some());
    assert!(!seen.is_some_and(|seen| flights.still(BOTH, &seen)));
}

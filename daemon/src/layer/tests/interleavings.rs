//! Everything that can happen to one span at the same time, in every order there is.
//!
//! Reads take no lock: they look, read the disk and look again. So each actor is cut into the steps between
//! which another one can come, and all interleavings are played through, with the real state machine and a
//! disk of one byte that is wrong while it is being written. (The order of memory accesses within a step is
//! not varied; states change under a lock.)

use super::super::flight::{Flights, Joined, Sighting};
use super::super::schedule::Ticket;
use super::*;

const SPAN: SpanId = SpanId(0);
const RIGHT: u8 = 1;
const WRONG: u8 = 0;

/// One of those who do something, and how far it is.
#[derive(Debug)]
enum Actor {
    /// Looks, reads, looks again, and relies on what it read.
    Reader(Option<Sighting>, u8),
    /// Finds out that the disk fails and has the span fetched again.
    Distrust,
    /// Wants the span, waits for it or gets it: from disk if that claims to have it, else anew.
    Getter { number: u8, started: bool },
}

struct World {
    flights: Flights<u8>,
    disk: u8,
    /// Who was told that the span is here.
    answered: Vec<u8>,
    waiting: Vec<u8>,
}

fn only() -> Range<SpanId> {
    SPAN..SpanId(1)
}

impl Actor {
    fn steps(&self) -> usize {
        match self {
            Self::Reader(..) => 3,
            Self::Distrust => 1,
            Self::Getter { .. } => 4,
        }
    }

    fn step(&mut self, number: usize, world: &mut World) {
        match (self, number) {
            (Self::Reader(seen, _), 0) => *seen = world.flights.sight(only()),
            (Self::Reader(_, read), 1) => *read = world.disk,
            (Self::Reader(Some(seen), read), _) if world.flights.still(only(), seen) => {
                assert_eq!(*read, RIGHT, "a read relied on a span that was not there");
            }
            (Self::Distrust, _) => drop(world.flights.leave(SPAN)),
            (Self::Getter { number, started }, 0) => {
                let ticket = Arc::new(Ticket::new(Lane::Demand));
                match world.flights.join(SPAN, Some(*number), &ticket) {
                    Joined::Present => world.answered.push(*number),
                    Joined::Waiting => world.waiting.push(*number),
                    Joined::Started(_) => {
                        world.waiting.push(*number);
                        *started = true;
                    }
                }
            }
            (Self::Getter { started: true, .. }, 1) => world.disk = WRONG,
            (Self::Getter { started: true, .. }, 2) => {
                world.disk = RIGHT;
                world.answered.extend(world.flights.take_waiters(SPAN));
            }
            (Self::Getter { started: true, .. }, _) => {
                world.answered.extend(world.flights.finish(SPAN, true));
            }
            _ => {}
        }
    }
}

/// Plays `order`, a list of whose turn it is.
fn play(claimed: bool, order: &[usize], actors: &mut [Actor]) {
    let mut world = World {
        flights: Flights::new(&[claimed]),
        disk: if claimed { RIGHT } else { WRONG },
        answered: Vec::new(),
        waiting: Vec::new(),
    };
    let mut done = vec![0; actors.len()];
    for &turn in order {
        actors[turn].step(done[turn], &mut world);
        done[turn] += 1;
    }
    let mut answered = world.answered;
    answered.sort_unstable();
    assert_eq!(answered, [1, 2], "each once: {order:?}");
    // Nothing is left in flight: whoever comes now is served.
    let ticket = Arc::new(Ticket::new(Lane::Demand));
    assert_ne!(world.flights.join(SPAN, None, &ticket), Joined::Waiting);
}

fn every_order(left: &mut [usize], order: &mut Vec<usize>, visit: &mut impl FnMut(&[usize])) {
    if left.iter().all(|steps| *steps == 0) {
        return visit(order);
    }
    for actor in 0..left.len() {
        if left[actor] > 0 {
            left[actor] -= 1;
            order.push(actor);
            every_order(left, order, visit);
            order.pop();
            left[actor] += 1;
        }
    }
}

#[test]
fn no_order_of_reads_fetches_and_losses_gives_a_wrong_byte_or_forgets_a_reader() {
    let actors = || {
        let getter = |number| Actor::Getter {
            number,
            started: false,
        };
        [
            Actor::Reader(None, WRONG),
            Actor::Distrust,
            getter(1),
            getter(2),
        ]
    };
    for claimed in [false, true] {
        let mut steps = actors().map(|actor| actor.steps());
        let mut orders = 0;
        every_order(&mut steps, &mut Vec::new(), &mut |order| {
            play(claimed, order, &mut actors());
            orders += 1;
        });
        // 12 steps of 3, 1, 4 and 4.
        assert_eq!(orders, 138_600);
    }
}

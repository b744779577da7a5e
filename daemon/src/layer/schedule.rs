//! Which bytes are fetched in which request, and when.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use ztoc::{CompressedOffset, SpanId, SpanTable};

/// How urgent bytes are. Less urgent ones never make more urgent ones wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Lane {
    /// A process waits in read(2).
    Demand = 0,
    /// Probably wanted soon.
    Readahead = 1,
    /// The rest of the layer.
    Fill = 2,
}

impl Lane {
    fn from_byte(byte: u8) -> Self {
        match byte {
            0 => Self::Demand,
            1 => Self::Readahead,
            _ => Self::Fill,
        }
    }
}

/// The urgency of one request, which can only rise. One task at a time waits on it.
#[derive(Debug)]
pub(crate) struct Ticket {
    lane: AtomicU8,
    raised: Notify,
    withdrawn: AtomicBool,
}

impl Ticket {
    /// Work of this urgency.
    pub(crate) fn new(lane: Lane) -> Self {
        Self {
            lane: AtomicU8::new(lane as u8),
            raised: Notify::new(),
            withdrawn: AtomicBool::new(false),
        }
    }

    /// The urgency now.
    pub(crate) fn lane(&self) -> Lane {
        Lane::from_byte(self.lane.load(Ordering::Acquire))
    }

    /// Notes that nobody wants it any more: it is about to be given up.
    pub(crate) fn withdraw(&self) {
        self.withdrawn.store(true, Ordering::Release);
    }

    /// Whether it was withdrawn. Who came later has to ask again.
    pub(crate) fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Ordering::Acquire)
    }

    /// Raises the urgency to `lane` if that is more.
    pub(crate) fn promote(&self, lane: Lane) {
        if self.lane.fetch_min(lane as u8, Ordering::AcqRel) > lane as u8 {
            self.raised.notify_one();
        }
    }
}

/// Bounds the compressed bytes that are on their way or wait to be decoded, over all layers. Demand has a
/// share of its own.
#[derive(Debug)]
pub(crate) struct Budget {
    demand: Share,
    background: Share,
}

#[derive(Debug)]
struct Share {
    /// One permit is one KiB.
    permits: Arc<Semaphore>,
    size: u32,
}

/// Room in the [`Budget`], given back when dropped.
#[derive(Debug)]
pub(crate) struct Room(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Budget {
    /// `bytes` for demand, and as many for everything else.
    pub(crate) fn new(bytes: u64) -> Self {
        Self {
            demand: Share::new(bytes),
            background: Share::new(bytes),
        }
    }

    /// Waits for room for `bytes` in the lane of `ticket`; goes over to the demand share as soon as the
    /// ticket is promoted. A request larger than a share takes all of it.
    pub(crate) async fn acquire(&self, bytes: u64, ticket: &Ticket) -> Option<Room> {
        loop {
            if ticket.lane() == Lane::Demand {
                return self.demand.acquire(bytes).await;
            }
            tokio::select! {
                biased;
                () = ticket.raised.notified() => {}
                room = self.background.acquire(bytes) => return room,
            }
        }
    }
}

impl Share {
    fn new(bytes: u64) -> Self {
        let size = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).max(1);
        let size = size.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Self {
            permits: Arc::new(Semaphore::new(size as usize)),
            size,
        }
    }

    async fn acquire(&self, bytes: u64) -> Option<Room> {
        let wanted = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let permits = Arc::clone(&self.permits);
        let permit = permits.acquire_many_owned(wanted.clamp(1, self.size)).await;
        permit.ok().map(Room)
    }
}

/// The compressed bytes of a run of spans; the boundary byte that neighbours share is in it once.
pub(crate) fn compressed(table: &SpanTable, run: &Range<SpanId>) -> Range<CompressedOffset> {
    let last = SpanId(run.end.0.saturating_sub(1).max(run.start.0));
    table.compressed(run.start).start..table.compressed(last).end
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn demand_finds_room_when_the_background_has_taken_all_of_its_own() {
        let budget = Budget::new(64 << 10);
        let fill = Ticket::new(Lane::Fill);
        let _all = budget.acquire(1 << 40, &fill).await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_millis(20), budget.acquire(1, &fill));
        assert!(waiting.await.is_err(), "the background is full");
        let room = budget.acquire(64 << 10, &Ticket::new(Lane::Demand)).await;
        assert!(room.is_some());
    }

    #[tokio::test]
    async fn waiting_background_work_goes_on_as_demand_when_promoted() {
        let budget = Budget::new(1024);
        let (first, second) = (Ticket::new(Lane::Fill), Ticket::new(Lane::Fill));
        let _all = budget.acquire(1024, &first).await.unwrap();
        let (room, ()) = tokio::join!(budget.acquire(1024, &second), async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            second.promote(Lane::Readahead);
            tokio::time::sleep(Duration::from_millis(5)).await;
            second.promote(Lane::Demand);
        });
        assert!(room.is_some());
    }
}

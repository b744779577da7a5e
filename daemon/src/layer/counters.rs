//! What a layer has done, counted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Numbers of one layer since it was opened. Each only grows.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $($(#[$doc])* pub(crate) $name: AtomicU64,)*
        }

        /// The numbers of a layer at one moment.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        #[non_exhaustive]
        pub struct LayerCounters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// The numbers now.
            pub(crate) fn now(&self) -> LayerCounters {
                LayerCounters { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Reads answered from the cache.
    hits,
    /// Of these, reads that were handed over since the disk had to be waited for.
    cold_hits,
    /// Reads that had to wait for a span.
    misses,
    /// Reads that failed.
    failed_reads,
    /// Bytes given to readers.
    bytes_served,
    /// Ranged requests made of a source.
    requests,
    /// Requests that took so long that they were made a second time.
    stragglers,
    /// Requests that brought nothing usable.
    failed_requests,
    /// Compressed bytes fetched, verified or not.
    bytes_fetched,
    /// Spans whose bytes were not what the zTOC says (length, digest, or not decodable).
    bad_spans,
    /// Spans verified and decoded.
    spans_decoded,
    /// Plain bytes of these.
    bytes_decoded,
    /// Bytes that were copied once more on their way to a reader: from the cache, or to put a read together that lies
    /// in several spans. What is answered from the buffer it was decoded into is not.
    bytes_copied,
    /// Spans found right in the cache of an earlier run.
    spans_recovered,
    /// Spans that the cache claimed and did not have.
    bad_cached_spans,
    /// Spans that could not be written to the cache.
    cache_write_failures,
    /// Spans that were given up to make room for others.
    spans_evicted,
    /// Spans that the background fill brought.
    spans_filled,
    /// Requests of the background fill of which something did not come.
    failed_fills,
    /// 1 when the layer was found not to be what the image says.
    quarantined,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Ordering::Relaxed);
}

/// Lets one message through per interval, so that an outage does not fill the log.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    inner: parking_lot::Mutex<Throttled>,
}

#[derive(Debug, Default)]
struct Throttled {
    last: Option<Instant>,
    suppressed: u64,
}

impl Throttle {
    /// `Some` if a message may be written now, with how many were not since the last.
    pub(crate) fn pass(&self, interval: Duration) -> Option<u64> {
        let mut inner = self.inner.lock();
        if inner.last.is_some_and(|last| last.elapsed() < interval) {
            inner.suppressed += 1;
            return None;
        }
        inner.last = Some(Instant::now());
        Some(std::mem::take(&mut inner.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_per_interval_tells_how_many_were_held_back() {
        let throttle = Throttle::default();
        let hour = Duration::from_secs(3600);
        assert_eq!(throttle.pass(hour), Some(0));
        assert_eq!(throttle.pass(hour), None);
        assert_eq!(throttle.pass(hour), None);
        assert_eq!(throttle.pass(Duration::ZERO), Some(2));
    }
}

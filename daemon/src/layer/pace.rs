//! How slowly the background may go: what the configuration asks for.

use std::num::NonZeroU64;
use std::time::Duration;

/// How the rest of a layer is fetched while nobody asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FillOptions {
    /// Wait after a view is mounted, over all layers (`background_fetch.silence_period_msec`).
    pub silence: Duration,
    /// Pause for each span, over all layers (`background_fetch.fetch_period_msec`).
    pub period: Duration,
    /// Most compressed bytes per second, over all layers; none: as fast as the line is.
    pub bandwidth: Option<NonZeroU64>,
    /// Layers that may wait (`background_fetch.max_queue_size`).
    pub most_waiting: usize,
    /// Whether the layer that has waited longest makes room for a new one; else the new one is not taken.
    pub drop_oldest: bool,
}

impl Default for FillOptions {
    /// At once and at line rate.
    fn default() -> Self {
        Self {
            silence: Duration::ZERO,
            period: Duration::ZERO,
            bandwidth: None,
            most_waiting: 300,
            drop_oldest: false,
        }
    }
}

impl FillOptions {
    /// How long nothing may be begun after a request for so many spans and bytes.
    pub(crate) fn pause(&self, spans: u32, bytes: u64) -> Duration {
        let period = self.period.saturating_mul(spans);
        let bandwidth = self.bandwidth.map_or(Duration::ZERO, |limit| {
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(limit.get());
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
        });
        period.max(bandwidth)
    }

    /// Largest request: with a limit, a quarter of a second's worth, so that the line is not taken in gulps.
    pub(crate) fn largest(&self, bytes: u64) -> u64 {
        let limit = self.bandwidth.map_or(u64::MAX, |limit| limit.get() / 4);
        if self.period > Duration::ZERO {
            1
        } else {
            bytes.min(limit)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_bytes_and_a_period_of_spans_both_hold() {
        let free = FillOptions::default();
        assert_eq!(free.pause(9, 1 << 30), Duration::ZERO);
        let limited = FillOptions {
            bandwidth: NonZeroU64::new(1 << 20),
            period: Duration::from_millis(500),
            ..free
        };
        assert_eq!(limited.pause(1, 3 << 20), Duration::from_secs(3));
        assert_eq!(limited.pause(4, 1), Duration::from_secs(2));
        assert_eq!(limited.largest(16 << 20), 1, "span by span");
    }
}

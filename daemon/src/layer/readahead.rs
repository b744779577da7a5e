//! Recognises sequential readers of a layer by the spans they touch. Files are opened without a
//! message, so there is no handle to tell readers apart.

use std::ops::Range;

use parking_lot::Mutex;
use ztoc::SpanId;

/// Sequential readers told apart at a time.
const STREAMS: usize = 8;
/// Spans that a reader may always have fetched ahead of it, and the most.
pub(crate) const WINDOW: Range<u32> = 8..64;

/// The sequential readers seen last.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    recent: Mutex<Vec<Stream>>,
}

#[derive(Debug)]
struct Stream {
    /// The last span touched.
    at: SpanId,
    /// First span not yet asked for ahead.
    ahead: SpanId,
    /// Spans to be fetched ahead at the next step.
    window: u32,
}

impl Streams {
    /// Notes a read of `spans`; the spans to fetch ahead of it, if it continues a stream: more with
    /// each step, up to `largest`. Never waits: under contention a read is not noted.
    pub(crate) fn observe(
        &self,
        spans: &Range<SpanId>,
        largest: impl FnOnce() -> u32,
    ) -> Option<Range<SpanId>> {
        let last = SpanId(spans.end.0.checked_sub(1)?);
        let mut recent = self.recent.try_lock()?;
        if recent.first().is_some_and(|stream| stream.at == last) {
            return None;
        }
        if let Some(known) = recent.iter().position(|stream| stream.at == last) {
            recent[..=known].rotate_right(1);
            return None;
        }
        let continued = |stream: &Stream| {
            spans.start <= SpanId(stream.at.0 + 1) && stream.at < last && spans.start >= stream.at
        };
        let Some(known) = recent.iter().position(continued) else {
            recent.truncate(STREAMS - 1);
            recent.insert(
                0,
                Stream {
                    at: last,
                    ahead: spans.end,
                    window: 1,
                },
            );
            return None;
        };
        recent[..=known].rotate_right(1);
        Some(recent[0].advance(last, largest()))
    }
}

impl Stream {
    fn advance(&mut self, last: SpanId, largest: u32) -> Range<SpanId> {
        self.at = last;
        let start = self.ahead.max(SpanId(last.0 + 1));
        let end = SpanId(last.0.saturating_add(1 + self.window));
        self.window = (self.window * 2).min(largest);
        self.ahead = start.max(end);
        start..self.ahead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(streams: &Streams, span: u32) -> Option<Range<u32>> {
        let ahead = streams.observe(&(SpanId(span)..SpanId(span + 1)), || 8)?;
        Some(ahead.start.0..ahead.end.0)
    }

    #[test]
    fn a_sequential_reader_has_ever_more_spans_fetched_ahead_each_once() {
        let streams = Streams::default();
        assert_eq!(read(&streams, 10), None);
        assert_eq!(read(&streams, 10), None, "still the same span");
        assert_eq!(read(&streams, 11), Some(12..13));
        assert_eq!(read(&streams, 11), None);
        assert_eq!(read(&streams, 12), Some(13..15));
        assert_eq!(read(&streams, 13), Some(15..18));
        assert_eq!(read(&streams, 14), Some(18..23));
        assert_eq!(read(&streams, 15), Some(23..24));
    }

    #[test]
    fn two_interleaved_readers_are_both_recognised_and_random_reads_are_not() {
        let streams = Streams::default();
        assert_eq!(read(&streams, 10), None);
        assert_eq!(read(&streams, 50), None);
        assert_eq!(read(&streams, 11), Some(12..13));
        assert_eq!(read(&streams, 51), Some(52..53));
        for span in [3, 90, 7, 70, 30] {
            assert_eq!(read(&streams, span), None);
        }
    }
}

//! Spans that could not be written to the cache: the latest few, kept in memory, so that a full disk
//! does not have a sequential reader fetch the same span for each of its reads.

use std::collections::VecDeque;
use std::sync::Arc;

use ztoc::{Digest, SpanId};

/// Most bytes kept, over all layers.
const LIMIT: usize = 32 << 20;

/// Decoded spans without a place on disk, latest last.
#[derive(Debug, Default)]
pub(crate) struct Unwritten {
    spans: VecDeque<(Digest, SpanId, Arc<[u8]>)>,
    bytes: usize,
}

impl Unwritten {
    /// Keeps a span, at the cost of the oldest. One larger than the limit is not kept.
    pub(crate) fn keep(&mut self, layer: Digest, span: SpanId, bytes: &[u8]) {
        self.drop_span(&layer, span);
        if bytes.len() > LIMIT {
            return;
        }
        while self.bytes + bytes.len() > LIMIT {
            let Some((_, _, oldest)) = self.spans.pop_front() else {
                break;
            };
            self.bytes -= oldest.len();
        }
        self.bytes += bytes.len();
        self.spans.push_back((layer, span, Arc::from(bytes)));
    }

    /// The bytes of a span, if it is kept.
    pub(crate) fn get(&self, layer: &Digest, span: SpanId) -> Option<Arc<[u8]>> {
        let found = self.position(layer, span)?;
        self.spans.get(found).map(|(_, _, bytes)| Arc::clone(bytes))
    }

    /// Forgets a span.
    pub(crate) fn drop_span(&mut self, layer: &Digest, span: SpanId) {
        let found = self.position(layer, span);
        if let Some((_, _, bytes)) = found.and_then(|found| self.spans.remove(found)) {
            self.bytes -= bytes.len();
        }
    }

    fn position(&self, layer: &Digest, span: SpanId) -> Option<usize> {
        let same = |kept: &(Digest, SpanId, _)| kept.1 == span && kept.0 == *layer;
        self.spans.iter().position(same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_spans_make_room_and_the_limit_holds() {
        let layer = Digest::of(b"layer");
        let mut kept = Unwritten::default();
        let third = vec![1; LIMIT / 3];
        for id in 0..5 {
            kept.keep(layer, SpanId(id), &third);
            assert!(kept.bytes <= LIMIT);
        }
        let there: Vec<bool> = (0..5)
            .map(|id| kept.get(&layer, SpanId(id)).is_some())
            .collect();
        assert_eq!(there, [false, false, true, true, true]);
        kept.keep(layer, SpanId(9), &vec![1; LIMIT + 1]);
        assert!(kept.get(&layer, SpanId(9)).is_none());
        kept.drop_span(&layer, SpanId(3));
        assert_eq!(kept.bytes, 2 * (LIMIT / 3));
    }
}

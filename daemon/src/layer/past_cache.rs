//! Answers with what is on disk and not in memory, past the disk's page cache.

use std::ops::Range;
use std::sync::Arc;

use fuse::content::ReadReply;
use ztoc::{SpanId, UncompressedOffset};

use super::Layer;
use super::disk_ahead::{Found, Waiting, inside};
use super::large::LargeBuffer;

/// Bytes of a layer.
type Part = Range<UncompressedOffset>;

/// An entry of [`DiskAhead`](super::disk_ahead::DiskAhead) that is being read. Who waits for it is answered with an error
/// if it is dropped before its end.
struct Underway {
    layer: Arc<Layer>,
    part: Part,
}

impl Layer {
    /// Answers a request of which nothing is in memory, or gives the reply back. `end` is that of the file.
    pub(super) fn hit_past_cache(
        &self,
        spans: &Range<SpanId>,
        part: &Part,
        end: UncompressedOffset,
        reply: ReadReply,
    ) -> Option<ReadReply> {
        let ahead = self.engine.cold.ahead();
        match ahead.find(&self.digest, part, reply) {
            Found::Read(reply, mut buffer, place) => {
                self.read_ahead_of(part, end);
                self.answer(spans, &buffer.bytes()[place], reply);
                None
            }
            Found::Waits => {
                self.read_ahead_of(part, end);
                None
            }
            Found::Nothing(reply)
                if self.cache.is_cold(part) && self.engine.cold.large().has_any() =>
            {
                self.hit_later(spans.clone(), part.clone(), reply, Self::hit_direct);
                self.read_ahead_of(part, end);
                None
            }
            Found::Nothing(reply) => Some(reply),
        }
    }

    /// Answers a read of bytes that are on disk, on a thread that may wait for it.
    pub(super) fn hit_direct(
        &self,
        spans: Range<SpanId>,
        part: Part,
        reply: ReadReply,
        buffer: &mut Vec<u8>,
    ) {
        match self.read_past_cache(&spans, &part) {
            Some((mut large, place)) => self.answer(&spans, &large.bytes()[place], reply),
            None => self.hit_cold(spans, part, reply, buffer),
        }
    }

    /// Bytes of `spans` and where they are in the buffer, if they are on disk and it gives them in this way.
    fn read_past_cache(
        &self,
        spans: &Range<SpanId>,
        part: &Part,
    ) -> Option<(LargeBuffer, Range<usize>)> {
        let seen = self.flights.sight(spans.clone())?;
        let mut buffer = self.engine.cold.large().take()?;
        let place = self.cache.read_direct(part, buffer.bytes())?;
        let still = self.flights.still(spans.clone(), &seen);
        still.then_some((buffer, place))
    }

    /// Has what follows a request read from the disk.
    fn read_ahead_of(&self, part: &Part, end: UncompressedOffset) {
        let Some(layer) = self.this.upgrade() else {
            return;
        };
        for part in self.engine.cold.ahead().follow(&self.digest, part, end) {
            let underway = Underway {
                layer: Arc::clone(&layer),
                part,
            };
            // If there is no room in the queue it is dropped, and is over.
            let read = Box::new(move |buffer: &mut Vec<u8>| underway.read(buffer));
            drop(self.engine.cold.submit(read));
        }
    }
}

impl Underway {
    /// Reads it and answers who waits for it.
    fn read(self, buffer: &mut Vec<u8>) {
        if self.read_direct().is_some() {
            return;
        }
        let layer = &self.layer;
        for Waiting { part, reply } in layer.engine.cold.ahead().end(&layer.digest, &self.part) {
            if let Some(spans) = layer.locate(&part) {
                layer.hit_cold(spans, part, reply, buffer);
            }
        }
    }

    /// `None` if it cannot be had, and then nobody is answered.
    fn read_direct(&self) -> Option<()> {
        let (layer, part) = (&self.layer, &self.part);
        let spans = layer.locate(part)?;
        // The kernel's own read-ahead may have brought it, or it has only just been written.
        if !layer.cache.is_cold(part) {
            return None;
        }
        let (buffer, place) = layer.read_past_cache(&spans, part)?;
        let ahead = layer.engine.cold.ahead();
        let wanted = ahead.arrived(&layer.digest, part, buffer, place.clone());
        if let Some((mut buffer, waiting)) = wanted {
            for Waiting {
                part: wanted,
                reply,
            } in waiting
            {
                let place = inside(part, &place, &wanted);
                layer.answer(&spans, &buffer.bytes()[place], reply);
            }
        }
        Some(())
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let ahead = self.layer.engine.cold.ahead();
        drop(ahead.end(&self.layer.digest, &self.part));
    }
}

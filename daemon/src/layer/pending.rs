//! One read that waits for spans.

use std::ops::Range;
use std::sync::Arc;

use fuse::Reader;
use fuse::content::{ReadError, ReadReply};
use parking_lot::Mutex;
use tracing::Span;
use ztoc::UncompressedOffset;
use ztoc::unit::ByteLen as _;

use super::counters::{Counters, add};
use crate::traces::{self, step};

/// A read and the parts of it that have come. Answered once, by whoever brings the last part or the
/// first failure.
#[derive(Debug)]
pub(crate) struct PendingRead {
    range: Range<UncompressedOffset>,
    gathered: Mutex<Gathered>,
    counters: Arc<Counters>,
    /// Of the read, in a trace.
    trace: Span,
}

#[derive(Debug)]
struct Gathered {
    reply: Option<ReadReply>,
    missing: u32,
    bytes: Vec<u8>,
}

impl PendingRead {
    /// A read of `range`, which lies in `spans` spans.
    pub(crate) fn new(
        range: Range<UncompressedOffset>,
        reply: ReadReply,
        spans: u32,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            range,
            counters,
            trace: traces::here(),
            gathered: Mutex::new(Gathered {
                reply: Some(reply),
                missing: spans,
                bytes: Vec::new(),
            }),
        }
    }

    /// The part of the read that lies in `span`.
    pub(crate) fn part(&self, span: &Range<UncompressedOffset>) -> Range<UncompressedOffset> {
        let start = self.range.start.max(span.start);
        start..self.range.end.min(span.end).max(start)
    }

    /// Brings the bytes of `span`, all of them. To be called once for each span.
    pub(crate) fn fill(&self, span: &Range<UncompressedOffset>, bytes: &[u8]) {
        let part = self.part(span);
        let Some(bytes) = slice(bytes, span.start, &part) else {
            return self.fail(ReadError::Unavailable);
        };
        if part == self.range {
            let reply = self.gathered.lock().reply.take();
            return self.answer(reply, bytes);
        }
        self.gather(&part, bytes);
    }

    fn gather(&self, part: &Range<UncompressedOffset>, bytes: &[u8]) {
        let mut gathered = self.gathered.lock();
        if gathered.reply.is_none() {
            return;
        }
        let length = usize::try_from(self.range.byte_len()).unwrap_or(usize::MAX);
        gathered.bytes.resize(length, 0);
        let at = usize::try_from(part.start.0 - self.range.start.0).unwrap_or(usize::MAX);
        gathered.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        add(&self.counters.bytes_copied, bytes.len() as u64);
        gathered.missing = gathered.missing.saturating_sub(1);
        if gathered.missing == 0 {
            let reply = gathered.reply.take();
            let whole = std::mem::take(&mut gathered.bytes);
            drop(gathered);
            self.answer(reply, &whole);
        }
    }

    fn answer(&self, reply: Option<ReadReply>, bytes: &[u8]) {
        if let Some(reply) = reply {
            // Whatever follows from the answer follows from the read, not from what brought the bytes.
            let _inside = self.trace.enter();
            let _step = step!("reply", bytes = bytes.len());
            add(&self.counters.bytes_served, bytes.len() as u64);
            reply.data(bytes);
        }
    }

    /// Whether nobody wants it any more: it is answered, or who reads was killed. Asks the kernel.
    pub(crate) fn is_abandoned(&self) -> bool {
        let reader = self.gathered.lock().reply.as_ref().map(ReadReply::reader);
        reader.is_none_or(Reader::is_gone)
    }

    /// Answers with a failure, unless answered already.
    pub(crate) fn fail(&self, error: ReadError) {
        let mut gathered = self.gathered.lock();
        let reply = gathered.reply.take();
        gathered.bytes = Vec::new();
        drop(gathered);
        if let Some(reply) = reply {
            if error == ReadError::Unavailable {
                add(&self.counters.failed_reads, 1);
            }
            reply.error(error);
        }
    }
}

/// `part` of `bytes`, which begin at `start`.
fn slice<'a>(
    bytes: &'a [u8],
    start: UncompressedOffset,
    part: &Range<UncompressedOffset>,
) -> Option<&'a [u8]> {
    let from = usize::try_from(part.start.0.checked_sub(start.0)?).ok()?;
    let to = usize::try_from(part.end.0.checked_sub(start.0)?).ok()?;
    bytes.get(from..to)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    type Answer = Result<Vec<u8>, ReadError>;

    fn offsets(range: Range<u64>) -> Range<UncompressedOffset> {
        UncompressedOffset(range.start)..UncompressedOffset(range.end)
    }

    fn read(range: Range<u64>, spans: u32) -> (PendingRead, Receiver<Answer>) {
        let (send, receive) = channel();
        let reply = ReadReply::new(move |answer| {
            send.send(answer.map(<[u8]>::to_vec)).unwrap();
        });
        let read = PendingRead::new(offsets(range), reply, spans, Arc::default());
        (read, receive)
    }

    #[test]
    fn a_read_over_three_spans_is_answered_with_the_last_part_in_any_order() {
        let (read, answers) = read(8..22, 3);
        read.fill(&offsets(20..30), &[3; 10]);
        read.fill(&offsets(0..10), &[1; 10]);
        assert!(answers.try_recv().is_err());
        read.fill(&offsets(10..20), &[2; 10]);
        let expected = [[1; 2].as_slice(), &[2; 10], &[3; 2]].concat();
        assert_eq!(answers.recv().unwrap(), Ok(expected));
    }

    #[test]
    fn a_failed_part_fails_the_read_at_once_and_later_parts_are_ignored() {
        let (read, answers) = read(5..15, 2);
        read.fail(ReadError::Unavailable);
        assert_eq!(answers.recv().unwrap(), Err(ReadError::Unavailable));
        read.fill(&offsets(0..10), &[1; 10]);
        read.fail(ReadError::Unavailable);
        assert!(answers.try_recv().is_err());
    }

    #[test]
    fn bytes_shorter_than_their_span_fail_the_read() {
        let (read, answers) = read(5..9, 1);
        read.fill(&offsets(0..10), &[1; 8]);
        assert_eq!(answers.recv().unwrap(), Err(ReadError::Unavailable));
    }
}

//! Recognises sequential and strided readers of a layer by the spans they touch. Files are opened without a
//! message, so there is no handle to tell readers apart, but each read comes with the file it is of.

use std::ops::Range;

use parking_lot::Mutex;
use ztoc::SpanId;

/// Readers told apart at a time.
const STREAMS: usize = 8;
/// Spans that a reader may always have fetched ahead of it, and the most.
pub(crate) const WINDOW: Range<u32> = 8..64;

/// The readers seen last.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    recent: Mutex<Vec<Stream>>,
}

#[derive(Debug)]
struct Stream {
    /// The spans of the file it reads.
    file: Range<SpanId>,
    /// The last span touched.
    at: SpanId,
    /// From one span touched to the next; 1 in a sequential reader.
    step: u32,
    /// First span not yet asked for ahead.
    ahead: SpanId,
    /// Spans to be fetched ahead at the next step.
    window: u32,
}

/// What is wanted soon: of these spans the first, and each so many spans after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ahead {
    spans: Range<SpanId>,
    step: u32,
}

impl Ahead {
    /// The spans as runs of neighbours.
    pub(crate) fn runs(self) -> impl Iterator<Item = Range<SpanId>> {
        let length = if self.step == 1 {
            self.spans.end.0.saturating_sub(self.spans.start.0)
        } else {
            1
        };
        let starts = (self.spans.start.0..self.spans.end.0).step_by(self.step.max(length) as usize);
        starts.map(move |start| SpanId(start)..SpanId(start + length))
    }
}

impl Streams {
    /// Notes a read of `spans` of a file in `file`; what to fetch ahead of it, if it continues a stream: more
    /// with each step, up to `largest` spans. A sequential reader may go on in the next file, a strided one stays
    /// in its own. Never waits: under contention a read is not noted.
    pub(crate) fn observe(
        &self,
        spans: &Range<SpanId>,
        file: &Range<SpanId>,
        largest: impl FnOnce() -> u32,
    ) -> Option<Ahead> {
        let last = SpanId(spans.end.0.checked_sub(1)?);
        let mut recent = self.recent.try_lock()?;
        if let Some(known) = recent.iter().position(|stream| stream.at == last) {
            recent[..=known].rotate_right(1);
            return None;
        }
        let goes_on = |stream: &Stream| {
            spans.start <= SpanId(stream.at.0 + 1) && stream.at < last && spans.start >= stream.at
        };
        let strides = |stream: &Stream| stream.file == *file && stream.at < last;
        let found = recent.iter().position(goes_on);
        let (known, step) = match found {
            Some(known) => (known, 1),
            None => match recent.iter().position(strides) {
                Some(known) => (known, last.0 - recent[known].at.0),
                None => {
                    recent.truncate(STREAMS - 1);
                    recent.insert(0, Stream::new(last, file.clone()));
                    return None;
                }
            },
        };
        recent[..=known].rotate_right(1);
        let stream = &mut recent[0];
        stream.file = file.clone();
        if step != 1 && step != stream.step {
            // Once is chance, twice is a stride.
            *stream = Stream {
                step,
                ..Stream::new(last, file.clone())
            };
            return None;
        }
        if step != stream.step {
            stream.step = step;
            stream.window = 1;
            stream.ahead = SpanId(last.0 + 1);
        }
        Some(stream.advance(last, largest()))
    }
}

impl Stream {
    fn new(at: SpanId, file: Range<SpanId>) -> Self {
        Self {
            file,
            at,
            step: 1,
            ahead: SpanId(at.0 + 1),
            window: 1,
        }
    }

    fn advance(&mut self, last: SpanId, largest: u32) -> Ahead {
        self.at = last;
        let behind = |steps: u32| SpanId(last.0.saturating_add(steps.saturating_mul(self.step)));
        let mut start = behind(1);
        while start < self.ahead {
            start.0 = start.0.saturating_add(self.step);
        }
        let mut end = SpanId(behind(self.window).0.saturating_add(1));
        if self.step > 1 {
            end = end.min(self.file.end);
        }
        self.window = (self.window * 2).min(largest);
        self.ahead = start.max(end);
        Ahead {
            spans: start..self.ahead,
            step: self.step,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(range: Range<u32>) -> Range<SpanId> {
        SpanId(range.start)..SpanId(range.end)
    }

    /// Of a file of its own.
    fn read(streams: &Streams, span: u32) -> Option<Range<u32>> {
        let one = spans(span..span + 1);
        let mut runs = streams.observe(&one, &one, || 8)?.runs();
        let run = runs.next()?;
        assert_eq!(runs.next(), None);
        Some(run.start.0..run.end.0)
    }

    /// Of a large file.
    fn read_of(streams: &Streams, file: &Range<SpanId>, span: u32) -> Vec<Range<u32>> {
        let ahead = streams.observe(&spans(span..span + 1), file, || 8);
        let runs = ahead.into_iter().flat_map(Ahead::runs);
        runs.map(|run| run.start.0..run.end.0).collect()
    }

    fn one(run: Range<u32>) -> Vec<Range<u32>> {
        std::iter::once(run).collect()
    }

    #[test]
    fn a_strided_reader_has_what_it_steps_on_fetched_up_to_the_end_of_its_file() {
        let (streams, file) = (Streams::default(), spans(10..40));
        assert!(read_of(&streams, &file, 11).is_empty());
        assert!(read_of(&streams, &file, 15).is_empty(), "once is chance");
        assert_eq!(read_of(&streams, &file, 19), one(23..24));
        assert_eq!(read_of(&streams, &file, 23), [27..28, 31..32]);
        assert_eq!(read_of(&streams, &file, 27), [35..36, 39..40]);
        assert!(
            read_of(&streams, &file, 31).is_empty(),
            "asked for already, or not of the file"
        );
        let other = spans(40..90);
        assert!(
            read_of(&streams, &other, 35).is_empty(),
            "another file's step is no step of this one"
        );
    }

    #[test]
    fn random_reads_of_one_file_have_nothing_fetched_ahead() {
        let (streams, file) = (Streams::default(), spans(0..500));
        for span in [3, 90, 101, 400, 17, 250, 60, 499] {
            assert!(read_of(&streams, &file, span).is_empty(), "{span}");
        }
    }

    #[test]
    fn a_strided_reader_that_goes_on_in_sequence_is_a_sequential_one() {
        let (streams, file) = (Streams::default(), spans(0..500));
        for span in [0, 4, 8] {
            read_of(&streams, &file, span);
        }
        assert_eq!(read_of(&streams, &file, 9), one(10..11));
        assert_eq!(read_of(&streams, &file, 10), one(11..13));
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

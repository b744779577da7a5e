//! Files that somebody has begun to read: what is left of them is fetched before anything else.
//! Files are opened without a message, so the first read that misses stands for the open.

use std::collections::VecDeque;
use std::ops::Range;

use parking_lot::Mutex;
use ztoc::SpanId;

/// Files remembered; the oldest are forgotten, and fetched in the layer's order.
const FILES: usize = 64;

/// The spans of the files read last, in the order in which they were begun.
#[derive(Debug, Default)]
pub(crate) struct Hot {
    files: Mutex<VecDeque<Range<SpanId>>>,
}

impl Hot {
    /// A file in these spans is being read. Never waits: under contention it is not noted.
    pub(crate) fn note(&self, file: Range<SpanId>) {
        let Some(mut files) = self.files.try_lock() else {
            return;
        };
        let inside = |known: &Range<SpanId>| known.start <= file.start && file.end <= known.end;
        if files.iter().any(inside) {
            return;
        }
        if files.len() == FILES {
            files.pop_front();
        }
        files.push_back(file);
    }

    /// The first run that `missing` finds in a file; files in which it finds none are forgotten.
    pub(crate) fn next(
        &self,
        mut missing: impl FnMut(&Range<SpanId>) -> Option<Range<SpanId>>,
    ) -> Option<Range<SpanId>> {
        let mut files = self.files.lock();
        while let Some(file) = files.front() {
            if let Some(run) = missing(file) {
                return Some(run);
            }
            files.pop_front();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(range: Range<u32>) -> Range<SpanId> {
        SpanId(range.start)..SpanId(range.end)
    }

    #[test]
    fn files_come_in_the_order_of_their_first_read_until_nothing_of_them_is_missing() {
        let hot = Hot::default();
        hot.note(spans(5..9));
        hot.note(spans(1..2));
        hot.note(spans(6..7));
        let first = hot.next(|file| Some(file.clone()));
        assert_eq!(first, Some(spans(5..9)));
        let second = hot.next(|file| (file.start != SpanId(5)).then(|| file.clone()));
        assert_eq!(second, Some(spans(1..2)));
        assert_eq!(
            hot.next(|_| None),
            None,
            "a part of a known file is not noted"
        );
        assert_eq!(hot.next(|file| Some(file.clone())), None);
    }

    #[test]
    fn the_oldest_files_are_forgotten() {
        let hot = Hot::default();
        (0..1000).for_each(|id| hot.note(spans(id..id + 1)));
        let first = hot.next(|file| Some(file.clone()));
        assert_eq!(first, Some(spans(936..937)));
    }
}

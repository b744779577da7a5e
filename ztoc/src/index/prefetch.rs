//! Prefetch artifacts: which spans of a layer are wanted before anybody reads them.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::MAX_DOCUMENT_SIZE;
use crate::unit::SpanId;

const VERSION: &str = "1.0";

/// Spans of one layer, in the order of the artifact. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefetch {
    ranges: Vec<PrefetchRange>,
}

/// Neighbouring spans that are wanted together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefetchRange {
    /// The spans.
    pub spans: Range<SpanId>,
    /// Lower is more urgent; 0 where the artifact says nothing.
    pub priority: u32,
}

/// Bytes that are no prefetch artifact, or one that could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrefetchError {
    /// Larger than any document read here.
    #[error("a prefetch artifact of {0} bytes is too large")]
    TooLarge(usize),
    /// Not the JSON of one.
    #[error("not a prefetch artifact")]
    Json(#[from] serde_json::Error),
    /// Another version than 1.0.
    #[error("unknown version {0:?} of a prefetch artifact")]
    Version(String),
    /// It lists nothing.
    #[error("a prefetch artifact without spans")]
    Empty,
    /// A range that ends before it starts.
    #[error("spans {start} to {end} of a prefetch artifact are no range")]
    Range {
        /// First span.
        start: u32,
        /// Last span.
        end: u32,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct Document {
    version: String,
    prefetch_spans: Vec<Row>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Row {
    start_span: u32,
    /// Inclusive.
    end_span: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    priority: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Prefetch {
    /// These spans; empty ranges are dropped.
    pub fn new(ranges: Vec<PrefetchRange>) -> Result<Self, PrefetchError> {
        let full = ranges.into_iter().filter(|range| !range.spans.is_empty());
        let ranges: Vec<_> = full.collect();
        if ranges.is_empty() {
            return Err(PrefetchError::Empty);
        }
        Ok(Self { ranges })
    }

    /// Spans that files lie in, all equally urgent: sorted, and merged where they overlap or touch, as the
    /// original lists them.
    pub fn merged(mut spans: Vec<Range<SpanId>>) -> Result<Self, PrefetchError> {
        spans.retain(|range| !range.is_empty());
        spans.sort_by_key(|range| range.start);
        let mut merged: Vec<Range<SpanId>> = Vec::new();
        for range in spans {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        let ranges = merged
            .into_iter()
            .map(|spans| PrefetchRange { spans, priority: 0 });
        Self::new(ranges.collect())
    }

    /// Spans in the order they are wanted, each with its rank, which becomes the priority: ranks may count
    /// through several layers. A span that comes again is left out, and neighbours that follow each other
    /// become one range.
    pub fn in_order(spans: impl IntoIterator<Item = (u32, SpanId)>) -> Result<Self, PrefetchError> {
        let mut seen = std::collections::BTreeSet::new();
        let mut ranges: Vec<PrefetchRange> = Vec::new();
        for (rank, span) in spans.into_iter().filter(|(_, span)| seen.insert(*span)) {
            let end = SpanId(span.0.saturating_add(1));
            match ranges.last_mut() {
                Some(last) if last.spans.end == span => last.spans.end = end,
                _ => ranges.push(PrefetchRange {
                    priority: rank,
                    spans: span..end,
                }),
            }
        }
        Self::new(ranges)
    }

    /// Reads an artifact. Whether the layer has so many spans is for the caller to see.
    pub fn parse(bytes: &[u8]) -> Result<Self, PrefetchError> {
        if bytes.len() > MAX_DOCUMENT_SIZE {
            return Err(PrefetchError::TooLarge(bytes.len()));
        }
        let document: Document = serde_json::from_slice(bytes)?;
        if document.version != VERSION {
            let start = document.version.chars().take(40).collect();
            return Err(PrefetchError::Version(start));
        }
        let range = |row: Row| match row.end_span.checked_add(1) {
            Some(end) if row.start_span < end => Ok(PrefetchRange {
                spans: SpanId(row.start_span)..SpanId(end),
                priority: row.priority,
            }),
            _ => Err(PrefetchError::Range {
                start: row.start_span,
                end: row.end_span,
            }),
        };
        let rows = document.prefetch_spans.into_iter().map(range);
        Self::new(rows.collect::<Result<_, _>>()?)
    }

    /// The bytes, as the original writes them.
    pub fn encode(&self) -> Vec<u8> {
        let rows = self.ranges.iter().map(|range| Row {
            start_span: range.spans.start.0,
            end_span: range.spans.end.0 - 1,
            priority: range.priority,
        });
        let document = Document {
            version: VERSION.to_owned(),
            prefetch_spans: rows.collect(),
        };
        serde_json::to_vec(&document).expect("numbers and a constant are JSON")
    }

    /// The ranges, most urgent first; those that are equally urgent in the artifact's order.
    pub fn by_urgency(&self) -> Vec<&PrefetchRange> {
        let mut ranges: Vec<_> = self.ranges.iter().collect();
        ranges.sort_by_key(|range| range.priority);
        ranges
    }

    /// The ranges in the artifact's order.
    pub fn ranges(&self) -> &[PrefetchRange] {
        &self.ranges
    }

    /// Number of spans, those that come twice counted twice.
    pub fn span_count(&self) -> u64 {
        let lengths = self
            .ranges
            .iter()
            .map(|range| u64::from(range.spans.end.0 - range.spans.start.0));
        lengths.sum()
    }

    /// The format's version.
    pub fn version(&self) -> &'static str {
        VERSION
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn spans(range: Range<u32>) -> Range<SpanId> {
        SpanId(range.start)..SpanId(range.end)
    }

    #[test]
    fn ranges_that_touch_are_merged_and_written_as_the_original_does() {
        let prefetch = Prefetch::merged(vec![spans(7..9), spans(0..2), spans(2..3), spans(8..10)]);
        let bytes = prefetch.unwrap().encode();
        let expected = r#"{"version":"1.0","prefetch_spans":[{"start_span":0,"end_span":2},{"start_span":7,"end_span":9}]}"#;
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }

    #[test]
    fn first_touches_become_priorities_and_come_back_in_their_order() {
        let touched = [5, 6, 5, 2, 7, 9].map(SpanId);
        let prefetch = Prefetch::in_order((0..).zip(touched)).unwrap();
        let read = Prefetch::parse(&prefetch.encode()).unwrap();
        assert_eq!(read, prefetch);
        let order: Vec<_> = read
            .by_urgency()
            .iter()
            .map(|it| it.spans.clone())
            .collect();
        assert_eq!(order, [spans(5..7), spans(2..3), spans(7..8), spans(9..10)]);
        assert_eq!(read.span_count(), 5);
    }

    #[test]
    fn what_is_no_prefetch_artifact_is_refused() {
        for text in [
            "",
            "{}",
            r#"{"version":"1.0","prefetch_spans":[]}"#,
            r#"{"version":"2.0","prefetch_spans":[{"start_span":0,"end_span":1}]}"#,
            r#"{"version":"1.0","prefetch_spans":[{"start_span":3,"end_span":2}]}"#,
            r#"{"version":"1.0","prefetch_spans":[{"start_span":-1,"end_span":2}]}"#,
            r#"{"version":"1.0","prefetch_spans":[{"start_span":0,"end_span":4294967295}]}"#,
        ] {
            assert!(Prefetch::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}

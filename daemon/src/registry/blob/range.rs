//! What servers answer to a request for one range.
//!
//! RFC 9110: 206 with `Content-Range`; 206 as `multipart/byteranges`, also of a single part; 200 with
//! everything when the server ignores ranges. Some servers leave out `Content-Type` or `Content-Range`.

use std::ops::Range;

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};

use super::super::body::Body;
use super::super::config::HttpConfig;
use super::super::error::Problem;
use super::super::transport::Answer;

/// Most bytes thrown away to reach a range within an answer that has more.
const MAX_SKIP: u64 = 32 << 20;
/// What a multipart body may have beside the range.
const MAX_MULTIPART_EXTRA: u64 = 16 << 10;
const MAX_BOUNDARY: usize = 70;

/// Takes `range` of a blob of `size` bytes out of an answer with status 200 or 206.
pub(super) async fn read(
    answer: Answer,
    range: Range<u64>,
    size: u64,
    http: &HttpConfig,
) -> Result<Bytes, Problem> {
    check_encoding(&answer)?;
    let wanted = range.end - range.start;
    if answer.response.status() == StatusCode::PARTIAL_CONTENT
        && let Some(boundary) = answer.header(CONTENT_TYPE).and_then(boundary)
    {
        let body = Body::new(answer.response, http.stall_timeout);
        let bytes = body
            .read_all(wanted.saturating_add(MAX_MULTIPART_EXTRA))
            .await?;
        return part(&bytes, &boundary, &range, size);
    }
    let start = first_byte(&answer, &range, size)?;
    let skip = skip(start, &range)?;
    Body::new(answer.response, http.stall_timeout)
        .read_part(skip, wanted)
        .await
}

/// Any encoding changes the bytes, and makes offsets meaningless.
pub(in super::super) fn check_encoding(answer: &Answer) -> Result<(), Problem> {
    match answer.header(CONTENT_ENCODING) {
        None | Some("identity" | "") => Ok(()),
        Some(encoding) => Err(Problem::malformed(format!(
            "content encoding {encoding:?}, though none was accepted"
        ))),
    }
}

/// The blob's offset at which the body of an answer with status 200 or 206 begins.
fn first_byte(answer: &Answer, range: &Range<u64>, size: u64) -> Result<u64, Problem> {
    if answer.response.status() == StatusCode::OK {
        let length: Option<u64> = answer
            .header(CONTENT_LENGTH)
            .and_then(|text| text.parse().ok());
        return match length {
            Some(length) if length != size => Err(wrong_size(length, size)),
            _ => Ok(0),
        };
    }
    match answer.header(CONTENT_RANGE) {
        Some(text) => Ok(ContentRange::parse(text)?.covering(range, size)?.start),
        None => {
            let length = answer
                .header(CONTENT_LENGTH)
                .and_then(|text| text.parse().ok());
            if length == Some(range.end - range.start) {
                Ok(range.start)
            } else {
                Err(Problem::malformed("206 without Content-Range"))
            }
        }
    }
}

fn skip(start: u64, range: &Range<u64>) -> Result<u64, Problem> {
    let skip = range.start.saturating_sub(start);
    if skip > MAX_SKIP {
        return Err(Problem::malformed(format!(
            "the host ignores ranges: byte {} wanted, the answer begins at {start}",
            range.start
        )));
    }
    Ok(skip)
}

fn wrong_size(actual: u64, size: u64) -> Problem {
    Problem::malformed(format!(
        "the blob has {actual} bytes, {size} were announced"
    ))
}

/// `Content-Range: bytes first-last/total`.
#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    range: Range<u64>,
    total: Option<u64>,
}

impl ContentRange {
    fn parse(text: &str) -> Result<Self, Problem> {
        Self::read(text).ok_or_else(|| {
            let shown: String = text.chars().take(60).collect();
            Problem::malformed(format!("Content-Range {shown:?}"))
        })
    }

    fn read(text: &str) -> Option<Self> {
        let (unit, rest) = text.trim().split_once(' ')?;
        let (range, total) = rest.trim().split_once('/')?;
        let (first, last) = range.trim().split_once('-')?;
        let first: u64 = first.trim().parse().ok()?;
        let end = last.trim().parse::<u64>().ok()?.checked_add(1)?;
        let total = match total.trim() {
            "*" => None,
            total => Some(total.parse().ok()?),
        };
        (unit.eq_ignore_ascii_case("bytes")
            && first < end
            && total.is_none_or(|total| end <= total))
        .then_some(Self {
            range: first..end,
            total,
        })
    }

    /// The range that came, if it holds all of `wanted` of a blob of `size` bytes.
    fn covering(self, wanted: &Range<u64>, size: u64) -> Result<Range<u64>, Problem> {
        if let Some(total) = self.total.filter(|total| *total != size) {
            return Err(wrong_size(total, size));
        }
        if self.range.start > wanted.start {
            return Err(Problem::malformed(format!(
                "bytes from {} were asked for, from {} came",
                wanted.start, self.range.start
            )));
        }
        if self.range.end < wanted.end {
            return Err(Problem::Short {
                got: self.range.end.saturating_sub(wanted.start),
                wanted: wanted.end - wanted.start,
            });
        }
        Ok(self.range)
    }
}

/// The boundary of a `multipart/byteranges` content type.
fn boundary(content_type: &str) -> Option<String> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/byteranges") {
        return None;
    }
    let mut parameters = parameters
        .split(';')
        .filter_map(|parameter| parameter.trim().split_once('='));
    let (_, value) = parameters.find(|(key, _)| key.eq_ignore_ascii_case("boundary"))?;
    let value = value.trim_matches('"');
    (1..=MAX_BOUNDARY)
        .contains(&value.len())
        .then(|| value.to_owned())
}

/// `wanted` out of a multipart body: the first part that holds all of it. The parts' own lengths are
/// trusted, not the boundary, which may occur in compressed data.
fn part(body: &Bytes, boundary: &str, wanted: &Range<u64>, size: u64) -> Result<Bytes, Problem> {
    let delimiter = format!("--{boundary}");
    let mut at = find(body, delimiter.as_bytes(), 0);
    while let Some(start) = at {
        let head_start = start + delimiter.len();
        let Some(head_end) = find(body, b"\r\n\r\n", head_start) else {
            break;
        };
        let content = ContentRange::parse(&part_range(&body[head_start..head_end]))?;
        let length = usize::try_from(content.range.end - content.range.start).unwrap_or(usize::MAX);
        let data = head_end + 4;
        let end = data.checked_add(length).filter(|end| *end <= body.len());
        if let Ok(range) = content.covering(wanted, size) {
            let end = end.ok_or(Problem::Short {
                got: (body.len() - data) as u64,
                wanted: wanted.end - wanted.start,
            })?;
            let cut = |offset: u64| usize::try_from(offset - range.start).unwrap_or(usize::MAX);
            return Ok(body
                .slice(data..end)
                .slice(cut(wanted.start)..cut(wanted.end)));
        }
        at = end.and_then(|end| find(body, delimiter.as_bytes(), end));
    }
    Err(Problem::malformed(
        "the multipart answer does not hold the range",
    ))
}

/// The value of a part's `Content-Range`; empty without one.
fn part_range(head: &[u8]) -> String {
    let head = String::from_utf8_lossy(head);
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    let range = fields.find(|(name, _)| name.trim().eq_ignore_ascii_case("content-range"));
    range
        .map(|(_, value)| value.trim().to_owned())
        .unwrap_or_default()
}

fn find(body: &[u8], needle: &[u8], from: usize) -> Option<usize> {
    let rest = body.get(from..)?;
    rest.windows(needle.len())
        .position(|window| window == needle)
        .map(|at| from + at)
}

/// For [`crate::hostile`]: a multipart body with `boundary`, of which some range is wanted.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(content_type: &str, range: &str, body: &Bytes, wanted: Range<u64>) {
    let size = wanted.end.saturating_add(7);
    if let Ok(parsed) = ContentRange::parse(range) {
        assert!(parsed.range.start < parsed.range.end);
        let _ = parsed.covering(&wanted, size);
    }
    let boundary = boundary(content_type).unwrap_or_else(|| "b".to_owned());
    if let Ok(bytes) = part(body, &boundary, &wanted, size) {
        assert_eq!(bytes.len() as u64, wanted.end - wanted.start);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn content_ranges_are_read_strictly() {
        let whole = ContentRange {
            range: 5..10,
            total: Some(20),
        };
        assert_eq!(ContentRange::read("bytes 5-9/20"), Some(whole));
        assert_eq!(
            ContentRange::read("Bytes 0-0/*"),
            Some(ContentRange {
                range: 0..1,
                total: None
            })
        );
        for text in [
            "",
            "bytes",
            "bytes */20",
            "bytes 9-5/20",
            "bytes 5-20/20",
            "items 5-9/20",
            "bytes -5-9/20",
            "bytes 0-18446744073709551615/*",
            "bytes 5-9",
        ] {
            assert_eq!(ContentRange::read(text), None, "{text:?}");
        }
    }

    fn multipart(parts: &[(&str, &[u8])]) -> Bytes {
        let mut body = Vec::new();
        for (range, data) in parts {
            body.extend_from_slice(
                format!("\r\n--X\r\nContent-Range: bytes {range}\r\n\r\n").as_bytes(),
            );
            body.extend_from_slice(data);
        }
        body.extend_from_slice(b"\r\n--X--\r\n");
        body.into()
    }

    #[test]
    fn a_range_is_cut_out_of_the_part_that_holds_it() {
        // The first part's data looks like a boundary.
        let body = multipart(&[("0-6/20", b"\r\n--X\r\n"), ("8-13/20", b"89abcd")]);
        assert_eq!(part(&body, "X", &(9..12), 20).unwrap(), "9ab");
        assert!(part(&body, "X", &(12..16), 20).is_err());
        assert!(part(&body, "X", &(9..12), 21).is_err());
        let cut = body.slice(..body.len() - 12);
        assert!(part(&cut, "X", &(9..12), 20).is_err());
        assert!(part(&multipart(&[("nonsense", b"89")]), "X", &(0..1), 20).is_err());
    }

    #[test]
    fn boundaries_are_read_with_and_without_quotes() {
        assert_eq!(
            boundary("multipart/byteranges; boundary=abc").as_deref(),
            Some("abc")
        );
        assert_eq!(
            boundary("Multipart/Byteranges;charset=x; Boundary=\"a b\"").as_deref(),
            Some("a b")
        );
        assert_eq!(boundary("application/octet-stream"), None);
        assert_eq!(boundary("multipart/byteranges; boundary="), None);
    }

    proptest! {
        #[test]
        fn no_multipart_body_makes_the_reader_panic(body in ".{0,200}", start in 0u64..50, length in 1u64..50) {
            let _ = part(&Bytes::from(body), "X", &(start..start + length), 100);
        }
    }
}

//! Answers, and how faults spoil them.

use std::convert::Infallible;
use std::io;
use std::ops::Range;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use tokio_stream::StreamExt as _;

use super::fault::Fault;

/// hyper forgets what it has not written yet when a body fails.
const FLUSH: Duration = Duration::from_millis(20);

pub(super) type Body = BoxBody<Bytes, io::Error>;

/// An answer before it is spoiled.
#[derive(Debug)]
pub(super) struct Answer {
    status: StatusCode,
    headers: Vec<(HeaderName, String)>,
    body: Bytes,
    /// What is sent of `body`, if a range was asked for.
    range: Option<Range<usize>>,
    /// `HEAD`: the length is told, the body is not sent.
    pub(super) bodiless: bool,
}

impl Answer {
    pub(super) fn new(status: u16) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            headers: Vec::new(),
            body: Bytes::new(),
            range: None,
            bodiless: false,
        }
    }

    pub(super) fn header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn body(mut self, media_type: &str, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self.header(CONTENT_TYPE, media_type)
    }

    /// Sends only what `Range: bytes=a-b` asks for; everything when it cannot be read.
    pub(super) fn ranged(mut self, header: Option<&str>) -> Self {
        self.range = header.and_then(|text| parse_range(text, self.body.len()));
        self
    }

    /// Turns the answer into one for the wire; an error closes the connection.
    pub(super) fn finish(mut self, fault: Option<Fault>) -> io::Result<Response<Body>> {
        match &fault {
            Some(Fault::Reset) => return Err(io::Error::from(io::ErrorKind::ConnectionReset)),
            Some(Fault::Status(code, headers)) => {
                let answer = Self::new(*code);
                return headers
                    .iter()
                    .fold(answer, |answer, (name, value)| {
                        answer.header(HeaderName::from_static(name), value)
                    })
                    .finish(None);
            }
            Some(Fault::Whole) => self.range = None,
            Some(Fault::NoContentType) => self.headers.retain(|(name, _)| *name != CONTENT_TYPE),
            _ => {}
        }
        let sent = self.cut(fault.as_ref());
        self.wire(sent, fault)
    }

    /// The bytes of the body, with the headers that describe them.
    fn cut(&mut self, fault: Option<&Fault>) -> Bytes {
        let Some(range) = self.range.clone() else {
            return self.body.clone();
        };
        let text = format!(
            "bytes {}-{}/{}",
            range.start,
            range.end - 1,
            self.body.len()
        );
        let bytes = self.body.slice(range);
        self.status = StatusCode::PARTIAL_CONTENT;
        match fault {
            Some(Fault::Multipart) => {
                self.headers.retain(|(name, _)| *name != CONTENT_TYPE);
                self.headers.push((
                    CONTENT_TYPE,
                    String::from("multipart/byteranges; boundary=edge"),
                ));
                let head = format!("--edge\r\nContent-Range: {text}\r\n\r\n");
                [head.as_bytes(), &bytes, b"\r\n--edge--\r\n"]
                    .concat()
                    .into()
            }
            Some(Fault::ContentRange(other)) => {
                if !other.is_empty() {
                    self.headers.push((CONTENT_RANGE, other.clone()));
                }
                bytes
            }
            _ => {
                self.headers.push((CONTENT_RANGE, text));
                bytes
            }
        }
    }

    fn wire(self, bytes: Bytes, fault: Option<Fault>) -> io::Result<Response<Body>> {
        let length = bytes.len();
        let body = match fault {
            _ if self.bodiless => Empty::new().map_err(never).boxed(),
            Some(Fault::Short(count)) => broken(bytes.slice(..count.min(length))),
            Some(Fault::StallBody(count)) => stalled(bytes.slice(..count.min(length))),
            Some(Fault::Corrupt) => Full::new(corrupted(&bytes)).map_err(never).boxed(),
            _ => Full::new(bytes).map_err(never).boxed(),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        for (name, value) in self.headers {
            let value = HeaderValue::try_from(value).map_err(io::Error::other)?;
            response.headers_mut().append(name, value);
        }
        response
            .headers_mut()
            .insert(CONTENT_LENGTH, HeaderValue::from(length));
        Ok(response)
    }
}

fn never(error: Infallible) -> io::Error {
    match error {}
}

fn corrupted(bytes: &Bytes) -> Bytes {
    let mut bytes = BytesMut::from(&bytes[..]);
    if let Some(first) = bytes.first_mut() {
        *first ^= 0xff;
    }
    bytes.freeze()
}

/// `bytes`, then the connection breaks; not before they are on their way.
fn broken(bytes: Bytes) -> Body {
    let frames = [
        Ok(Frame::data(bytes)),
        Err(io::Error::from(io::ErrorKind::ConnectionReset)),
    ];
    let frames = tokio_stream::iter(frames).then(|frame| async {
        if frame.is_err() {
            tokio::time::sleep(FLUSH).await;
        }
        frame
    });
    StreamBody::new(frames).boxed()
}

/// `bytes`, then nothing for ever.
fn stalled(bytes: Bytes) -> Body {
    let first = tokio_stream::once(Ok(Frame::data(bytes)));
    StreamBody::new(first.chain(tokio_stream::pending())).boxed()
}

fn parse_range(text: &str, length: usize) -> Option<Range<usize>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let start: usize = first.parse().ok()?;
    let end = if last.is_empty() {
        length
    } else {
        last.parse::<usize>().ok()? + 1
    };
    (start < end.min(length)).then(|| start..end.min(length))
}

//! What goes wrong, and with which requests.

use std::ops::Range;

/// Chooses requests.
#[derive(Debug, Clone)]
pub struct Match {
    method: Option<String>,
    path: String,
    turns: Range<u32>,
}

impl Match {
    /// All requests whose path contains `part`.
    pub fn path(part: &str) -> Self {
        Self {
            method: None,
            path: part.to_owned(),
            turns: 0..u32::MAX,
        }
    }

    /// Only those with this method.
    #[must_use]
    pub fn method(self, method: &str) -> Self {
        Self {
            method: Some(method.to_owned()),
            ..self
        }
    }

    /// Only these of them, counted from 0 in the order they come.
    #[must_use]
    pub fn turns(self, turns: Range<u32>) -> Self {
        Self { turns, ..self }
    }

    /// Only the first of them.
    #[must_use]
    pub fn once(self) -> Self {
        self.turns(0..1)
    }

    fn accepts(&self, method: &str, path: &str) -> bool {
        path.contains(&self.path) && self.method.as_deref().is_none_or(|own| own == method)
    }
}

/// What goes wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Another status, with these headers and an empty body.
    Status(u16, Vec<(&'static str, String)>),
    /// The body ends after so many bytes, though its whole length was announced.
    Short(usize),
    /// The first byte of the body is another.
    Corrupt,
    /// The body stops after so many bytes, and the connection stays.
    StallBody(usize),
    /// No answer, and the connection stays.
    Stall,
    /// No answer, and the connection is closed.
    Reset,
    /// The whole blob with status 200, whatever range was asked for.
    Whole,
    /// This text as `Content-Range`; none when empty.
    ContentRange(String),
    /// The range as `multipart/byteranges`.
    Multipart,
    /// No `Content-Type`.
    NoContentType,
}

impl Fault {
    /// A status without headers.
    pub fn status(code: u16) -> Self {
        Self::Status(code, Vec::new())
    }

    /// A status with `Retry-After`.
    pub fn retry_after(code: u16, value: &str) -> Self {
        Self::Status(code, vec![("retry-after", value.to_owned())])
    }
}

/// The faults to come.
#[derive(Debug, Default)]
pub(super) struct Script {
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Line {
    chosen: Match,
    seen: u32,
    fault: Fault,
}

impl Script {
    pub(super) fn push(&mut self, chosen: Match, fault: Fault) {
        self.lines.push(Line {
            chosen,
            seen: 0,
            fault,
        });
    }

    pub(super) fn clear(&mut self) {
        self.lines.clear();
    }

    /// The fault that strikes this request. Every line counts the requests it is about.
    pub(super) fn strike(&mut self, method: &str, path: &str) -> Option<Fault> {
        let mut struck = None;
        for line in &mut self.lines {
            if line.chosen.accepts(method, path) {
                let strikes = line.chosen.turns.contains(&line.seen);
                line.seen += 1;
                if strikes && struck.is_none() {
                    struck = Some(line.fault.clone());
                }
            }
        }
        struck
    }
}

//! Why a registry could not give or take something.

use std::fmt;
use std::time::Duration;

use ztoc::Digest;

use super::credentials::CredentialError;

/// A request to a registry failed for good: retries and mirrors have been tried. Its text names
/// object, repository and host, and never a credential, a token or a query string.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{asked}: {problem}")]
pub struct RegistryError {
    /// What was asked of whom.
    pub asked: Box<Asked>,
    /// What happened.
    pub problem: Problem,
}

/// What was asked of whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `manifest latest`, `blob sha256:...`.
    pub object: String,
    /// The repository.
    pub repository: String,
    /// The host that was asked last, as in references.
    pub host: String,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} at {}", self.object, self.repository, self.host)
    }
}

/// What went wrong with one request.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// 404.
    #[error("not found{detail}")]
    NotFound {
        /// What the registry added.
        detail: Detail,
    },
    /// 401 or 403, also after the credentials there are were shown.
    #[error("access denied ({status}{detail}); {hint}")]
    Denied {
        /// The HTTP status.
        status: u16,
        /// What the registry added.
        detail: Detail,
        /// What to look at.
        hint: &'static str,
    },
    /// Any other status.
    #[error("unexpected status {status}{detail}")]
    Status {
        /// The HTTP status.
        status: u16,
        /// What the registry added.
        detail: Detail,
        /// `Retry-After`, if there was one.
        retry_after: Option<Duration>,
    },
    /// No connection.
    #[error("cannot connect: {detail}")]
    Connect {
        /// The cause.
        detail: String,
    },
    /// The peer's certificate is not accepted.
    #[error("TLS: {detail}; trust its authority with a CA file, or mark the host insecure")]
    Certificate {
        /// The cause.
        detail: String,
    },
    /// The host did not answer, or its body stalled.
    #[error("no {awaited} within {} ms", limit.as_millis())]
    Timeout {
        /// What was waited for.
        awaited: &'static str,
        /// For how long.
        limit: Duration,
    },
    /// The connection broke.
    #[error("the connection broke: {detail}")]
    Interrupted {
        /// The cause.
        detail: String,
    },
    /// Fewer bytes than announced or asked for.
    #[error("the answer ended after {got} of {wanted} bytes")]
    Short {
        /// Bytes there were.
        got: u64,
        /// Bytes there should be.
        wanted: u64,
    },
    /// More bytes than accepted.
    #[error("more than the {limit} bytes accepted")]
    TooLarge {
        /// How many are accepted.
        limit: u64,
    },
    /// The bytes are not those asked for.
    #[error("the bytes received hash to {actual}")]
    WrongDigest {
        /// What they hash to.
        actual: Digest,
    },
    /// The answer makes no sense.
    #[error("malformed answer: {detail}")]
    Malformed {
        /// What is wrong with it.
        detail: String,
    },
    /// Credentials could not be had.
    #[error("credentials: {0}")]
    Credentials(#[from] CredentialError),
    /// The token server refused or failed.
    #[error("token server {server}: {detail}")]
    Token {
        /// Its host.
        server: String,
        /// What happened.
        detail: String,
        /// Whether asking again may help.
        transient: bool,
    },
    /// The client itself is set up wrongly.
    #[error("{detail}")]
    Setup {
        /// What is wrong.
        detail: String,
    },
}

/// What a registry's own error document says, made fit for one line of a log: short, printable,
/// without query strings. Empty when it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detail(String);

impl Detail {
    const MAX_CHARS: usize = 160;

    /// The first error of a distribution API error document.
    pub(crate) fn from_document(body: &[u8]) -> Self {
        let document: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let error = &document["errors"][0];
        let words = ["code", "message"].map(|key| error[key].as_str().unwrap_or_default());
        Self(printable(&words.join(" ")))
    }
}

/// At most [`Detail::MAX_CHARS`] printable characters of `text`, what follows a `?` left out.
fn printable(text: &str) -> String {
    let words = text
        .split_whitespace()
        .map(|word| word.split_once('?').map_or(word, |(before, _)| before));
    let line = words.collect::<Vec<_>>().join(" ");
    line.chars()
        .filter(|c| !c.is_control())
        .take(Detail::MAX_CHARS)
        .collect()
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            Ok(())
        } else {
            write!(f, ": {}", self.0)
        }
    }
}

impl RegistryError {
    /// Whether the registry says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self.problem, Problem::NotFound { .. })
    }

    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        self.problem.is_transient()
    }
}

impl Problem {
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                matches!(status, 408 | 425 | 429) || (*status >= 500 && *status != 501)
            }
            Self::Token { transient, .. } => *transient,
            Self::Connect { .. }
            | Self::Timeout { .. }
            | Self::Interrupted { .. }
            | Self::Short { .. }
            | Self::WrongDigest { .. } => true,
            _ => false,
        }
    }

    /// Whether the host could not be reached at all, so that it should be left alone for a while.
    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Timeout { .. })
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::Malformed {
            detail: detail.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_document_becomes_one_short_line_without_query_strings() {
        let body = br#"{"errors":[{"code":"DENIED","message":"go to https://x/y?sig=SECRET\nnow","detail":1}]}"#;
        assert_eq!(
            Detail::from_document(body).to_string(),
            ": DENIED go to https://x/y now"
        );
        assert_eq!(Detail::from_document(b"<html>").to_string(), "");
    }
}

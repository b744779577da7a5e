//! One request to one host: authorization, redirects, limits, and what the status means.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use tokio_util::io::ReaderStream;
use tracing::Instrument as _;
use tracing::field::Empty;
use url::Url;

use super::auth::{Authorizer, Scope};
use super::body::Body;
use super::config::{HttpConfig, RegistryConfig};
use super::error::{Detail, Problem};
use super::hosts::Endpoint;
use super::redacted::RedactedUrl;
use super::retry::retry_after;
use super::tls;
use crate::traces::step;

const MAX_REDIRECTS: u32 = 10;
/// Bytes that are sent between two looks at how far an upload is.
const PIECE: usize = 64 << 10;
/// Bytes of an error document that are read, and how long they may take.
const MAX_ERROR_DOCUMENT: u64 = 16 << 10;
const ERROR_DOCUMENT_PATIENCE: Duration = Duration::from_secs(1);

/// A request that is not bound to a connection yet, so that it can be sent again.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload,
    pub(crate) scope: Scope,
}

/// What a request carries.
#[derive(Debug, Clone)]
pub(crate) enum Payload {
    Empty,
    Bytes(Bytes),
    /// The same, piece by piece, with somebody who is told how many have been sent.
    Watched {
        bytes: Bytes,
        sent: Sent,
    },
    File {
        path: PathBuf,
        size: u64,
    },
}

/// Is told how many bytes of a payload are on their way: from 0 again when it is sent again.
#[derive(Clone)]
pub(crate) struct Sent(pub(crate) Arc<dyn Fn(u64) + Send + Sync>);

impl std::fmt::Debug for Sent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sent")
    }
}

/// An answer whose redirects have been followed.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response,
    /// Where the answer came from.
    pub(crate) url: Url,
    /// It came from elsewhere than was asked.
    pub(crate) moved: bool,
}

/// Sends requests.
#[derive(Debug)]
pub(crate) struct Transport {
    auth: Authorizer,
    pub(crate) http: HttpConfig,
}

impl Call {
    pub(crate) fn new(method: Method, url: Url, scope: Scope) -> Self {
        Self {
            method,
            url,
            headers: HeaderMap::new(),
            payload: Payload::Empty,
            scope,
        }
    }

    pub(crate) fn header(mut self, name: reqwest::header::HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    pub(crate) fn payload(self, payload: Payload) -> Self {
        Self { payload, ..self }
    }
}

impl Transport {
    pub(crate) fn new(config: &RegistryConfig) -> Self {
        Self {
            auth: Authorizer::new(config.http.clone(), config.credentials.clone()),
            http: config.http.clone(),
        }
    }

    /// Sends `call` to `endpoint`, answering its challenge once and following redirects. Any status
    /// that is neither is the caller's to judge. Credentials go to the endpoint's own host only.
    pub(crate) async fn send(
        &self,
        endpoint: &Arc<Endpoint>,
        call: &Call,
    ) -> Result<Answer, Problem> {
        let mut url = call.url.clone();
        let mut shown = self.auth.header(endpoint, &call.scope).await?;
        let (mut challenged, mut redirects) = (false, 0);
        loop {
            let own = endpoint.owns(&url);
            let request = endpoint.client.request(call.method.clone(), url.clone());
            let request = if own {
                authorized(request.headers(endpoint.headers.clone()), shown.as_ref())
            } else {
                request
            };
            let response = self.once(call, &url, request).await?;
            if own && !challenged && refused(&response, shown.is_some()) {
                challenged = true;
                let renewed =
                    self.auth
                        .renewed(endpoint, &call.scope, response.headers(), shown.as_ref());
                if let Some(header) = renewed.await? {
                    shown = Some(header);
                    continue;
                }
            }
            let Some(next) = redirect(&response, &url, &call.method)? else {
                return Ok(Answer {
                    response,
                    moved: redirects > 0,
                    url,
                });
            };
            redirects += 1;
            if redirects > MAX_REDIRECTS {
                return Err(Problem::malformed("too many redirects"));
            }
            url = next;
        }
    }

    /// Sends `call` to its URL as it is, which is not the endpoint's: without credentials.
    pub(crate) async fn send_bare(
        &self,
        endpoint: &Endpoint,
        call: &Call,
    ) -> Result<Answer, Problem> {
        let request = endpoint
            .client
            .request(call.method.clone(), call.url.clone());
        let response = self.once(call, &call.url, request).await?;
        Ok(Answer {
            response,
            url: call.url.clone(),
            moved: true,
        })
    }

    async fn once(
        &self,
        call: &Call,
        url: &Url,
        request: RequestBuilder,
    ) -> Result<Response, Problem> {
        let request = request.headers(call.headers.clone());
        let request = match &call.payload {
            Payload::Empty => request,
            Payload::Bytes(bytes) => request.body(bytes.clone()),
            Payload::Watched { bytes, sent } => request
                .header(CONTENT_LENGTH, bytes.len())
                .body(watched_body(bytes.clone(), sent.clone())),
            Payload::File { path, size } => request
                .header(CONTENT_LENGTH, *size)
                .body(file_body(path).await?),
        };
        let limit = self.patience(&call.payload);
        let trace = step!(
            "HTTP", otel.kind = "client", http.request.method = %call.method, url.full = %RedactedUrl(url),
            http.response.status_code = Empty,
        );
        let sent = request.send().instrument(trace.clone());
        let sent = tokio::time::timeout(limit, sent).await;
        let response = sent
            .map_err(|_| Problem::Timeout {
                awaited: "answer",
                limit,
            })?
            .map_err(|error| send_error(&error))?;
        trace.record("http.response.status_code", response.status().as_u16());
        tracing::debug!(method = %call.method, url = %RedactedUrl(url), status = response.status().as_u16(), "request");
        Ok(response)
    }

    /// Connecting and the answer's head; with a payload as long as it takes at 128 KiB/s on top.
    fn patience(&self, payload: &Payload) -> Duration {
        let head = self.http.dial_timeout + self.http.response_header_timeout;
        let sending = |size: u64| self.http.request_timeout + Duration::from_secs(size >> 17);
        match payload {
            Payload::Empty => head,
            Payload::Bytes(bytes) | Payload::Watched { bytes, .. } => sending(bytes.len() as u64),
            Payload::File { size, .. } => sending(*size),
        }
    }
}

fn authorized(request: RequestBuilder, header: Option<&HeaderValue>) -> RequestBuilder {
    match header {
        Some(header) => request.header(AUTHORIZATION, header),
        None => request,
    }
}

/// Gives a piece when the connection has taken the one before.
fn watched_body(bytes: Bytes, sent: Sent) -> reqwest::Body {
    let mut position = 0;
    (sent.0)(0);
    let pieces = std::iter::from_fn(move || {
        let end = bytes.len().min(position + PIECE);
        let piece = bytes.slice(position..end);
        position = end;
        (!piece.is_empty()).then(|| {
            (sent.0)(end as u64);
            Ok::<_, std::io::Error>(piece)
        })
    });
    reqwest::Body::wrap_stream(futures::stream::iter(pieces))
}

async fn file_body(path: &std::path::Path) -> Result<reqwest::Body, Problem> {
    let file = tokio::fs::File::open(path)
        .await
        .map_err(|error| Problem::Setup {
            detail: format!("{}: {error}", path.display()),
        })?;
    Ok(reqwest::Body::wrap_stream(ReaderStream::with_capacity(
        file,
        256 << 10,
    )))
}

/// Some registries (ECR) say 403 when a token they gave has run out.
fn refused(response: &Response, shown: bool) -> bool {
    match response.status() {
        StatusCode::UNAUTHORIZED => true,
        StatusCode::FORBIDDEN => shown,
        _ => false,
    }
}

/// Where to ask instead. What is sent with a payload is only repeated by 307 and 308.
fn redirect(response: &Response, url: &Url, method: &Method) -> Result<Option<Url>, Problem> {
    let follow = match response.status().as_u16() {
        301..=303 => matches!(*method, Method::GET | Method::HEAD),
        307 | 308 => true,
        _ => false,
    };
    if !follow {
        return Ok(None);
    }
    let next = location(response.headers(), url)?;
    Ok(Some(next))
}

/// `Location`, which may be relative to `url`.
pub(crate) fn location(headers: &HeaderMap, url: &Url) -> Result<Url, Problem> {
    let text = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    text.and_then(|text| url.join(text).ok())
        .filter(|next| matches!(next.scheme(), "http" | "https"))
        .ok_or_else(|| Problem::malformed("an answer leads elsewhere without saying where"))
}

/// What a failure to get any answer means.
pub(crate) fn send_error(error: &reqwest::Error) -> Problem {
    let detail = tls::root_cause(error);
    if is_certificate(error) {
        Problem::Certificate { detail }
    } else if error.is_connect() {
        Problem::Connect { detail }
    } else if error.is_builder() {
        Problem::Setup { detail }
    } else {
        Problem::Interrupted { detail }
    }
}

fn is_certificate(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if matches!(
            error.downcast_ref(),
            Some(rustls::Error::InvalidCertificate(_))
        ) {
            return true;
        }
        cause = below(error);
    }
    false
}

/// The next cause. An `io::Error` names its content's cause as its own, and hides the content.
fn below<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<std::io::Error>() {
        Some(io) => io
            .get_ref()
            .map(|content| content as &(dyn Error + 'static)),
        None => error.source(),
    }
}

impl Answer {
    /// This answer if its status is one of `accepted`, else what its status means.
    pub(crate) async fn expect(self, accepted: &[StatusCode]) -> Result<Self, Problem> {
        if accepted.contains(&self.response.status()) {
            return Ok(self);
        }
        Err(self.into_problem().await)
    }

    async fn into_problem(self) -> Problem {
        let status = self.response.status().as_u16();
        let retry_after = retry_after(self.response.headers());
        let document = if self.moved {
            None
        } else {
            let body =
                Body::new(self.response, ERROR_DOCUMENT_PATIENCE).read_all(MAX_ERROR_DOCUMENT);
            tokio::time::timeout(ERROR_DOCUMENT_PATIENCE, body)
                .await
                .ok()
                .and_then(Result::ok)
        };
        let detail = document
            .map(|body| Detail::from_document(&body))
            .unwrap_or_default();
        match status {
            404 => Problem::NotFound { detail },
            401 | 403 => Problem::Denied {
                status,
                detail,
                hint: "check the credentials for this host, and that they reach this repository",
            },
            _ => Problem::Status {
                status,
                detail,
                retry_after,
            },
        }
    }

    /// A header as text.
    pub(crate) fn header(&self, name: impl reqwest::header::AsHeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }
}

//! Whole blobs: small ones at once, large ones as streams.

use std::fmt;

use bytes::Bytes;
use futures::Stream;
use reqwest::StatusCode;
use sha2::{Digest as _, Sha256};
use ztoc::Digest;

use super::blob::{blob_call, check_encoding, ranged};
use super::body::Body;
use super::error::{Problem, RegistryError};
use super::hosts::Purpose;
use super::retry::Attempts;
use super::transport::Answer;
use super::{Reference, Registry};

/// So many bytes without a failure clear a download of its earlier failures.
const PROGRESS: u64 = 1 << 20;
/// More than this is hashed off the runtime's threads.
const HASH_INLINE: usize = 64 << 10;

/// The digest of `bytes`.
pub(crate) async fn digest_of(bytes: &Bytes) -> Digest {
    if bytes.len() <= HASH_INLINE {
        return Digest::of(bytes);
    }
    let shared = bytes.clone();
    match tokio::task::spawn_blocking(move || Digest::of(&shared)).await {
        Ok(digest) => digest,
        // Only when the runtime is shutting down.
        Err(_) => Digest::of(bytes),
    }
}

/// A whole blob of at most `limit` bytes.
pub(super) async fn fetch(
    registry: &Registry,
    reference: &Reference,
    digest: &Digest,
    limit: u64,
) -> Result<Bytes, RegistryError> {
    let mut attempts = registry
        .attempts(reference, Purpose::Pull, format!("blob {digest}"))
        .await?;
    loop {
        let endpoint = attempts.endpoint();
        let attempt = async {
            let call = blob_call(&endpoint, reference, digest);
            let answer = registry.transport().send(&endpoint, &call).await?;
            let answer = answer.expect(&[StatusCode::OK]).await?;
            check_encoding(&answer)?;
            let body = Body::new(answer.response, registry.transport().http.stall_timeout);
            verified(body.read_all(limit).await?, digest).await
        };
        match attempts.limited(attempt).await {
            Ok(bytes) => return Ok(bytes),
            Err(problem) => attempts.failed(problem).await?,
        }
    }
}

/// `bytes`, if they hash to `digest`.
pub(super) async fn verified(bytes: Bytes, digest: &Digest) -> Result<Bytes, Problem> {
    let actual = digest_of(&bytes).await;
    if actual == *digest {
        Ok(bytes)
    } else {
        Err(Problem::WrongDigest { actual })
    }
}

/// A whole blob on its way. Ends with an error when the bytes do not hash to its digest; whoever
/// uses them before the end must be able to undo that.
pub struct Download {
    registry: Registry,
    reference: Reference,
    digest: Digest,
    attempts: Option<Attempts>,
    body: Option<Body>,
    hasher: Sha256,
    offset: u64,
    since_failure: u64,
    done: bool,
    /// Begun at the blob's start, so that its digest can be known.
    whole: bool,
}

impl Download {
    pub(super) fn new(registry: Registry, reference: Reference, digest: Digest) -> Self {
        Self {
            registry,
            reference,
            digest,
            attempts: None,
            body: None,
            hasher: Sha256::new(),
            offset: 0,
            since_failure: 0,
            done: false,
            whole: true,
        }
    }

    /// Asks for the first byte. `None` if that is what comes; a host that answers with everything is taken
    /// at its word: the download goes on with that.
    pub(super) async fn probe(mut self) -> Result<Option<Self>, RegistryError> {
        loop {
            match self.ask(Some(1)).await {
                Ok(answer) if is_partial(&answer) => return Ok(None),
                Ok(answer) => {
                    self.body = Some(self.body_of(answer));
                    return Ok(Some(self));
                }
                Err(problem) => self.recover(problem).await?,
            }
        }
    }

    /// Begins at `offset` of the blob instead of its start. Its digest is not verified then, unless
    /// that is the start.
    pub(super) fn starting_at(self, offset: u64) -> Self {
        Self {
            offset,
            whole: offset == 0,
            ..self
        }
    }

    /// The next bytes; `None` after the last, when the digest is right. An error is final.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        while !self.done {
            let step = self.step().await;
            match step {
                Ok(Some(bytes)) => return Ok(Some(bytes)),
                Ok(None) => self.done = true,
                Err(problem) => self.recover(problem).await?,
            }
        }
        Ok(None)
    }

    /// The same as a stream, for `tokio_util::io::StreamReader`.
    pub fn into_stream(self) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
        futures::stream::try_unfold(self, |mut download| async move {
            let chunk = download.chunk().await.map_err(std::io::Error::other)?;
            Ok(chunk.map(|bytes| (bytes, download)))
        })
    }

    async fn step(&mut self) -> Result<Option<Bytes>, Problem> {
        if self.body.is_none() {
            self.body = Some(self.open().await?);
        }
        let Some(body) = &mut self.body else {
            return Ok(None);
        };
        let Some(bytes) = body.chunk().await? else {
            return self.finish();
        };
        if self.whole {
            self.hasher.update(&bytes);
        }
        self.offset += bytes.len() as u64;
        self.note_progress(bytes.len() as u64);
        Ok(Some(bytes))
    }

    /// The connection's end is the blob's end only if the digest says so. HTTP itself tells when a body with a
    /// length is cut short, so that a wrong digest means wrong bytes.
    fn finish(&self) -> Result<Option<Bytes>, Problem> {
        let actual = Digest::from_bytes(self.hasher.clone().finalize().into());
        if !self.whole || actual == self.digest {
            Ok(None)
        } else {
            Err(Problem::WrongDigest { actual })
        }
    }

    fn note_progress(&mut self, bytes: u64) {
        self.since_failure += bytes;
        if self.since_failure >= PROGRESS
            && let Some(attempts) = &mut self.attempts
        {
            attempts.progressed();
        }
    }

    async fn open(&mut self) -> Result<Body, Problem> {
        let answer = self.ask(None).await?;
        self.position(answer).await
    }

    /// Asks for what is missing up to `end`.
    async fn ask(&mut self, end: Option<u64>) -> Result<Answer, Problem> {
        let attempts = match &mut self.attempts {
            Some(attempts) => attempts,
            none => {
                let object = format!("blob {}", self.digest);
                let attempts = self
                    .registry
                    .attempts(&self.reference, Purpose::Pull, object)
                    .await;
                none.insert(attempts.map_err(|error| error.problem)?.unlimited())
            }
        };
        let endpoint = attempts.endpoint();
        let mut call = blob_call(&endpoint, &self.reference, &self.digest);
        let part = self.offset > 0 || end.is_some();
        if part {
            call = ranged(call, self.offset, end);
        }
        let answer = self.registry.transport().send(&endpoint, &call).await?;
        let answer = answer
            .expect(&[StatusCode::OK, StatusCode::PARTIAL_CONTENT])
            .await?;
        check_encoding(&answer)?;
        if part {
            endpoint.answered_range(is_partial(&answer));
        }
        Ok(answer)
    }

    fn body_of(&self, answer: Answer) -> Body {
        let stall = self.registry.transport().http.stall_timeout;
        Body::new(answer.response, stall)
    }

    /// The body from where the download stands.
    async fn position(&self, answer: Answer) -> Result<Body, Problem> {
        let partial = is_partial(&answer);
        if partial {
            let expected = format!("bytes {}-", self.offset);
            let range = answer
                .header(reqwest::header::CONTENT_RANGE)
                .unwrap_or_default();
            if !range.to_ascii_lowercase().starts_with(&expected) {
                return Err(Problem::malformed(
                    "the download cannot be continued: other bytes came",
                ));
            }
        }
        let mut body = self.body_of(answer);
        if !partial {
            body.skip(self.offset).await?;
        }
        Ok(body)
    }

    async fn recover(&mut self, problem: Problem) -> Result<(), RegistryError> {
        self.body = None;
        self.since_failure = 0;
        let finished = matches!(problem, Problem::WrongDigest { .. });
        match &mut self.attempts {
            // What was handed out cannot be taken back.
            Some(attempts) if finished && self.offset > 0 => Err(attempts.fatal(problem)),
            Some(attempts) => attempts.failed(problem).await,
            None => {
                Err(self
                    .registry
                    .error(&self.reference, format!("blob {}", self.digest), problem))
            }
        }
    }
}

fn is_partial(answer: &Answer) -> bool {
    answer.response.status() == StatusCode::PARTIAL_CONTENT
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download")
            .field("reference", &self.reference)
            .field("digest", &self.digest)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

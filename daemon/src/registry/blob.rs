//! Ranges of a blob.
//!
//! Where a registry's redirect leads (a pre-signed URL of an object store, as a rule) is remembered
//! per host, and asked directly until it says that it has run out.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use reqwest::header::{ACCEPT_ENCODING, HeaderValue, RANGE};
use reqwest::{Method, StatusCode};
use url::Url;
use ztoc::{CompressedOffset, Digest};

use super::auth::Scope;
use super::error::{Problem, RegistryError};
use super::hosts::{Endpoint, Purpose};
use super::retry::Attempts;
use super::transport::{Answer, Call};
use super::{Reference, Registry};
use crate::layer::{BlobSource, FetchError};

mod range;

#[cfg(any(test, fuzzing))]
pub(crate) use range::probe;

pub(super) use range::check_encoding;

/// Statuses by which an object store says that a URL has run out or its object has moved.
const RUN_OUT: [u16; 5] = [400, 401, 403, 404, 410];

/// A blob in a registry, read by ranges.
pub struct Blob {
    registry: Registry,
    reference: Reference,
    digest: Digest,
    size: u64,
    /// Final URLs by endpoint.
    moved: Mutex<HashMap<String, Url>>,
    /// A host answered a range with the whole blob.
    whole: AtomicBool,
}

impl Blob {
    pub(super) fn new(registry: Registry, reference: Reference, digest: Digest, size: u64) -> Self {
        Self {
            registry,
            reference,
            digest,
            size,
            moved: Mutex::new(HashMap::new()),
            whole: AtomicBool::new(false),
        }
    }

    /// The blob's digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The blob's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether a host has answered a range with the whole blob: then many ranges cost too much.
    pub(super) fn ignores_ranges(&self) -> bool {
        self.whole.load(Ordering::Relaxed)
    }

    /// The bytes of `range`, which is not empty and lies within the blob.
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes, RegistryError> {
        let mut attempts = self.attempts(&range).await?;
        self.over_hosts(&mut attempts, range).await
    }

    /// The same, from another host than [`Self::read`] begins with if there is one.
    pub(super) async fn read_elsewhere(&self, range: Range<u64>) -> Result<Bytes, RegistryError> {
        let mut attempts = self.attempts(&range).await?.next_host_first();
        self.over_hosts(&mut attempts, range).await
    }

    async fn attempts(&self, range: &Range<u64>) -> Result<Attempts, RegistryError> {
        let object = format!(
            "bytes {}-{} of blob {}",
            range.start, range.end, self.digest
        );
        let mut attempts = self
            .registry
            .attempts(&self.reference, Purpose::Pull, object)
            .await?;
        if range.is_empty() || range.end > self.size {
            let detail = format!("the blob has {} bytes: no such range", self.size);
            attempts.failed(Problem::Setup { detail }).await?;
        }
        Ok(attempts)
    }

    async fn over_hosts(
        &self,
        attempts: &mut Attempts,
        range: Range<u64>,
    ) -> Result<Bytes, RegistryError> {
        loop {
            let endpoint = attempts.endpoint();
            match attempts.limited(self.once(&endpoint, range.clone())).await {
                Ok(bytes) => return Ok(bytes),
                Err(problem) => attempts.failed(problem).await?,
            }
        }
    }

    async fn once(&self, endpoint: &Arc<Endpoint>, range: Range<u64>) -> Result<Bytes, Problem> {
        if let Some(answer) = self.ask_moved(endpoint, &range).await? {
            return self.take(endpoint, answer, range).await;
        }
        let answer = self
            .registry
            .transport()
            .send(endpoint, &self.call(endpoint, &range))
            .await?;
        // A URL on the same host wants the host's credentials again: it is asked the usual way.
        let elsewhere = answer.moved && !endpoint.owns(&answer.url);
        let moved = elsewhere.then(|| answer.url.clone());
        let answer = answer
            .expect(&[StatusCode::OK, StatusCode::PARTIAL_CONTENT])
            .await?;
        if let Some(url) = moved {
            self.moved.lock().insert(endpoint.key().to_owned(), url);
        }
        self.take(endpoint, answer, range).await
    }

    /// Asks the remembered URL; `None` without one, or when it has run out. It is forgotten with any failure.
    async fn ask_moved(
        &self,
        endpoint: &Endpoint,
        range: &Range<u64>,
    ) -> Result<Option<Answer>, Problem> {
        let Some(url) = self.moved.lock().get(endpoint.key()).cloned() else {
            return Ok(None);
        };
        let call = Call {
            url: url.clone(),
            ..self.call(endpoint, range)
        };
        let answer = match self.registry.transport().send_bare(endpoint, &call).await {
            Ok(answer) => answer,
            Err(problem) => {
                self.forget(endpoint, &url);
                return Err(problem);
            }
        };
        let status = answer.response.status();
        if RUN_OUT.contains(&status.as_u16()) || status.is_redirection() {
            self.forget(endpoint, &url);
            return Ok(None);
        }
        answer
            .expect(&[StatusCode::OK, StatusCode::PARTIAL_CONTENT])
            .await
            .map(Some)
    }

    /// Forgets `url`, unless another request has replaced it.
    fn forget(&self, endpoint: &Endpoint, url: &Url) {
        let mut moved = self.moved.lock();
        if moved.get(endpoint.key()) == Some(url) {
            moved.remove(endpoint.key());
        }
    }

    fn call(&self, endpoint: &Endpoint, range: &Range<u64>) -> Call {
        ranged(
            blob_call(endpoint, &self.reference, &self.digest),
            range.start,
            Some(range.end),
        )
    }

    async fn take(
        &self,
        endpoint: &Endpoint,
        answer: Answer,
        range: Range<u64>,
    ) -> Result<Bytes, Problem> {
        if range != (0..self.size) {
            let served = answer.response.status() != StatusCode::OK;
            endpoint.answered_range(served);
            if !served {
                self.whole.store(true, Ordering::Relaxed);
            }
        }
        range::read(answer, range, self.size, &self.registry.transport().http).await
    }
}

/// `GET` of a whole blob.
pub(super) fn blob_call(endpoint: &Endpoint, reference: &Reference, digest: &Digest) -> Call {
    let repository = reference.repository();
    let scope = Scope {
        repository: repository.to_owned(),
        push: false,
    };
    Call::new(
        Method::GET,
        endpoint.url(repository, &format!("blobs/{digest}")),
        scope,
    )
    .header(ACCEPT_ENCODING, HeaderValue::from_static("identity"))
}

/// The same call for the bytes from `start` to before `end`.
pub(super) fn ranged(call: Call, start: u64, end: Option<u64>) -> Call {
    let last = end
        .map(|end| end.saturating_sub(1).to_string())
        .unwrap_or_default();
    match HeaderValue::try_from(format!("bytes={start}-{last}")) {
        Ok(value) => call.header(RANGE, value),
        Err(_) => call,
    }
}

#[async_trait]
impl BlobSource for Blob {
    async fn fetch(&self, range: Range<CompressedOffset>) -> Result<Bytes, FetchError> {
        let bytes = self.read(range.start.0..range.end.0).await;
        bytes.map_err(|error| FetchError {
            detail: error.to_string(),
        })
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blob")
            .field("reference", &self.reference)
            .field("digest", &self.digest)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

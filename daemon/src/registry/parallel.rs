//! Whole blobs by ranges, several at a time and in order.
//!
//! A permit is taken for each range before it is asked for, and given back when nobody holds the
//! range's bytes any more: so the permits bound requests and memory alike. They are taken
//! in the order of the ranges, so that the range that is waited for always has its own.
//!
//! A host that is not known to serve ranges is asked for one byte first. A pull-through cache answers to every range of
//! a blob that it does not have yet with the whole: many at a time would be as many transfers.
//!
//! A range that is waited for and takes far longer than the line explains is asked for once more, under the same permits;
//! the answer that comes first counts.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::future::{BoxFuture, Either, select, select_ok};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;
use ztoc::Digest;

use super::blob::Blob;
use super::download::Download;
use super::error::RegistryError;
use super::{Reference, Registry};
use crate::layer::{Lane, Link};

/// How many times as long as expected a range may take.
const PATIENCE: u32 = 4;

/// How much is asked for at a time.
#[derive(Debug, Clone)]
pub struct Share {
    /// Bytes of one range; `None`: the whole blob in one request.
    pub chunk: Option<u64>,
    /// Each range takes a permit of all of these, in this order.
    pub permits: Vec<Arc<Semaphore>>,
    /// Ranges of one blob at a time; may change meanwhile.
    pub ahead: Arc<AtomicUsize>,
}

/// A whole blob on its way in ranges. Not verified.
pub(super) struct Ranges {
    blob: Arc<Blob>,
    registry: Registry,
    reference: Reference,
    share: Share,
    chunk: u64,
    /// Where the next range to be asked for begins.
    next: u64,
    /// Where the next range to be given out begins; those that are asked for look at it.
    given: Arc<AtomicU64>,
    under_way: VecDeque<AbortOnDropHandle<Result<Bytes, RegistryError>>>,
    /// The rest in one piece: the host does not know ranges.
    rest: Option<Box<Rest>>,
}

/// One request for all that is left.
struct Rest {
    download: Download,
    _permits: Vec<OwnedSemaphorePermit>,
}

/// Bytes and the permits they were fetched with.
struct Permitted {
    bytes: Bytes,
    _permits: Vec<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Permitted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A blob of `size` bytes, or of unknown size and then in one piece.
pub(super) fn download(
    registry: &Registry,
    reference: &Reference,
    digest: &Digest,
    size: Option<u64>,
    share: Share,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let chunk = match (share.chunk, size) {
        (Some(chunk), Some(_)) => Some(chunk.max(1)),
        _ => None,
    };
    let size = size.unwrap_or_default();
    let ranges = Ranges {
        blob: Arc::new(registry.blob(reference, digest, size)),
        registry: registry.clone(),
        reference: reference.clone(),
        chunk: chunk.unwrap_or_default(),
        share,
        next: 0,
        given: Arc::default(),
        under_way: VecDeque::new(),
        rest: None,
    };
    let whole = chunk.is_none();
    futures::stream::try_unfold(ranges, move |mut ranges| async move {
        if whole && ranges.rest.is_none() {
            ranges.continue_in_one().await;
        } else if ranges.next == 0 && ranges.rest.is_none() {
            ranges.begin().await.map_err(io::Error::other)?;
        }
        let bytes = ranges.step().await.map_err(io::Error::other)?;
        Ok(bytes.map(|bytes| (bytes, ranges)))
    })
}

impl Ranges {
    async fn begin(&mut self) -> Result<(), RegistryError> {
        let alone = self.chunk >= self.blob.size();
        if alone || self.registry.serves_ranges(&self.reference).await {
            return Ok(());
        }
        let permits = permits(&self.share.permits).await;
        let download = self.registry.download(&self.reference, &self.blob.digest());
        if let Some(download) = download.probe().await? {
            self.rest = Some(Box::new(Rest {
                download,
                _permits: permits,
            }));
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<Option<Bytes>, RegistryError> {
        if let Some(rest) = &mut self.rest {
            return rest.download.chunk().await;
        }
        if self.given() == self.blob.size() {
            return Ok(None);
        }
        let bytes = self.first().await?;
        self.given.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if self.blob.ignores_ranges() && self.given() < self.blob.size() {
            self.continue_in_one().await;
        }
        Ok(Some(bytes))
    }

    fn given(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }

    /// The range that is next to be given out, while others are asked for.
    async fn first(&mut self) -> Result<Bytes, RegistryError> {
        loop {
            while self.may_ask() {
                match try_permits(&self.share.permits) {
                    Some(permits) => self.ask(permits),
                    None => break,
                }
            }
            let more = self.may_ask();
            let permits = permits(&self.share.permits);
            let Some(first) = self.under_way.front_mut() else {
                let permits = permits.await;
                self.ask(permits);
                continue;
            };
            tokio::select! {
                biased;
                done = first => {
                    self.under_way.pop_front();
                    return done.unwrap_or_else(|ended| Err(self.ended(&ended)));
                }
                permits = permits, if more => self.ask(permits),
            }
        }
    }

    fn ahead(&self) -> usize {
        self.share.ahead.load(Ordering::Relaxed).max(1)
    }

    fn may_ask(&self) -> bool {
        self.next < self.blob.size() && self.under_way.len() < self.ahead()
    }

    fn ask(&mut self, permits: Vec<OwnedSemaphorePermit>) {
        let range = self.next_range();
        self.next = range.end;
        let piece = Piece {
            blob: Arc::clone(&self.blob),
            line: Arc::clone(self.registry.line()),
            patience: self.registry.transport().http.straggler,
            given: Arc::clone(&self.given),
            range,
        };
        let read = tokio::spawn(async move {
            let bytes = piece.read().await?;
            Ok(Bytes::from_owner(Permitted {
                bytes,
                _permits: permits,
            }))
        });
        self.under_way.push_back(AbortOnDropHandle::new(read));
    }

    fn next_range(&self) -> Range<u64> {
        let end = self.next.saturating_add(self.chunk).min(self.blob.size());
        self.next..end
    }

    async fn continue_in_one(&mut self) {
        self.under_way.clear();
        let download = self.registry.download(&self.reference, &self.blob.digest());
        self.rest = Some(Box::new(Rest {
            download: download.starting_at(self.given()),
            _permits: permits(&self.share.permits).await,
        }));
    }

    /// The task is gone: only when the runtime is shutting down.
    fn ended(&self, ended: &tokio::task::JoinError) -> RegistryError {
        let detail = format!("the request ended: {ended}");
        let object = format!("blob {}", self.blob.digest());
        let problem = super::Problem::Setup { detail };
        self.registry.error(&self.reference, object, problem)
    }
}

/// One range on its way.
struct Piece {
    blob: Arc<Blob>,
    line: Arc<Link>,
    /// Shortest time after which it is a straggler.
    patience: Duration,
    given: Arc<AtomicU64>,
    range: Range<u64>,
}

impl Piece {
    async fn read(self) -> Result<Bytes, RegistryError> {
        let length = self.range.end - self.range.start;
        let passage = self.line.depart(length, Lane::Fill);
        let bytes = self.of_either().await?;
        passage.arrive(bytes.len() as u64);
        Ok(bytes)
    }

    async fn of_either(&self) -> Result<Bytes, RegistryError> {
        let first = Box::pin(self.blob.read(self.range.clone()));
        let first = match select(first, Box::pin(self.is_late())).await {
            Either::Left((answer, _)) => return answer,
            Either::Right(((), first)) => first,
        };
        tracing::info!(
            layer = %self.blob.digest(), start = self.range.start, end = self.range.end,
            "a range takes far longer than the line explains, it is asked for again"
        );
        let second = Box::pin(self.blob.read_elsewhere(self.range.clone()));
        let futures: [BoxFuture<'_, _>; 2] = [first, second];
        let (bytes, _) = select_ok(futures).await?;
        Ok(bytes)
    }

    /// Ends when the range should have come long ago and is waited for.
    async fn is_late(&self) {
        let length = self.range.end - self.range.start;
        loop {
            let expected = self.line.expected(length);
            let patience = expected.unwrap_or_default().saturating_mul(PATIENCE);
            tokio::time::sleep(patience.max(self.patience)).await;
            // Nothing has come yet: the line may be a slow one.
            let known = expected.is_some();
            if known && self.given.load(Ordering::Relaxed) == self.range.start {
                return;
            }
        }
    }
}

fn try_permits(of: &[Arc<Semaphore>]) -> Option<Vec<OwnedSemaphorePermit>> {
    let permits = of.iter().map(|all| Arc::clone(all).try_acquire_owned());
    permits.collect::<Result<_, _>>().ok()
}

fn permits(
    of: &[Arc<Semaphore>],
) -> impl Future<Output = Vec<OwnedSemaphorePermit>> + Send + 'static {
    let of = of.to_vec();
    async move {
        let mut permits = Vec::with_capacity(of.len());
        for all in of {
            // Nobody closes it.
            permits.extend(all.acquire_owned().await.ok());
        }
        permits
    }
}

impl fmt::Debug for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ranges")
            .field("blob", &self.blob)
            .field("given", &self.given())
            .finish_non_exhaustive()
    }
}

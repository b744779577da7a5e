//! The windows of a compact zTOC: they come when a span needs them, in groups of neighbours, beside its bytes.
//!
//! A group is believed only after it was compared with its digest in the head of the zTOC, which was checked before the
//! layer was stored. It is compared again whenever it is read.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use ztoc::checkpoint::ZtocBytes as _;
use ztoc::{CompressedOffset, Digest, SpanId};

use super::Layer;
use super::counters::add;
use super::fetch::bytes;
use super::kept_ztoc::KeptZtoc;
use super::schedule::Ticket;
use super::source::{FetchError, Sources};
use crate::registry::flight::Flights;

/// The windows of one layer, if its zTOC is compact.
#[derive(Debug)]
pub(crate) struct Windows {
    kept: Arc<KeptZtoc>,
    blob: Digest,
    size: u64,
    sources: Sources,
    /// Where groups begin that are on disk and were right.
    present: Mutex<BTreeSet<u64>>,
    flights: Flights<(u64, u64), Result<(), FetchError>>,
}

/// A group: a span that needs it, and where it is in the blob.
type Group = (SpanId, Range<u64>);

impl Windows {
    /// Those of the compact zTOC `blob` of `size` bytes, of which `kept` may lack some.
    pub(crate) fn new(kept: Arc<KeptZtoc>, blob: Digest, size: u64) -> Self {
        Self {
            kept,
            blob,
            size,
            sources: Sources::default(),
            present: Mutex::default(),
            flights: Flights::new(),
        }
    }

    /// The next who needs the group of `span` must look at it again.
    fn distrust(&self, group: &Range<u64>) {
        self.present.lock().remove(&group.start);
    }

    /// Those of `groups` that are not known to be here, neighbours in one run.
    fn unknown(&self, groups: impl Iterator<Item = Group>) -> Vec<Vec<Group>> {
        let present = self.present.lock();
        let mut runs: Vec<Vec<Group>> = Vec::new();
        for (span, group) in groups.filter(|(_, group)| !present.contains(&group.start)) {
            match runs.last_mut() {
                Some(run) if run.last().is_some_and(|last| last.1 == group) => {}
                Some(run) if run.last().is_some_and(|last| last.1.end == group.start) => {
                    run.push((span, group));
                }
                _ => runs.push(vec![(span, group)]),
            }
        }
        runs
    }
}

impl Layer {
    /// The compact zTOC that describes the layer, and its size; `None` if a zTOC does.
    pub fn compact_ztoc(&self) -> Option<(Digest, u64)> {
        self.windows.as_ref().map(|it| (it.blob, it.size))
    }

    /// Another place to get windows from; see [`Self::compact_ztoc`].
    pub fn add_window_source(&self, name: String, source: Arc<dyn super::BlobSource>) {
        if let Some(windows) = &self.windows {
            windows.sources.add(name, source);
        }
    }

    /// Has the windows of `spans` on disk.
    pub(crate) async fn bring_windows(
        self: &Arc<Self>,
        spans: &Range<SpanId>,
        ticket: &Arc<Ticket>,
    ) -> Result<(), FetchError> {
        let Some(windows) = &self.windows else {
            return Ok(());
        };
        let ids = (spans.start.0..spans.end.0).map(SpanId);
        let groups = ids.filter_map(|span| Some((span, self.spans.window_group(span)?)));
        let runs = windows.unknown(groups);
        let brought = runs.into_iter().map(|run| {
            let key = (run[0].1.start, run[run.len() - 1].1.end);
            let (layer, ticket) = (Arc::clone(self), Arc::clone(ticket));
            windows
                .flights
                .join(key, || async move { layer.bring(run, &ticket).await })
        });
        futures::future::try_join_all(brought).await?;
        Ok(())
    }

    /// The windows of `span` are not what they should be: they are fetched again next time.
    pub(crate) fn distrust_windows(&self, span: SpanId) {
        if let (Some(windows), Some(group)) = (&self.windows, self.spans.window_group(span)) {
            windows.distrust(&group);
        }
    }

    /// Looks for a run of groups on disk, and fetches from the first to the last that is not there. Those that come wrong are asked
    /// for again, of another source if there is one.
    async fn bring(self: Arc<Self>, run: Vec<Group>, ticket: &Ticket) -> Result<(), FetchError> {
        let mut absent = self.check(run, None).await?;
        for number in 0..=self.engine.options.verification_retries {
            let (Some(first), Some(last)) = (absent.first(), absent.last()) else {
                return Ok(());
            };
            let range = CompressedOffset(first.1.start)..CompressedOffset(last.1.end);
            let Some(windows) = &self.windows else {
                return Ok(());
            };
            let size = range.end.0 - range.start.0;
            let passage = self.engine.link.depart(size, ticket.lane());
            add(&self.counters.requests, 1);
            let got = bytes(&self, &windows.sources, &range, number, ticket).await?;
            passage.arrive(got.len() as u64);
            add(&self.counters.bytes_fetched, got.len() as u64);
            absent = self.check(absent, Some((range.start.0, got))).await?;
        }
        match absent.is_empty() {
            true => Ok(()),
            false => Err(FetchError {
                detail: format!(
                    "the sources do not give the windows that the compact zTOC of layer {} describes",
                    self.digest
                ),
            }),
        }
    }

    /// Which of `groups` are not right: on disk, or in fetched bytes that begin at a position of the blob; these are written.
    async fn check(
        self: &Arc<Self>,
        groups: Vec<Group>,
        fetched: Option<(u64, Bytes)>,
    ) -> Result<Vec<Group>, FetchError> {
        let layer = Arc::clone(self);
        let work = move || {
            let is_wrong =
                |(span, group): &Group| !layer.has_window(*span, group, fetched.as_ref());
            groups.into_iter().filter(is_wrong).collect()
        };
        let checked = tokio::task::spawn_blocking(work).await;
        checked.map_err(|error| FetchError {
            detail: error.to_string(),
        })
    }

    fn has_window(&self, span: SpanId, group: &Range<u64>, fetched: Option<&(u64, Bytes)>) -> bool {
        let Some(windows) = &self.windows else {
            return true;
        };
        let bytes = match fetched {
            Some((start, bytes)) => slice(bytes, group.start - start..group.end - start),
            None => read(&windows.kept, group),
        };
        let right = bytes.filter(|bytes| self.spans.is_window_group(span, bytes));
        let Some(bytes) = right else { return false };
        if fetched.is_some() {
            windows.kept.put(bytes, group.start);
        }
        windows.present.lock().insert(group.start);
        true
    }
}

fn slice(bytes: &Bytes, range: Range<u64>) -> Option<Bytes> {
    let range = usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?;
    (range.end <= bytes.len()).then(|| bytes.slice(range))
}

fn read(kept: &KeptZtoc, group: &Range<u64>) -> Option<Bytes> {
    let mut bytes = vec![0; usize::try_from(group.end - group.start).ok()?];
    kept.read_exact_at(&mut bytes, group.start).ok()?;
    Some(bytes.into())
}

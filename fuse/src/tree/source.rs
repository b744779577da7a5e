//! What trees are built of.

use std::convert::Infallible;
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;

use ztoc::compact::{ColumnToc, CompactError};
use ztoc::error::DecodeError;
use ztoc::toc::Member;
use ztoc::{LeanToc, Toc};

use super::headers::HeaderCheck;

/// Entries from which on a second thread pays.
const MANY: usize = 10_000;
/// Entries that it hands over at once, and how many times so many may wait.
const BATCH: usize = 1024;
const BATCHES: usize = 4;

/// The entries of a layer, to be gone through as often as wanted.
pub(super) trait Source: Sync {
    /// What can be wrong with an entry.
    type Error: Send;

    /// How many there are.
    fn len(&self) -> usize;

    /// All of them in tar order; an error is the last.
    fn members(&self) -> impl Iterator<Item = Result<Member<'_>, Self::Error>>;

    /// Whether there is a tar with headers.
    fn has_headers(&self) -> bool {
        true
    }
}

impl Source for Toc {
    type Error = Infallible;

    fn len(&self) -> usize {
        self.entries().len()
    }

    fn members(&self) -> impl Iterator<Item = Result<Member<'_>, Infallible>> {
        self.members().map(Ok)
    }
}

impl Source for LeanToc<'_> {
    type Error = DecodeError;

    fn len(&self) -> usize {
        self.len()
    }

    fn members(&self) -> impl Iterator<Item = Result<Member<'_>, DecodeError>> {
        self.members()
    }
}

impl Source for ColumnToc {
    type Error = CompactError;

    fn len(&self) -> usize {
        self.len()
    }

    fn members(&self) -> impl Iterator<Item = Result<Member<'_>, CompactError>> {
        self.members()
    }
}

/// Has `apply` see each entry of `source` with its number; what the headers of each must be comes of it, if there are any.
/// Of many entries another thread reads them meanwhile; it ends before this returns.
pub(super) fn read<'t, S: Source>(
    source: &'t S,
    mut apply: impl FnMut(u32, &Member<'t>),
) -> Result<Vec<HeaderCheck>, S::Error> {
    let mut checks = Vec::new();
    let mut numbers = 0..;
    let mut each = |member: &Member<'t>| {
        if source.has_headers() {
            checks.push(HeaderCheck::of(member));
        }
        apply(numbers.next().unwrap_or(u32::MAX), member);
    };
    let many = source.len() >= MANY;
    match many.then(|| read_ahead(source, &mut each)).flatten() {
        Some(read) => read?,
        None => source
            .members()
            .try_for_each(|member| member.map(|member| each(&member)))?,
    }
    Ok(checks)
}

/// Has `each` see all entries, which another thread reads; `None` if there is no thread.
fn read_ahead<'t, S: Source>(
    source: &'t S,
    each: &mut impl FnMut(&Member<'t>),
) -> Option<Result<(), S::Error>> {
    thread::scope(|scope| {
        let (sender, batches) = sync_channel(BATCHES);
        let (used, free) = channel();
        let thread = thread::Builder::new().name("entries".to_owned());
        let reader = thread.spawn_scoped(scope, move || send(source.members(), &sender, &free));
        let reader = reader.ok()?;
        for mut batch in batches {
            batch.iter().for_each(&mut *each);
            batch.clear();
            // To be filled again: a fresh one costs a page fault for each of its pages.
            let _ = used.send(batch);
        }
        Some(reader.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

/// Sends all `members` in batches, those that come back through `free` as long as there are any.
fn send<'t, E>(
    mut members: impl Iterator<Item = Result<Member<'t>, E>>,
    sender: &SyncSender<Vec<Member<'t>>>,
    free: &Receiver<Vec<Member<'t>>>,
) -> Result<(), E> {
    loop {
        let fresh = |_| Vec::with_capacity(BATCH);
        let mut batch = free.try_recv().unwrap_or_else(fresh);
        for member in members.by_ref().take(BATCH) {
            batch.push(member?);
        }
        // If nobody receives any more, that thread has panicked.
        if batch.is_empty() || sender.send(batch).is_err() {
            return Ok(());
        }
    }
}

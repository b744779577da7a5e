//! How much the layers on this node take on disk, and what goes when that is too much.
//!
//! Counted are the plain bytes of the spans that are there, and of files made of them (see [`super::own_files`]), over
//! all layers, open or not. Used is measured by
//! a clock that ticks with every span stored. Neighbouring spans go together ([`GROUP`]): what was
//! read last of a group keeps all of it.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use nix::sys::statvfs::statvfs;
use parking_lot::Mutex;
use ztoc::unit::ByteLen as _;
use ztoc::{Digest, SpanId};

use super::Layer;
use super::counters::add;
use super::own_files;

/// Spans whose use is told together: 32 MiB at the usual span size.
pub(crate) const GROUP: u32 = 8;
/// Eviction goes on until this share of the limit is free again, so that it is not begun for each span.
const SLACK: u64 = 16;
/// The fill leaves this share of the file system to others, or so many bytes if they are fewer.
const RESERVE: u64 = 10;
const MOST_RESERVED: u64 = 2 << 30;
/// Stored bytes after which the file system is asked again how full it is.
const ASK_EVERY: u64 = 64 << 20;
const NO_LIMIT: u64 = u64::MAX;

/// What all layers of one store take.
#[derive(Debug)]
pub(crate) struct Ledger {
    root: PathBuf,
    /// [`NO_LIMIT`] if there is none.
    limit: AtomicU64,
    used: AtomicU64,
    /// Bytes that the fill is about to add.
    expected: AtomicU64,
    clock: AtomicI64,
    /// The file system has too little room for what nobody has asked for.
    tight: AtomicBool,
    until_asked: AtomicU64,
    evicting: AtomicBool,
    /// Never held over I/O, nor is another lock taken under it.
    layers: Mutex<Layers>,
}

#[derive(Debug, Default)]
struct Layers {
    open: Vec<Weak<Layer>>,
    closed: HashMap<Digest, Closed>,
}

/// A layer that is on disk and not open.
#[derive(Debug, Clone, Copy)]
struct Closed {
    bytes: u64,
    /// By the clock; of layers closed before the daemon started, their age in seconds, negative.
    used: i64,
}

/// What may be given up.
enum Victim {
    Closed(Digest, u64),
    Group(Arc<Layer>, SpanId),
    /// A file made of spans, by its position.
    OwnFile(Arc<Layer>, u64),
}

impl Ledger {
    /// Counts what is under `root`. Blocks on file I/O.
    pub(crate) fn open(root: &Path, limit: Option<u64>) -> Self {
        let closed = on_disk(root);
        let used = closed.values().map(|closed| closed.bytes).sum();
        Self {
            root: root.to_owned(),
            limit: AtomicU64::new(limit.unwrap_or(NO_LIMIT)),
            used: AtomicU64::new(used),
            expected: AtomicU64::new(0),
            clock: AtomicI64::new(1),
            tight: AtomicBool::new(false),
            until_asked: AtomicU64::new(0),
            evicting: AtomicBool::new(false),
            layers: Mutex::new(Layers {
                open: Vec::new(),
                closed,
            }),
        }
    }

    /// The time by the clock.
    pub(crate) fn now(&self) -> i64 {
        self.clock.load(Ordering::Relaxed)
    }

    /// Bytes on disk.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Another limit from now on; [`Self::evict`] makes it hold.
    pub(crate) fn set_limit(&self, limit: Option<u64>) {
        let limit = limit.unwrap_or(NO_LIMIT);
        self.limit.store(limit, Ordering::Relaxed);
    }

    fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Whether something must go.
    pub(crate) fn is_over(&self) -> bool {
        self.used() > self.limit()
    }

    /// Whether there is room for `bytes` that nobody has asked for: nothing is given up for them.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        let taken = self.used() + self.expected.load(Ordering::Relaxed);
        let fits = taken.saturating_add(bytes) <= self.limit();
        !self.tight.load(Ordering::Relaxed) && fits
    }

    /// The fill is about to store `bytes`.
    pub(crate) fn expect(&self, bytes: u64) {
        self.expected.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Of `bytes` that were expected, each is stored or will not come.
    pub(crate) fn came(&self, bytes: u64) {
        self.expected.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// A layer is open: it tells from now on what it takes.
    pub(crate) fn opened(&self, layer: &Arc<Layer>) {
        let mut layers = self.layers.lock();
        let known = layers.closed.remove(&layer.digest);
        layers.open.retain(|layer| layer.strong_count() > 0);
        layers.open.push(Arc::downgrade(layer));
        drop(layers);
        let before = known.map_or(0, |closed| closed.bytes);
        self.used.fetch_add(layer.held(), Ordering::Relaxed);
        self.less(before);
    }

    /// A layer is open no more; its spans stay.
    pub(crate) fn closed(&self, digest: Digest, bytes: u64) {
        let closed = Closed {
            bytes,
            used: self.now(),
        };
        let before = self.layers.lock().closed.insert(digest, closed);
        self.less(before.map_or(0, |closed| closed.bytes));
    }

    /// A layer that is not open has been deleted.
    pub(crate) fn deleted(&self, digest: &Digest) {
        let gone = self.layers.lock().closed.remove(digest);
        self.less(gone.map_or(0, |closed| closed.bytes));
    }

    /// A span of `bytes` has been stored. Asks the file system now and then: blocks, briefly.
    pub(crate) fn stored(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.clock.fetch_add(1, Ordering::Relaxed);
        let left = self.until_asked.load(Ordering::Relaxed);
        self.until_asked
            .store(left.saturating_sub(bytes), Ordering::Relaxed);
        if left == 0 {
            self.until_asked.store(ASK_EVERY, Ordering::Relaxed);
            self.ask();
        }
    }

    /// A span could not be stored.
    pub(crate) fn refused(&self) {
        self.tight.store(true, Ordering::Relaxed);
        self.until_asked.store(0, Ordering::Relaxed);
    }

    fn ask(&self) {
        if let Ok(numbers) = statvfs(&self.root) {
            let bytes = |blocks: u64| blocks.saturating_mul(numbers.fragment_size());
            let reserve = (bytes(numbers.blocks()) / RESERVE).min(MOST_RESERVED);
            let tight = bytes(numbers.blocks_available()) < reserve;
            self.tight.store(tight, Ordering::Relaxed);
        }
    }

    /// Bytes are there no more.
    pub(crate) fn less(&self, bytes: u64) {
        // Never below zero, whatever somebody did to the files.
        let take = |used: u64| Some(used.saturating_sub(bytes));
        let _ = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
    }

    /// Gives up what was used longest ago until the limit holds again. One caller does it, the others
    /// go on. Blocks on file I/O.
    pub(crate) fn evict(&self) {
        while self.is_over() && !self.evicting.swap(true, Ordering::AcqRel) {
            let limit = self.limit();
            let freed = self.evict_down_to(limit - limit / SLACK);
            self.evicting.store(false, Ordering::Release);
            if freed == 0 {
                return;
            }
        }
    }

    fn evict_down_to(&self, goal: u64) -> u64 {
        let mut freed = 0;
        for victim in self.victims() {
            if self.used() <= goal {
                break;
            }
            freed += match victim {
                Victim::Closed(digest, bytes) => self.empty(&digest, bytes),
                Victim::Group(layer, first) => layer.evict_group(first),
                Victim::OwnFile(layer, at) => layer.evict_own_file(at),
            };
        }
        freed
    }

    /// Everything that may go, first what was used longest ago.
    fn victims(&self) -> Vec<Victim> {
        let layers = self.layers.lock();
        let open: Vec<_> = layers.open.iter().filter_map(Weak::upgrade).collect();
        let closed = layers.closed.iter().filter(|(_, closed)| closed.bytes > 0);
        let mut victims: Vec<_> = closed
            .map(|(digest, closed)| (closed.used, Victim::Closed(*digest, closed.bytes)))
            .collect();
        drop(layers);
        for layer in open {
            let groups = layer.used_groups();
            victims.extend(
                groups.map(|(first, used)| (used, Victim::Group(Arc::clone(&layer), first))),
            );
            let files = layer.own_files.idle().into_iter();
            victims.extend(files.map(|(at, used)| (used, Victim::OwnFile(Arc::clone(&layer), at))));
        }
        victims.sort_by_key(|(used, _)| *used);
        victims.into_iter().map(|(_, victim)| victim).collect()
    }

    /// What would go, in this order: layers, and the first spans of groups.
    #[cfg(test)]
    pub(crate) fn order(&self) -> Vec<(Digest, u32)> {
        let name = |victim: Victim| match victim {
            Victim::Closed(digest, _) => (digest, 0),
            Victim::Group(layer, first) => (layer.digest, first.0),
            Victim::OwnFile(layer, _) => (layer.digest, u32::MAX),
        };
        self.victims().into_iter().map(name).collect()
    }

    /// Deletes the spans of a layer that is not open. Should it be opened at this very moment, it goes on
    /// with what it has opened, and has the spans checked as always.
    fn empty(&self, digest: &Digest, bytes: u64) -> u64 {
        if self.layers.lock().closed.remove(digest).is_none() {
            return 0;
        }
        let dir = self.root.join(digest.hex());
        for file in ["map", "data"] {
            if let Err(error) = fs::remove_file(dir.join(file))
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(layer = %digest, file, "cannot delete from the layer cache: {error}");
            }
        }
        // Mostly there are none.
        let _ = fs::remove_dir_all(dir.join(own_files::DIRECTORY));
        tracing::debug!(layer = %digest, bytes, "the spans of a layer that is not in use made room");
        self.less(bytes);
        bytes
    }
}

/// What the layers under `root` take.
fn on_disk(root: &Path) -> HashMap<Digest, Closed> {
    let mut found = HashMap::new();
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let digest = name
            .to_str()
            .and_then(|hex| format!("sha256:{hex}").parse().ok());
        let (Some(digest), Ok(data)) = (digest, entry.path().join("data").metadata()) else {
            continue;
        };
        let age = data.modified().ok().and_then(|time| time.elapsed().ok());
        let age = age.map_or(0, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        let closed = Closed {
            bytes: data.blocks() * 512 + own_files::on_disk(&entry.path()),
            used: -age,
        };
        found.insert(digest, closed);
    }
    found
}

impl Layer {
    /// Plain bytes of its spans on disk.
    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Its spans are being read.
    pub(crate) fn touch(&self, spans: &std::ops::Range<SpanId>) {
        let now = self.engine.ledger.now();
        for group in spans.start.0 / GROUP..spans.end.0.div_ceil(GROUP) {
            let used = &self.used[group as usize];
            if used.load(Ordering::Relaxed) != now {
                used.store(now, Ordering::Relaxed);
            }
        }
    }

    /// The first span of each group that has any, and when it was used last.
    fn used_groups(&self) -> impl Iterator<Item = (SpanId, i64)> {
        let groups = self.used.iter().zip((0..).step_by(GROUP as usize));
        let there = |first: u32| {
            self.group(SpanId(first))
                .any(|span| self.flights.is_held(span))
        };
        groups
            .filter(move |(_, first)| there(*first))
            .map(|(used, first)| (SpanId(first), used.load(Ordering::Relaxed)))
    }

    fn group(&self, first: SpanId) -> impl Iterator<Item = SpanId> + use<> {
        (first.0..self.spans.count().min(first.0 + GROUP)).map(SpanId)
    }

    /// Gives up the spans of a group that nobody is fetching or checking. Blocks on file I/O.
    fn evict_group(&self, first: SpanId) -> u64 {
        self.group(first).map(|span| self.evict(span)).sum()
    }

    /// Gives a span up, and its place on disk; who asks for it meanwhile has it fetched. Blocks on
    /// file I/O.
    pub(crate) fn evict(&self, span: SpanId) -> u64 {
        if !self.flights.recall(span) {
            return 0;
        }
        let range = self.spans.uncompressed(span);
        let bytes = range.byte_len();
        self.cache.forget(span, range);
        self.drops(bytes);
        add(&self.counters.spans_evicted, 1);
        for read in self.flights.finish(span, false) {
            self.want(span..SpanId(span.0 + 1), Some(&read), super::Lane::Demand);
        }
        bytes
    }

    /// A span of `bytes` is on disk.
    pub(crate) fn holds(&self, bytes: u64) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        self.engine.ledger.stored(bytes);
    }

    /// A span of `bytes` is on disk no more.
    pub(crate) fn drops(&self, bytes: u64) {
        let take = |held: u64| Some(held.saturating_sub(bytes));
        let _ = self
            .held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        self.engine.ledger.less(bytes);
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        self.engine.ledger.closed(self.digest, self.held());
    }
}

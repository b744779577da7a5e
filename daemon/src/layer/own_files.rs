//! Large files of a layer as files of their own, `<root>/layers/<sha256 hex>/files/<position>`, for the kernel to read by
//! itself (see [`fuse::Passthrough`]).
//!
//! One is made when it is opened for the first time and all of the layer is proven, by the threads of the fill, from
//! spans that are compared with their checksums on the way. It has its name once it is whole and on the disk. It
//! takes its bytes a second time: it counts as the spans do, is made only where there is room without giving anything
//! up, and goes when it was opened longest ago and nobody has it open.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use nix::libc::O_NOFOLLOW;
use parking_lot::Mutex;
use ztoc::unit::ByteLen as _;
use ztoc::{SpanId, UncompressedOffset};

use super::Layer;
use super::counters::add;
use super::decode::Scratch;
use super::engine::Engine;
use super::schedule::{Lane, Ticket};

/// Below the layer's directory.
pub(super) const DIRECTORY: &str = "files";
/// A file that is being made; swept when the layer is opened.
const UNFINISHED: &str = ".new-";
/// Files that wait to be made; who opens another is served as before, and may ask again.
const MOST_WANTED: usize = 64;

/// Those of one layer.
#[derive(Debug)]
pub(crate) struct OwnFiles {
    dir: PathBuf,
    /// Never held over I/O, nor is another lock taken under it.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By position in the layer.
    known: BTreeMap<u64, Known>,
    wanted: VecDeque<Range<UncompressedOffset>>,
    /// The one that is being made.
    making: Option<Range<UncompressedOffset>>,
}

/// A file that is there.
#[derive(Debug)]
struct Known {
    len: u64,
    /// When it was opened last, by the ledger's clock.
    used: i64,
    open: Weak<File>,
}

/// What the own files in a layer's directory take, in bytes. Blocks on file I/O.
pub(super) fn on_disk(layer: &Path) -> u64 {
    list(&layer.join(DIRECTORY)).into_values().sum()
}

/// Position and length of the finished files in `dir`.
fn list(dir: &Path) -> BTreeMap<u64, u64> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let file = |entry: fs::DirEntry| {
        let at = entry.file_name().to_str()?.parse().ok()?;
        let metadata = entry.metadata().ok()?;
        metadata.is_file().then_some((at, metadata.len()))
    };
    entries.filter_map(file).collect()
}

fn sweep(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            // What stays takes space and is found the next time.
            let _ = fs::remove_file(entry.path());
        }
    }
}

impl OwnFiles {
    /// Those in the directory of a layer, swept of unfinished ones. Blocks on file I/O.
    pub(crate) fn open(layer: &Path, now: i64) -> Self {
        let dir = layer.join(DIRECTORY);
        sweep(&dir);
        let known = list(&dir).into_iter().map(|(at, len)| {
            let (used, open) = (now, Weak::new());
            (at, Known { len, used, open })
        });
        let state = State {
            known: known.collect(),
            ..State::default()
        };
        Self {
            dir,
            state: Mutex::new(state),
        }
    }

    /// Bytes of all of them.
    pub(crate) fn bytes(&self) -> u64 {
        let state = self.state.lock();
        state.known.values().map(|known| known.len).sum()
    }

    /// Whether nothing is being made or waits to be.
    #[cfg(test)]
    pub(super) fn is_settled(&self) -> bool {
        let state = self.state.lock();
        state.making.is_none() && state.wanted.is_empty()
    }

    fn path(&self, at: u64) -> PathBuf {
        self.dir.join(at.to_string())
    }

    /// The file at `range`, if it is open or can be opened; its length is the range's. Else how many bytes were thought
    /// to be there and are not.
    fn get(&self, range: &Range<UncompressedOffset>, now: i64) -> Result<Arc<File>, u64> {
        let at = range.start.0;
        {
            let mut state = self.state.lock();
            let known = state.known.get_mut(&at);
            let Some(known) = known.filter(|known| known.len == range.byte_len()) else {
                return Err(0);
            };
            known.used = now;
            if let Some(open) = known.open.upgrade() {
                return Ok(open);
            }
        }
        let file = open(&self.path(at), range.byte_len()).map(Arc::new);
        let mut state = self.state.lock();
        match (file, state.known.get_mut(&at)) {
            (Some(file), Some(known)) => {
                known.open = Arc::downgrade(&file);
                Ok(file)
            }
            // Given up meanwhile, it is right all the same.
            (Some(file), None) => Ok(file),
            (None, _) => Err(state.known.remove(&at).map_or(0, |lost| lost.len)),
        }
    }

    /// Notes that the file at `range` is wanted; whether it was not before, nor is being made, nor is there since.
    fn want(&self, range: Range<UncompressedOffset>) -> bool {
        let mut state = self.state.lock();
        let known = state.known.get(&range.start.0);
        let new = known.is_none_or(|known| known.len != range.byte_len())
            && state.making.as_ref() != Some(&range)
            && !state.wanted.contains(&range)
            && state.wanted.len() < MOST_WANTED;
        if new {
            state.wanted.push_back(range);
        }
        new
    }

    /// The next file to be made, unless one is being made.
    fn begin(&self) -> Option<Range<UncompressedOffset>> {
        let mut state = self.state.lock();
        if state.making.is_none() {
            state.making = state.wanted.pop_front();
            return state.making.clone();
        }
        None
    }

    fn ended(&self) {
        self.state.lock().making = None;
    }

    /// The file at `at` is there. Answers what was there before in its place, in bytes.
    fn made(&self, at: u64, len: u64, used: i64) -> u64 {
        let open = Weak::new();
        let made = Known { len, used, open };
        let before = self.state.lock().known.insert(at, made);
        before.map_or(0, |before| before.len)
    }

    /// Those that nobody has open, and when they were opened last.
    pub(crate) fn idle(&self) -> Vec<(u64, i64)> {
        let state = self.state.lock();
        let idle = state.known.iter();
        idle.filter(|(_, known)| known.open.strong_count() == 0)
            .map(|(at, known)| (*at, known.used))
            .collect()
    }

    /// Deletes the file at `at` unless somebody has it open. Answers how many bytes it had. Blocks on file I/O.
    fn delete(&self, at: u64) -> u64 {
        let mut state = self.state.lock();
        let idle = state.known.get(&at);
        let Some(known) = idle.filter(|known| known.open.strong_count() == 0) else {
            return 0;
        };
        let len = known.len;
        state.known.remove(&at);
        drop(state);
        if let Err(error) = fs::remove_file(self.path(at))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path(at).display(), "cannot delete a file of a layer: {error}");
        }
        len
    }
}

/// Opens a regular file of `len` bytes.
fn open(path: &Path, len: u64) -> Option<File> {
    let mut options = File::options();
    let file = options
        .read(true)
        .custom_flags(O_NOFOLLOW)
        .open(path)
        .ok()?;
    let metadata = file.metadata().ok()?;
    (metadata.is_file() && metadata.len() == len).then_some(file)
}

impl Layer {
    /// The bytes at `range` as a file of their own; if there is none, it is made once that can be.
    pub(super) fn own_file_at(&self, range: Range<UncompressedOffset>) -> Option<Arc<File>> {
        let inside = range.start < range.end && range.end.0 <= self.spans.uncompressed_size();
        if !inside || self.proof.is_wrong() {
            return None;
        }
        if self.proof.is_proven() {
            match self.own_files.get(&range, self.engine.ledger.now()) {
                Ok(file) => return Some(file),
                Err(lost) => self.drops(lost),
            }
        }
        if self.own_files.want(range) {
            self.make_own_files();
        }
        None
    }

    /// Has the files made that are wanted, if the layer is what the image says.
    pub(super) fn make_own_files(&self) {
        if !self.proof.is_proven() {
            return;
        }
        if let Some(range) = self.own_files.begin() {
            let turn = Turn(Weak::clone(&self.this));
            let ticket = Arc::new(Ticket::new(Lane::Fill));
            let work = move |_: &mut Scratch| turn.begin(range);
            self.engine.decoders.submit(&ticket, work);
        }
    }

    fn cannot_make(&self, error: &io::Error) {
        if error.kind() == io::ErrorKind::StorageFull {
            self.engine.ledger.refused();
        }
        tracing::warn!(layer = %self.digest, "a large file cannot be made a file of its own: {error}");
    }

    /// Gives up an own file that nobody has open. Blocks on file I/O.
    pub(super) fn evict_own_file(&self, at: u64) -> u64 {
        let bytes = self.own_files.delete(at);
        self.drops(bytes);
        bytes
    }
}

/// A file that is being made, a span at a time: other work goes in between.
struct Making {
    range: Range<UncompressedOffset>,
    next: SpanId,
    to: Unfinished,
    /// Counted as about to be stored.
    _expected: Expected,
    /// Ends last.
    turn: Turn,
}

/// One file of a layer is made at a time; with the end of this comes the next.
struct Turn(Weak<Layer>);

/// Removed unless it is finished.
struct Unfinished {
    file: File,
    path: PathBuf,
}

/// Bytes that the ledger expects.
struct Expected {
    engine: Weak<Engine>,
    bytes: u64,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Gone already if it was renamed; what stays is swept.
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(layer) = self.0.upgrade() {
            layer.own_files.ended();
            layer.make_own_files();
        }
    }
}

impl Turn {
    fn begin(self, range: Range<UncompressedOffset>) {
        let Some(layer) = self.0.upgrade() else {
            return;
        };
        match Making::begin(&layer, range, self) {
            Ok(Some(making)) => making.submit(&layer),
            Ok(None) => {}
            Err(error) => layer.cannot_make(&error),
        }
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        if let Some(engine) = self.engine.upgrade() {
            engine.ledger.came(self.bytes);
        }
    }
}

impl Making {
    /// `None`: there is no room, or it is made already. Of a table of contents in which files overlap no more is made
    /// than the layer has bytes.
    fn begin(
        layer: &Layer,
        range: Range<UncompressedOffset>,
        turn: Turn,
    ) -> io::Result<Option<Self>> {
        let own = &layer.own_files;
        let bytes = range.byte_len();
        let made = match own.get(&range, layer.engine.ledger.now()) {
            Ok(_) => true,
            Err(lost) => {
                layer.drops(lost);
                false
            }
        };
        let all = own.bytes().saturating_add(bytes);
        if made || all > layer.spans.uncompressed_size() || !layer.engine.ledger.has_room(bytes) {
            return Ok(None);
        }
        layer.engine.ledger.expect(bytes);
        let expected = Expected {
            engine: Arc::downgrade(&layer.engine),
            bytes,
        };
        fs::create_dir_all(&own.dir)?;
        let path = own.dir.join(format!("{UNFINISHED}{}", range.start));
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o400)
            .open(&path)?;
        Ok(Some(Self {
            turn,
            next: layer.spans.covering(range.clone()).start,
            range,
            to: Unfinished { file, path },
            _expected: expected,
        }))
    }

    fn submit(self, layer: &Layer) {
        let ticket = Arc::new(Ticket::new(Lane::Fill));
        let work = move |scratch: &mut Scratch| self.step(scratch);
        layer.engine.decoders.submit(&ticket, work);
    }

    fn step(mut self, scratch: &mut Scratch) {
        let Some(layer) = self.turn.0.upgrade() else {
            return;
        };
        if self.next == layer.spans.covering(self.range.clone()).end {
            return self.finish(&layer);
        }
        match self.copy(&layer, scratch) {
            Ok(true) => {
                self.next.0 += 1;
                self.submit(&layer);
            }
            // Given up meanwhile, or damaged on disk. Who opens the file again asks for it again.
            Ok(false) => {}
            Err(error) => layer.cannot_make(&error),
        }
    }

    /// Copies what the next span has of the file; `false` if the span is not here as it was stored.
    fn copy(&self, layer: &Layer, scratch: &mut Scratch) -> io::Result<bool> {
        let span = layer.spans.uncompressed(self.next);
        let right = layer.cache.check(self.next, &span, &mut scratch.plain);
        scratch.used(scratch.plain.len());
        if !matches!(right, Ok(true)) {
            if layer.evict(self.next) > 0 {
                add(&layer.counters.bad_cached_spans, 1);
            }
            return Ok(false);
        }
        let part = span.start.max(self.range.start)..span.end.min(self.range.end);
        let within = |at: UncompressedOffset| usize::try_from(at.0 - span.start.0);
        let (Ok(from), Ok(to)) = (within(part.start), within(part.end)) else {
            return Ok(false);
        };
        let Some(bytes) = scratch.plain.get(from..to) else {
            return Ok(false);
        };
        let at = part.start.0 - self.range.start.0;
        self.to.file.write_all_at(bytes, at)?;
        Ok(true)
    }

    /// Has the file synced and named, on a thread that may wait for the disk.
    fn finish(self, layer: &Arc<Layer>) {
        let engine = Arc::clone(&layer.engine);
        let layer = Arc::clone(layer);
        engine.spawn(async move {
            let named = tokio::task::spawn_blocking(move || {
                if let Err(error) = self.name(&layer) {
                    layer.cannot_make(&error);
                }
            });
            // A panic there is told by its thread.
            let _ = named.await;
        });
    }

    fn name(&self, layer: &Layer) -> io::Result<()> {
        let (own, at, len) = (&layer.own_files, self.range.start.0, self.range.byte_len());
        self.to.file.sync_all()?;
        fs::rename(&self.to.path, own.path(at))?;
        File::open(&own.dir)?.sync_all()?;
        let before = own.made(at, len, layer.engine.ledger.now());
        layer.holds(len);
        layer.drops(before);
        layer.engine.ledger.evict();
        Ok(())
    }
}

//! The zTOC of a layer as it lies on disk: windows of checkpoints are read from it when a span is decoded.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::FileExt as _;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use bytes::Bytes;
use memmap2::{Advice, MmapMut};
use parking_lot::Mutex;
use ztoc::checkpoint::ZtocBytes;

use super::map::Checksum;

/// Bytes from which on huge pages and a second thread pay.
const LARGE: usize = 4 << 20;
/// Bytes of a huge page.
const HUGE: usize = 2 << 20;
/// Bytes read at once.
const PIECE: usize = 256 << 10;

/// An open zTOC file. It stays readable when its directory is removed. Of a compact zTOC it may lack groups of windows, which
/// are zeros then.
#[derive(Debug)]
pub(crate) struct KeptZtoc {
    file: File,
    /// Groups that the disk would not take, by their position.
    unwritten: Mutex<BTreeMap<u64, Bytes>>,
}

impl KeptZtoc {
    /// The file and what it begins with, as many bytes as its record says; nothing of it is read if these are more
    /// than `limit`.
    pub(crate) fn open(path: &Path, len: Option<u64>, limit: u64) -> io::Result<(Self, Held)> {
        let file = File::options().read(true).write(true).open(path)?;
        let held = file.metadata()?.len();
        let size = len.unwrap_or(held);
        let bytes = match size <= limit {
            true => Held::read(&file, usize::try_from(size.min(held)).unwrap_or_default())?,
            false => Held::read(&file, 0)?,
        };
        let kept = Self {
            file,
            unwritten: Mutex::default(),
        };
        Ok((kept, bytes))
    }

    /// Puts a verified group in its place; in memory if the disk does not take it. Blocks on file I/O.
    pub(crate) fn put(&self, group: Bytes, offset: u64) {
        if let Err(error) = self.file.write_all_at(&group, offset) {
            tracing::debug!("windows are kept in memory: {error}");
            self.unwritten.lock().insert(offset, group);
        }
    }
}

/// What was read of a zTOC.
#[derive(Debug)]
pub(crate) struct Held {
    bytes: Memory,
    /// Of the bytes.
    pub(crate) checksum: Checksum,
}

#[derive(Debug)]
enum Memory {
    Small(Vec<u8>),
    /// In huge pages, where the kernel gives them. One of many files has tens of megabytes; with pages of 4 KiB, touching
    /// fresh memory takes eight times as long as the copy (36 ms instead of 10 for 37 MB, in a virtual machine).
    Large(MmapMut),
}

impl Held {
    /// The first `len` bytes of `file`. Two threads read many: each has half of the fresh memory to touch.
    fn read(file: &File, len: usize) -> io::Result<Self> {
        if len < LARGE {
            let mut bytes = vec![0; len];
            let checksum = read_part(file, &mut bytes, 0)?.into();
            let bytes = Memory::Small(bytes);
            return Ok(Self { bytes, checksum });
        }
        let mut bytes = MmapMut::map_anon(len)?;
        // A kernel that has none does without.
        let _ = bytes.advise(Advice::HugePage);
        let checksum = match read_halves(file, &mut bytes) {
            Some(checksum) => checksum?,
            None => read_part(file, &mut bytes, 0)?,
        };
        Ok(Self {
            bytes: Memory::Large(bytes),
            checksum: checksum.into(),
        })
    }
}

/// Reads all of `bytes`, half of it by another thread; `None` if there is no thread.
fn read_halves(file: &File, bytes: &mut [u8]) -> Option<io::Result<crc32fast::Hasher>> {
    let half = (bytes.len() / 2).next_multiple_of(HUGE);
    let (first, second) = bytes.split_at_mut(half);
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("ztoc".to_owned());
        let second = thread.spawn_scoped(scope, || read_part(file, second, half as u64));
        let second = second.ok()?;
        let first = read_part(file, first, 0);
        let second = second.join().unwrap_or_else(|panic| resume_unwind(panic));
        Some(first.and_then(|mut checksum| {
            checksum.combine(&second?);
            Ok(checksum)
        }))
    })
}

/// Reads `part` from `offset` on, by pieces that are still in the processor's cache when their checksum is computed.
fn read_part(file: &File, part: &mut [u8], offset: u64) -> io::Result<crc32fast::Hasher> {
    let mut checksum = crc32fast::Hasher::new();
    for (piece, at) in part.chunks_mut(PIECE).zip((offset..).step_by(PIECE)) {
        file.read_exact_at(piece, at)?;
        checksum.update(piece);
    }
    Ok(checksum)
}

impl Deref for Held {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Memory::Small(bytes) => bytes,
            Memory::Large(bytes) => bytes,
        }
    }
}

impl ZtocBytes for KeptZtoc {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let unwritten = self.unwritten.lock().get(&offset).cloned();
        if let Some(group) = unwritten.filter(|group| group.len() == into.len()) {
            into.copy_from_slice(&group);
            return Ok(());
        }
        self.file.read_exact_at(into, offset)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_has_the_checksum_of_all_of_it_however_many_threads_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ztoc");
        let mut random = fastrand::Rng::with_seed(1);
        for len in [0, 1, PIECE + 1, LARGE - 1, LARGE, LARGE + 1, 3 * LARGE + 7] {
            let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(len).collect();
            std::fs::write(&path, &bytes).unwrap();
            let (_, held) = KeptZtoc::open(&path, None, u64::MAX).unwrap();
            assert!(*held == *bytes, "{len}");
            assert_eq!(held.checksum, Checksum::of(&bytes), "{len}");
        }
    }

    #[test]
    fn a_file_that_ends_too_soon_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ztoc");
        std::fs::write(&path, vec![1; LARGE]).unwrap();
        let file = File::open(&path).unwrap();
        let failed = Held::read(&file, 2 * LARGE);
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}

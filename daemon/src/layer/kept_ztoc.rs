//! The zTOC of a layer as it lies on disk: windows of checkpoints are read from it when a span is decoded.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::Bytes;
use memmap2::{Advice, MmapMut};
use parking_lot::Mutex;
use ztoc::checkpoint::ZtocBytes;

/// Bytes from which on huge pages pay.
const LARGE: usize = 4 << 20;

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
            false => Held::Small(Vec::new()),
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
pub(crate) enum Held {
    Small(Vec<u8>),
    /// In huge pages, where the kernel gives them. One of many files has tens of megabytes; with pages of 4 KiB, touching
    /// fresh memory takes eight times as long as the copy (36 ms instead of 10 for 37 MB, in a virtual machine).
    Large(MmapMut),
}

impl Held {
    /// The first `len` bytes of `file`.
    fn read(file: &File, len: usize) -> io::Result<Self> {
        if len < LARGE {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, 0)?;
            return Ok(Self::Small(bytes));
        }
        let mut bytes = MmapMut::map_anon(len)?;
        // A kernel that has none does without.
        let _ = bytes.advise(Advice::HugePage);
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Self::Large(bytes))
    }
}

impl Deref for Held {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Small(bytes) => bytes,
            Self::Large(bytes) => bytes,
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

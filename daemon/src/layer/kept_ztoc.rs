//! The zTOC of a layer as it lies on disk: windows of checkpoints are read from it when a span is decoded.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::Bytes;
use parking_lot::Mutex;
use ztoc::checkpoint::ZtocBytes;

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
    pub(crate) fn open(path: &Path, len: Option<u64>, limit: u64) -> io::Result<(Self, Vec<u8>)> {
        let mut file = File::options().read(true).write(true).open(path)?;
        let held = file.metadata()?.len();
        let size = len.unwrap_or(held);
        let mut bytes = Vec::new();
        if size <= limit {
            // In one piece: one of many files has tens of megabytes.
            bytes.reserve_exact(usize::try_from(size.min(held)).unwrap_or_default());
            (&mut file).take(size).read_to_end(&mut bytes)?;
        }
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

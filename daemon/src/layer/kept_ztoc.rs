//! The zTOC of a layer as it lies on disk: windows of checkpoints are read from it when a span is decoded.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use ztoc::checkpoint::ZtocBytes;

/// An open zTOC file. It stays readable when its directory is removed.
#[derive(Debug)]
pub(crate) struct KeptZtoc(File);

impl KeptZtoc {
    /// The file and what it holds; nothing of it is read if it is longer than `limit`.
    pub(crate) fn open(path: &Path, limit: u64) -> io::Result<(Self, Vec<u8>)> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut bytes = Vec::new();
        if size <= limit {
            (&mut file).take(limit).read_to_end(&mut bytes)?;
        }
        Ok((Self(file), bytes))
    }
}

impl ZtocBytes for KeptZtoc {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(into, offset)
    }
}

//! The directory of a layer that is being unpacked, and what makes it outlive the daemon.
//!
//! It holds `fs`, the tree, and `record.json` as soon as that is whole and verified. A later daemon uses what has a
//! record and removes the rest. Nothing is synced: what a killed process wrote is in the page
//! cache, and a record counts only until the next boot.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use ztoc::Digest;

use super::implied::Implied;

/// Version of the record; others are not read.
const VERSION: u32 = 1;
const RECORD: &str = "record.json";
const TREE: &str = "fs";
/// Largest record read, in bytes. One directory that a layer only implies takes about a hundred.
const MAX_RECORD: u64 = 64 << 20;
/// Changes with each boot of the kernel.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A directory of one layer. Deleted when dropped, which blocks, unless it is left.
#[derive(Debug)]
pub(super) struct Staged {
    path: PathBuf,
    left: bool,
}

/// What is known of a layer that is unpacked.
#[derive(Debug)]
pub(super) struct Finished {
    /// Digest of the blob.
    pub(super) layer: Digest,
    /// Digest of the tar.
    pub(super) diff_id: Digest,
    pub(super) lowest: bool,
    pub(super) implied: Vec<Implied>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    boot: String,
    layer: String,
    diff_id: String,
    lowest: bool,
    implied: Vec<Implied>,
}

impl Staged {
    /// A new one in `dir`, with an empty tree.
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        let made = tempfile::Builder::new()
            .prefix(".unpack-")
            .tempdir_in(dir)?;
        let staged = Self {
            path: made.keep(),
            left: false,
        };
        fs::create_dir(staged.tree())?;
        Ok(staged)
    }

    /// The one at `path`, if it was finished since the machine was booted.
    pub(super) fn find(path: &Path) -> Option<(Self, Finished)> {
        let mut text = String::new();
        let record = File::open(path.join(RECORD)).ok()?;
        record.take(MAX_RECORD).read_to_string(&mut text).ok()?;
        let record: Record = serde_json::from_str(&text).ok()?;
        if record.version != VERSION || record.boot != boot().ok()? {
            return None;
        }
        let finished = Finished {
            layer: record.layer.parse().ok()?,
            diff_id: record.diff_id.parse().ok()?,
            lowest: record.lowest,
            implied: record.implied,
        };
        path.join(TREE)
            .symlink_metadata()
            .ok()
            .filter(fs::Metadata::is_dir)?;
        let staged = Self {
            path: path.to_owned(),
            left: false,
        };
        Some((staged, finished))
    }

    pub(super) fn tree(&self) -> PathBuf {
        self.path.join(TREE)
    }

    /// Notes that the tree is whole, so that [`Self::find`] finds it.
    pub(super) fn record(&self, finished: Finished) -> io::Result<Finished> {
        let record = Record {
            version: VERSION,
            boot: boot()?,
            layer: finished.layer.to_string(),
            diff_id: finished.diff_id.to_string(),
            lowest: finished.lowest,
            implied: finished.implied,
        };
        // A name of its own until it is whole.
        let mut file = tempfile::NamedTempFile::new_in(&self.path)?;
        file.write_all(&serde_json::to_vec(&record)?)?;
        file.persist(self.path.join(RECORD))?;
        Ok(Finished {
            implied: record.implied,
            ..finished
        })
    }

    /// Moves the tree to `place`, an empty directory. From the first step on it is not found any more.
    pub(super) fn give(self, place: &Path) -> io::Result<()> {
        match fs::remove_file(self.path.join(RECORD)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(self.tree(), place)
    }

    /// Does not delete it.
    pub(super) fn leave(mut self) {
        self.left = true;
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.left {
            // The next daemon removes what could not be removed now.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string(BOOT_ID)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn finished() -> Finished {
        Finished {
            layer: Digest::of(b"blob"),
            diff_id: Digest::of(b"tar"),
            lowest: true,
            implied: Vec::new(),
        }
    }

    fn left(dir: &Path) -> PathBuf {
        let staged = Staged::new(dir).unwrap();
        let path = staged.path.clone();
        staged.record(finished()).unwrap();
        staged.leave();
        path
    }

    #[test]
    fn what_is_left_with_a_record_is_found_until_the_next_boot() {
        let dir = tempfile::tempdir().unwrap();
        let path = left(dir.path());
        let (staged, found) = Staged::find(&path).unwrap();
        assert_eq!(
            (found.layer, found.diff_id, found.lowest),
            (Digest::of(b"blob"), Digest::of(b"tar"), true)
        );
        staged.leave();
        let text = fs::read_to_string(path.join(RECORD)).unwrap();
        let other = text.replace(&boot().unwrap(), "another-boot");
        assert_ne!(text, other);
        for text in [
            other.as_str(),
            "",
            &text[..text.len() / 2],
            &text.replace("\"version\":1", "\"version\":2"),
        ] {
            fs::write(path.join(RECORD), text).unwrap();
            assert!(Staged::find(&path).is_none(), "{text}");
        }
        fs::write(path.join(RECORD), &text).unwrap();
        assert!(Staged::find(&path).is_some());
        assert!(!path.exists(), "it was dropped");
    }

    #[test]
    fn without_a_record_and_without_a_tree_nothing_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let staged = Staged::new(dir.path()).unwrap();
        assert!(Staged::find(&staged.path).is_none());
        let path = left(dir.path());
        fs::remove_dir(path.join(TREE)).unwrap();
        std::os::unix::fs::symlink("/", path.join(TREE)).unwrap();
        assert!(Staged::find(&path).is_none());
    }
}

//! Credentials on disk, for the daemon that comes next: containers that run need them before the kubelet pulls again.

use std::fs::{File, remove_file};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Largest file read, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// A file that only root can read, in a directory that does not outlive a reboot.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
}

/// Credentials of one repository.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Line {
    pub(super) host: String,
    pub(super) repository: String,
    /// Empty: the secret is an identity token.
    pub(super) user: String,
    pub(super) secret: String,
    /// References and ids of the images that were pulled with them.
    pub(super) images: Vec<(String, String)>,
}

impl Kept {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// What there is; nothing if the file is missing or damaged. Blocks.
    pub(super) fn read(&self) -> Vec<Line> {
        let mut bytes = Vec::new();
        let read =
            File::open(&self.path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
        match read {
            Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "kept credentials cannot be read");
                return Vec::new();
            }
            Ok(_) => {}
        }
        // The error would quote what it does not understand.
        serde_json::from_slice(&bytes).unwrap_or_else(|_| {
            tracing::warn!(path = %self.path.display(), "kept credentials are damaged, and not used");
            Vec::new()
        })
    }

    /// Replaces what there is; no file for nothing. Blocks.
    pub(super) fn write(&self, lines: &[Line]) -> io::Result<()> {
        if lines.is_empty() {
            return match remove_file(&self.path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let dir = self.path.parent().unwrap_or_else(|| Path::new("/"));
        // With mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(&serde_json::to_vec(lines)?)?;
        file.persist(&self.path)?;
        Ok(())
    }
}

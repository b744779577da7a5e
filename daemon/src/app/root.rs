//! The directory of all state, used by one daemon at a time.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Where the root is if the user names none.
pub const DEFAULT_ROOT: &str = "/var/lib/soci-snapshotter-grpc/";

/// The root directory, ours until this is dropped or the process ends.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Root {
    /// Creates the directory (mode 0700; its parent must be there) and locks it.
    ///
    /// # Errors
    /// It cannot be created, or another daemon uses it.
    pub fn claim(path: &Path) -> Result<Self> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| {
                    format!("cannot create the root directory {}", path.display())
                });
            }
            _ => {}
        }
        let path = fs::canonicalize(path)
            .with_context(|| format!("cannot use the root directory {}", path.display()))?;
        let lock = lock(&path.join("lock"))?;
        Ok(Self { path, _lock: lock })
    }

    /// The absolute path, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn lock(path: &Path) -> Result<Flock<File>> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let mut holder = String::new();
    // Who wrote it is told to people only; anything may stand there.
    let _ = Read::by_ref(&mut file).take(32).read_to_string(&mut holder);
    let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((_, Errno::EWOULDBLOCK)) => bail!(
            "another daemon (process {}) uses the root directory {}: stop it, or give this one \
             another with --root",
            holder.trim(),
            path.parent().unwrap_or(path).display()
        ),
        Err((_, errno)) => {
            return Err(errno).with_context(|| format!("cannot lock {}", path.display()));
        }
    };
    let written = lock
        .rewind()
        .and_then(|()| lock.set_len(0))
        .and_then(|()| writeln!(lock, "{}", std::process::id()));
    written.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_root_has_one_daemon_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("root");
        let root = Root::claim(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
            0o700
        );
        let refused = Root::claim(&path).unwrap_err().to_string();
        assert!(
            refused.contains(&std::process::id().to_string()),
            "{refused}"
        );
        assert!(refused.contains("--root"), "{refused}");
        drop(root);
        Root::claim(&path).unwrap();
    }

    #[test]
    fn only_the_last_element_of_the_path_is_created() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Root::claim(&directory.path().join("a/b")).is_err());
    }
}

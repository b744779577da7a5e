//! What snapshots have on disk: `<root>/snapshotter/snapshots/<id>/{fs,work}`.
//!
//! `<id>` has mode 0700, `fs` 0755, `work` 0711. Everything here blocks: call it on a blocking thread.

mod remove;
mod usage;

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::record::{Kind, SnapshotId};
use crate::error::SnapshotError;

pub use self::usage::usage;

/// The directories of all snapshots.
#[derive(Debug)]
pub struct Directories {
    root: PathBuf,
    /// Directories that are there, or will be, without a record. Never locked over I/O.
    claims: Mutex<BTreeSet<SnapshotId>>,
}

/// A directory in the making. When this is dropped and nothing is recorded by then, the next
/// [`Directories::sweep`] takes the directory away.
#[derive(Debug)]
pub struct Claim {
    directories: Arc<Directories>,
    id: SnapshotId,
}

impl Directories {
    /// Opens, or creates, the directory `root`, which must be an absolute path that can stand in
    /// the options of an overlay mount.
    ///
    /// # Errors
    /// The path is unusable or the directory cannot be created.
    pub fn open(root: &Path) -> Result<Self, SnapshotError> {
        check_path(root)?;
        create(root, 0o700)?;
        Ok(Self {
            root: root.to_owned(),
            claims: Mutex::default(),
        })
    }

    /// Above all of them.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of a snapshot.
    pub fn path(&self, id: SnapshotId) -> PathBuf {
        self.root.join(id.to_string())
    }

    /// The files of a snapshot.
    pub fn files(&self, id: SnapshotId) -> PathBuf {
        self.path(id).join("fs")
    }

    /// Numbers from this one up have no directory.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn first_free(&self) -> Result<u64, SnapshotError> {
        let last = self.ids()?.last().map_or(0, |id| id.0);
        Ok(last.saturating_add(1))
    }

    /// Keeps [`Directories::sweep`] off the directory of `id` until the claim goes.
    pub fn claim(self: &Arc<Self>, id: SnapshotId) -> Claim {
        self.claims.lock().insert(id);
        Claim {
            directories: Arc::clone(self),
            id,
        }
    }

    /// Removes the directories of snapshots that are not `recorded`. `recorded` is asked after the
    /// directories were listed and after claims were looked at, so that a snapshot that comes
    /// into being meanwhile is safe. Answers how many went; what resists is logged and tried
    /// again next time.
    ///
    /// # Errors
    /// The directory cannot be listed, or `recorded` failed.
    pub fn sweep(
        &self,
        recorded: impl FnOnce() -> Result<BTreeSet<SnapshotId>, SnapshotError>,
    ) -> Result<usize, SnapshotError> {
        let present = self.ids()?;
        let claimed = self.claims.lock().clone();
        let recorded = recorded()?;
        let orphans = present
            .into_iter()
            .filter(|id| !claimed.contains(id) && !recorded.contains(id));
        let mut removed = 0;
        for id in orphans {
            match remove::remove(&self.path(id)) {
                Ok(()) => removed += 1,
                Err(error) => tracing::warn!(
                    snapshot = id.0,
                    error = crate::error::chain(&error),
                    "a removed snapshot's directory stays until the next cleanup"
                ),
            }
        }
        Ok(removed)
    }

    fn ids(&self) -> Result<BTreeSet<SnapshotId>, SnapshotError> {
        let listed = fs::read_dir(&self.root).and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.file_name()))
                .collect::<io::Result<Vec<_>>>()
        });
        let names = listed.map_err(SnapshotError::io("list", &self.root))?;
        Ok(names
            .iter()
            .filter_map(|name| name.to_str()?.parse().ok().map(SnapshotId))
            .collect())
    }
}

impl Claim {
    /// Creates the directory. Its files get the owner of `lower`, the root of the layer below, since
    /// the upper directory's attributes are those of a container's root.
    ///
    /// # Errors
    /// A file operation failed.
    pub fn create(&self, kind: Kind, lower: Option<&Path>) -> Result<(), SnapshotError> {
        let path = self.directories.path(self.id);
        create(&path, 0o700)?;
        let files = path.join("fs");
        create(&files, 0o755)?;
        if kind == Kind::Active {
            create(&path.join("work"), 0o711)?;
        }
        lower.map_or(Ok(()), |lower| copy_owner(lower, &files))
    }

    /// Gives the files, as long as there are none, to user and group of this node.
    ///
    /// # Errors
    /// The owner cannot be set.
    pub fn give_to(&self, (user, group): (u32, u32)) -> Result<(), SnapshotError> {
        let files = self.files();
        std::os::unix::fs::lchown(&files, Some(user), Some(group))
            .map_err(SnapshotError::io("set the owner of", &files))
    }

    /// The number claimed.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// The files of the snapshot.
    pub fn files(&self) -> PathBuf {
        self.directories.files(self.id)
    }

    /// Removes what was created.
    ///
    /// # Errors
    /// A file operation failed; [`Directories::sweep`] tries again.
    pub fn discard(self) -> Result<(), SnapshotError> {
        remove::remove(&self.directories.path(self.id))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.directories.claims.lock().remove(&self.id);
    }
}

fn create(path: &Path, mode: u32) -> Result<(), SnapshotError> {
    let created = DirBuilder::new().mode(mode).create(path);
    match created {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(SnapshotError::io("create", path)(error)),
        // The umask may have taken bits away.
        Ok(()) => fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
            .map_err(SnapshotError::io("set the mode of", path)),
    }
}

fn copy_owner(from: &Path, to: &Path) -> Result<(), SnapshotError> {
    let owner = fs::symlink_metadata(from).map_err(SnapshotError::io("look at", from))?;
    std::os::unix::fs::lchown(to, Some(owner.uid()), Some(owner.gid()))
        .map_err(SnapshotError::io("set the owner of", to))
}

/// Overlay separates directories by colons and options by commas; containerd passes neither escaped.
fn check_path(root: &Path) -> Result<(), SnapshotError> {
    let unusable = |detail: &str| SnapshotError::Argument {
        what: "root directory",
        detail: format!("{}: {detail}", root.display()),
    };
    let text = root.to_str().ok_or_else(|| unusable("not UTF-8"))?;
    if !root.is_absolute() {
        return Err(unusable("must be an absolute path"));
    }
    if text.contains([':', ',', '\\', '"']) || text.contains(char::is_control) {
        return Err(unusable(
            "a colon, comma, quote, backslash or control character cannot stand in mount options",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

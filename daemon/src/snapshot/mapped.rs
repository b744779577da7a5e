//! Lower directories for containers in user namespaces: the same files, shown as owned by the ids that the container's are
//! on this node. Mounts of ours with mapped ids; nothing is copied, nothing on disk changes.
//!
//! `<root>/<snapshot>/<name>` is such a mount, of one view (`<name>` is its number) or of all unpacked layers
//! (`snapshots`). It stays until its snapshot goes, also without the daemon. Views may as well show mapped ids by themselves,
//! and are not mounted once more then. Everything here blocks.

mod attributes;
mod user_namespace;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use fuse::IdMapping;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Statx, StatxAttributes, StatxFlags, statx};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use self::user_namespace::UserNamespace;
pub use self::user_namespace::{ARGUMENT, live};
use super::record::SnapshotId;

/// The mapped directories of all snapshots.
#[derive(Debug)]
pub struct Mapped {
    root: PathBuf,
    /// Above the directories of unpacked layers.
    layers: PathBuf,
    views: MappedBy,
    /// The daemon's program, which makes user namespaces.
    program: PathBuf,
    /// What is mounted here changes by one thread at a time. Nobody holds this for longer than a few system calls and
    /// the start of a process.
    changing: Mutex<()>,
}

/// Who maps the ids of views.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MappedBy {
    /// The kernel, from Linux 6.12 on: all containers share one view.
    #[default]
    Kernel,
    /// The views: there is one for each mapping.
    Views,
}

/// Why a directory could not be mapped.
#[derive(Debug, thiserror::Error)]
#[error("the owners of the files in {directory} cannot be mapped{hint}", directory = directory.display())]
pub struct NotMapped {
    directory: PathBuf,
    hint: &'static str,
    source: io::Error,
}

impl Mapped {
    /// Mounts of the daemon with `root`, of views and of the layers below `layers`.
    pub fn new(root: &Path, layers: &Path) -> Self {
        Self {
            root: below(root),
            layers: layers.to_owned(),
            views: MappedBy::default(),
            program: PathBuf::from("/proc/self/exe"),
            changing: Mutex::default(),
        }
    }

    /// Has the ids of views mapped by others than the kernel.
    #[must_use]
    pub fn with_views(self, views: MappedBy) -> Self {
        Self { views, ..self }
    }

    /// The ids that the views of a container with `mapping` are to show.
    pub fn of_views<'m>(&self, mapping: Option<&'m IdMapping>) -> Option<&'m IdMapping> {
        mapping.filter(|_| self.views == MappedBy::Views)
    }

    /// Has `program` make user namespaces, for those that are not the daemon.
    #[must_use]
    pub fn made_by(self, program: PathBuf) -> Self {
        Self { program, ..self }
    }

    /// The directories that show `lowers` to a snapshot with `mapping`: those there are, or new ones. Views that show
    /// [their ids](Self::of_views) by themselves are there already.
    ///
    /// # Errors
    /// The kernel does not map them.
    pub fn put(
        &self,
        id: SnapshotId,
        mapping: &IdMapping,
        lowers: &[PathBuf],
    ) -> Result<Vec<PathBuf>, NotMapped> {
        let _alone = self.changing.lock();
        let own = self.root.join(id.to_string());
        let mut namespace = UserNamespace::of(&self.program, mapping);
        let sources: BTreeSet<&Path> = lowers
            .iter()
            .filter_map(|lower| self.source(lower))
            .collect();
        for source in sources {
            show(source, &own.join(name(source)), &mut namespace)
                .map_err(|error| NotMapped::new(source, error))?;
        }
        let shown = lowers.iter().map(|lower| {
            let Some(source) = self.source(lower) else {
                return lower.clone();
            };
            let shown = own.join(name(source));
            match lower.strip_prefix(source) {
                Ok(below) if below != Path::new("") => shown.join(below),
                _ => shown,
            }
        });
        Ok(shown.collect())
    }

    /// What is mounted to show `lower`: itself, or the directory of all layers; `None` if `lower` is shown as it is.
    fn source<'a>(&'a self, lower: &'a Path) -> Option<&'a Path> {
        match self.views {
            _ if lower.starts_with(&self.layers) => Some(&self.layers),
            MappedBy::Kernel => Some(lower),
            MappedBy::Views => None,
        }
    }

    /// Whether a snapshot has the view at `view` with ids that the kernel maps. What is mounted is not asked.
    pub fn has(&self, id: SnapshotId, view: &Path) -> bool {
        let points = fs::read_dir(self.root.join(id.to_string()));
        let mut points = points.into_iter().flatten().flatten();
        points.any(|point| point.file_name() == name(view))
    }

    /// Takes off what a snapshot had, if it had anything. An overlay that still uses it goes on.
    pub fn remove(&self, id: SnapshotId) {
        let _alone = self.changing.lock();
        remove(&self.root.join(id.to_string()));
    }

    /// Takes off what is there of snapshots that `is_there` does not know.
    pub fn sweep(&self, is_there: impl Fn(SnapshotId) -> bool) {
        let _alone = self.changing.lock();
        for (id, path) in numbered(&self.root) {
            if !is_there(id) {
                remove(&path);
            }
        }
    }

    /// Takes off everything.
    pub fn clear(&self) {
        self.sweep(|_| false);
    }
}

/// Takes off everything that a stopped daemon with `root` left.
pub fn unmount_all(root: &Path) {
    for (_, path) in numbered(&below(root)) {
        remove(&path);
    }
}

/// Whether `mapped` is where a daemon with the view `view` shows that one to a container in a user namespace.
pub fn shows(mapped: &Path, view: &Path) -> bool {
    let root = view.parent().and_then(Path::parent);
    let shows = |root| mapped.starts_with(below(root)) && mapped.file_name() == view.file_name();
    root.is_some_and(shows)
}

/// Where mapped directories are in the daemon's root.
fn below(root: &Path) -> PathBuf {
    root.join("snapshotter/mapped")
}

impl NotMapped {
    fn new(directory: &Path, source: io::Error) -> Self {
        let hint = match source.raw_os_error() {
            Some(nix::libc::EINVAL | nix::libc::ENOSYS) => {
                "; Linux maps layers below an overlay from 5.19 on if their file system knows of it (ext4, xfs, btrfs), and \
                 views from 6.12 on (before, they map by themselves unless snapshotter.map_ids forbids it)"
            }
            Some(nix::libc::EPERM) => {
                "; it takes the capabilities SYS_ADMIN, SETUID and SETGID, and leave to make user namespaces"
            }
            _ => "",
        };
        Self {
            directory: directory.to_owned(),
            hint,
            source,
        }
    }
}

/// Views are numbered, and there is one directory of layers: names differ.
fn name(source: &Path) -> &OsStr {
    source.file_name().unwrap_or_default()
}

/// Has `target` show `source`, mapped as in `namespace`.
fn show(source: &Path, target: &Path, namespace: &mut UserNamespace<'_>) -> io::Result<()> {
    if is_shown(source, target, namespace.mapping())? {
        return Ok(());
    }
    // Of a view that was mounted anew, or with another mapping.
    fuse::detach_all(target);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(target)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, source, flags)?;
    attributes::map_ids(tree.as_fd(), namespace.descriptor()?)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(&tree, "", CWD, target, flags)?)
}

/// Whether `target` is a mount of `source` with `mapping` already.
fn is_shown(source: &Path, target: &Path, mapping: &IdMapping) -> io::Result<bool> {
    // What is dead answers with an error, and is mounted anew.
    let Ok(shown) = look(target) else {
        return Ok(false);
    };
    let real = look(source)?;
    let identity = |file: &Statx| (file.stx_dev_major, file.stx_dev_minor, file.stx_ino);
    let expected = (
        mapping.users.shown(real.stx_uid),
        mapping.groups.shown(real.stx_gid),
    );
    Ok(shown.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
        && identity(&shown) == identity(&real)
        && (shown.stx_uid, shown.stx_gid) == expected)
}

fn look(path: &Path) -> io::Result<Statx> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    Ok(statx(CWD, path, flags, StatxFlags::BASIC_STATS)?)
}

/// Takes off what is mounted below `own` and removes the mount points. Nothing else is ever removed: a mount that
/// stays is full of files of layers.
fn remove(own: &Path) {
    let points = match fs::read_dir(own) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())),
        Err(error) if error.kind() == ErrorKind::NotFound => return,
        Err(error) => return warn(own, &error),
    };
    for point in points {
        fuse::detach_all(&point);
        if let Err(error) = fs::remove_dir(&point) {
            warn(&point, &error);
        }
    }
    if let Err(error) = fs::remove_dir(own) {
        warn(own, &error);
    }
}

fn warn(path: &Path, error: &io::Error) {
    tracing::warn!(path = %path.display(), "cannot remove what is left of a mapped directory: {error}");
}

fn numbered(root: &Path) -> Vec<(SnapshotId, PathBuf)> {
    let entries = fs::read_dir(root).into_iter().flatten();
    let numbered = entries.filter_map(|entry| {
        let path = entry.ok()?.path();
        let number = path.file_name()?.to_str()?.parse().ok()?;
        Some((SnapshotId(number), path))
    });
    numbered.collect()
}

//! Directories that a layer implies and does not describe.
//!
//! They look like those of the same name below. What lies below may not be there yet when a layer is
//! unpacked, so this is made up for at the end.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc::ino_t;
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown};
use serde::{Deserialize, Serialize};

use super::lower::Lowers;
use super::rooted::{Rooted, proc_path};

/// A directory that had to be made on the way to a member.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Implied {
    /// From the root, links resolved.
    #[serde(with = "bytes")]
    path: PathBuf,
    /// Tells it from another that was made in its place.
    inode: ino_t,
    /// A later member describes it: only attributes that it does not give come from below.
    pub(super) described: bool,
}

impl Implied {
    /// `dir`, just made at `path`: root's, with mode 0755 unless there is one below.
    pub(super) fn new(path: PathBuf, dir: &OwnedFd) -> io::Result<Self> {
        fchmod(dir, Mode::from_bits_truncate(0o755))?;
        Ok(Self {
            path,
            inode: fstat(dir)?.st_ino,
            described: false,
        })
    }

    /// Whether it is this one.
    pub(super) fn is(&self, found: &FileStat) -> bool {
        self.inode == found.st_ino
    }

    /// Makes it look like the nearest directory of its name: owner, mode, time and extended
    /// attributes. Nothing happens if it is gone by now, or there is none below.
    pub(super) fn settle(&self, root: &Rooted, lowers: &mut Lowers<'_>) -> io::Result<()> {
        let Ok(dir) = root.directly(&self.path) else {
            return Ok(());
        };
        if !self.is(&fstat(&dir)?) {
            return Ok(());
        }
        let Some((lower, found)) = lowers.directory(&self.path)? else {
            return Ok(());
        };
        let (from, to) = (proc_path(lower.as_fd()), proc_path(dir.as_fd()));
        if self.described {
            return copy_xattrs(&from, &to, false);
        }
        let (uid, gid) = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
        fchown(&dir, Some(uid), Some(gid))?;
        copy_xattrs(&from, &to, true)?;
        fchmod(&dir, Mode::from_bits_truncate(found.st_mode & 0o7777))?;
        let time = TimeSpec::new(found.st_mtime, found.st_mtime_nsec);
        Ok(futimens(&dir, &time, &time)?)
    }
}

/// A path, whose bytes need not be UTF-8.
mod bytes {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(path.as_os_str().as_bytes())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        Ok(OsString::from_vec(Vec::deserialize(from)?).into())
    }
}

/// Copies attributes; those that are there already only if `all`.
fn copy_xattrs(from: &Path, to: &Path, all: bool) -> io::Result<()> {
    let names = match xattr::list_deref(from) {
        Err(error) if unsupported(&error) => return Ok(()),
        names => names?,
    };
    for name in names.filter(|name| !name.as_bytes().starts_with(b"trusted.")) {
        let Some(value) = xattr::get_deref(from, &name)? else {
            continue;
        };
        if !all && xattr::get_deref(to, &name)?.is_some() {
            continue;
        }
        match xattr::set_deref(to, &name, &value) {
            Err(error) if !unsupported(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn unsupported(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOTSUP | Errno::ENOSYS))
}

//! The directories below: what a directory looks like that a layer implies but does not describe.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown};

use super::apply::kind;
use super::rooted::{Implied, proc_path};

/// Lower directories, nearest first.
pub(super) struct Lowers<'a> {
    paths: &'a [PathBuf],
    open: Option<Vec<OwnedFd>>,
}

impl<'a> Lowers<'a> {
    /// Opens them when they are first asked.
    pub(super) fn new(paths: &'a [PathBuf]) -> Self {
        Self { paths, open: None }
    }

    /// Whether nothing lies below.
    pub(super) fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Makes an implied directory look like the nearest one of that name: owner, mode and extended
    /// attributes; its modification time is returned. Without one it is root's, with mode 0755.
    pub(super) fn copy_to(&mut self, implied: &Implied) -> io::Result<Option<TimeSpec>> {
        let mode = |bits| Mode::from_bits_truncate(bits & 0o7777);
        let Some((lower, found)) = self.find(&implied.path)? else {
            fchmod(&*implied.dir, mode(0o755))?;
            return Ok(None);
        };
        let (uid, gid) = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
        fchown(&*implied.dir, Some(uid), Some(gid))?;
        copy_xattrs(&proc_path(lower.as_fd()), &proc_path(implied.dir.as_fd()))?;
        fchmod(&*implied.dir, mode(found.st_mode))?;
        Ok(Some(TimeSpec::new(found.st_mtime, found.st_mtime_nsec)))
    }

    fn find(&mut self, path: &Path) -> io::Result<Option<(OwnedFd, FileStat)>> {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let how = OpenHow::new().flags(flags).resolve(resolve);
        for lower in self.opened()? {
            match openat2(lower, path, how) {
                Ok(found) => {
                    let stat = fstat(&found)?;
                    let directory = kind(&stat) == SFlag::S_IFDIR;
                    return Ok(directory.then_some((found, stat)));
                }
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(None)
    }

    fn opened(&mut self) -> io::Result<&[OwnedFd]> {
        if self.open.is_none() {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let opened = self
                .paths
                .iter()
                .map(|path| open(path, flags, Mode::empty()));
            self.open = Some(opened.collect::<Result<_, _>>()?);
        }
        Ok(self.open.as_deref().unwrap_or_default())
    }
}

fn copy_xattrs(from: &Path, to: &Path) -> io::Result<()> {
    let names = match xattr::list_deref(from) {
        Err(error) if unsupported(&error) => return Ok(()),
        names => names?,
    };
    for name in names.filter(|name| !name.as_bytes().starts_with(b"trusted.")) {
        let Some(value) = xattr::get_deref(from, &name)? else {
            continue;
        };
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

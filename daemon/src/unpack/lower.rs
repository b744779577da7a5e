//! The directories below.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};

use super::apply::kind;

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

    /// The nearest directory at `path`, unless something else hides it.
    pub(super) fn directory(&mut self, path: &Path) -> io::Result<Option<(OwnedFd, FileStat)>> {
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

//! A directory that nothing leads out of: names from a tar are resolved as if it were `/`.
//!
//! Symbolic links are followed within it, as containerd does; every step goes by descriptors, so no link
//! that appears meanwhile leads elsewhere.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, mkdirat};

/// Most symbolic links followed in one name, as in the kernel.
const MOST_LINKS: usize = 40;
const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);

/// The directory.
pub(super) struct Rooted {
    root: Rc<OwnedFd>,
    /// The directory resolved last: tars list directory by directory.
    last: Option<(PathBuf, Rc<OwnedFd>)>,
}

/// A name within a directory.
pub(super) struct Place {
    /// The directory.
    pub(super) dir: Rc<OwnedFd>,
    /// One component.
    pub(super) name: OsString,
}

/// Told of a directory that had to be made on the way: where it is from the root, links resolved,
/// and the directory.
pub(super) type OnImplied<'a> = dyn FnMut(PathBuf, Rc<OwnedFd>) -> io::Result<()> + 'a;

impl Place {
    /// The directory's descriptor.
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// A path to the place for calls that know no descriptors. Its last component must not be followed.
    pub(super) fn proc_path(&self) -> PathBuf {
        proc_path(self.dir()).join(&self.name)
    }
}

/// A path to what `fd` has open.
pub(crate) fn proc_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// A member's name without `.`, `..` and superfluous slashes, by its text alone; empty for the root.
pub(super) fn clean(name: &[u8]) -> PathBuf {
    let mut components: Vec<&[u8]> = Vec::new();
    for component in name.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop();
            }
            component => components.push(component),
        }
    }
    PathBuf::from(OsString::from_vec(components.join(&b'/')))
}

impl Rooted {
    /// Opens the directory.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let root = Rc::new(open(path, DIRECTORY, Mode::empty())?);
        Ok(Self { root, last: None })
    }

    /// To be called when a directory or link was replaced: what is remembered may be wrong.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }

    /// The place that a cleaned path names; directories on the way that are missing are made
    /// with mode 0755 and given to `implied`. `None` for the root itself.
    pub(super) fn place(
        &mut self,
        path: &Path,
        implied: &mut OnImplied<'_>,
    ) -> io::Result<Option<Place>> {
        let Some(name) = path.file_name() else {
            return Ok(None);
        };
        let parent = path.parent().unwrap_or_else(|| Path::new(""));
        let dir = match self.resolve(parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.walk(parent, implied)?,
            resolved => resolved?,
        };
        self.last = Some((parent.to_owned(), Rc::clone(&dir)));
        Ok(Some(Place {
            dir,
            name: name.to_owned(),
        }))
    }

    /// The same, but makes nothing: what is missing is [`io::ErrorKind::NotFound`].
    pub(super) fn existing(&self, path: &Path) -> io::Result<Option<Place>> {
        let Some(name) = path.file_name() else {
            return Ok(None);
        };
        let dir = self.resolve(path.parent().unwrap_or_else(|| Path::new("")))?;
        Ok(Some(Place {
            dir,
            name: name.to_owned(),
        }))
    }

    /// The directory that a cleaned path names.
    pub(super) fn resolve(&self, path: &Path) -> io::Result<Rc<OwnedFd>> {
        if path.as_os_str().is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        if let Some((_, dir)) = self.last.as_ref().filter(|(last, _)| last == path) {
            return Ok(Rc::clone(dir));
        }
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(DIRECTORY).resolve(resolve);
        Ok(Rc::new(openat2(&*self.root, path, how)?))
    }

    /// The directory at `path`, if no link leads there.
    pub(super) fn directly(&self, path: &Path) -> io::Result<OwnedFd> {
        let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS;
        let how = OpenHow::new().flags(DIRECTORY).resolve(resolve);
        Ok(openat2(&*self.root, path, how)?)
    }

    /// Goes to the directory step by step, making what is missing.
    fn walk(&self, path: &Path, implied: &mut OnImplied<'_>) -> io::Result<Rc<OwnedFd>> {
        let mut way = Way {
            stack: vec![(OsString::new(), Rc::clone(&self.root))],
            ahead: path.iter().map(OsStr::to_owned).collect(),
            links: 0,
        };
        while let Some(component) = way.ahead.pop_front() {
            if way.step(&component)? {
                implied(way.path(), way.here())?;
            }
        }
        Ok(way.here())
    }
}

/// A walk through a tree.
struct Way {
    /// Where it is, from the root; `..` goes back.
    stack: Vec<(OsString, Rc<OwnedFd>)>,
    ahead: VecDeque<OsString>,
    links: usize,
}

impl Way {
    fn here(&self) -> Rc<OwnedFd> {
        let (_, dir) = self.stack.last().expect("the root is never left");
        Rc::clone(dir)
    }

    fn path(&self) -> PathBuf {
        self.stack.iter().skip(1).map(|(name, _)| name).collect()
    }

    /// Goes one component on; tells if it had to make it.
    fn step(&mut self, component: &OsStr) -> io::Result<bool> {
        match component.as_bytes() {
            b"" | b"." => return Ok(false),
            b".." => {
                self.stack
                    .truncate(self.stack.len().saturating_sub(1).max(1));
                return Ok(false);
            }
            _ => {}
        }
        let here = self.here();
        let flags = DIRECTORY | OFlag::O_NOFOLLOW;
        match openat(&*here, component, flags, Mode::empty()) {
            Ok(dir) => self.stack.push((component.to_owned(), Rc::new(dir))),
            Err(Errno::ENOENT) => {
                mkdirat(&*here, component, Mode::from_bits_truncate(0o755))?;
                let dir = Rc::new(openat(&*here, component, flags, Mode::empty())?);
                self.stack.push((component.to_owned(), dir));
                return Ok(true);
            }
            Err(Errno::ELOOP | Errno::ENOTDIR) => self.follow(component)?,
            Err(errno) => return Err(errno.into()),
        }
        Ok(false)
    }

    /// Continues at the target of a symbolic link.
    fn follow(&mut self, link: &OsStr) -> io::Result<()> {
        let target = match readlinkat(&*self.here(), link) {
            Err(Errno::EINVAL) => return Err(Errno::ENOTDIR.into()),
            target => target?,
        };
        self.links += 1;
        if self.links > MOST_LINKS {
            return Err(Errno::ELOOP.into());
        }
        if target.as_bytes().starts_with(b"/") {
            self.stack.truncate(1);
        }
        for component in target.as_bytes().rsplit(|&byte| byte == b'/') {
            self.ahead
                .push_front(OsStr::from_bytes(component).to_owned());
        }
        Ok(())
    }
}

/// Removes whatever is at `place`, with everything below it.
pub(super) fn remove(place: &Place, directory: bool) -> io::Result<()> {
    if directory {
        return fs::remove_dir_all(place.proc_path());
    }
    let flag = nix::unistd::UnlinkatFlags::NoRemoveDir;
    Ok(nix::unistd::unlinkat(
        place.dir(),
        place.name.as_os_str(),
        flag,
    )?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::symlink;

    fn made(root: &Path, path: &str) -> io::Result<Vec<PathBuf>> {
        let mut all = Vec::new();
        let mut rooted = Rooted::open(root)?;
        let place = rooted.place(&clean(path.as_bytes()), &mut |path, _| {
            all.push(path);
            Ok(())
        })?;
        if let Some(place) = place {
            fs::write(place.proc_path(), path)?;
        }
        Ok(all)
    }

    #[test]
    fn names_are_cleaned_by_their_text() {
        for (name, expected) in [
            ("./", ""),
            ("/", ""),
            ("..", ""),
            ("a/../../b", "b"),
            ("/usr//./bin/", "usr/bin"),
            ("../../etc/passwd", "etc/passwd"),
        ] {
            assert_eq!(clean(name.as_bytes()), Path::new(expected), "{name}");
        }
    }

    #[test]
    fn links_lead_nowhere_but_into_the_root_and_missing_directories_are_made_behind_them() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        symlink(outside.path(), root.join("out")).unwrap();
        symlink("../../../..", root.join("up")).unwrap();
        symlink("a", root.join("b")).unwrap();
        symlink("b", root.join("a")).unwrap();
        fs::create_dir(root.join("real")).unwrap();
        symlink("/real", root.join("link")).unwrap();

        assert_eq!(made(root, "link/x").unwrap(), Vec::<PathBuf>::new());
        assert!(root.join("real/x").exists());
        assert_eq!(made(root, "up/real/y").unwrap(), Vec::<PathBuf>::new());
        assert!(root.join("real/y").exists());
        let behind = outside.path().strip_prefix("/").unwrap();
        assert!(!made(root, "out/deep/z").unwrap().is_empty());
        assert!(root.join(behind).join("deep/z").exists());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        assert_eq!(
            made(root, "new/dir/file").unwrap(),
            [Path::new("new"), Path::new("new/dir")]
        );
        assert!(made(root, "a/x").is_err(), "a loop");
        assert!(made(root, "real/x/y").is_err(), "below a file");
    }
}

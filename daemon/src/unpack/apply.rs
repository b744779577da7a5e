//! Puts tar members into a directory the way containerd's overlayfs snapshotter would.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens,
    makedev, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};
use xattr::FileExt as _;
use ztoc::toc::Timestamp;
use ztoc::{Entry, EntryKind};

use super::archive::Archive;
use super::error::UnpackError;
use super::implied::Implied;
use super::rooted::{Place, Rooted, clean, proc_path, remove};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The last second that fits nanoseconds in 63 bits (year 2262); containerd sets times beyond it to 1970.
const LAST_SECOND: i64 = i64::MAX / 1_000_000_000;

/// A layer on its way into a directory.
pub(super) struct Applier {
    root: Rooted,
    /// Nothing lies below: there is nothing to hide.
    lowest: bool,
    /// Directories and their times: set last, since what is made in a directory changes them.
    times: Vec<(PathBuf, TimeSpec)>,
    /// Hard links whose target has not come yet.
    links: Vec<Entry>,
    implied: Vec<Implied>,
}

impl Applier {
    /// Unpacks into `dir`.
    pub(super) fn new(dir: &Path, lowest: bool) -> io::Result<Self> {
        Ok(Self {
            root: Rooted::open(dir)?,
            lowest,
            times: Vec::new(),
            links: Vec::new(),
            implied: Vec::new(),
        })
    }

    /// Applies one member, whose data `archive` gives.
    pub(super) fn apply<R: BufRead>(
        &mut self,
        entry: Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        let failed = |source| UnpackError::entry(&entry.name, source);
        let path = clean(&entry.name);
        let Some(place) = self.place(&path).map_err(failed)? else {
            return Ok(());
        };
        let name = place.name.as_bytes();
        if name == OPAQUE {
            return self.opaque(&place).map_err(failed);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(&place, hidden, &entry).map_err(failed);
        }
        if entry.kind == EntryKind::Regular {
            return self.regular(&place, &entry, archive);
        }
        if !self.make(&place, &entry).map_err(failed)? {
            self.links.push(entry);
            return Ok(());
        }
        let made = describe(&place, &entry).map_err(failed)?;
        if entry.kind == EntryKind::Directory {
            self.described(&made);
            self.times.push((path, bounded(entry.mtime)));
        }
        Ok(())
    }

    /// Makes what had to wait for the end of the archive. The directories that were only implied
    /// look like those below once [`Implied::settle`] is called.
    pub(super) fn finish(mut self) -> Result<Vec<Implied>, UnpackError> {
        for entry in std::mem::take(&mut self.links) {
            let failed = |source| UnpackError::entry(&entry.name, source);
            let place = self.place(&clean(&entry.name)).map_err(failed)?;
            if let Some(place) = place {
                if !self.make(&place, &entry).map_err(failed)? {
                    return Err(failed(Errno::ENOENT.into()));
                }
                describe(&place, &entry).map_err(failed)?;
            }
        }
        for (path, time) in &self.times {
            let failed = |source| UnpackError::entry(path.as_os_str().as_bytes(), source);
            // Replaced by something else, or below what was.
            let Ok(dir) = self.root.resolve(path) else {
                continue;
            };
            futimens(&*dir, time, time).map_err(|errno| failed(errno.into()))?;
        }
        Ok(self.implied)
    }

    /// The place of a cleaned path; directories missing on the way are made.
    fn place(&mut self, path: &Path) -> io::Result<Option<Place>> {
        let implied = &mut self.implied;
        self.root.place(path, &mut |path, dir| {
            implied.push(Implied::new(path, &dir)?);
            Ok(())
        })
    }

    /// Remembers that a directory has been described, should it have been implied before.
    fn described(&mut self, dir: &FileStat) {
        let same = self.implied.iter_mut().filter(|implied| implied.is(dir));
        same.for_each(|implied| implied.described = true);
    }

    /// Makes anything but a regular file, in place of whatever stands there; a directory stays for a
    /// directory. `false` for a hard link whose target is not there.
    fn make(&mut self, place: &Place, entry: &Entry) -> io::Result<bool> {
        match self.create(place, entry) {
            Err(error) if exists(&error) => {}
            made => return made,
        }
        if self.make_room(place, entry)? {
            return Ok(true);
        }
        self.create(place, entry)
    }

    /// Removes what stands where `entry` goes, unless both are directories; whether they are.
    fn make_room(&mut self, place: &Place, entry: &Entry) -> io::Result<bool> {
        let Some(found) = stat(place)? else {
            return Ok(false);
        };
        let directory = kind(&found) == SFlag::S_IFDIR;
        if directory && entry.kind == EntryKind::Directory {
            return Ok(true);
        }
        if directory || kind(&found) == SFlag::S_IFLNK {
            self.root.forget();
        }
        remove(place, directory)?;
        Ok(false)
    }

    fn regular<R: BufRead>(
        &mut self,
        place: &Place,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        let failed = |source| UnpackError::entry(&entry.name, source);
        let opened = match open_new(place) {
            Err(Errno::EEXIST) => {
                self.make_room(place, entry).map_err(failed)?;
                open_new(place)
            }
            opened => opened,
        };
        let file = opened.map_err(|errno| failed(errno.into()))?;
        archive.copy_data(entry, &file)?;
        describe_file(&file, entry).map_err(failed)
    }

    /// Makes anything but a regular file where nothing stands.
    fn create(&self, place: &Place, entry: &Entry) -> io::Result<bool> {
        let (dir, name) = (place.dir(), place.name.as_os_str());
        match entry.kind {
            EntryKind::Directory => mkdirat(dir, name, Mode::from_bits_truncate(0o755))?,
            EntryKind::SymLink => symlinkat(OsStr::from_bytes(&entry.link), dir, name)?,
            EntryKind::HardLink => return self.link(place, entry),
            EntryKind::CharDevice => node(place, entry, SFlag::S_IFCHR)?,
            EntryKind::BlockDevice => node(place, entry, SFlag::S_IFBLK)?,
            EntryKind::Fifo => node(place, entry, SFlag::S_IFIFO)?,
            EntryKind::Regular => {}
        }
        Ok(true)
    }

    fn link(&self, place: &Place, entry: &Entry) -> io::Result<bool> {
        let target = match self.root.existing(&clean(&entry.link)) {
            Ok(Some(target)) => target,
            Ok(None) => return Err(Errno::EPERM.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let (from, to) = (target.name.as_os_str(), place.name.as_os_str());
        match linkat(target.dir(), from, place.dir(), to, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Hides what lower layers have in this directory. Means nothing in the lowest layer.
    fn opaque(&self, place: &Place) -> io::Result<()> {
        if self.lowest {
            return Ok(());
        }
        xattr::set_deref(proc_path(place.dir()), "trusted.overlay.opaque", b"y")
    }

    /// Hides what lower layers have under a name, unless this layer has the name itself.
    fn whiteout(&self, place: &Place, hidden: &[u8], entry: &Entry) -> io::Result<()> {
        if matches!(hidden, b"" | b"." | b"..") {
            let detail = "a whiteout of nothing";
            return Err(io::Error::new(io::ErrorKind::InvalidData, detail));
        }
        if self.lowest {
            return Ok(());
        }
        let hidden = OsStr::from_bytes(hidden);
        match mknodat(place.dir(), hidden, SFlag::S_IFCHR, Mode::empty(), 0) {
            Ok(()) => own(place, hidden, entry),
            Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn exists(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EEXIST as i32)
}

fn open_new(place: &Place) -> nix::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let mode = Mode::from_bits_truncate(0o600);
    openat(place.dir(), place.name.as_os_str(), flags, mode).map(File::from)
}

fn node(place: &Place, entry: &Entry, kind: SFlag) -> io::Result<()> {
    let number = |number: i64| u64::try_from(number).map_err(|_| io::Error::from(Errno::EINVAL));
    let device = match kind {
        SFlag::S_IFIFO => 0,
        _ => makedev(number(entry.dev_major)?, number(entry.dev_minor)?),
    };
    let mode = Mode::from_bits_truncate(0o600);
    Ok(mknodat(
        place.dir(),
        place.name.as_os_str(),
        kind,
        mode,
        device,
    )?)
}

/// Gives what was made its owner, extended attributes, mode and time, in this order: a change of owner
/// clears setuid bits and capabilities. Tells what was found there.
fn describe(place: &Place, entry: &Entry) -> io::Result<FileStat> {
    let (dir, name) = (place.dir(), place.name.as_os_str());
    let Some(found) = stat(place)? else {
        return Err(Errno::ENOENT.into());
    };
    own(place, name, entry)?;
    for (key, value) in entry.xattrs() {
        let plain = matches!(kind(&found), SFlag::S_IFREG | SFlag::S_IFDIR);
        let set = |key: &OsStr| xattr::set(place.proc_path(), key, value);
        set_xattr(key, plain, set)?;
    }
    if kind(&found) != SFlag::S_IFLNK {
        fchmodat(dir, name, mode(entry), FchmodatFlags::FollowSymlink)?;
    }
    let time = bounded(entry.mtime);
    let flags = UtimensatFlags::NoFollowSymlink;
    utimensat(dir, name, &time, &time, flags)?;
    Ok(found)
}

/// The same for a regular file that is open.
fn describe_file(file: &File, entry: &Entry) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    fchown(file, Some(uid), Some(gid))?;
    for (key, value) in entry.xattrs() {
        set_xattr(key, true, |key| file.set_xattr(key, value))?;
    }
    fchmod(file, mode(entry))?;
    let time = bounded(entry.mtime);
    Ok(futimens(file, &time, &time)?)
}

fn mode(entry: &Entry) -> Mode {
    Mode::from_bits_truncate(u32::try_from(entry.mode & 0o7777).unwrap_or_default())
}

fn own(place: &Place, name: &OsStr, entry: &Entry) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
    Ok(fchownat(place.dir(), name, Some(uid), Some(gid), flags)?)
}

/// Sets an attribute, except those that only the system may give (`trusted.`): a layer could fake
/// overlayfs's own with them. What the file system or the kind of file cannot have is left out.
fn set_xattr(
    key: &[u8],
    plain: bool,
    set: impl FnOnce(&OsStr) -> io::Result<()>,
) -> io::Result<()> {
    if key.starts_with(b"trusted.") {
        return Ok(());
    }
    match set(OsStr::from_bytes(key)) {
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOTSUP) => Ok(()),
            Some(Errno::EPERM) if !plain && key.starts_with(b"user.") => Ok(()),
            _ => Err(error),
        },
        Ok(()) => Ok(()),
    }
}

fn stat(place: &Place) -> io::Result<Option<FileStat>> {
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
    match fstatat(place.dir(), place.name.as_os_str(), flags) {
        Ok(found) => Ok(Some(found)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

pub(super) fn kind(found: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits())
}

/// A time as containerd bounds it: what it cannot hold becomes 1970.
fn bounded(time: Option<Timestamp>) -> TimeSpec {
    match time {
        Some(time) if (0..LAST_SECOND).contains(&time.seconds) => {
            TimeSpec::new(time.seconds, i64::from(time.nanos))
        }
        _ => TimeSpec::new(0, 0),
    }
}

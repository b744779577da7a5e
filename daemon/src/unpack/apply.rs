//! Puts tar members into a directory the way containerd's overlayfs snapshotter would.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstatat, makedev, mkdirat,
    mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, symlinkat};
use ztoc::toc::Timestamp;
use ztoc::{Entry, EntryKind};

use super::archive::Archive;
use super::error::UnpackError;
use super::lower::Lowers;
use super::rooted::{Implied, Place, Rooted, clean, proc_path, remove};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// The last second that fits nanoseconds in 63 bits (year 2262); containerd sets times beyond it to 1970.
const LAST_SECOND: i64 = i64::MAX / 1_000_000_000;

/// A layer on its way into a directory.
pub(super) struct Applier<'a> {
    root: Rooted,
    lowers: Lowers<'a>,
    /// Directories and their times: set last, since what is made in a directory changes them.
    times: Vec<(PathBuf, TimeSpec)>,
    /// Hard links whose target has not come yet.
    links: Vec<Entry>,
}

impl<'a> Applier<'a> {
    /// Unpacks into `dir`, whose lower directories are `parents`, nearest first.
    pub(super) fn new(dir: &Path, parents: &'a [PathBuf]) -> io::Result<Self> {
        Ok(Self {
            root: Rooted::open(dir)?,
            lowers: Lowers::new(parents),
            times: Vec::new(),
            links: Vec::new(),
        })
    }

    /// Applies one member, whose data `archive` gives.
    pub(super) fn apply<R: Read>(
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
        self.make_room(&place, &entry).map_err(failed)?;
        if entry.kind == EntryKind::Regular {
            regular(&place, &entry, archive)?;
        } else if !self.create(&place, &entry).map_err(failed)? {
            self.links.push(entry);
            return Ok(());
        }
        describe(&place, &entry).map_err(failed)?;
        if entry.kind == EntryKind::Directory {
            self.times.push((path, bounded(entry.mtime)));
        }
        Ok(())
    }

    /// Makes what had to wait for the end of the archive.
    pub(super) fn finish(mut self) -> Result<(), UnpackError> {
        for entry in std::mem::take(&mut self.links) {
            let failed = |source| UnpackError::entry(&entry.name, source);
            let place = self.place(&clean(&entry.name)).map_err(failed)?;
            if let Some(place) = place {
                self.make_room(&place, &entry).map_err(failed)?;
                if !self.create(&place, &entry).map_err(failed)? {
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
            nix::sys::stat::futimens(&*dir, time, time).map_err(|errno| failed(errno.into()))?;
        }
        Ok(())
    }

    /// The place of a cleaned path; directories missing on the way look like those below.
    fn place(&mut self, path: &Path) -> io::Result<Option<Place>> {
        let (lowers, times) = (&mut self.lowers, &mut self.times);
        let mut implied = |made: Implied| {
            if let Some(time) = lowers.copy_to(&made)? {
                times.push((made.path, time));
            }
            Ok(())
        };
        self.root.place(path, &mut implied)
    }

    /// Removes what stands where `entry` goes; a directory stays for a directory.
    fn make_room(&mut self, place: &Place, entry: &Entry) -> io::Result<()> {
        let Some(found) = stat(place)? else {
            return Ok(());
        };
        let directory = kind(&found) == SFlag::S_IFDIR;
        if directory && entry.kind == EntryKind::Directory {
            return Ok(());
        }
        if directory || kind(&found) == SFlag::S_IFLNK {
            self.root.forget();
        }
        remove(place, directory)
    }

    /// Makes anything but a regular file; `false` for a hard link whose target is not there.
    fn create(&self, place: &Place, entry: &Entry) -> io::Result<bool> {
        let (dir, name) = (place.dir(), place.name.as_os_str());
        match entry.kind {
            EntryKind::Directory => match mkdirat(dir, name, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            },
            EntryKind::SymLink => symlinkat(std::ffi::OsStr::from_bytes(&entry.link), dir, name)?,
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
        if self.lowers.is_empty() {
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
        if self.lowers.is_empty() {
            return Ok(());
        }
        let hidden = std::ffi::OsStr::from_bytes(hidden);
        match mknodat(place.dir(), hidden, SFlag::S_IFCHR, Mode::empty(), 0) {
            Ok(()) => own(place, hidden, entry),
            Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn regular<R: Read>(
    place: &Place,
    entry: &Entry,
    archive: &mut Archive<R>,
) -> Result<(), UnpackError> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let mode = Mode::from_bits_truncate(0o600);
    let file = openat(place.dir(), place.name.as_os_str(), flags, mode)
        .map_err(|errno| UnpackError::entry(&entry.name, errno.into()))?;
    archive.copy_data(entry, &File::from(file))
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
/// clears setuid bits and capabilities.
fn describe(place: &Place, entry: &Entry) -> io::Result<()> {
    let (dir, name) = (place.dir(), place.name.as_os_str());
    let Some(found) = stat(place)? else {
        return Err(Errno::ENOENT.into());
    };
    own(place, name, entry)?;
    for (key, value) in entry.xattrs() {
        set_xattr(place, &found, key, value)?;
    }
    if kind(&found) != SFlag::S_IFLNK {
        let bits = u32::try_from(entry.mode & 0o7777).unwrap_or_default();
        let mode = Mode::from_bits_truncate(bits);
        fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink)?;
    }
    let time = bounded(entry.mtime);
    Ok(utimensat(
        dir,
        name,
        &time,
        &time,
        UtimensatFlags::NoFollowSymlink,
    )?)
}

fn own(place: &Place, name: &std::ffi::OsStr, entry: &Entry) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
    Ok(fchownat(place.dir(), name, Some(uid), Some(gid), flags)?)
}

/// Sets an attribute, except those that only the system may give (`trusted.`): a layer could fake
/// overlayfs's own with them. What the file system or the kind of file cannot have is left out.
fn set_xattr(place: &Place, found: &FileStat, key: &[u8], value: &[u8]) -> io::Result<()> {
    if key.starts_with(b"trusted.") {
        return Ok(());
    }
    let plain = matches!(kind(found), SFlag::S_IFREG | SFlag::S_IFDIR);
    let set = xattr::set(place.proc_path(), std::ffi::OsStr::from_bytes(key), value);
    match set {
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

//! Removal of a directory that a container has filled.

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::error::SnapshotError;

/// Removes the tree at `path`, after what is mounted in it; nothing there is fine.
///
/// # Errors
/// A file operation failed. What was removed until then stays removed.
pub(super) fn remove(path: &Path) -> Result<(), SnapshotError> {
    let mounts = fs::read("/proc/self/mountinfo")
        .map_err(SnapshotError::io("read", Path::new("/proc/self/mountinfo")))?;
    for mount in mounts_below(&mounts, path) {
        umount2(&mount, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|errno| SnapshotError::io("unmount", &mount)(errno.into()))?;
    }
    remove_tree(path)
        .or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })
        .map_err(SnapshotError::io("remove", path))
}

/// The mount points at and below `path`, the innermost first.
fn mounts_below(mountinfo: &[u8], path: &Path) -> Vec<PathBuf> {
    let mut mounts: Vec<PathBuf> = mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|field| PathBuf::from(OsString::from_vec(unescape(field))))
        .filter(|mount| mount.starts_with(path))
        .collect();
    mounts.reverse();
    mounts
}

/// The kernel writes space, tab, newline and backslash as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match octal {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

/// Removes a tree of any depth with two descriptors and no recursion: a container can nest
/// directories until either runs out. A directory that is not empty is moved up to the top
/// instead of being descended into.
fn remove_tree(path: &Path) -> io::Result<()> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut top = Dir::open(path, flags, Mode::empty())?;
    let mut moved = 0u64;
    loop {
        let names = names(&mut top)?;
        if names.is_empty() {
            return fs::remove_dir(path);
        }
        for name in names {
            if unlink(&top, &name)? {
                continue;
            }
            let mut directory = Dir::openat(&top, name.as_c_str(), flags, Mode::empty())?;
            for child in self::names(&mut directory)? {
                if unlink(&directory, &child)? {
                    continue;
                }
                moved = lift(&directory, &child, &top, moved)?;
            }
            unlinkat(&top, name.as_c_str(), UnlinkatFlags::RemoveDir)?;
        }
    }
}

/// Removes a file or an empty directory; false if it is a directory that is not empty.
fn unlink(parent: &Dir, name: &CString) -> io::Result<bool> {
    match unlinkat(parent, name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(true),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    match unlinkat(parent, name.as_c_str(), UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Moves a directory to the top under a name that is free. Answers the last number used.
fn lift(from: &Dir, name: &CString, top: &Dir, last: u64) -> io::Result<u64> {
    let mut number = last;
    loop {
        number += 1;
        let free = CString::new(format!(".removed-{number}"))?;
        match renameat(from, name.as_c_str(), top, free.as_c_str()) {
            Ok(()) => return Ok(number),
            // A container chose that name, or an earlier attempt left it.
            Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn names(directory: &mut Dir) -> io::Result<Vec<CString>> {
    directory
        .iter()
        .map(|entry| Ok(entry?.file_name().to_owned()))
        .filter(|name| !matches!(name, Ok(name) if matches!(name.to_bytes(), b"." | b"..")))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("7");
        fs::create_dir(&root).unwrap();
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut at = Dir::open(&root, flags, Mode::empty()).unwrap();
        for _ in 0..3000 {
            nix::sys::stat::mkdirat(&at, "deeper", Mode::S_IRWXU).unwrap();
            nix::sys::stat::mkdirat(&at, ".removed-5", Mode::S_IRWXU).unwrap();
            at = Dir::openat(&at, "deeper", flags, Mode::empty()).unwrap();
            let file = OFlag::O_CREAT | OFlag::O_CLOEXEC;
            nix::fcntl::openat(&at, "file", file, Mode::S_IRUSR).unwrap();
        }
        remove(&root).unwrap();
        assert!(!root.exists());
    }

    #[test]
    fn links_out_of_the_tree_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let outside = directory.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "kept").unwrap();
        let root = directory.path().join("7");
        fs::create_dir_all(root.join("a/b")).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("a/b/link")).unwrap();
        remove(&root).unwrap();
        assert_eq!(fs::read(outside.join("file")).unwrap(), b"kept");
    }

    #[test]
    fn what_is_mounted_below_is_unmounted_first() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("with space");
        let (source, target) = (directory.path().join("source"), root.join("fs/mnt"));
        fs::create_dir_all(&target).unwrap();
        fs::create_dir(&source).unwrap();
        fs::write(source.join("file"), "kept").unwrap();
        let flags = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(&source), &target, None::<&str>, flags, None::<&str>).unwrap();
        remove(&root).unwrap();
        assert!(!root.exists());
        assert!(source.join("file").exists());
    }

    #[test]
    fn what_is_not_there_is_removed_already() {
        let directory = tempfile::tempdir().unwrap();
        remove(&directory.path().join("none")).unwrap();
    }

    #[test]
    fn mount_points_are_unescaped_and_listed_from_the_inside() {
        let info =
            b"1 2 0:1 / /r/7 rw - t s o\n3 2 0:1 / /r/7/a\\040b rw - t s o\n4 2 0:1 / /r/70 rw\n";
        let mounts = mounts_below(info, Path::new("/r/7"));
        assert_eq!(mounts, [Path::new("/r/7/a b"), Path::new("/r/7")]);
    }
}

//! Disk space of a tree that a container may be changing, and may have made to mislead us.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use crate::snapshot::record::Usage;

/// Directories are held open down to here; what lies deeper is not counted. Bounds descriptors.
const MAX_DEPTH: usize = 256;
/// Unit of `st_blocks`.
const BLOCK: u64 = 512;

/// Measures the tree at `root`: allocated blocks, and inodes, hard links once. No symbolic link is
/// followed and no other file system entered; what vanishes meanwhile is not counted.
///
/// # Errors
/// `root` cannot be opened.
pub fn usage(root: &Path) -> io::Result<Usage> {
    let top = Dir::open(root, directory_flags(), Mode::empty())?;
    let mut tally = Tally::new(&fstat(&top)?);
    let mut stack = vec![tally.enter(top)];
    while let Some((directory, subdirectories)) = stack.last_mut() {
        let Some(name) = subdirectories.pop() else {
            stack.pop();
            continue;
        };
        match Dir::openat(
            &*directory,
            name.as_c_str(),
            directory_flags(),
            Mode::empty(),
        ) {
            Ok(below) if stack.len() < MAX_DEPTH => {
                let level = tally.enter(below);
                stack.push(level);
            }
            Ok(_) | Err(Errno::EMFILE | Errno::ENFILE) => tally.cut = true,
            // Gone meanwhile, or no directory any more.
            Err(_) => {}
        }
    }
    if tally.cut {
        tracing::warn!(path = %root.display(), "directories are nested too deep to count them all");
    }
    Ok(tally.usage)
}

const fn directory_flags() -> OFlag {
    OFlag::O_DIRECTORY
        .union(OFlag::O_NOFOLLOW)
        .union(OFlag::O_CLOEXEC)
}

struct Tally {
    device: u64,
    /// Inodes with more than one name.
    linked: HashSet<u64>,
    usage: Usage,
    /// Whether something was left out.
    cut: bool,
}

impl Tally {
    fn new(top: &FileStat) -> Self {
        let mut tally = Self {
            device: top.st_dev,
            linked: HashSet::new(),
            usage: Usage::default(),
            cut: false,
        };
        tally.add(top);
        tally
    }

    /// Counts what is in a directory. Answers it with the names of its subdirectories.
    fn enter(&mut self, mut directory: Dir) -> (Dir, Vec<CString>) {
        let names: Vec<CString> = directory
            .iter()
            .filter_map(|entry| Some(entry.ok()?.file_name().to_owned()))
            .filter(|name| !matches!(name.to_bytes(), b"." | b".."))
            .collect();
        let mut subdirectories = Vec::new();
        for name in names {
            let status = fstatat(&directory, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
            let Ok(status) = status else { continue };
            if status.st_dev == self.device && self.add(&status) {
                subdirectories.push(name);
            }
        }
        (directory, subdirectories)
    }

    /// Counts an inode. Answers whether it is a directory.
    fn add(&mut self, status: &FileStat) -> bool {
        let is_directory =
            SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR;
        if is_directory || status.st_nlink == 1 || self.linked.insert(status.st_ino) {
            let blocks = u64::try_from(status.st_blocks).unwrap_or_default();
            self.usage.size = self.usage.size.saturating_add(blocks.saturating_mul(BLOCK));
            self.usage.inodes += 1;
        }
        is_directory
    }
}

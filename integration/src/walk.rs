//! Everything a program can see of a directory tree, and how two trees differ.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// What kind of thing a name is, with what only this kind has.
#[derive(Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the kinds of stat(2)")]
pub enum Kind {
    Regular {
        size: u64,
        links: u64,
        sha256: String,
    },
    Directory,
    Symlink {
        target: PathBuf,
        size: u64,
        links: u64,
    },
    Fifo {
        links: u64,
    },
    Socket {
        links: u64,
    },
    CharDevice {
        major: u64,
        minor: u64,
        links: u64,
    },
    BlockDevice {
        major: u64,
        minor: u64,
        links: u64,
    },
}

/// One name of a tree. Size and link count of directories are left out: they are the business of
/// each file system (overlayfs says 1 link for every merged directory).
#[derive(Clone, PartialEq, Eq)]
pub struct Node {
    /// Its kind.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds since the epoch.
    pub mtime: (i64, i64),
    /// Extended attributes.
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// Which earlier name of the tree is the same file, if any.
    pub same_as: Option<PathBuf>,
}

/// A tree: every name below its root by path relative to it; the root is the empty path.
pub type Tree = BTreeMap<PathBuf, Node>;

/// Bytes that the files below `root` take on disk. What goes meanwhile takes nothing.
pub fn allocated(root: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in walkdir::WalkDir::new(root) {
        let looked = entry.and_then(|entry| entry.metadata());
        match looked {
            Ok(metadata) if metadata.is_file() => bytes += metadata.blocks() * 512,
            Err(error)
                if error
                    .io_error()
                    .is_none_or(|it| it.kind() != ErrorKind::NotFound) =>
            {
                return Err(error.into());
            }
            _ => {}
        }
    }
    Ok(bytes)
}

/// Walks the tree at `root`, reading every file to its end.
pub fn walk(root: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut seen = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root).sort_by_file_name() {
        let entry = entry?;
        let path = entry.path().strip_prefix(root)?.to_owned();
        let metadata = match fs::symlink_metadata(entry.path()) {
            // A whiteout in a directory of one layer only: overlayfs lists the name, and says that
            // it is not there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        let mut node = examine(entry.path(), &metadata)
            .with_context(|| format!("cannot examine {}", entry.path().display()))?;
        if metadata.nlink() > 1 && !metadata.is_dir() {
            let inode = (metadata.dev(), metadata.ino());
            node.same_as = seen.get(&inode).cloned();
            seen.entry(inode).or_insert_with(|| path.clone());
        }
        tree.insert(path, node);
    }
    Ok(tree)
}

fn examine(path: &Path, metadata: &Metadata) -> Result<Node> {
    let mut xattrs = BTreeMap::new();
    for name in xattr::list(path)? {
        let value = xattr::get(path, &name)?;
        xattrs.insert(name, value.unwrap_or_default());
    }
    Ok(Node {
        kind: kind(path, metadata)?,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        xattrs,
        same_as: None,
    })
}

fn kind(path: &Path, metadata: &Metadata) -> Result<Kind> {
    let (size, links) = (metadata.size(), metadata.nlink());
    let (major, minor) = (
        nix::sys::stat::major(metadata.rdev()),
        nix::sys::stat::minor(metadata.rdev()),
    );
    let of = metadata.file_type();
    Ok(match () {
        () if of.is_dir() => Kind::Directory,
        () if of.is_symlink() => Kind::Symlink {
            target: fs::read_link(path)?,
            size,
            links,
        },
        () if of.is_fifo() => Kind::Fifo { links },
        () if of.is_socket() => Kind::Socket { links },
        () if of.is_char_device() => Kind::CharDevice {
            major,
            minor,
            links,
        },
        () if of.is_block_device() => Kind::BlockDevice {
            major,
            minor,
            links,
        },
        () => Kind::Regular {
            size,
            links,
            sha256: digest_of(path)?,
        },
    })
}

/// Hex sha256 of a file.
pub fn digest_of(path: &Path) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    io::copy(&mut file, &mut HashWriter(&mut hasher))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex(&hasher.finalize()))
}

/// Bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A hasher to copy into.
#[derive(Debug)]
pub(crate) struct HashWriter<'a>(pub(crate) &'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How `actual` differs from `expected`, one line a difference; nothing if they are equal.
pub fn differences(expected: &Tree, actual: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, want) in expected {
        match actual.get(path) {
            None => found.push(format!("/{}: missing, should be {want}", path.display())),
            Some(have) if have != want => found.push(format!(
                "/{}:\n    should be {want}\n    but is    {have}",
                path.display()
            )),
            Some(_) => {}
        }
    }
    for (path, have) in actual
        .iter()
        .filter(|(path, _)| !expected.contains_key(*path))
    {
        found.push(format!(
            "/{}: should not be there, is {have}",
            path.display()
        ));
    }
    found
}

/// Panics with the differences, if there are any.
#[track_caller]
pub fn assert_same(expected: &Tree, actual: &Tree) {
    const SHOWN: usize = 30;
    let found = differences(expected, actual);
    assert!(
        found.is_empty(),
        "{} of {} names differ:\n{}",
        found.len(),
        expected.len(),
        found[..found.len().min(SHOWN)].join("\n")
    );
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, nanoseconds) = self.mtime;
        write!(
            f,
            "{:?} {:04o} {}:{}",
            self.kind, self.mode, self.uid, self.gid
        )?;
        write!(f, " {seconds}.{nanoseconds:09}")?;
        if let Some(first) = &self.same_as {
            write!(f, " same as /{}", first.display())?;
        }
        for (name, value) in &self.xattrs {
            write!(f, " {}={}", name.display(), value.escape_ascii())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Regular {
                size,
                links,
                sha256,
            } => {
                write!(
                    f,
                    "file of {size} bytes, {links} links, sha256 {}",
                    &sha256[..12]
                )
            }
            Self::Directory => f.write_str("directory"),
            Self::Symlink {
                target,
                size,
                links,
            } => {
                write!(f, "symlink ({size}, {links} links) to {}", target.display())
            }
            Self::Fifo { links } => write!(f, "fifo, {links} links"),
            Self::Socket { links } => write!(f, "socket, {links} links"),
            Self::CharDevice {
                major,
                minor,
                links,
            } => {
                write!(f, "char device {major}:{minor}, {links} links")
            }
            Self::BlockDevice {
                major,
                minor,
                links,
            } => {
                write!(f, "block device {major}:{minor}, {links} links")
            }
        }
    }
}

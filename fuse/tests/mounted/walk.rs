//! Everything stat(2), readlink(2), listxattr(2) and read(2) say of a tree.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind::NotFound;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What can be seen of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) size: u64,
    pub(crate) blocks: u64,
    pub(crate) mtime: (i64, i64),
    pub(crate) nlink: u64,
    pub(crate) device: u64,
    pub(crate) target: Option<PathBuf>,
    pub(crate) xattrs: BTreeMap<OsString, Vec<u8>>,
    pub(crate) content: Option<u64>,
}

pub(crate) type Tree = BTreeMap<PathBuf, Seen>;

/// Everything below `root`, by path from there; the root itself is the empty path.
pub(crate) fn walk(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let full = match path.as_os_str().is_empty() {
            true => root.to_path_buf(),
            false => root.join(&path),
        };
        // overlayfs lists a whiteout in a directory that only one layer has, and then says that
        // there is no such file.
        let missing = fs::symlink_metadata(&full).is_err_and(|error| error.kind() == NotFound);
        if missing {
            continue;
        }
        let seen = look(&full);
        if fs::symlink_metadata(&full).unwrap().is_dir() {
            for entry in fs::read_dir(&full).unwrap() {
                pending.push(path.join(entry.unwrap().file_name()));
            }
        }
        tree.insert(path, seen);
    }
    tree
}

pub(crate) fn look(path: &Path) -> Seen {
    let metadata = fs::symlink_metadata(path).unwrap();
    let kind = metadata.file_type();
    let is_device = kind.is_char_device() || kind.is_block_device();
    let names = xattr::list(path)
        .map(|names| names.collect())
        .unwrap_or_else(|_| Vec::new());
    let value = |name: OsString| {
        let value = xattr::get(path, &name).unwrap().unwrap();
        (name, value)
    };
    Seen {
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        size: metadata.size(),
        blocks: metadata.blocks(),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        nlink: metadata.nlink(),
        device: if is_device { metadata.rdev() } else { 0 },
        target: kind.is_symlink().then(|| fs::read_link(path).unwrap()),
        xattrs: names.into_iter().map(value).collect(),
        content: kind.is_file().then(|| hash(&fs::read(path).unwrap())),
    }
}

fn hash(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

/// Asserts that two trees are the same, and says where they are not.
pub(crate) fn assert_same(ours: &Tree, theirs: &Tree) {
    let mut differences = Vec::new();
    for path in ours.keys().chain(theirs.keys()) {
        let (a, b) = (ours.get(path), theirs.get(path));
        if a != b {
            differences.push(format!(
                "{}:\n  view      {a:?}\n  reference {b:?}",
                path.display()
            ));
        }
    }
    differences.sort();
    differences.dedup();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

//! The names, attributes and data positions of one layer, built once from its table of contents.
//!
//! Inodes are numbered breadth first from the root, so that the same table of contents always
//! gives the same numbers: node ids must mean the same to a process that takes a mount over.

mod build;
mod children;
mod draft;
mod finish;
mod headers;
mod left_out;
mod name;
mod room;
#[cfg(test)]
pub(crate) mod sample;
mod source;
#[cfg(test)]
mod tests;

use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use ztoc::compact::{ColumnToc, CompactError};
use ztoc::error::DecodeError;
use ztoc::toc::{Extent, Timestamp};
use ztoc::{Entry, LeanToc, Toc, UncompressedOffset};

pub(crate) use crate::tree::headers::{HeaderCheck, Headers};
pub(crate) use crate::tree::name::components;

/// What one layer contributes to a view: its names, attributes and where the bytes lie.
pub struct LayerTree {
    inodes: Box<[Inode]>,
    /// As many; only those of regular files say something.
    headers: Box<[HeaderCheck]>,
    /// The directories' entries; each directory's are a run, ascending by name.
    dirents: Box<[Dirent]>,
    /// Names and symlink targets, one after another.
    texts: Box<[u8]>,
    xattrs: Box<[XattrSet]>,
    sparse: Box<[SparseFile]>,
    marks: bool,
}

/// The number of an inode within its layer; the root is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct InodeIndex(pub(crate) u32);

impl InodeIndex {
    /// The layer's root directory.
    pub(crate) const ROOT: Self = Self(0);

    fn position(self) -> usize {
        self.0 as usize
    }
}

/// A run of [`LayerTree::texts`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text {
    offset: u32,
    len: u16,
}

/// Attributes a tar header gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// Seconds since 1970, never before.
    pub(crate) mtime_seconds: u64,
    pub(crate) mtime_nanos: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Permission, setuid, setgid and sticky bits.
    pub(crate) permissions: u16,
}

impl Metadata {
    /// Of a directory that has no entry of its own anywhere.
    pub(crate) const IMPLIED: Self = Self {
        mtime_seconds: 0,
        mtime_nanos: 0,
        uid: 0,
        gid: 0,
        permissions: 0o755,
    };

    /// Of a whiteout, as overlayfs makes them.
    const WHITEOUT: Self = Self {
        permissions: 0,
        ..Self::IMPLIED
    };

    fn of<T>(entry: &Entry<T>) -> Self {
        let mut metadata = Self {
            uid: entry.uid,
            gid: entry.gid,
            // Twelve bits always fit.
            permissions: u16::try_from(entry.mode & 0o7777).unwrap_or_default(),
            ..Self::IMPLIED
        };
        metadata.set_mtime(entry.mtime);
        metadata
    }

    /// Sets the time as containerd does: what it cannot express (before 1970, or later than 63
    /// bits of nanoseconds reach, in 2262) becomes 1970-01-01.
    fn set_mtime(&mut self, mtime: Option<Timestamp>) {
        const LAST: (u64, u32) = (9_223_372_036, 854_775_807);
        let time = mtime.and_then(|time| Some((u64::try_from(time.seconds).ok()?, time.nanos)));
        let time = time.filter(|time| *time <= LAST).unwrap_or_default();
        (self.mtime_seconds, self.mtime_nanos) = time;
    }
}

/// The device number of a device member as mknod(2) takes it: 12 bits of major, 20 of minor.
fn device_number<T>(entry: &Entry<T>) -> u32 {
    let major = u32::try_from(entry.dev_major & 0xfff).unwrap_or_default();
    let minor = u32::try_from(entry.dev_minor & 0xf_ffff).unwrap_or_default();
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// One file of any kind; hard links share it.
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) metadata: Metadata,
    /// Names in this layer; of a directory 2 and its subdirectories, as ext4 counts.
    pub(crate) nlink: u32,
    xattrs: Option<NonZeroU32>,
    pub(crate) body: Body,
}

/// What a file is.
#[derive(Debug)]
pub(crate) enum Body {
    /// A directory.
    Directory(Directory),
    /// A regular file that lies in one piece.
    Regular {
        /// Where its data begin.
        offset: UncompressedOffset,
        /// Bytes.
        size: u64,
    },
    /// A regular file with holes: [`LayerTree::sparse`].
    Sparse(u32),
    /// A symbolic link.
    Symlink(Text),
    /// A character device.
    CharDevice(u32),
    /// A block device.
    BlockDevice(u32),
    /// A named pipe.
    Fifo,
    /// Hides the name in the layers below.
    Whiteout,
    /// A hard link to this path, which only a lower layer may have.
    LowerLink(Text),
}

/// A directory of one layer.
#[derive(Debug)]
pub(crate) struct Directory {
    parent: InodeIndex,
    name: Text,
    first: u32,
    count: u32,
    /// Hides what the layers below have here.
    pub(crate) opaque: bool,
    /// Has no entry of its own: its attributes are those of the layers below.
    pub(crate) implied: bool,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dirent {
    name_offset: u32,
    name_len: u8,
    pub(crate) inode: InodeIndex,
}

/// Extended attributes of one inode, ascending by name.
pub(crate) type XattrSet = Box<[Xattr]>;

/// An extended attribute: name and value.
pub(crate) type Xattr = (Box<[u8]>, Box<[u8]>);

/// A regular file with holes.
#[derive(Debug)]
pub(crate) struct SparseFile {
    /// The tar member, from which the map is had.
    pub(crate) entry: Entry,
    /// Where its headers begin, if that is known, else 0.
    pub(crate) header: UncompressedOffset,
    /// The runs of data, once known.
    pub(crate) map: OnceLock<Arc<[Extent]>>,
}

impl LayerTree {
    /// Builds the tree of a layer, the members applied one after another as containerd does.
    /// Never fails: what no file system could hold (a name too long, a parent that is a file, a
    /// hard link to nothing) is left out and reported in the log once.
    pub fn new(toc: &Toc) -> Self {
        match build::build(toc) {
            Ok(tree) => tree,
            Err(never) => match never {},
        }
    }

    /// The same from an encoded table.
    ///
    /// # Errors
    ///
    /// What is wrong with an entry.
    pub fn read(mut toc: LeanToc<'_>) -> Result<Self, DecodeError> {
        toc.in_any_order(build::build)
    }

    /// The same from the table of a compact zTOC.
    ///
    /// # Errors
    ///
    /// What is wrong with an entry.
    pub fn read_columns(toc: &ColumnToc) -> Result<Self, CompactError> {
        build::build(toc)
    }

    /// Bytes of memory that it takes. What sparse files have besides is left out.
    pub fn memory(&self) -> usize {
        let xattr = |(name, value): &Xattr| size_of::<Xattr>() + name.len() + value.len();
        let xattrs = self
            .xattrs
            .iter()
            .map(|set| size_of::<XattrSet>() + set.iter().map(xattr).sum::<usize>());
        size_of_val(&*self.inodes)
            + size_of_val(&*self.headers)
            + size_of_val(&*self.dirents)
            + self.texts.len()
            + xattrs.sum::<usize>()
            + size_of_val(&*self.sparse)
    }

    /// The number of inodes.
    pub(crate) fn len(&self) -> u64 {
        self.inodes.len() as u64
    }

    /// The inode `index`, if there is one.
    pub(crate) fn get(&self, index: InodeIndex) -> Option<&Inode> {
        self.inodes.get(index.position())
    }

    /// What the headers of `index` must say.
    pub(crate) fn header_check(&self, index: InodeIndex) -> &HeaderCheck {
        &self.headers[index.position()]
    }

    /// The inode `index`, which must be one of this tree's.
    pub(crate) fn inode(&self, index: InodeIndex) -> &Inode {
        &self.inodes[index.position()]
    }

    /// The entries of `directory`, ascending by name.
    pub(crate) fn dirents(&self, directory: &Directory) -> &[Dirent] {
        let first = directory.first as usize;
        &self.dirents[first..first + directory.count as usize]
    }

    /// The numbers of the entries of `directory`, ascending by name.
    pub(crate) fn dirent_numbers(&self, directory: &Directory) -> Range<u32> {
        directory.first..directory.first + directory.count
    }

    /// The directory entry `number`.
    pub(crate) fn dirent(&self, number: u32) -> &Dirent {
        &self.dirents[number as usize]
    }

    /// The name of a directory entry.
    pub(crate) fn name(&self, dirent: &Dirent) -> &[u8] {
        let start = dirent.name_offset as usize;
        &self.texts[start..start + usize::from(dirent.name_len)]
    }

    /// The bytes of `text`.
    pub(crate) fn text(&self, text: Text) -> &[u8] {
        let start = text.offset as usize;
        &self.texts[start..start + usize::from(text.len)]
    }

    /// What `name` is in `directory`.
    pub(crate) fn child(&self, directory: &Directory, name: &[u8]) -> Option<InodeIndex> {
        let dirents = self.dirents(directory);
        let at = dirents
            .binary_search_by(|dirent| self.name(dirent).cmp(name))
            .ok()?;
        Some(dirents[at].inode)
    }

    /// What is at `path`; `None` if there is nothing in this layer.
    pub(crate) fn locate(&self, path: &[&[u8]]) -> Option<InodeIndex> {
        let mut at = InodeIndex::ROOT;
        for name in path {
            at = self.child(self.directory(at)?, name)?;
        }
        Some(at)
    }

    /// The directory `index` is, or `None` if it is something else.
    pub(crate) fn directory(&self, index: InodeIndex) -> Option<&Directory> {
        match &self.get(index)?.body {
            Body::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// The names on the way from the root to `directory`, the root's excluded.
    pub(crate) fn path(&self, directory: InodeIndex) -> Vec<&[u8]> {
        let mut names = Vec::new();
        let mut at = directory;
        while at != InodeIndex::ROOT {
            let Some(directory) = self.directory(at) else {
                break;
            };
            names.push(self.text(directory.name));
            at = directory.parent;
        }
        names.reverse();
        names
    }

    /// A path of `index`, one of several if it is hard-linked, found by looking through all names.
    pub(crate) fn search_path(&self, index: InodeIndex) -> Vec<&[u8]> {
        if self.directory(index).is_some() {
            return self.path(index);
        }
        let Some(at) = self.dirents.iter().position(|dirent| dirent.inode == index) else {
            return Vec::new();
        };
        let indexes = (0..).map(InodeIndex).take(self.inodes.len());
        let mut directories = indexes.filter(|&index| {
            let run = self
                .directory(index)
                .map(|found| self.dirent_numbers(found));
            run.is_some_and(|run| (run.start as usize..run.end as usize).contains(&at))
        });
        let mut path = directories
            .next()
            .map(|index| self.path(index))
            .unwrap_or_default();
        path.push(self.name(&self.dirents[at]));
        path
    }

    /// The extended attributes of `inode`.
    pub(crate) fn xattrs(&self, inode: &Inode) -> &[Xattr] {
        match inode.xattrs {
            Some(number) => &self.xattrs[number.get() as usize - 1],
            None => &[],
        }
    }

    /// Whether any file here has an extended attribute.
    pub(crate) fn has_xattrs(&self) -> bool {
        !self.xattrs.is_empty()
    }

    /// Whether there is a whiteout or an opaque directory.
    pub(crate) fn has_marks(&self) -> bool {
        self.marks
    }

    /// The sparse file `number`.
    pub(crate) fn sparse(&self, number: u32) -> &SparseFile {
        &self.sparse[number as usize]
    }

    /// The directories that have no entry of their own; the root is no such.
    pub(crate) fn implied_directories(&self) -> impl Iterator<Item = InodeIndex> {
        let indexes = (0..).map(InodeIndex).take(self.inodes.len()).skip(1);
        indexes.filter(|index| self.directory(*index).is_some_and(|found| found.implied))
    }

    /// The regular files of one piece that have at least `min_size` bytes, ascending.
    pub(crate) fn large_files(&self, min_size: u64) -> impl Iterator<Item = InodeIndex> {
        let inodes = self.inodes.iter().zip((0..).map(InodeIndex));
        inodes.filter_map(move |(inode, index)| match inode.body {
            Body::Regular { size, .. } if size >= min_size => Some(index),
            _ => None,
        })
    }

    /// The inodes that are hard links into lower layers, with their targets.
    pub(crate) fn lower_links(&self) -> impl Iterator<Item = (InodeIndex, &[u8])> {
        let indexes: Range<u32> = 0..u32::try_from(self.inodes.len()).unwrap_or(u32::MAX);
        indexes
            .map(InodeIndex)
            .filter_map(|index| match self.inode(index).body {
                Body::LowerLink(target) => Some((index, self.text(target))),
                _ => None,
            })
    }
}

impl std::fmt::Debug for LayerTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut tree = f.debug_struct("LayerTree");
        tree.field("inodes", &self.inodes.len())
            .finish_non_exhaustive()
    }
}

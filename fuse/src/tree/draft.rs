//! Inodes while a tree is built.

use ztoc::toc::{Extent, FileData, Member};
use ztoc::{Entry, UncompressedOffset};

use super::Metadata;
use super::children::Children;

const FILE_CAPABILITIES: &[u8] = b"security.capability";

/// The number of an inode while the tree is built; not all survive.
pub(super) type DraftIndex = u32;

/// Small, as there is one for each file, and memory that is touched for the first time is what building takes longest for.
pub(super) struct Draft<'t> {
    pub(super) body: DraftBody<'t>,
    /// Owner, mode and time.
    pub(super) metadata: Metadata,
    /// Of the entry it was made of; of a directory, any number.
    pub(super) number: u32,
    xattrs: Option<Box<Xattrs<'t>>>,
}

/// Names and values.
type Xattrs<'t> = Vec<(&'t [u8], &'t [u8])>;

pub(super) enum DraftBody<'t> {
    Directory(Box<DraftDirectory<'t>>),
    /// A regular file that lies in one piece, `size` bytes from `offset` on.
    Regular {
        offset: UncompressedOffset,
        size: u64,
    },
    Sparse(Box<DraftSparse>),
    Symlink(&'t [u8]),
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
    Whiteout,
    /// A hard link whose target has not been seen.
    Link(Box<Link<'t>>),
    /// A hard link that turned out to be this inode.
    Alias(DraftIndex),
    /// A hard link that leads nowhere.
    Dangling,
}

pub(super) struct DraftDirectory<'t> {
    pub(super) parent: DraftIndex,
    pub(super) children: Children<'t>,
    pub(super) opaque: bool,
    pub(super) implied: bool,
}

/// A regular file with holes.
pub(super) struct DraftSparse {
    pub(super) entry: Entry,
    /// Where its headers begin, if that is known.
    pub(super) header: Option<UncompressedOffset>,
    /// `None` if it must be read from the archive.
    pub(super) map: Option<Vec<Extent>>,
}

pub(super) struct Link<'t> {
    pub(super) name: &'t [u8],
    pub(super) target: &'t [u8],
}

impl DraftBody<'_> {
    /// What a regular file is.
    pub(super) fn regular(member: &Member<'_>) -> Self {
        let entry = &member.entry;
        let map = match entry.data() {
            FileData::Contiguous(range) => {
                return Self::Regular {
                    offset: range.start,
                    size: entry.size,
                };
            }
            FileData::Sparse(extents) => Some(extents),
            FileData::MapInArchive(_) => None,
        };
        Self::Sparse(Box::new(DraftSparse {
            entry: entry.clone().into_owned(),
            header: member.header,
            map,
        }))
    }
}

impl<'t> Draft<'t> {
    pub(super) fn new(body: DraftBody<'t>, metadata: Metadata, number: u32) -> Self {
        Self {
            body,
            metadata,
            number,
            xattrs: None,
        }
    }

    pub(super) fn implied_directory(parent: DraftIndex) -> Self {
        let directory = DraftDirectory {
            parent,
            children: Children::default(),
            opaque: false,
            implied: true,
        };
        let body = DraftBody::Directory(Box::new(directory));
        Self::new(body, Metadata::IMPLIED, 0)
    }

    pub(super) fn of(body: DraftBody<'t>, entry: &Entry<&'t [u8]>, number: u32) -> Self {
        let mut draft = Self::new(body, Metadata::of(entry), number);
        draft.add_xattrs(entry);
        draft
    }

    /// What another name of this inode says of it: containerd sets owner, attributes, mode and time
    /// of each name in turn on the one inode; setting the owner takes file capabilities away.
    pub(super) fn relink(&mut self, entry: &Entry<&'t [u8]>) {
        self.metadata = Metadata::of(entry);
        if let Some(xattrs) = &mut self.xattrs {
            xattrs.retain(|(name, _)| *name != FILE_CAPABILITIES);
        }
        self.add_xattrs(entry);
    }

    /// Extended attributes.
    pub(super) fn xattrs(&self) -> &[(&'t [u8], &'t [u8])] {
        self.xattrs.as_ref().map_or(&[], |xattrs| xattrs)
    }

    pub(super) fn add_xattrs(&mut self, entry: &Entry<&'t [u8]>) {
        for (name, value) in entry.lent_xattrs() {
            if !is_servable_xattr(name, value) {
                continue;
            }
            let xattrs = self.xattrs.get_or_insert_default();
            match xattrs.iter_mut().find(|(known, _)| *known == name) {
                Some(known) => known.1 = value,
                None => xattrs.push((name, value)),
            }
        }
    }
}

/// Whether an attribute may appear in a view. What begins with `trusted.overlay.` or
/// `user.overlay.` would be believed by overlayfs: an image could redirect or hide directories.
fn is_servable_xattr(name: &[u8], value: &[u8]) -> bool {
    const XATTR_NAME_MAX: usize = 255;
    const XATTR_SIZE_MAX: usize = 65536;
    let fits = !name.is_empty() && name.len() <= XATTR_NAME_MAX && value.len() <= XATTR_SIZE_MAX;
    let ours = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    fits && !ours && !name.contains(&0)
}

//! The table of contents: one entry per tar member, in tar order.

use std::ops::Range;

use crate::unit::UncompressedOffset;

/// What a tar member is. The file type comes from here alone, never from the mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// Another name of an earlier (or, tolerated, later) member; `link` is its name.
    HardLink,
    /// A symbolic link; `link` is its target.
    SymLink,
    /// A directory.
    Directory,
    /// A regular file with data in the tar.
    Regular,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
}

/// A time as the tar gives it: seconds since 1970 (may be negative) and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z, rounded down.
    pub seconds: i64,
    /// 0..1_000_000_000.
    pub nanos: u32,
}

/// One tar member. Names and texts are raw bytes: tar knows no encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Name as in the archive: `./` prefixes and trailing `/` are kept.
    pub name: Vec<u8>,
    /// File type.
    pub kind: EntryKind,
    /// Position of the member's data: the first byte after all its headers.
    pub offset: UncompressedOffset,
    /// The logical size in bytes: of a sparse file including its holes.
    pub size: u64,
    /// Target of a hard or symbolic link, else empty.
    pub link: Vec<u8>,
    /// The tar mode field; permission, setuid, setgid and sticky bits are meaningful.
    pub mode: i64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Owner's name.
    pub uname: Vec<u8>,
    /// Group's name.
    pub gname: Vec<u8>,
    /// Modification time; `None` where the zTOC has no readable one (year over 9999).
    pub mtime: Option<Timestamp>,
    /// Device major number as the tar has it.
    pub dev_major: i64,
    /// Device minor number.
    pub dev_minor: i64,
    /// All PAX records of the member, keys ascending and unique.
    pub pax: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Where the bytes of a regular file lie in the uncompressed tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileData {
    /// One run of `Entry::size` bytes.
    Contiguous(Range<UncompressedOffset>),
    /// Runs of data with holes (zeros) between them, ascending, within `Entry::size`.
    Sparse(Vec<Extent>),
    /// A GNU PAX 1.0 sparse file: its map is text in the tar, in front of the data, and must be
    /// read first: give the bytes of this range to [`Entry::sparse_1_0`].
    MapInArchive(Range<UncompressedOffset>),
}

/// A run of data of a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Position within the file.
    pub file_offset: u64,
    /// Position within the uncompressed tar.
    pub tar_offset: UncompressedOffset,
    /// Length in bytes.
    pub len: u64,
}

/// All entries of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Toc {
    pub(crate) entries: Vec<Entry>,
}

impl Entry {
    /// Extended attributes: the `SCHILY.xattr.` records, prefix removed.
    pub fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.pax.iter().filter_map(|(key, value)| {
            Some((key.strip_prefix(b"SCHILY.xattr.")?, value.as_slice()))
        })
    }

    /// Where the bytes of a regular file lie; an empty contiguous range for other kinds.
    pub fn data(&self) -> FileData {
        todo!()
    }
}

impl Toc {
    /// A table of contents made of `entries`, in tar order.
    pub fn new(entries: Vec<Entry>) -> Self {
        Self { entries }
    }

    /// The entries in tar order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

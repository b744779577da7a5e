//! The table of contents: one entry per tar member, in tar order.

mod member;
mod timestamp;

use std::ops::Range;

pub use self::member::Member;
pub(crate) use self::member::Walk;
pub use self::timestamp::Timestamp;
use crate::error::{DecodeError, EntryError, SparseError};
use crate::tar::sparse::{self, MAX_MAP_LEN, Region, SparseMap};
use crate::tar::{BLOCK_LEN, Scanner};
use crate::unit::UncompressedOffset;

/// Key of a PAX record that holds an extended attribute, in front of the attribute's name.
const XATTR: &[u8] = b"SCHILY.xattr.";

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

impl EntryKind {
    const TEXTS: [(Self, &'static str); 7] = [
        (Self::HardLink, "hardlink"),
        (Self::SymLink, "symlink"),
        (Self::Directory, "dir"),
        (Self::Regular, "reg"),
        (Self::CharDevice, "char"),
        (Self::BlockDevice, "block"),
        (Self::Fifo, "fifo"),
    ];

    /// The name that a zTOC has for it.
    pub fn text(self) -> &'static str {
        Self::TEXTS
            .iter()
            .find(|(kind, _)| *kind == self)
            .map_or("", |(_, text)| text)
    }

    pub(crate) fn from_text(text: &[u8]) -> Option<Self> {
        // Nearly all of them.
        if text == b"reg" {
            return Some(Self::Regular);
        }
        let mut texts = Self::TEXTS.iter();
        texts
            .find(|(_, other)| other.as_bytes() == text)
            .map(|(kind, _)| *kind)
    }
}

/// One tar member. Names and texts are raw bytes: tar knows no encoding. They are the entry's own, or lie in what it was
/// read from (`T` is `&[u8]` then).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<T = Vec<u8>> {
    /// Name as in the archive: `./` prefixes and trailing `/` are kept.
    pub name: T,
    /// File type.
    pub kind: EntryKind,
    /// Position of the member's data: the first byte after all its headers.
    pub offset: UncompressedOffset,
    /// The logical size in bytes: of a sparse file including its holes.
    pub size: u64,
    /// Target of a hard or symbolic link, else empty.
    pub link: T,
    /// The tar mode field; permission, setuid, setgid and sticky bits are meaningful.
    pub mode: i64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Owner's name.
    pub uname: T,
    /// Group's name.
    pub gname: T,
    /// Modification time; `None` where the zTOC has no readable one (year over 9999).
    pub mtime: Option<Timestamp>,
    /// Device major number as the tar has it.
    pub dev_major: i64,
    /// Device minor number.
    pub dev_minor: i64,
    /// All PAX records of the member, keys ascending and unique.
    pub pax: Vec<(T, T)>,
}

/// Where the bytes of a regular file lie in the uncompressed tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileData {
    /// One run of `Entry::size` bytes.
    Contiguous(Range<UncompressedOffset>),
    /// Runs of data with holes (zeros) between them, ascending, within `Entry::size`.
    Sparse(Vec<Extent>),
    /// A GNU PAX 1.0 sparse file: its map is text in the tar, in front of the data, and must be
    /// read first: give the bytes of this range to [`Entry::sparse_1_0`]. The range is as long as
    /// a map may be; where [`Toc::header_offset`] knows better, what lies before it may be left out.
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

/// A table of contents whose entries come one after another, nearly always in tar order: each is checked as it comes, while
/// it is in the processor's cache.
#[derive(Debug)]
pub(crate) struct TocInProgress {
    entries: Vec<Entry>,
    size: u64,
    walk: Walk,
    /// So far.
    in_order: bool,
}

impl TocInProgress {
    /// Of a layer of `size` uncompressed bytes, with room for so many entries.
    pub(crate) fn new(size: u64, room: usize) -> Self {
        Self {
            entries: Vec::with_capacity(room),
            size,
            walk: Walk::new(size),
            in_order: true,
        }
    }

    /// Adds an entry.
    pub(crate) fn push(&mut self, entry: Entry) -> Result<(), DecodeError> {
        if self.in_order {
            match self.walk.pass(&entry) {
                Err(DecodeError::Disorder) => self.in_order = false,
                passed => drop(passed?),
            }
        }
        self.entries.push(entry);
        Ok(())
    }

    /// The whole table; entries that came out of order are put in order and checked now.
    pub(crate) fn finish(self) -> Result<Toc, DecodeError> {
        match self.in_order {
            true => Ok(Toc {
                entries: self.entries,
            }),
            false => Toc::new(self.entries, self.size),
        }
    }
}

impl Entry {
    /// The entry of the member whose headers are `bytes`, all of them: from the end of the member before to
    /// where the data begins. `None` if they are anything else.
    pub fn of_headers(bytes: &[u8]) -> Option<Self> {
        let (taken, entry) = Scanner::new().step(bytes).ok()?;
        entry.filter(|_| taken == bytes.len())
    }
}

impl Entry<&[u8]> {
    /// The same with texts of its own.
    pub fn into_owned(self) -> Entry {
        self.map(<[u8]>::to_vec)
    }
}

impl<T> Entry<T> {
    /// The same with other texts.
    fn map<U>(self, mut text: impl FnMut(T) -> U) -> Entry<U> {
        let pax = self.pax.into_iter();
        Entry {
            name: text(self.name),
            kind: self.kind,
            offset: self.offset,
            size: self.size,
            link: text(self.link),
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            uname: text(self.uname),
            gname: text(self.gname),
            mtime: self.mtime,
            dev_major: self.dev_major,
            dev_minor: self.dev_minor,
            pax: pax.map(|(key, value)| (text(key), text(value))).collect(),
        }
    }
}

impl<T: AsRef<[u8]>> Entry<T> {
    /// Extended attributes: the `SCHILY.xattr.` records, prefix removed.
    pub fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.pax.iter().filter_map(|(key, value)| {
            let name = key.as_ref().strip_prefix(XATTR)?;
            Some((name, value.as_ref()))
        })
    }

    /// Where the bytes of a regular file lie; an empty contiguous range for other kinds.
    pub fn data(&self) -> FileData {
        let start = self.offset;
        match self.sparse_map() {
            Ok(SparseMap::Regions(regions)) => FileData::Sparse(self.extents(&regions)),
            Ok(SparseMap::InArchive) => {
                let longest = (MAX_MAP_LEN + BLOCK_LEN) as u64;
                FileData::MapInArchive(UncompressedOffset(start.0.saturating_sub(longest))..start)
            }
            // No entry of a decoded or built zTOC has a malformed map.
            Ok(SparseMap::None) | Err(_) => {
                let len = if self.kind == EntryKind::Regular {
                    self.size
                } else {
                    0
                };
                FileData::Contiguous(start..UncompressedOffset(start.0.saturating_add(len)))
            }
        }
    }

    /// The runs of data of a sparse file whose [`Self::data`] is [`FileData::MapInArchive`], from
    /// the bytes in front of its data: a piece of the tar that ends at [`Self::offset`] and holds
    /// at least the map and the block before it. They ascend and lie within `size`; a hostile map
    /// may lead them out of the layer.
    ///
    /// # Errors
    ///
    /// The bytes do not end with a map, or with one that does not fit the file.
    pub fn sparse_1_0(&self, header_area: &[u8]) -> Result<Vec<Extent>, SparseError> {
        let regions = sparse::parse_map_before(header_area)?;
        sparse::validate(&regions, self.size)?;
        Ok(self.extents(&regions))
    }

    fn sparse_map(&self) -> Result<SparseMap, SparseError> {
        match self.kind {
            EntryKind::Regular if !self.pax.is_empty() => sparse::from_pax(&self.pax, self.size),
            _ => Ok(SparseMap::None),
        }
    }

    fn extents(&self, regions: &[Region]) -> Vec<Extent> {
        let mut tar_offset = self.offset.0;
        let extent = |region: &Region| {
            let Region {
                offset: file_offset,
                len,
            } = *region;
            let extent = Extent {
                file_offset,
                tar_offset: UncompressedOffset(tar_offset),
                len,
            };
            tar_offset = tar_offset.saturating_add(len);
            extent
        };
        regions.iter().map(extent).collect()
    }

    /// The number of bytes that follow the headers in the tar, without padding; `None` where only
    /// the tar tells.
    fn stored_len(&self) -> Result<Option<u64>, SparseError> {
        Ok(match (self.kind, self.sparse_map()?) {
            (EntryKind::Regular, SparseMap::None) => Some(self.size),
            (EntryKind::Regular, SparseMap::Regions(regions)) => Some(sparse::stored_len(&regions)),
            (EntryKind::Regular, SparseMap::InArchive) => None,
            _ => Some(0),
        })
    }

    /// Where this entry's data and padding end, if that is known.
    fn end(&self) -> Option<u64> {
        self.end_of(self.stored_len().ok()??)
    }

    fn end_of(&self, stored: u64) -> Option<u64> {
        let end = self.offset.0.checked_add(stored)?;
        end.checked_next_multiple_of(BLOCK_LEN as u64)
    }

    /// Checks that its data lie in a layer of `size` bytes and behind where its headers begin, if that is known.
    /// Answers where those of the next begin, if that is.
    fn check(&self, header: Option<u64>, size: u64) -> Result<Option<u64>, EntryError> {
        let offset = self.offset.0;
        let stored = self.stored_len()?;
        let end = offset.saturating_add(stored.unwrap_or(0));
        if end > size {
            return Err(EntryError::OutOfRange { end, size });
        }
        match header {
            Some(header) if header > offset => Err(EntryError::Overlap { offset, header }),
            _ => Ok(stored.and_then(|stored| self.end_of(stored))),
        }
    }

    /// [`Self::check`], with an error that says which entry it is.
    fn checked(
        &self,
        index: usize,
        header: Option<u64>,
        size: u64,
    ) -> Result<Option<u64>, DecodeError> {
        self.check(header, size)
            .map_err(|source| DecodeError::Entry {
                index,
                name: String::from_utf8_lossy(self.name.as_ref())
                    .chars()
                    .take(200)
                    .collect(),
                source,
            })
    }

    /// An upper limit of the space that this entry takes in a zTOC.
    pub(crate) fn encoded_len(&self) -> usize {
        let texts = [&self.name, &self.link, &self.uname, &self.gname];
        let texts: usize = texts.iter().map(|text| text.as_ref().len() + 12).sum();
        let pax = self
            .pax
            .iter()
            .map(|(key, value)| key.as_ref().len() + value.as_ref().len() + 40);
        texts + pax.sum::<usize>() + 256
    }
}

impl Toc {
    /// Sorts and checks the entries of a layer of `size` uncompressed bytes.
    ///
    /// # Errors
    ///
    /// The first entry whose data lies outside the layer or overlaps the one before.
    pub fn new(mut entries: Vec<Entry>, size: u64) -> Result<Self, DecodeError> {
        entries.sort_by_key(|entry| entry.offset);
        let mut walk = Walk::new(size);
        for entry in &entries {
            walk.pass(entry)?;
        }
        Ok(Self { entries })
    }

    /// The entries in tar order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Where the headers of entry `index` begin; they end where its data begins. `None` if there
    /// is no such entry, or if it follows a sparse file whose size in the tar is told only there.
    pub fn header_offset(&self, index: usize) -> Option<UncompressedOffset> {
        self.entries.get(index)?;
        match index.checked_sub(1) {
            None => Some(UncompressedOffset(0)),
            Some(before) => self.entries[before].end().map(UncompressedOffset),
        }
    }
}

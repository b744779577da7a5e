//! From headers to an entry: what metadata members say about the member behind them.

use super::TarErrorReason;
use super::header::{Format, Header, text};
use super::pax::{self, Records};
use super::sparse::{self, OldMap, Region, SparseMap};
use crate::error::SparseError;
use crate::toc::{Entry, EntryKind, Timestamp};
use crate::unit::UncompressedOffset;

/// What metadata members in front of a member said.
#[derive(Debug, Default)]
pub(super) struct Extended {
    pax: Records,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
    /// Whether there was any such member.
    begun: bool,
}

impl Extended {
    pub(super) fn is_empty(&self) -> bool {
        !self.begun
    }

    /// A metadata member has begun.
    pub(super) fn begin(&mut self) {
        self.begun = true;
    }

    /// Takes a metadata member's data. Of several of one type the last counts. A global header
    /// drops what was said before it, as in Go, and says nothing itself.
    pub(super) fn take(&mut self, typeflag: u8, data: &[u8]) -> Result<(), TarErrorReason> {
        self.begun = true;
        let records = || pax::parse(data).map_err(TarErrorReason::Malformed);
        match typeflag {
            b'x' => self.pax = records()?,
            b'L' => self.long_name = text(data).to_vec(),
            b'K' => self.long_link = text(data).to_vec(),
            _ => {
                records()?;
                *self = Self {
                    begun: true,
                    ..Self::default()
                };
            }
        }
        Ok(())
    }

    /// The member with this header. All that was said is used up.
    pub(super) fn member(&mut self, mut header: Header) -> Result<Member, TarErrorReason> {
        let extended = std::mem::take(self);
        let old_sparse = header.typeflag == b'S';
        let mtime = pax::apply(&extended.pax, &mut header).map_err(TarErrorReason::Malformed)?;
        if !extended.long_name.is_empty() {
            header.name = extended.long_name;
        }
        if !extended.long_link.is_empty() {
            header.link = extended.long_link;
        }
        let kind = kind(&header)?;
        let negative = TarErrorReason::Malformed("the size is negative");
        let size = u64::try_from(header.size).map_err(|_| negative)?;
        let seconds = header.mtime;
        let mtime = mtime.unwrap_or(Timestamp { seconds, nanos: 0 });
        let member = Member {
            stored: if kind == EntryKind::Regular { size } else { 0 },
            old_sparse: old_sparse.then_some(header.format),
            entry: Entry {
                kind,
                size,
                name: header.name,
                offset: UncompressedOffset(0),
                link: header.link,
                mode: header.mode,
                uid: truncate(header.uid),
                gid: truncate(header.gid),
                uname: header.uname,
                gname: header.gname,
                mtime: Some(mtime).filter(|mtime| mtime.to_rfc3339().is_some()),
                dev_major: header.dev_major,
                dev_minor: header.dev_minor,
                pax: extended.pax.into_iter().collect(),
            },
        };
        member.with_pax_sparse()
    }
}

/// The lower 32 bits: what the field in the zTOC has room for.
fn truncate(id: i64) -> u32 {
    let [a, b, c, d, ..] = id.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn kind(header: &Header) -> Result<EntryKind, TarErrorReason> {
    Ok(match header.typeflag {
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::SymLink,
        b'3' => EntryKind::CharDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        // Archives older than ustar have no type for directories.
        0 if header.name.ends_with(b"/") => EntryKind::Directory,
        0 | b'0' | b'7' | b'S' => EntryKind::Regular,
        typeflag => {
            let name = String::from_utf8_lossy(&header.name).into_owned();
            return Err(TarErrorReason::Type {
                name,
                typeflag: char::from(typeflag),
            });
        }
    })
}

/// A member on the way to become an entry.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) entry: Entry,
    /// Bytes that follow in the archive.
    pub(super) stored: u64,
    /// The header's format if it is an old GNU sparse one.
    old_sparse: Option<Format>,
}

impl Member {
    /// Name and size from the records of a sparse file, and a check of its map if it is there.
    fn with_pax_sparse(mut self) -> Result<Self, TarErrorReason> {
        let entry = &mut self.entry;
        if self.old_sparse.is_some() || sparse::kind(&entry.pax) == SparseMap::None {
            return Ok(self);
        }
        if entry.kind != EntryKind::Regular {
            return Err(SparseError("on a member that has no data").into());
        }
        let name = sparse::record(&entry.pax, sparse::NAME).to_vec();
        if !name.is_empty() {
            entry.name = name;
        }
        if let Some(size) = sparse::stated_size(&entry.pax)? {
            entry.size = u64::try_from(size).map_err(|_| SparseError("the size is negative"))?;
        }
        if let SparseMap::Regions(regions) = sparse::from_pax(&entry.pax, entry.size)? {
            self.check_map(&regions)?;
        }
        Ok(self)
    }

    pub(super) fn is_old_sparse(&self) -> bool {
        self.old_sparse.is_some()
    }

    pub(super) fn has_map_in_archive(&self) -> bool {
        self.old_sparse.is_none() && sparse::kind(&self.entry.pax) == SparseMap::InArchive
    }

    /// Checks a map against the file's size and what the archive holds of it.
    pub(super) fn check_map(&self, regions: &[Region]) -> Result<(), SparseError> {
        sparse::validate(regions, self.entry.size)?;
        if sparse::stored_len(regions) != self.stored {
            return Err(SparseError("its regions have another size than the data"));
        }
        Ok(())
    }

    /// Puts an old GNU map into the records, where a reader of the zTOC finds it.
    pub(super) fn set_old_map(&mut self, map: &OldMap) -> Result<(), SparseError> {
        if self.old_sparse != Some(Format::Gnu) {
            return Err(SparseError("only GNU's old format is supported"));
        }
        self.entry.size = map.size;
        self.check_map(&map.regions)?;
        let pax = &mut self.entry.pax;
        pax.retain(|(key, _)| !key.starts_with(sparse::PREFIX));
        pax.extend(sparse::to_pax(&map.regions, map.size));
        pax.sort();
        Ok(())
    }
}

//! Entries one after another, with where their headers lie.

use super::{Entry, Toc, XATTR};
use crate::error::DecodeError;
use crate::unit::UncompressedOffset;

/// An entry of a table of contents, and what its place there says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member<'a> {
    /// The entry; its texts are the table's.
    pub entry: Entry<&'a [u8]>,
    /// Where its headers begin; they end where its data begins. Of several entries at one position: where those of the
    /// first begin, as only one can be what the headers say. `None` behind a sparse file whose size in the tar is told only
    /// there.
    pub header: Option<UncompressedOffset>,
}

/// Where the headers of the next entry begin, in tar order.
#[derive(Debug, Clone)]
struct Headers {
    /// Where the last entry ended.
    end: Option<u64>,
    /// Position of the last entry, and where its headers began.
    last: Option<(UncompressedOffset, Option<u64>)>,
}

impl Headers {
    fn new() -> Self {
        Self {
            end: Some(0),
            last: None,
        }
    }

    /// Where the headers of the entry at `offset`, which ends at `end`, begin.
    #[inline]
    fn pass(&mut self, offset: UncompressedOffset, end: Option<u64>) -> Option<UncompressedOffset> {
        let header = match self.last {
            Some((last, header)) if last == offset => header,
            _ => self.end,
        };
        (self.end, self.last) = (end, Some((offset, header)));
        header.map(UncompressedOffset)
    }
}

/// Checks entries one after another, which must come in tar order.
#[derive(Debug)]
pub(crate) struct Walk {
    headers: Headers,
    /// Bytes of the tar.
    size: u64,
    number: usize,
}

impl Walk {
    /// Through a layer of `size` uncompressed bytes.
    #[inline]
    pub(crate) fn new(size: u64) -> Self {
        Self {
            headers: Headers::new(),
            size,
            number: 0,
        }
    }

    /// Passes the next entry; where its headers begin.
    #[inline]
    pub(crate) fn pass<T: AsRef<[u8]>>(
        &mut self,
        entry: &Entry<T>,
    ) -> Result<Option<UncompressedOffset>, DecodeError> {
        let Headers { end, last } = self.headers;
        if last.is_some_and(|(last, _)| last > entry.offset) {
            return Err(DecodeError::Disorder);
        }
        let end = entry.checked(self.number, end, self.size)?;
        self.number += 1;
        Ok(self.headers.pass(entry.offset, end))
    }

    /// Passes an entry that is to be handed out.
    #[inline]
    pub(crate) fn member<'a>(&mut self, entry: Entry<&'a [u8]>) -> Result<Member<'a>, DecodeError> {
        let header = self.pass(&entry)?;
        Ok(Member { entry, header })
    }
}

impl Toc {
    /// All entries in tar order.
    pub fn members(&self) -> impl Iterator<Item = Member<'_>> {
        let mut headers = Headers::new();
        self.entries.iter().map(move |entry| Member {
            header: headers.pass(entry.offset, entry.end()),
            entry: entry.borrowed(),
        })
    }
}

impl<'a> Entry<&'a [u8]> {
    /// As [`Entry::xattrs`], the texts for as long as they are lent.
    pub fn lent_xattrs(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let records = self.pax.iter();
        records.filter_map(|(key, value)| Some((key.strip_prefix(XATTR)?, *value)))
    }
}

impl Entry {
    /// The same, its texts lent.
    pub fn borrowed(&self) -> Entry<&[u8]> {
        let records = self.pax.iter();
        Entry {
            name: &self.name,
            kind: self.kind,
            offset: self.offset,
            size: self.size,
            link: &self.link,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            uname: &self.uname,
            gname: &self.gname,
            mtime: self.mtime,
            dev_major: self.dev_major,
            dev_minor: self.dev_minor,
            pax: records.map(|(key, value)| (&**key, &**value)).collect(),
        }
    }
}

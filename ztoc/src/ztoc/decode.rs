//! From FlatBuffers tables to a checked zTOC.

use std::sync::Arc;

use super::Ztoc;
use crate::checkpoint::{GzipZinfo, TarZinfo, Zinfo, ZtocBytes};
use crate::digest::Digest;
use crate::error::{DecodeError, EntryError, WireError};
use crate::span::SpanTable;
use crate::toc::{Entry, EntryKind, Timestamp, TocInProgress};
use crate::unit::UncompressedOffset;
use crate::wire::{OffsetVector, Place, Reader, Table};

/// Entries that room is made for before they are seen: a vector may be said to be longer than it is.
const RESERVED: usize = 1 << 18;

pub(super) const GZIP: i8 = 1;
pub(super) const UNCOMPRESSED: i8 = 2;

/// A zTOC but for its entries.
pub(super) struct Frame<'a> {
    version: &'a [u8],
    build_tool: &'a [u8],
    pub(super) spans: SpanTable,
    /// Where the entries are.
    pub(super) entries: Place,
}

impl<'a> Frame<'a> {
    /// Reads and checks it; `left` is where the windows can be read later, if they are not to be held.
    pub(super) fn read(
        reader: &Reader<'a>,
        left: Option<Arc<dyn ZtocBytes>>,
    ) -> Result<Self, DecodeError> {
        if reader.len() > Ztoc::MAX_ENCODED_LEN {
            return Err(DecodeError::TooLarge(reader.len()));
        }
        let root = reader.root()?;
        let compressed_size = size(&root, 2, "compressed size")?;
        let uncompressed_size = size(&root, 3, "uncompressed size")?;
        let info = root
            .table(5)?
            .ok_or(DecodeError::Missing("compression information"))?;
        let digests = digests(info.vector(2)?)?;
        let spans = SpanTable::new(
            zinfo(&info, left)?,
            digests,
            info.i32(1)?,
            compressed_size,
            uncompressed_size,
        )?;
        let toc = root
            .table(4)?
            .ok_or(DecodeError::Missing("table of contents"))?;
        Ok(Self {
            version: root.bytes(0)?,
            build_tool: root.bytes(1)?,
            spans,
            entries: toc.vector(0)?.place(),
        })
    }
}

/// Decodes all of it.
pub(super) fn decode(bytes: &[u8]) -> Result<Ztoc, DecodeError> {
    let reader = Reader::new(bytes);
    let frame = Frame::read(&reader, None)?;
    let len = frame.entries.len();
    let mut toc = TocInProgress::new(frame.spans.uncompressed_size(), len.min(RESERVED));
    for index in 0..len {
        let table = reader.element(frame.entries, index)?;
        toc.push(entry(&table, index, Owners::Kept)?.into_owned())?;
    }
    Ok(Ztoc {
        version: frame.version.to_vec(),
        build_tool: frame.build_tool.to_vec(),
        toc: toc.finish()?,
        spans: frame.spans,
    })
}

fn size(table: &Table<'_, '_>, id: usize, field: &'static str) -> Result<u64, DecodeError> {
    let value = table.i64(id)?;
    u64::try_from(value).map_err(|_| DecodeError::Number { field, value })
}

fn zinfo(info: &Table<'_, '_>, left: Option<Arc<dyn ZtocBytes>>) -> Result<Zinfo, DecodeError> {
    let (at, blob) = info.bytes_at(3)?;
    Ok(match info.i8(0, GZIP)? {
        GZIP => Zinfo::Gzip(GzipZinfo::decode(blob, left.map(|ztoc| (ztoc, at)))?),
        UNCOMPRESSED => Zinfo::Tar(TarZinfo::decode(blob)?),
        other => return Err(DecodeError::Algorithm(other)),
    })
}

fn digests(texts: OffsetVector<'_, '_>) -> Result<Vec<Digest>, DecodeError> {
    let mut digests = Vec::with_capacity(texts.len());
    for (span, text) in texts.strings().enumerate() {
        let text = String::from_utf8_lossy(text?);
        digests.push(
            text.parse()
                .map_err(|source| DecodeError::SpanDigest { span, source })?,
        );
    }
    Ok(digests)
}

/// What becomes of the names of users and groups.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Owners {
    Kept,
    LeftOut,
}

/// The entry that is the zTOC's `index`th.
#[inline]
pub(super) fn entry<'a>(
    table: &Table<'_, 'a>,
    index: usize,
    owners: Owners,
) -> Result<Entry<&'a [u8]>, DecodeError> {
    let name = table.bytes(0)?;
    let bad = |source| DecodeError::Entry {
        index,
        name: String::from_utf8_lossy(name).chars().take(200).collect(),
        source,
    };
    let owner = |id| match owners {
        Owners::Kept => table.bytes(id),
        Owners::LeftOut => Ok(&[][..]),
    };
    let number = |id, field| {
        let value = table.i64(id)?;
        u64::try_from(value).map_err(|_| bad(EntryError::Number { field, value }))
    };
    let kind = table.bytes(1)?;
    Ok(Entry {
        name,
        kind: EntryKind::from_text(kind).ok_or_else(|| bad(unknown(kind)))?,
        offset: UncompressedOffset(number(2, "offset")?),
        size: number(3, "size")?,
        link: table.bytes(4)?,
        mode: table.i64(5)?,
        uid: table.u32(6)?,
        gid: table.u32(7)?,
        uname: owner(8)?,
        gname: owner(9)?,
        mtime: Timestamp::from_rfc3339(table.bytes(10)?),
        dev_major: table.i64(11)?,
        dev_minor: table.i64(12)?,
        pax: pax(table.vector(13)?)?,
    })
}

fn unknown(kind: &[u8]) -> EntryError {
    let text = String::from_utf8_lossy(kind);
    EntryError::Kind(text.chars().take(20).collect())
}

type Records<'a> = Vec<(&'a [u8], &'a [u8])>;

/// Records by key, ascending; of several with one key the last.
#[inline]
fn pax<'a>(tables: OffsetVector<'_, 'a>) -> Result<Records<'a>, WireError> {
    let mut records = Vec::with_capacity(tables.len());
    for table in tables.tables() {
        let table = table?;
        records.push((table.bytes(0)?, table.bytes(1)?));
    }
    if !records.is_sorted_by(|(a, _), (b, _)| a < b) {
        records.reverse();
        records.sort_by_key(|(key, _)| *key);
        records.dedup_by_key(|(key, _)| *key);
    }
    Ok(records)
}

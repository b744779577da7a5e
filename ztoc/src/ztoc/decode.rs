//! From FlatBuffers tables to a checked zTOC.

use std::sync::Arc;

use super::Ztoc;
use crate::checkpoint::{GzipZinfo, TarZinfo, Zinfo, ZtocBytes};
use crate::digest::Digest;
use crate::error::{DecodeError, EntryError, WireError};
use crate::span::SpanTable;
use crate::toc::{Entry, EntryKind, Timestamp, Toc, TocInProgress};
use crate::unit::UncompressedOffset;
use crate::wire::{OffsetVector, Reader, Table};

/// Entries that room is made for before they are seen: a vector may be said to be longer than it is.
const RESERVED: usize = 1 << 18;

pub(super) const GZIP: i8 = 1;
pub(super) const UNCOMPRESSED: i8 = 2;

/// Decodes; `left` is where the windows can be read later, if they are not to be held. The names of owners are left out
/// then as well.
pub(super) fn decode(bytes: &[u8], left: Option<Arc<dyn ZtocBytes>>) -> Result<Ztoc, DecodeError> {
    if bytes.len() > Ztoc::MAX_ENCODED_LEN {
        return Err(DecodeError::TooLarge(bytes.len()));
    }
    let reader = Reader::new(bytes);
    let root = reader.root()?;
    let compressed_size = size(&root, 2, "compressed size")?;
    let uncompressed_size = size(&root, 3, "uncompressed size")?;
    let owners = left.is_none();
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
    Ok(Ztoc {
        version: root.bytes(0)?.to_vec(),
        build_tool: root.bytes(1)?.to_vec(),
        toc: entries(toc.vector(0)?, owners, uncompressed_size)?,
        spans,
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

/// All entries of a layer of `size` uncompressed bytes; with the names of their `owners`, or without.
fn entries(tables: OffsetVector<'_, '_>, owners: bool, size: u64) -> Result<Toc, DecodeError> {
    let mut toc = TocInProgress::new(size, tables.len().min(RESERVED));
    for (index, table) in tables.tables().enumerate() {
        let table = table?;
        let name = table.bytes(0)?.to_vec();
        let entry = entry(&table, name, owners)?.map_err(|(name, source)| {
            let name = String::from_utf8_lossy(&name).chars().take(200).collect();
            DecodeError::Entry {
                index,
                name,
                source,
            }
        })?;
        toc.push(entry)?;
    }
    toc.finish()
}

/// The inner error is about the entry of this name, the outer one about the buffer.
type Checked = Result<Entry, (Vec<u8>, EntryError)>;

fn entry(table: &Table<'_, '_>, name: Vec<u8>, owners: bool) -> Result<Checked, WireError> {
    let (kind_text, offset, size) = (table.bytes(1)?, table.i64(2)?, table.i64(3)?);
    let Some(kind) = EntryKind::from_text(kind_text) else {
        let text = String::from_utf8_lossy(kind_text)
            .chars()
            .take(20)
            .collect();
        return Ok(Err((name, EntryError::Kind(text))));
    };
    let (Ok(unsigned_offset), Ok(unsigned_size)) = (u64::try_from(offset), u64::try_from(size))
    else {
        let (field, value) = if offset < 0 {
            ("offset", offset)
        } else {
            ("size", size)
        };
        return Ok(Err((name, EntryError::Number { field, value })));
    };
    let owner = |id| {
        Ok::<_, WireError>(if owners {
            table.bytes(id)?.to_vec()
        } else {
            Vec::new()
        })
    };
    Ok(Ok(Entry {
        name,
        kind,
        offset: UncompressedOffset(unsigned_offset),
        size: unsigned_size,
        link: table.bytes(4)?.to_vec(),
        mode: table.i64(5)?,
        uid: table.u32(6)?,
        gid: table.u32(7)?,
        uname: owner(8)?,
        gname: owner(9)?,
        mtime: Timestamp::from_rfc3339(table.bytes(10)?),
        dev_major: table.i64(11)?,
        dev_minor: table.i64(12)?,
        pax: pax(table.vector(13)?)?,
    }))
}

type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// Records by key, ascending; of several with one key the last.
fn pax(tables: OffsetVector<'_, '_>) -> Result<Records, WireError> {
    let mut records = Vec::with_capacity(tables.len());
    for table in tables.tables() {
        let table = table?;
        records.push((table.bytes(0)?.to_vec(), table.bytes(1)?.to_vec()));
    }
    if !records.is_sorted_by(|(a, _), (b, _)| a < b) {
        records.reverse();
        records.sort_by(|(a, _), (b, _)| a.cmp(b));
        records.dedup_by(|(later, _), (kept, _)| later == kept);
    }
    Ok(records)
}

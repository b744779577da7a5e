//! Spans: where each begins, its digest, its checksum, and where its window is.

use std::ops::Range;
use std::sync::Arc;

use super::CompactError;
use super::column::{Column, put_number};
use super::head::Header;
use super::window::{Group, GroupedWindows, SparseWindow, pack_windows};
use crate::checkpoint::{Checkpoint, GzipZinfo, TarZinfo, Zinfo, ZtocBytes};
use crate::digest::Digest;
use crate::span::SpanTable;
use crate::ztoc::Compression;

/// Sections, in the order of the blob.
type Encoded = [Vec<u8>; 4];

const DIGEST_LEN: usize = 32;
const CHECKSUM_LEN: usize = 4;
/// Packed length, length and digest.
const GROUP_RECORD_LEN: usize = 8 + DIGEST_LEN;

/// A span as a build found it.
#[derive(Debug, Clone)]
pub(crate) struct CompactSpan {
    pub(crate) checkpoint: Checkpoint,
    /// sha256 of its compressed bytes.
    pub(crate) digest: Digest,
    /// CRC32 of its uncompressed bytes.
    pub(crate) checksum: u32,
    pub(crate) window: SparseWindow,
}

/// The sections and the body. The positions in the groups' records are relative to the body.
pub(super) fn encode(compression: Compression, spans: &[CompactSpan]) -> (Encoded, Vec<u8>) {
    let mut sections = Encoded::default();
    let [places, digests, checksums, records] = &mut sections;
    let (mut bit, mut uncompressed) = (0, 0);
    for span in spans {
        let start = &span.checkpoint;
        if compression == Compression::Gzip {
            let first_bit = start.compressed.0 * 8 - u64::from(start.bits);
            put_number(places, first_bit - bit);
            put_number(places, start.uncompressed.0 - uncompressed);
            (bit, uncompressed) = (first_bit, start.uncompressed.0);
        }
        digests.extend_from_slice(span.digest.as_bytes());
        checksums.extend_from_slice(&span.checksum.to_le_bytes());
    }
    if compression == Compression::Uncompressed {
        return (sections, Vec::new());
    }
    let windows: Vec<_> = spans.iter().map(|span| &span.window).collect();
    let (body, groups) = pack_windows(&windows, 0);
    for group in groups {
        let packed = group.range.end - group.range.start;
        let packed = u32::try_from(packed).expect("a group is packed into less than it has");
        records.extend_from_slice(&packed.to_le_bytes());
        records.extend_from_slice(&group.len.to_le_bytes());
        records.extend_from_slice(group.digest.as_bytes());
    }
    (sections, body)
}

/// The table of spans of a blob with this header.
pub(super) fn decode(
    header: &Header,
    sections: &Encoded,
    blob: Arc<dyn ZtocBytes>,
) -> Result<SpanTable, CompactError> {
    let [places, digests, checksums, records] = sections;
    let count = header.spans as usize;
    let digests = exact::<DIGEST_LEN>("digests", digests, count)?;
    let checksums = exact::<CHECKSUM_LEN>("checksums", checksums, count)?;
    let body = u64::from(header.head_len)..header.blob_len;
    let zinfo = match header.compression {
        Compression::Gzip => {
            let checkpoints = checkpoints(places, count)?;
            let windows = GroupedWindows::new(blob, groups(records, body)?, count)?;
            let span_size = header.span_size.cast_signed();
            Zinfo::Gzip(GzipZinfo::grouped(span_size, checkpoints, windows))
        }
        Compression::Uncompressed => {
            if !places.is_empty() || !records.is_empty() || !body.is_empty() {
                return Err(CompactError::Header("a plain tar's checkpoints"));
            }
            if header.span_size == 0 {
                return Err(CompactError::Header("the span size"));
            }
            Zinfo::Tar(TarZinfo {
                version: 2,
                span_size: header.span_size,
                size: header.compressed_size,
            })
        }
    };
    let max_id = i32::try_from(count).map_err(|_| CompactError::TooLarge)? - 1;
    let digests = digests.copied().map(Digest::from_bytes).collect();
    let sizes = (header.compressed_size, header.uncompressed_size);
    let table = SpanTable::new(zinfo, digests, max_id, sizes.0, sizes.1)?;
    let checksums = checksums.copied().map(u32::from_le_bytes).collect();
    Ok(table.with_checksums(checksums))
}

/// A section of `count` values of `N` bytes.
fn exact<'a, const N: usize>(
    name: &'static str,
    section: &'a [u8],
    count: usize,
) -> Result<impl Iterator<Item = &'a [u8; N]>, CompactError> {
    let (values, rest) = section.as_chunks::<N>();
    match values.len() == count && rest.is_empty() {
        true => Ok(values.iter()),
        false => Err(CompactError::Section(name)),
    }
}

fn checkpoints(places: &[u8], count: usize) -> Result<Vec<Checkpoint>, CompactError> {
    const NAME: &str = "checkpoints";
    let mut column = Column::new(NAME, places);
    let (mut bit, mut uncompressed) = (0_u64, 0_u64);
    let mut checkpoints = Vec::with_capacity(count.min(places.len()));
    for _ in 0..count {
        let next = |sum: u64, more: u64| sum.checked_add(more).ok_or(CompactError::Column(NAME));
        bit = next(bit, column.number()?)?;
        uncompressed = next(uncompressed, column.number()?)?;
        checkpoints.push(Checkpoint::at_bit(bit, uncompressed));
    }
    column.end()?;
    Ok(checkpoints)
}

/// The groups of windows; they fill `body`.
fn groups(records: &[u8], body: Range<u64>) -> Result<Vec<Group>, CompactError> {
    let (records, rest) = records.as_chunks::<GROUP_RECORD_LEN>();
    let mut start = body.start;
    let mut groups = Vec::with_capacity(records.len());
    for record in records {
        let (packed, record) = record.split_first_chunk().expect("of a record's length");
        let (len, digest) = record.split_first_chunk().expect("of a record's length");
        let digest = digest.first_chunk().expect("of a record's length");
        let end = start + u64::from(u32::from_le_bytes(*packed));
        groups.push(Group {
            range: start..end,
            len: u32::from_le_bytes(*len),
            digest: Digest::from_bytes(*digest),
        });
        start = end;
    }
    match start == body.end && rest.is_empty() {
        true => Ok(groups),
        false => Err(CompactError::Section("groups")),
    }
}

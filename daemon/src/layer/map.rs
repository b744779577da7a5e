//! `map`: which spans of a layer are in its `data` file, with a checksum of each.
//!
//! Layout, little-endian: a header of 64 bytes (magic with version, zTOC digest, number of spans,
//! zeros, CRC-32 of all that), then 8 bytes a span: [`PRESENT`] xor the span's number, and the CRC-32 of
//! its plain bytes. A record is written after the bytes it vouches for, and a file whose header does not
//! fit is begun anew: the worst that a lost or torn write costs is a span fetched again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};
use ztoc::{Digest, SpanId};

const MAGIC: &[u8; 8] = b"spanmap\x01";
const HEADER: usize = 64;
const RECORD: usize = 8;
/// First half of the record of a present span; xor the span's number, so that a record found at the
/// wrong place vouches for nothing.
const PRESENT: u32 = 0x5bad_c0de;

/// CRC-32, of a span's plain bytes or of a zTOC: finds what disks and interrupted writes do, not what an attacker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Checksum(u32);

impl Checksum {
    /// The checksum of `bytes`.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(crc32fast::hash(bytes))
    }
}

impl From<crc32fast::Hasher> for Checksum {
    fn from(hasher: crc32fast::Hasher) -> Self {
        Self(hasher.finalize())
    }
}

/// The open `map` file of one layer.
#[derive(Debug)]
pub(crate) struct SpanMap {
    file: File,
}

impl SpanMap {
    /// Opens or begins the map at `path` for a layer of `count` spans. The second value says which
    /// spans it claims.
    pub(crate) fn open(path: &Path, ztoc: &Digest, count: u32) -> io::Result<(Self, Vec<bool>)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let header = header(ztoc, count);
        let claimed = match claims(&file, &header, count) {
            Some(claimed) => claimed,
            None => {
                file.set_len(0)?;
                file.set_len(HEADER as u64 + u64::from(count) * RECORD as u64)?;
                file.write_all_at(&header, 0)?;
                vec![false; count as usize]
            }
        };
        Ok((Self { file }, claimed))
    }

    /// Notes that `span` lies in `data` with this checksum.
    pub(crate) fn record(&self, span: SpanId, checksum: Checksum) -> io::Result<()> {
        let mut record = [0; RECORD];
        record[..4].copy_from_slice(&(PRESENT ^ span.0).to_le_bytes());
        record[4..].copy_from_slice(&checksum.0.to_le_bytes());
        self.file.write_all_at(&record, position(span))
    }

    /// Takes the record of `span` back.
    pub(crate) fn erase(&self, span: SpanId) -> io::Result<()> {
        self.file.write_all_at(&[0; RECORD], position(span))
    }

    /// The checksum recorded for `span`; `None` if the map does not vouch for it.
    pub(crate) fn checksum(&self, span: SpanId) -> io::Result<Option<Checksum>> {
        let mut record = [0; RECORD];
        self.file.read_exact_at(&mut record, position(span))?;
        Ok(parse(span, &record))
    }
}

fn position(span: SpanId) -> u64 {
    HEADER as u64 + u64::from(span.0) * RECORD as u64
}

fn parse(span: SpanId, record: &[u8]) -> Option<Checksum> {
    let (tag, sum) = record.split_first_chunk::<4>()?;
    let sum = sum.first_chunk::<4>()?;
    (u32::from_le_bytes(*tag) == PRESENT ^ span.0).then(|| Checksum(u32::from_le_bytes(*sum)))
}

fn header(ztoc: &Digest, count: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..40].copy_from_slice(ztoc.as_bytes());
    header[40..44].copy_from_slice(&count.to_le_bytes());
    let sum = Checksum::of(&header[..60]);
    header[60..].copy_from_slice(&sum.0.to_le_bytes());
    header
}

/// The spans that a map with this very header claims; `None` for any other file.
fn claims(file: &File, header: &[u8; HEADER], count: u32) -> Option<Vec<bool>> {
    let mut found = [0; HEADER];
    file.read_exact_at(&mut found, 0).ok()?;
    if found != *header {
        return None;
    }
    let mut records = vec![0; count as usize * RECORD];
    file.read_exact_at(&mut records, HEADER as u64).ok()?;
    let spans = (0..count).map(SpanId);
    Some(
        spans
            .zip(records.chunks_exact(RECORD))
            .map(|(span, record)| parse(span, record).is_some())
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_map_keeps_what_was_recorded_over_a_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map");
        let ztoc = Digest::of(b"ztoc");
        let (map, claimed) = SpanMap::open(&path, &ztoc, 3).unwrap();
        assert_eq!(claimed, [false; 3]);
        map.record(SpanId(1), Checksum::of(b"one")).unwrap();
        map.record(SpanId(2), Checksum::of(b"two")).unwrap();
        map.erase(SpanId(2)).unwrap();

        let (map, claimed) = SpanMap::open(&path, &ztoc, 3).unwrap();
        assert_eq!(claimed, [false, true, false]);
        let checksum = map.checksum(SpanId(1)).unwrap();
        assert_eq!(checksum, Some(Checksum::of(b"one")));
        assert_eq!(map.checksum(SpanId(2)).unwrap(), None);
    }

    #[test]
    fn a_map_of_another_ztoc_or_with_a_damaged_header_claims_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map");
        let write = |ztoc: &Digest| {
            let (map, claimed) = SpanMap::open(&path, ztoc, 2).unwrap();
            map.record(SpanId(0), Checksum::of(b"x")).unwrap();
            claimed
        };
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        write(&one);
        assert_eq!(write(&one), [true, false]);
        assert_eq!(write(&two), [false, false], "another zTOC");
        for position in 0..HEADER as u64 {
            write(&two);
            let file = OpenOptions::new().read(true).write(true).open(&path);
            let file = file.unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, position).unwrap();
            file.write_all_at(&[!byte[0]], position).unwrap();
            assert_eq!(write(&two), [false, false], "header byte {position}");
        }
        File::create(&path).unwrap().set_len(70).unwrap();
        assert_eq!(write(&two), [false, false], "cut short");
    }

    #[test]
    fn a_record_at_the_wrong_place_vouches_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("map");
        let ztoc = Digest::of(b"ztoc");
        let (map, _) = SpanMap::open(&path, &ztoc, 2).unwrap();
        map.record(SpanId(0), Checksum::of(b"x")).unwrap();
        let mut record = [0; RECORD];
        map.file
            .read_exact_at(&mut record, position(SpanId(0)))
            .unwrap();
        map.file.write_all_at(&record, position(SpanId(1))).unwrap();
        assert_eq!(SpanMap::open(&path, &ztoc, 2).unwrap().1, [true, false]);
    }
}

//! Maps of sparse files, in the three ways GNU tar writes them.
//!
//! 0.0 and 0.1 keep the map in PAX records, 1.0 keeps it as text in front of the data, the old
//! format in the header and in blocks behind it.

use super::header::{Block, numeric};
use crate::error::SparseError;

/// A run of data within a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// The longest map in an archive that is read, in bytes: as much as for other metadata.
pub(crate) const MAX_MAP_LEN: usize = 1 << 20;

const MAJOR: &[u8] = b"GNU.sparse.major";
const MINOR: &[u8] = b"GNU.sparse.minor";
const MAP: &[u8] = b"GNU.sparse.map";
const NUM_BLOCKS: &[u8] = b"GNU.sparse.numblocks";
const SIZE: &[u8] = b"GNU.sparse.size";
pub(super) const PREFIX: &[u8] = b"GNU.sparse.";
pub(super) const REAL_SIZE: &[u8] = b"GNU.sparse.realsize";
pub(super) const NAME: &[u8] = b"GNU.sparse.name";
pub(super) const OFFSET: &[u8] = b"GNU.sparse.offset";
pub(super) const NUM_BYTES: &[u8] = b"GNU.sparse.numbytes";
pub(super) const FOLDED_MAP: &[u8] = MAP;

/// PAX records, keys ascending and unique.
type Records<T> = [(T, T)];

/// Where a member's map is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SparseMap {
    /// Nowhere: the member is not sparse.
    None,
    /// In its PAX records; this it is.
    Regions(Vec<Region>),
    /// As text in front of its data.
    InArchive,
}

/// The value of a PAX record in a list sorted by key; empty if there is none.
pub(super) fn record<'a, T: AsRef<[u8]>>(pax: &'a Records<T>, key: &[u8]) -> &'a [u8] {
    match pax.binary_search_by(|(other, _)| other.as_ref().cmp(key)) {
        Ok(found) => pax[found].1.as_ref(),
        Err(_) => &[],
    }
}

/// The map of a member with these records (keys ascending), which may not exceed `size`.
pub(crate) fn from_pax<T: AsRef<[u8]>>(
    pax: &Records<T>,
    size: u64,
) -> Result<SparseMap, SparseError> {
    match kind(pax) {
        SparseMap::Regions(_) => {
            let regions = parse_pax_map(pax)?;
            validate(&regions, size)?;
            Ok(SparseMap::Regions(regions))
        }
        other => Ok(other),
    }
}

/// Where the map is, without reading it.
pub(super) fn kind<T: AsRef<[u8]>>(pax: &Records<T>) -> SparseMap {
    match (record(pax, MAJOR), record(pax, MINOR)) {
        (b"0", b"0" | b"1") => SparseMap::Regions(Vec::new()),
        (b"1", b"0") => SparseMap::InArchive,
        (b"", b"") if !record(pax, MAP).is_empty() => SparseMap::Regions(Vec::new()),
        _ => SparseMap::None,
    }
}

/// The logical size that the records of a sparse member state, if any.
pub(super) fn stated_size<T: AsRef<[u8]>>(pax: &Records<T>) -> Result<Option<i64>, SparseError> {
    let text = match record(pax, SIZE) {
        b"" => record(pax, REAL_SIZE),
        size => size,
    };
    if text.is_empty() {
        return Ok(None);
    }
    decimal(text)
        .map(Some)
        .ok_or(SparseError("the size is not a number"))
}

/// Records that tell a map: what makes an old GNU sparse member readable from a zTOC alone.
pub(super) fn to_pax(regions: &[Region], size: u64) -> [(Vec<u8>, Vec<u8>); 5] {
    let numbers = regions
        .iter()
        .flat_map(|region| [region.offset, region.len]);
    let map: Vec<String> = numbers.map(|number| number.to_string()).collect();
    [
        (MAJOR.to_vec(), b"0".to_vec()),
        (MAP.to_vec(), map.join(",").into_bytes()),
        (MINOR.to_vec(), b"1".to_vec()),
        (NUM_BLOCKS.to_vec(), regions.len().to_string().into_bytes()),
        (SIZE.to_vec(), size.to_string().into_bytes()),
    ]
}

fn parse_pax_map<T: AsRef<[u8]>>(pax: &Records<T>) -> Result<Vec<Region>, SparseError> {
    let blocks = decimal(record(pax, NUM_BLOCKS)).ok_or(SparseError("no number of blocks"))?;
    let text = record(pax, MAP);
    let mut numbers = text
        .split(|byte| *byte == b',')
        .filter(|_| !text.is_empty());
    let mut regions = Vec::new();
    while let Some(offset) = numbers.next() {
        let len = numbers
            .next()
            .ok_or(SparseError("an offset without a length"))?;
        regions.push(region(offset, len)?);
    }
    if usize::try_from(blocks) != Ok(regions.len()) {
        return Err(SparseError("its length differs from the number of blocks"));
    }
    Ok(regions)
}

fn region(offset: &[u8], len: &[u8]) -> Result<Region, SparseError> {
    let number = |text| decimal(text).and_then(|number| u64::try_from(number).ok());
    match (number(offset), number(len)) {
        (Some(offset), Some(len)) => Ok(Region { offset, len }),
        _ => Err(SparseError("not a number")),
    }
}

pub(super) fn decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Regions ascend, do not overlap and lie within `size`.
pub(crate) fn validate(regions: &[Region], size: u64) -> Result<(), SparseError> {
    let mut end = 0;
    for region in regions {
        if region.offset < end {
            return Err(SparseError("its regions overlap or are out of order"));
        }
        end = region
            .offset
            .checked_add(region.len)
            .ok_or(SparseError("a region overflows"))?;
        if end > size {
            return Err(SparseError("a region ends behind the file"));
        }
    }
    Ok(())
}

/// The number of bytes that a member with valid `regions` has in the archive.
pub(crate) fn stored_len(regions: &[Region]) -> u64 {
    regions.iter().map(|region| region.len).sum()
}

/// Reads a map of format 1.0 from its beginning, block by block.
#[derive(Debug, Default)]
pub(super) struct MapReader {
    text: Vec<u8>,
    lines: usize,
    /// Lines of the whole map, known from its first one.
    needed: Option<usize>,
}

impl MapReader {
    /// Takes one block; the regions once the last block of the map is there.
    pub(super) fn push(&mut self, block: &[u8]) -> Result<Option<Vec<Region>>, SparseError> {
        if self.text.len() + block.len() > MAX_MAP_LEN {
            return Err(SparseError("longer than is supported"));
        }
        self.text.extend_from_slice(block);
        self.lines += block.iter().filter(|byte| **byte == b'\n').count();
        if self.needed.is_none() && self.lines > 0 {
            self.needed = Some(line_count(&self.text)?);
        }
        match self.needed {
            Some(needed) if needed <= self.lines => parse_text(&self.text).map(Some),
            _ => Ok(None),
        }
    }
}

/// The number of lines of a 1.0 map: one, and two for each region.
fn line_count(text: &[u8]) -> Result<usize, SparseError> {
    let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    decimal(first)
        .and_then(|count| usize::try_from(count).ok()?.checked_mul(2)?.checked_add(1))
        .ok_or(SparseError("no number of regions"))
}

/// The regions of a 1.0 map, all of whose lines are there.
fn parse_text(text: &[u8]) -> Result<Vec<Region>, SparseError> {
    let lines = line_count(text)?;
    let mut numbers = text.split(|byte| *byte == b'\n').take(lines).skip(1);
    let mut regions = Vec::new();
    while let Some(offset) = numbers.next() {
        regions.push(region(offset, numbers.next().unwrap_or_default())?);
    }
    Ok(regions)
}

/// The regions of a 1.0 map that ends where `area` ends. The block in front of the map is the
/// member's header, which unlike a map has other bytes than digits, line ends and padding.
pub(crate) fn parse_map_before(area: &[u8]) -> Result<Vec<Region>, SparseError> {
    let is_text = |byte: &u8| matches!(byte, b'0'..=b'9' | b'\n' | 0);
    let blocks = area.rchunks_exact(512);
    let len = 512 * blocks.take_while(|block| block.iter().all(is_text)).count();
    if len == area.len() {
        return Err(SparseError(
            "its beginning is not within the bytes in front of the data",
        ));
    }
    let map = &area[area.len() - len..];
    let mut ends = map.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    match ends.nth(line_count(map)? - 1) {
        Some((end, _)) if end / 512 + 1 == map.len() / 512 => parse_text(map),
        _ => Err(SparseError("it does not end where the data begins")),
    }
}

/// Reads the regions of an old GNU header.
#[derive(Debug, Default)]
pub(super) struct OldMap {
    pub(super) regions: Vec<Region>,
    /// The logical size of the file.
    pub(super) size: u64,
}

impl OldMap {
    /// Takes the entries in the header; whether a block with more of them follows.
    pub(super) fn header(&mut self, block: &Block) -> Result<bool, SparseError> {
        let size = numeric(&block[483..495]).and_then(|size| u64::try_from(size).ok());
        self.size = size.ok_or(SparseError("the size is not a number"))?;
        self.entries(&block[386..482])?;
        Ok(block[482] != 0)
    }

    /// Takes an extension block; whether another follows.
    pub(super) fn extension(&mut self, block: &Block) -> Result<bool, SparseError> {
        self.entries(&block[..504])?;
        Ok(block[504] != 0)
    }

    fn entries(&mut self, entries: &[u8]) -> Result<(), SparseError> {
        for entry in entries.chunks_exact(24).take_while(|entry| entry[0] != 0) {
            let number = |field| numeric(field).and_then(|number| u64::try_from(number).ok());
            let (Some(offset), Some(len)) = (number(&entry[..12]), number(&entry[12..])) else {
                return Err(SparseError("not a number"));
            };
            self.regions.push(Region { offset, len });
        }
        if self.regions.len() > MAX_MAP_LEN / 24 {
            return Err(SparseError("longer than is supported"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn map_text(regions: &[Region]) -> Vec<u8> {
        let mut text = format!("{}\n", regions.len());
        for region in regions {
            text += &format!("{}\n{}\n", region.offset, region.len);
        }
        let mut text = text.into_bytes();
        text.resize(text.len().next_multiple_of(512), 0);
        text
    }

    proptest! {
        #[test]
        fn a_map_is_read_alike_forwards_backwards_and_from_records(
            lens in prop::collection::vec((0..9_u64, 0..9_u64), 0..200)
        ) {
            let mut end = 0;
            let regions: Vec<_> = lens.iter().map(|(hole, len)| {
                let region = Region { offset: end + hole, len: *len };
                end = region.offset + len;
                region
            }).collect();
            let text = map_text(&regions);
            let mut reader = MapReader::default();
            let (last, rest) = text.rsplit_once_block();
            for block in rest.chunks(512) {
                prop_assert_eq!(reader.push(block).unwrap(), None);
            }
            prop_assert_eq!(reader.push(last).unwrap(), Some(regions.clone()));
            let area = [&[b'h'; 1024][..], &text].concat();
            prop_assert_eq!(&parse_map_before(&area).unwrap(), &regions);
            let pax = to_pax(&regions, end);
            prop_assert_eq!(from_pax(&pax, end), Ok(SparseMap::Regions(regions)));
        }

        #[test]
        fn arbitrary_maps_are_read_or_refused(text in "[0-9\\n\0a]{0,2048}") {
            let _ = parse_map_before(text.as_bytes());
            let _ = MapReader::default().push(text.as_bytes());
        }
    }

    trait SplitLastBlock {
        fn rsplit_once_block(&self) -> (&[u8], &[u8]);
    }

    impl SplitLastBlock for Vec<u8> {
        fn rsplit_once_block(&self) -> (&[u8], &[u8]) {
            let (rest, last) = self.split_at(self.len() - 512);
            (last, rest)
        }
    }

    #[test]
    fn regions_that_overlap_or_leave_the_file_are_refused() {
        let region = |offset, len| Region { offset, len };
        assert!(validate(&[region(0, 5), region(5, 5)], 10).is_ok());
        assert!(validate(&[region(0, 5), region(4, 5)], 10).is_err());
        assert!(validate(&[region(0, 11)], 10).is_err());
        assert!(validate(&[region(2, u64::MAX)], 10).is_err());
    }
}

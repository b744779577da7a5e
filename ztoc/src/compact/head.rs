//! The head of the blob: a fixed header, a table of sections, and the sections.

use super::CompactError;
use super::column::{pack, unpack};
use super::entries::COLUMNS;
use crate::digest::Digest;
use crate::inflate::Tables;
use crate::ztoc::Compression;

const MAGIC: [u8; 8] = *b"SPNZTOC\0";
const VERSION: u16 = 1;
const GZIP: u8 = 1;
const UNCOMPRESSED: u8 = 2;

/// Sections that describe spans: positions, digests, checksums, groups of windows.
const SPAN_SECTIONS: usize = 4;
const SECTIONS: usize = SPAN_SECTIONS + COLUMNS.len();
const SPAN_NAMES: [&str; SPAN_SECTIONS] = ["checkpoints", "digests", "checksums", "groups"];

/// The header without the table of sections.
const FIXED_LEN: usize = 88;
/// Header and table of sections.
pub(super) const HEADER_LEN: usize = FIXED_LEN + 8 * SECTIONS;

/// No head is longer: 256 MiB.
pub(super) const MAX_HEAD_LEN: usize = 256 << 20;
/// What all sections of a head have, unpacked: 512 MiB at the most, and no more than so many times its own
/// length. Those of real layers have 2 to 12 times as much.
const MAX_PLAIN_LEN: usize = 512 << 20;
const MAX_RATIO: usize = 64;

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) compression: Compression,
    pub(super) head_len: u32,
    pub(super) blob_len: u64,
    pub(super) compressed_size: u64,
    pub(super) uncompressed_size: u64,
    pub(super) span_size: u64,
    pub(super) spans: u32,
    pub(super) entries: u32,
    pub(super) layer: Digest,
}

/// The sections, unpacked.
#[derive(Debug, Default)]
pub(super) struct Sections {
    pub(super) spans: [Vec<u8>; SPAN_SECTIONS],
    pub(super) entries: [Vec<u8>; COLUMNS.len()],
}

/// Takes fields off the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk().expect("of the header's length");
        self.0 = rest;
        *field
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

impl Header {
    /// Reads the first [`HEADER_LEN`] bytes of a blob; `None` if there are fewer.
    pub(super) fn read(bytes: &[u8]) -> Result<Option<Self>, CompactError> {
        if !bytes.starts_with(&MAGIC[..MAGIC.len().min(bytes.len())]) {
            return Err(CompactError::Magic);
        }
        let Some(bytes) = bytes.get(MAGIC.len()..HEADER_LEN) else {
            return Ok(None);
        };
        let mut fields = Fields(bytes);
        let version = u16::from_le_bytes(fields.take());
        if version != VERSION {
            return Err(CompactError::Version(version));
        }
        let compression = match fields.take() {
            [GZIP] => Compression::Gzip,
            [UNCOMPRESSED] => Compression::Uncompressed,
            [other] => return Err(CompactError::Compression(other)),
        };
        if fields.take() != [0] {
            return Err(CompactError::Header("the reserved byte"));
        }
        let header = Self {
            compression,
            head_len: fields.u32(),
            blob_len: fields.u64(),
            compressed_size: fields.u64(),
            uncompressed_size: fields.u64(),
            span_size: fields.u64(),
            spans: fields.u32(),
            entries: fields.u32(),
            layer: Digest::from_bytes(fields.take()),
        };
        let head_len = header.head_len as usize;
        if !(HEADER_LEN..=MAX_HEAD_LEN).contains(&head_len) {
            return Err(CompactError::Header("the head's length"));
        }
        if header.blob_len < u64::from(header.head_len) {
            return Err(CompactError::Header("the blob's length"));
        }
        Ok(Some(header))
    }
}

impl Sections {
    /// Packs them behind `header`, whose lengths are put right; `body_len` bytes will follow.
    pub(super) fn pack(&self, mut header: Header, body_len: u64) -> Result<Vec<u8>, CompactError> {
        let all = || self.spans.iter().chain(&self.entries);
        let plain: usize = all().map(Vec::len).sum();
        let packed: Vec<Vec<u8>> = all().map(|plain| pack(plain)).collect();
        let len = HEADER_LEN + packed.iter().map(Vec::len).sum::<usize>();
        if len > MAX_HEAD_LEN || plain > most_plain(len) {
            return Err(CompactError::TooLarge);
        }
        header.head_len = u32::try_from(len).map_err(|_| CompactError::TooLarge)?;
        header.blob_len = len as u64 + body_len;
        let mut head = Vec::with_capacity(len);
        put_header(&mut head, &header);
        for (packed, plain) in packed.iter().zip(all()) {
            for len in [packed.len(), plain.len()] {
                let len = u32::try_from(len).map_err(|_| CompactError::TooLarge)?;
                head.extend_from_slice(&len.to_le_bytes());
            }
        }
        packed.iter().for_each(|section| head.extend(section));
        Ok(head)
    }

    /// Unpacks those of `head`, which is as long as its header says.
    pub(super) fn unpack(head: &[u8]) -> Result<Self, CompactError> {
        let mut fields = Fields(&head[FIXED_LEN..HEADER_LEN]);
        let lengths: [(u32, u32); SECTIONS] = std::array::from_fn(|_| (fields.u32(), fields.u32()));
        let plain: u64 = lengths.iter().map(|(_, plain)| u64::from(*plain)).sum();
        if plain > most_plain(head.len()) as u64 {
            return Err(CompactError::TooLarge);
        }
        let mut sections = Self::default();
        let mut rest = &head[HEADER_LEN..];
        let mut tables = Tables::new();
        let places = sections.spans.iter_mut().chain(&mut sections.entries);
        let names = SPAN_NAMES.iter().chain(&COLUMNS);
        for (place, (name, (packed, plain))) in places.zip(names.zip(lengths)) {
            let split = rest.split_at_checked(packed as usize);
            let (packed, behind) = split.ok_or(CompactError::Section(name))?;
            *place = unpack(&mut tables, name, packed, plain as usize)?;
            rest = behind;
        }
        match rest {
            [] => Ok(sections),
            _ => Err(CompactError::Header("the head's length")),
        }
    }
}

fn most_plain(head_len: usize) -> usize {
    head_len.saturating_mul(MAX_RATIO).min(MAX_PLAIN_LEN)
}

fn put_header(head: &mut Vec<u8>, header: &Header) {
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.push(match header.compression {
        Compression::Gzip => GZIP,
        Compression::Uncompressed => UNCOMPRESSED,
    });
    head.push(0);
    head.extend_from_slice(&header.head_len.to_le_bytes());
    for number in [
        header.blob_len,
        header.compressed_size,
        header.uncompressed_size,
        header.span_size,
    ] {
        head.extend_from_slice(&number.to_le_bytes());
    }
    head.extend_from_slice(&header.spans.to_le_bytes());
    head.extend_from_slice(&header.entries.to_le_bytes());
    head.extend_from_slice(header.layer.as_bytes());
}

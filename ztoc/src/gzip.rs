//! gzip framing (RFC 1952): what stands around a deflate stream.

use crc32fast::Hasher;

/// CRC32 and length behind each deflate stream.
pub(crate) const TRAILER_LEN: usize = 8;

/// What a gzip member begins with.
pub(crate) const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The longest header that is read. Nothing useful is in it, and it has to be held in memory.
const MAX_HEADER_LEN: usize = 256 * 1024;

const HEADER_CRC: u8 = 1 << 1;
const EXTRA: u8 = 1 << 2;
const NAME: u8 = 1 << 3;
const COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0xe0;

/// Bytes that are no gzip member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GzipError {
    /// They do not begin as a gzip member does.
    #[error("not gzip: the magic number is missing")]
    Magic,
    /// A compression method other than deflate.
    #[error("gzip compression method {0} is not known")]
    Method(u8),
    /// Flags that no version of the format defines.
    #[error("gzip header has unknown flags {0:#04x}")]
    Flags(u8),
    /// The header's own checksum does not match.
    #[error("gzip header is corrupt: its checksum does not match")]
    HeaderChecksum,
    /// A name, comment or extra field beyond all measure.
    #[error("gzip header is longer than is supported")]
    TooLong,
    /// The bytes end within the header.
    #[error("gzip header is cut off")]
    CutOff,
}

/// The length of the member header at the start of `bytes`; `None` if it is not there whole.
///
/// # Errors
///
/// What is wrong with it, as soon as that can be seen.
pub(crate) fn header_len(bytes: &[u8]) -> Result<Option<usize>, GzipError> {
    let magic = bytes.len().min(MAGIC.len());
    if bytes[..magic] != MAGIC[..magic] {
        return Err(GzipError::Magic);
    }
    if let Some(method) = bytes.get(2).filter(|method| **method != 8) {
        return Err(GzipError::Method(*method));
    }
    if let Some(flags) = bytes.get(3).filter(|flags| **flags & RESERVED != 0) {
        return Err(GzipError::Flags(*flags));
    }
    match fields_end(bytes) {
        Some(len) => checked_end(bytes, len),
        None if bytes.len() > MAX_HEADER_LEN => Err(GzipError::TooLong),
        None => Ok(None),
    }
}

/// Where the header ends, but for its checksum.
fn fields_end(bytes: &[u8]) -> Option<usize> {
    let flags = *bytes.get(3)?;
    let mut end = 10;
    if flags & EXTRA != 0 {
        let len = bytes.get(end..end + 2)?;
        end += 2 + usize::from(u16::from_le_bytes([len[0], len[1]]));
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            end += bytes.get(end..)?.iter().position(|byte| *byte == 0)? + 1;
        }
    }
    (bytes.len() >= end).then_some(end)
}

/// Checks the header's checksum, if it has one, and steps over it.
fn checked_end(bytes: &[u8], end: usize) -> Result<Option<usize>, GzipError> {
    if bytes[3] & HEADER_CRC == 0 {
        return Ok(Some(end));
    }
    let Some(stated) = bytes.get(end..end + 2) else {
        return Ok(None);
    };
    let mut crc = Hasher::new();
    crc.update(&bytes[..end]);
    if crc.finalize().to_le_bytes()[..2] != *stated {
        return Err(GzipError::HeaderChecksum);
    }
    Ok(Some(end + 2))
}

/// What stands behind a deflate stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trailer {
    /// CRC32 of the member's uncompressed bytes.
    pub(crate) crc: u32,
    /// Their number, modulo 2^32.
    pub(crate) len: u32,
}

impl Trailer {
    pub(crate) fn parse([a, b, c, d, e, f, g, h]: [u8; TRAILER_LEN]) -> Self {
        let (crc, len) = (
            u32::from_le_bytes([a, b, c, d]),
            u32::from_le_bytes([e, f, g, h]),
        );
        Self { crc, len }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use flate2::{Compression, GzBuilder};
    use proptest::prelude::*;

    use super::*;

    fn member(header: GzBuilder, data: &[u8]) -> Vec<u8> {
        use std::io::Write as _;
        let mut encoder = header.write(Vec::new(), Compression::none());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn optional_fields_are_stepped_over() {
        let header = GzBuilder::new()
            .extra(vec![1; 300])
            .filename("a")
            .comment("bc");
        let bytes = member(header, b"");
        let len = 10 + 2 + 300 + 2 + 3;
        assert_eq!(header_len(&bytes), Ok(Some(len)));
        for cut in 0..len {
            assert_eq!(header_len(&bytes[..cut]), Ok(None), "{cut}");
        }
    }

    #[test]
    fn a_header_checksum_is_checked() {
        let mut bytes = vec![0x1f, 0x8b, 8, 2, 0, 0, 0, 0, 0, 3];
        let mut crc = Hasher::new();
        crc.update(&bytes);
        bytes.extend_from_slice(&crc.finalize().to_le_bytes()[..2]);
        assert_eq!(header_len(&bytes), Ok(Some(12)));
        assert_eq!(header_len(&bytes[..11]), Ok(None));
        bytes[10] ^= 1;
        assert_eq!(header_len(&bytes), Err(GzipError::HeaderChecksum));
    }

    #[test]
    fn a_name_that_never_ends_is_refused() {
        let mut bytes = vec![0x1f, 0x8b, 8, NAME, 0, 0, 0, 0, 0, 3];
        bytes.resize(MAX_HEADER_LEN + 1, b'n');
        assert_eq!(header_len(&bytes), Err(GzipError::TooLong));
    }

    proptest! {
        #[test]
        fn a_header_is_never_longer_than_its_bytes(
            flags: u8, tail in prop::collection::vec(0..3_u8, 0..80)
        ) {
            let bytes = [&[0x1f, 0x8b, 8, flags], &tail[..]].concat();
            if let Ok(Some(len)) = header_len(&bytes) {
                prop_assert!(len <= bytes.len());
            }
        }
    }
}

//! The plain tar in a blob, whatever that is compressed with.

use std::io::{self, Chain, Cursor, Read};
use std::ops::Range;

use ztoc::builder::{LayerFormat, SNIFF_LEN, sniff};
use ztoc::gunzip::{Gunzip, GunzipError, PIECE_LEN};

/// A blob whose first bytes have been looked at.
type Blob<R> = Chain<Cursor<Vec<u8>>, R>;

/// Decodes a blob piece by piece.
pub(super) enum Decoder<R: Read> {
    Gzip(Box<Gunzip<Blob<R>>>),
    Zstd(zstd::stream::read::Decoder<'static, io::BufReader<Blob<R>>>),
    Plain(Blob<R>),
}

impl<R: Read> Decoder<R> {
    /// A decoder for what `blob` begins like.
    pub(super) fn new(mut blob: R) -> io::Result<Self> {
        let mut head = Vec::with_capacity(SNIFF_LEN);
        blob.by_ref()
            .take(SNIFF_LEN as u64)
            .read_to_end(&mut head)?;
        let format = sniff(&head);
        let blob = Cursor::new(head).chain(blob);
        Ok(match format {
            LayerFormat::Gzip => Self::Gzip(Box::new(Gunzip::new(blob))),
            LayerFormat::Zstd => Self::Zstd(zstd::stream::read::Decoder::new(blob)?),
            LayerFormat::Plain => Self::Plain(blob),
        })
    }

    /// Puts the next bytes into `buffer` and tells where; nowhere at the end. By then all of the blob has
    /// been read.
    pub(super) fn read_piece(&mut self, buffer: &mut Vec<u8>) -> io::Result<Range<usize>> {
        match self {
            Self::Gzip(gunzip) => gunzip.read_piece(buffer).map_err(|error| match error {
                GunzipError::Read(error) => error,
                error => io::Error::new(io::ErrorKind::InvalidData, error),
            }),
            Self::Zstd(zstd) => fill(zstd, buffer),
            Self::Plain(plain) => fill(plain, buffer),
        }
    }
}

fn fill(mut reader: impl Read, buffer: &mut Vec<u8>) -> io::Result<Range<usize>> {
    buffer.resize(PIECE_LEN, 0);
    let mut length = 0;
    while length < PIECE_LEN {
        match reader.read(&mut buffer[length..PIECE_LEN]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(0..length)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write as _;

    fn decode(blob: impl Read) -> io::Result<Vec<u8>> {
        let (mut decoder, mut buffer, mut plain) = (Decoder::new(blob)?, Vec::new(), Vec::new());
        loop {
            let range = decoder.read_piece(&mut buffer)?;
            if range.is_empty() {
                return Ok(plain);
            }
            plain.extend_from_slice(&buffer[range]);
        }
    }

    #[test]
    fn gzip_of_several_members_zstd_of_several_frames_and_plain_bytes_are_told_apart() {
        let member = |bytes: &[u8]| {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(bytes).unwrap();
            gzip.finish().unwrap()
        };
        let frame = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        let both = |make: &dyn Fn(&[u8]) -> Vec<u8>| [make(b"one "), make(b"two")].concat();
        let skipped = [&[0x5a, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9], &*both(&frame)].concat();
        for blob in [both(&member), both(&frame), skipped, b"one two".to_vec()] {
            // However little comes at a time.
            let (first, rest) = blob.split_at(1);
            assert_eq!(decode(first.chain(rest)).unwrap(), b"one two");
        }
        assert_eq!(decode(&b""[..]).unwrap(), b"");
    }
}

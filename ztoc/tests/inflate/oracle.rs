//! What zlib makes of a raw DEFLATE stream, from any bit and with any window.

use flate2::{Decompress, FlushDecompress, Status};

/// How a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With its last block.
    Whole,
    /// Where the input ends.
    CutOff,
    /// Where it is corrupt.
    Refused,
}

/// Writes bits, least significant first.
#[derive(Debug, Default, Clone)]
pub(crate) struct BitWriter {
    pub(crate) bytes: Vec<u8>,
    pub(crate) bits: u64,
}

impl BitWriter {
    pub(crate) fn put(&mut self, value: u64, count: u32) {
        for bit in 0..count {
            if self.bits.is_multiple_of(8) {
                self.bytes.push(0);
            }
            let last = self.bytes.len() - 1;
            self.bytes[last] |= ((value >> bit & 1) as u8) << (self.bits % 8);
            self.bits += 1;
        }
    }

    /// Puts a Huffman code, which has its first bit highest.
    pub(crate) fn put_code(&mut self, code: u64, count: u32) {
        for bit in (0..count).rev() {
            self.put(code >> bit & 1, 1);
        }
    }

    pub(crate) fn align(&mut self) {
        self.bits = self.bits.next_multiple_of(8);
    }

    pub(crate) fn stored(&mut self, last: bool, bytes: &[u8]) {
        let length = u16::try_from(bytes.len()).unwrap();
        self.put(u64::from(last), 3);
        self.align();
        self.put(u64::from(length), 16);
        self.put(u64::from(!length), 16);
        self.bytes.extend_from_slice(bytes);
        self.bits += bytes.len() as u64 * 8;
    }

    /// An empty dynamic block of 91 bits: 3 beyond a whole number of bytes.
    pub(crate) fn filler(&mut self) {
        self.put(0b100, 3);
        for (field, count) in [(0, 5), (1, 5), (14, 4)] {
            self.put(field, count);
        }
        for place in 0..18 {
            // Codes of one bit: 0 for symbol 1, in place 17, and 1 for symbol 18, in place 2.
            self.put(u64::from(place == 2 || place == 17), 3);
        }
        for zeros in [138, 118] {
            self.put(1, 1);
            self.put(zeros - 11, 7);
        }
        self.put(0, 3); // lengths of 256 and of two distance codes
        self.put(0, 1); // 256
    }
}

/// Decodes `input` from bit `start` on behind `window` and returns what comes out, up to
/// the end or the error, but at most `limit` bytes.
pub(crate) fn inflate(window: &[u8], input: &[u8], start: u64, limit: usize) -> (Vec<u8>, End) {
    let mut stream = BitWriter::default();
    stream.stored(false, window);
    while stream.bits % 8 != start % 8 {
        stream.filler();
    }
    let mut stream = stream.bytes;
    let first = usize::try_from(start / 8).unwrap();
    let mut rest = input.get(first..).unwrap_or_default().to_vec();
    if let (Some(byte), true) = (rest.first_mut(), !start.is_multiple_of(8)) {
        let joint = stream.pop().unwrap();
        *byte = *byte & (0xff << (start % 8)) | joint;
    }
    stream.append(&mut rest);

    let (mut out, end) = drain(&stream, window.len() + limit);
    (out.split_off(window.len().min(out.len())), end)
}

fn drain(stream: &[u8], limit: usize) -> (Vec<u8>, End) {
    let mut zlib = Decompress::new(false);
    let mut out = vec![0; limit];
    loop {
        let (consumed, produced) = (zlib.total_in(), zlib.total_out());
        let (rest, room) = (&stream[consumed as usize..], &mut out[produced as usize..]);
        let end = match zlib.decompress(rest, room, FlushDecompress::None) {
            Ok(Status::StreamEnd) => End::Whole,
            Err(_) => End::Refused,
            Ok(_) if (consumed, produced) == (zlib.total_in(), zlib.total_out()) => End::CutOff,
            Ok(_) => continue,
        };
        out.truncate(zlib.total_out() as usize);
        return (out, end);
    }
}

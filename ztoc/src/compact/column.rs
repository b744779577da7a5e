//! Columns: like values one behind the other, and the sections of bytes they are packed into.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::DeflateEncoder;

use super::CompactError;
use crate::inflate::{self, Cursor, Stop, Tables};

/// The longest LEB128 number: 64 bits, seven in a byte.
const MAX_NUMBER_LEN: usize = 10;

/// Appends `value`, seven bits a byte, the lowest first (LEB128).
pub(super) fn put_number(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    to.push(value.to_le_bytes()[0]);
}

/// A signed number as an unsigned one: 0, -1, 1, -2, 2 and so on.
pub(super) fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63).cast_unsigned()
}

/// The reverse of [`zigzag`].
pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// Takes values off the front of a column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column<'a> {
    bytes: &'a [u8],
    name: &'static str,
}

impl<'a> Column<'a> {
    /// The column `name`.
    pub(super) fn new(name: &'static str, bytes: &'a [u8]) -> Self {
        Self { bytes, name }
    }

    fn malformed(&self) -> CompactError {
        CompactError::Column(self.name)
    }

    /// The next number.
    #[inline]
    pub(super) fn number(&mut self) -> Result<u64, CompactError> {
        // Nearly all of them.
        if let [byte @ 0..=0x7f, rest @ ..] = self.bytes {
            self.bytes = rest;
            return Ok(u64::from(*byte));
        }
        self.long_number()
    }

    /// The next number, of more than one byte.
    fn long_number(&mut self) -> Result<u64, CompactError> {
        let mut value = 0_u64;
        for (index, &byte) in self.bytes.iter().take(MAX_NUMBER_LEN).enumerate() {
            let bits = u64::from(byte & 0x7f);
            let shift = 7 * index;
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                self.bytes = &self.bytes[index + 1..];
                return Ok(value);
            }
        }
        Err(self.malformed())
    }

    /// The next signed number.
    #[inline]
    pub(super) fn signed(&mut self) -> Result<i64, CompactError> {
        self.number().map(unzigzag)
    }

    /// The next number, if it is a length or an index of something in memory.
    #[inline]
    pub(super) fn length(&mut self) -> Result<usize, CompactError> {
        usize::try_from(self.number()?).map_err(|_| self.malformed())
    }

    /// The next number, if it has 32 bits.
    #[inline]
    pub(super) fn small(&mut self) -> Result<u32, CompactError> {
        u32::try_from(self.number()?).map_err(|_| self.malformed())
    }

    /// The next `len` bytes.
    #[inline]
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], CompactError> {
        let (taken, rest) = self
            .bytes
            .split_at_checked(len)
            .ok_or_else(|| self.malformed())?;
        self.bytes = rest;
        Ok(taken)
    }

    /// How many bytes are left.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Checks that nothing is left.
    pub(super) fn end(&self) -> Result<(), CompactError> {
        match self.bytes {
            [] => Ok(()),
            _ => Err(self.malformed()),
        }
    }
}

/// `plain` as raw DEFLATE, or as it is where that is not longer.
pub(super) fn pack(plain: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
    let packed = encoder.write_all(plain).and_then(|()| encoder.finish());
    let packed = packed.expect("a vector takes all that is written");
    if packed.len() < plain.len() {
        packed
    } else {
        plain.to_vec()
    }
}

/// What [`pack`] made of `len` bytes; anything else is an error. The caller bounds `len`.
pub(super) fn unpack(
    tables: &mut Tables,
    name: &'static str,
    packed: &[u8],
    len: usize,
) -> Result<Vec<u8>, CompactError> {
    if packed.len() == len {
        return Ok(packed.to_vec());
    }
    let malformed = CompactError::Section(name);
    // One byte more, so that a stream which is too long shows.
    let mut plain = vec![0; len + 1];
    let mut cursor = Cursor::at_bit(0);
    let run = inflate::run(tables, packed, &mut cursor, &mut plain, 0, len + 1);
    let (stop, end) = run.map_err(|_| malformed.clone())?;
    let whole = stop == Stop::StreamEnd && end == len;
    if !whole || cursor.byte_aligned_end() != packed.len() {
        return Err(malformed);
    }
    plain.truncate(len);
    Ok(plain)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_of_more_than_64_bits_is_refused() {
        let mut bytes = vec![0xff; 9];
        bytes.push(1);
        assert_eq!(Column::new("c", &bytes).number(), Ok(u64::MAX));
        bytes[9] = 2;
        let refused = Err(CompactError::Column("c"));
        assert_eq!(Column::new("c", &bytes).number(), refused);
        assert_eq!(Column::new("c", &[0x80; 11]).number(), refused);
        assert_eq!(Column::new("c", &[0x80]).number(), refused);
    }

    #[test]
    fn a_section_of_another_length_than_stated_is_refused() {
        let plain = [7; 1000];
        let packed = pack(&plain);
        let mut tables = Tables::new();
        assert_eq!(unpack(&mut tables, "s", &packed, 1000).unwrap(), plain);
        for len in [0, 999, 1001, 2000] {
            assert!(unpack(&mut tables, "s", &packed, len).is_err(), "{len}");
        }
        let longer = [&packed[..], &[0]].concat();
        assert!(unpack(&mut tables, "s", &longer, 1000).is_err());
    }

    proptest! {
        #[test]
        fn numbers_come_back_in_order(values: Vec<u64>, signed: Vec<i64>) {
            let mut bytes = Vec::new();
            values.iter().for_each(|value| put_number(&mut bytes, *value));
            signed.iter().for_each(|value| put_number(&mut bytes, zigzag(*value)));
            let mut column = Column::new("c", &bytes);
            for value in values {
                prop_assert_eq!(column.number(), Ok(value));
            }
            for value in signed {
                prop_assert_eq!(column.signed(), Ok(value));
            }
            prop_assert_eq!(column.end(), Ok(()));
        }

        #[test]
        fn sections_come_back(plain: Vec<u8>) {
            let packed = pack(&plain);
            prop_assert!(packed.len() <= plain.len());
            prop_assert_eq!(unpack(&mut Tables::new(), "s", &packed, plain.len()).unwrap(), plain);
        }
    }
}

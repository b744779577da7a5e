//! One 512-byte tar header block, read as Go's archive/tar reads it: V7, ustar, star and GNU, told
//! apart by magic; numbers in octal or base 256.

/// The unit of a tar.
pub(crate) const BLOCK_LEN: usize = 512;

/// One block.
pub(crate) type Block = [u8; BLOCK_LEN];

/// Which fields a header has behind those of V7.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// A header block's fields, raw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) format: Format,
    pub(super) typeflag: u8,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) size: i64,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) mtime: i64,
    pub(super) uname: Vec<u8>,
    pub(super) gname: Vec<u8>,
    pub(super) dev_major: i64,
    pub(super) dev_minor: i64,
}

impl Header {
    /// `Err` says what is wrong.
    pub(super) fn parse(block: &Block) -> Result<Self, &'static str> {
        let format = format(block).ok_or("the checksum does not match")?;
        let number =
            |from: usize, len| numeric(&block[from..from + len]).ok_or("a field is not a number");
        let mut header = Self {
            format,
            typeflag: block[156],
            name: text(&block[..100]).to_vec(),
            link: text(&block[157..257]).to_vec(),
            size: number(124, 12)?,
            mode: number(100, 8)?,
            uid: number(108, 8)?,
            gid: number(116, 8)?,
            mtime: number(136, 12)?,
            uname: Vec::new(),
            gname: Vec::new(),
            dev_major: 0,
            dev_minor: 0,
        };
        if format != Format::V7 {
            header.uname = text(&block[265..297]).to_vec();
            header.gname = text(&block[297..329]).to_vec();
            header.dev_major = number(329, 8)?;
            header.dev_minor = number(337, 8)?;
            header.add_prefix(prefix(format, block)?);
        }
        Ok(header)
    }

    fn add_prefix(&mut self, prefix: &[u8]) {
        if !prefix.is_empty() {
            self.name = [prefix, b"/", &self.name].concat();
        }
    }
}

/// What goes in front of the name.
fn prefix(format: Format, block: &Block) -> Result<&[u8], &'static str> {
    let is_time = |at: usize| numeric(&block[at..at + 12]).is_some();
    let is_time_or_unset = |at: usize| block[at] == 0 || is_time(at);
    match format {
        Format::V7 => Ok(&[]),
        Format::Ustar => Ok(text(&block[345..500])),
        Format::Star if is_time(476) && is_time(488) => Ok(text(&block[345..476])),
        Format::Star => Err("a time is not a number"),
        Format::Gnu if is_time_or_unset(345) && is_time_or_unset(357) => Ok(&[]),
        // Go before 1.8 wrote a prefix where GNU has times.
        Format::Gnu => Ok(Some(text(&block[345..500]))
            .filter(|text| text.is_ascii())
            .unwrap_or_default()),
    }
}

/// The format, or `None` if the checksum fits neither unsigned nor signed bytes.
fn format(block: &Block) -> Option<Format> {
    let stated = octal(&block[148..156])?;
    let unsigned = |sum: i64, byte: u8| sum + i64::from(byte);
    let signed = |sum: i64, byte: u8| sum + i64::from(byte.cast_signed());
    let bytes = || {
        block[..148]
            .iter()
            .chain(&[b' '; 8])
            .chain(&block[156..])
            .copied()
    };
    if stated != bytes().fold(0, unsigned) && stated != bytes().fold(0, signed) {
        return None;
    }
    Some(
        match (&block[257..263], &block[263..265], &block[508..512]) {
            (b"ustar\0", _, b"tar\0") => Format::Star,
            (b"ustar\0", _, _) => Format::Ustar,
            (b"ustar ", b" \0", _) => Format::Gnu,
            _ => Format::V7,
        },
    )
}

/// The bytes before the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number in octal, or in base 256 where the first bit is set.
pub(super) fn numeric(field: &[u8]) -> Option<i64> {
    let Some((first, rest)) = field.split_first().filter(|(first, _)| **first & 0x80 != 0) else {
        return octal(field);
    };
    // Two's complement; the bit below the mark is the sign.
    let invert = if first & 0x40 != 0 { 0xff } else { 0 };
    let start = i64::from((first ^ invert) & 0x7f);
    let magnitude = rest.iter().try_fold(start, |sum, byte| {
        sum.checked_mul(256)
            .map(|sum| sum | i64::from(byte ^ invert))
    })?;
    Some(if invert == 0 { magnitude } else { !magnitude })
}

/// An octal number between spaces and NULs; 0 if there are only those.
fn octal(field: &[u8]) -> Option<i64> {
    let padding = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = field.iter().position(|byte| !padding(byte)) else {
        return Some(0);
    };
    let end = field.iter().rposition(|byte| !padding(byte))?;
    text(&field[start..=end])
        .iter()
        .try_fold(0_i64, |sum, digit| match digit {
            b'0'..=b'7' => sum.checked_mul(8).map(|sum| sum | i64::from(digit - b'0')),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_octal_between_padding_or_base_256() {
        assert_eq!(numeric(b"0000644\0"), Some(0o644));
        assert_eq!(numeric(b" 755 \0  "), Some(0o755));
        assert_eq!(numeric(b"\0\0\0"), Some(0));
        assert_eq!(numeric(b"12\x0034"), Some(0o12));
        assert_eq!(numeric(b"129"), None);
        assert_eq!(numeric(b"-1"), None);
        assert_eq!(numeric(b"\x80\0\0\0\x80\0\0\0"), Some(0x8000_0000));
        assert_eq!(numeric(&[0xff; 12]), Some(-1));
        assert_eq!(numeric(b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), None);
    }

    proptest! {
        #[test]
        fn base_256_numbers_are_read_back(number: i64) {
            let sign = if number < 0 { 0xff } else { 0 };
            let mut field = [sign; 12];
            field[4..].copy_from_slice(&number.to_be_bytes());
            field[0] |= 0x80;
            prop_assert_eq!(numeric(&field), Some(number));
        }

        #[test]
        fn arbitrary_fields_are_numbers_or_none(field in prop::collection::vec(any::<u8>(), 0..13)) {
            let _ = numeric(&field);
        }
    }
}

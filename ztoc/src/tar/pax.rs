//! PAX extended headers: `LENGTH KEY=VALUE\n` records, and what they change in a member.

use std::collections::BTreeMap;

use super::header::Header;
use super::sparse;
use crate::toc::Timestamp;

/// Records by key; of several with one key the last.
pub(super) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// Reads the data of an `x` or `g` member. `Err` says what is wrong.
///
/// The offsets and lengths of sparse format 0.0, which repeat their keys, are folded into one
/// record as format 0.1 has it.
pub(super) fn parse(mut data: &[u8]) -> Result<Records, &'static str> {
    let mut records = Records::new();
    let mut map: Vec<&[u8]> = Vec::new();
    while !data.is_empty() {
        let (key, value, rest) = record(data).ok_or("a PAX record is malformed")?;
        data = rest;
        if key == sparse::OFFSET || key == sparse::NUM_BYTES {
            let in_turn = map.len().is_multiple_of(2) == (key == sparse::OFFSET);
            if !in_turn || value.contains(&b',') {
                return Err("the sparse records are out of order");
            }
            map.push(value);
        } else {
            records.insert(key.to_vec(), value.to_vec());
        }
    }
    if !map.is_empty() {
        records.insert(sparse::FOLDED_MAP.to_vec(), map.join(&b','));
    }
    Ok(records)
}

/// Key, value and what follows the first record.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().position(|byte| *byte == b' ')?;
    let len = usize::try_from(sparse::decimal(&data[..space])?).ok()?;
    let body = data.get(space + 1..len).filter(|_| len >= 5)?;
    let body = body.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    let checked = match key {
        b"path" | b"linkpath" | b"uname" | b"gname" => value,
        _ => key,
    };
    (!key.is_empty() && !checked.contains(&0)).then_some((key, value, &data[len..]))
}

/// Lets the records override the header's fields; the modification time, if they give one. Empty
/// values override nothing. `Err` says what is wrong.
pub(super) fn apply(
    records: &Records,
    header: &mut Header,
) -> Result<Option<Timestamp>, &'static str> {
    let mut mtime = None;
    for (key, value) in records.iter().filter(|(_, value)| !value.is_empty()) {
        let number = || sparse::decimal(value).ok_or("a PAX number is malformed");
        match key.as_slice() {
            b"path" => header.name.clone_from(value),
            b"linkpath" => header.link.clone_from(value),
            b"uname" => header.uname.clone_from(value),
            b"gname" => header.gname.clone_from(value),
            b"uid" => header.uid = number()?,
            b"gid" => header.gid = number()?,
            b"size" => header.size = number()?,
            b"mtime" => mtime = Some(time(value).ok_or("a PAX time is malformed")?),
            b"atime" | b"ctime" => {
                time(value).ok_or("a PAX time is malformed")?;
            }
            _ => {}
        }
    }
    Ok(mtime)
}

/// A decimal number of seconds with an optional fraction, of which nine digits count.
fn time(text: &[u8]) -> Option<Timestamp> {
    let (seconds, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(point) => (&text[..point], &text[point + 1..]),
        None => (text, &[][..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().map(|digit| u32::from(digit - b'0'));
    let nanos = digits
        .chain(std::iter::repeat(0))
        .take(9)
        .fold(0, |sum, digit| sum * 10 + digit);
    let number = sparse::decimal(seconds)?;
    if seconds.starts_with(b"-") && nanos > 0 {
        let seconds = number.checked_sub(1)?;
        return Some(Timestamp {
            seconds,
            nanos: 1_000_000_000 - nanos,
        });
    }
    Some(Timestamp {
        seconds: number,
        nanos,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_of_two_records_with_one_key_counts() {
        let records = parse(b"8 a=one\n8 a=two\n7 b==c\n").unwrap();
        assert_eq!(records[&b"a"[..]], b"two");
        assert_eq!(records[&b"b"[..]], b"=c");
    }

    #[test]
    fn a_record_whose_length_is_wrong_is_refused() {
        for data in [
            "7 a=one\n",
            "9 a=one\n",
            "0 a=one\n",
            "-8 a=one\n",
            "a=one\n",
            "8 =aone\n",
        ] {
            assert!(parse(data.as_bytes()).is_err(), "{data:?}");
        }
    }

    #[test]
    fn times_are_rounded_down_and_cut_to_nanoseconds() {
        let at = |seconds, nanos| Some(Timestamp { seconds, nanos });
        assert_eq!(time(b"1.5"), at(1, 500_000_000));
        assert_eq!(time(b"-1.5"), at(-2, 500_000_000));
        assert_eq!(time(b"-0.25"), at(-1, 750_000_000));
        assert_eq!(time(b"7"), at(7, 0));
        assert_eq!(time(b"7."), at(7, 0));
        assert_eq!(time(b"1.0000000019"), at(1, 1));
        for text in ["", ".5", "1.x", "x", "1.-5", "99999999999999999999"] {
            assert_eq!(time(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn records_are_read_back(pairs in prop::collection::btree_map(
            "[a-zA-Z.]{1,20}", prop::collection::vec(1..=255_u8, 0..150), 0..8)
        ) {
            let mut data = Vec::new();
            for (key, value) in &pairs {
                let body = key.len() + value.len() + 3;
                let len = (1..6).map(|digits| body + digits).find(|len| {
                    len.to_string().len() + body == *len
                }).unwrap();
                data.extend_from_slice(format!("{len} {key}=").as_bytes());
                data.extend_from_slice(value);
                data.push(b'\n');
            }
            let expected: Records =
                pairs.into_iter().map(|(key, value)| (key.into_bytes(), value)).collect();
            prop_assert_eq!(parse(&data).unwrap(), expected);
        }

        #[test]
        fn arbitrary_data_is_read_or_refused(data in "[0-9 =a\n]{0,60}") {
            let _ = parse(data.as_bytes());
        }
    }
}

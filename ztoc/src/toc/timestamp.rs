//! Times as a zTOC writes them: RFC 3339 text.

use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

/// A time as the tar gives it: seconds since 1970 (may be negative) and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01T00:00:00Z, rounded down.
    pub seconds: i64,
    /// 0..1_000_000_000.
    pub nanos: u32,
}

impl Timestamp {
    /// As RFC 3339 in UTC, fraction without trailing zeros; `None` for a year outside of
    /// 0..=9999, which RFC 3339 cannot express.
    pub fn to_rfc3339(self) -> Option<String> {
        let time = OffsetDateTime::from_unix_timestamp(self.seconds).ok()?;
        if !(0..=9999).contains(&time.year()) {
            return None;
        }
        let fraction = match self.nanos {
            0 => String::new(),
            nanos => format!(".{nanos:09}").trim_end_matches('0').to_owned(),
        };
        Some(format!(
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}{fraction}Z",
            time.year(),
            u8::from(time.month()),
            time.day(),
            time.hour(),
            time.minute(),
            time.second(),
        ))
    }

    /// Reads RFC 3339 text with any offset; `None` for anything else.
    pub fn from_rfc3339(text: &[u8]) -> Option<Self> {
        match plain(text) {
            Some(seconds) => Some(Self { seconds, nanos: 0 }),
            None => Self::from_any_rfc3339(text),
        }
    }

    fn from_any_rfc3339(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        let time = time.checked_to_offset(UtcOffset::UTC)?;
        Some(Self {
            seconds: time.unix_timestamp(),
            nanos: time.nanosecond(),
        })
    }
}

/// The seconds of a time like `2020-01-01T12:00:00Z`, as nearly all are: an image has one for each of its files.
/// `None` for any other text, and for numbers that no such time has.
fn plain(text: &[u8]) -> Option<i64> {
    const DAYS: [i64; 12] = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let text: &[u8; 20] = text.try_into().ok()?;
    let marks = [4, 7, 10, 13, 16, 19].map(|at| text[at]);
    if marks != *b"--T::Z" {
        return None;
    }
    let mut all_digits = true;
    let mut two = |at: usize| {
        let [ten, one] = [text[at], text[at + 1]].map(|byte| byte.wrapping_sub(b'0'));
        all_digits &= ten < 10 && one < 10;
        i64::from(ten) * 10 + i64::from(one)
    };
    let (year, month, day) = (two(0) * 100 + two(2), two(5), two(8));
    let (hour, minute, second) = (two(11), two(14), two(17));
    if !all_digits {
        return None;
    }
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let of_month = *DAYS.get(usize::try_from(month - 1).ok()?)?;
    let last = of_month + i64::from(is_leap && month == 2);
    if !(1..=last).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Years begin in March here, so that a leap day is a year's last.
    let year = year - i64::from(month < 3);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 719,468 days lie between 0000-03-01 and 1970-01-01.
    let days = year * 365 + leap_days + day_of_year - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_time_zone_changes_the_text_and_not_the_time() {
        let local = Timestamp::from_rfc3339(b"2020-01-01T02:00:00.5+02:00").unwrap();
        assert_eq!(local.to_rfc3339().unwrap(), "2020-01-01T00:00:00.5Z");
    }

    #[test]
    fn years_that_need_five_digits_or_a_sign_have_no_text() {
        let last = Timestamp {
            seconds: 253_402_300_799,
            nanos: 999_999_999,
        };
        assert_eq!(last.to_rfc3339().unwrap(), "9999-12-31T23:59:59.999999999Z");
        assert_eq!(
            Timestamp {
                seconds: last.seconds + 1,
                nanos: 0
            }
            .to_rfc3339(),
            None
        );
        let first = Timestamp {
            seconds: -62_167_219_200,
            nanos: 0,
        };
        assert_eq!(first.to_rfc3339().unwrap(), "0000-01-01T00:00:00Z");
        assert_eq!(
            Timestamp {
                seconds: first.seconds - 1,
                nanos: 0
            }
            .to_rfc3339(),
            None
        );
        assert_eq!(
            Timestamp {
                seconds: i64::MIN,
                nanos: 0
            }
            .to_rfc3339(),
            None
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(seconds in -62_167_219_200..253_402_300_800_i64,
                                        nanos in 0..1_000_000_000_u32) {
            let time = Timestamp { seconds, nanos };
            let text = time.to_rfc3339().unwrap();
            prop_assert_eq!(Timestamp::from_rfc3339(text.as_bytes()), Some(time));
        }

        #[test]
        fn the_short_way_leads_where_the_long_one_does(
            text in "[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9]Z",
            seconds in -62_167_219_200..253_402_300_800_i64,
        ) {
            let time = Timestamp { seconds, nanos: 0 }.to_rfc3339().unwrap();
            prop_assert_eq!(plain(time.as_bytes()), Some(seconds));
            if let Some(seconds) = plain(text.as_bytes()) {
                let time = Timestamp { seconds, nanos: 0 };
                prop_assert_eq!(Timestamp::from_any_rfc3339(text.as_bytes()), Some(time));
            }
        }

        #[test]
        fn arbitrary_text_is_a_time_or_none(text in "[0-9TZ:.+-]{0,40}") {
            let _ = Timestamp::from_rfc3339(text.as_bytes());
        }
    }
}

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
        let text = std::str::from_utf8(text).ok()?;
        let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        let time = time.checked_to_offset(UtcOffset::UTC)?;
        Some(Self {
            seconds: time.unix_timestamp(),
            nanos: time.nanosecond(),
        })
    }
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
        fn arbitrary_text_is_a_time_or_none(text in "[0-9TZ:.+-]{0,40}") {
            let _ = Timestamp::from_rfc3339(text.as_bytes());
        }
    }
}

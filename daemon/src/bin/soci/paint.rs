//! Colours on a terminal, and numbers as people read them.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::BinaryBytes;

/// Whether to colour what is printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    on: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Colour {
    Green,
    Yellow,
    Red,
    Dim,
    Bold,
}

impl Paint {
    /// Colours if standard output is a terminal and NO_COLOR is not set.
    pub(crate) fn of_stdout() -> Self {
        Self::if_terminal(&std::io::stdout())
    }

    /// The same of standard error.
    pub(crate) fn of_stderr() -> Self {
        Self::if_terminal(&std::io::stderr())
    }

    fn if_terminal(output: &impl IsTerminal) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            on: output.is_terminal() && !unwanted,
        }
    }

    /// Whether there are colours.
    pub(crate) fn is_on(self) -> bool {
        self.on
    }

    pub(crate) fn text(self, colour: Colour, text: &str) -> String {
        let code = match colour {
            Colour::Green => 32,
            Colour::Yellow => 33,
            Colour::Red => 31,
            Colour::Dim => 2,
            Colour::Bold => 1,
        };
        match self.on {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }
}

pub(crate) fn bytes(number: u64) -> String {
    BinaryBytes(number).to_string()
}

pub(crate) fn micros(number: u64) -> String {
    duration(Duration::from_micros(number))
}

pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match time.as_micros() {
        0..1000 => format!("{} us", time.as_micros()),
        1000..1_000_000 => format!("{:.1} ms", seconds * 1e3),
        1_000_000..120_000_000 => format!("{seconds:.1} s"),
        _ => format!("{:.0} min", seconds / 60.0),
    }
}

/// A share of a whole, rounded down, so that 100 % is all of it.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        _ => format!("{} %", u128::from(part) * 100 / u128::from(whole)),
    }
}

/// Text from elsewhere, without anything a terminal would obey.
pub(crate) fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars()
        .flat_map(|c| match c.is_control() {
            true => c.escape_default().collect::<Vec<_>>(),
            false => vec![c],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_never_say_more_than_there_is() {
        assert_eq!(percent(199, 200), "99 %");
        assert_eq!(percent(200, 200), "100 %");
        assert_eq!(percent(1, 0), "-");
        assert_eq!(micros(999), "999 us");
        assert_eq!(micros(1500), "1.5 ms");
        assert_eq!(micros(2_500_000), "2.5 s");
        assert_eq!(micros(600_000_000), "10 min");
        assert_eq!(printable(b"a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
    }
}

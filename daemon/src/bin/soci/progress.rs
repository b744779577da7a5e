//! Progress of long work: bars on a terminal, one line per finished piece elsewhere. Always on
//! standard error; standard output belongs to results.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

/// All bars of a command.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    bars: MultiProgress,
    terminal: bool,
    /// Results are for a machine.
    json: bool,
}

/// One piece of work of known size.
#[derive(Debug, Clone)]
pub(crate) struct Bar {
    bar: ProgressBar,
}

impl Progress {
    /// `json`: results are printed as lines of JSON.
    pub(crate) fn new(json: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            bars: MultiProgress::with_draw_target(target),
            terminal,
            json,
        }
    }

    /// Shows work on `bytes` bytes.
    pub(crate) fn bytes(&self, label: &str, bytes: u64) -> Bar {
        let style = "{prefix:<28} {bar:24} {bytes:>10}/{total_bytes:<10} {bytes_per_sec:>12} {msg}";
        self.bar(label, ProgressBar::new(bytes), style)
    }

    /// Shows work of unknown size.
    pub(crate) fn spinner(&self, label: &str) -> Bar {
        let bar = self.bar(
            label,
            ProgressBar::new_spinner(),
            "{prefix:<28} {spinner} {msg}",
        );
        bar.bar.enable_steady_tick(Duration::from_millis(120));
        bar
    }

    fn bar(&self, label: &str, bar: ProgressBar, style: &str) -> Bar {
        // The templates are constants; a bar in the default style is still a bar.
        let style = ProgressStyle::with_template(style)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        let bar = self.bars.add(bar.with_style(style));
        bar.set_prefix(label.to_owned());
        Bar { bar }
    }

    /// A line of the result, on standard output: `line` for people, or `value` for machines.
    pub(crate) fn result(&self, line: &str, value: &Value) {
        if self.json {
            return self.machine(value);
        }
        self.print(&line);
    }

    /// A part of the result that only machines are told.
    pub(crate) fn machine(&self, value: &Value) {
        if self.json {
            self.print(value);
        }
    }

    fn print(&self, line: &dyn std::fmt::Display) {
        // A reader that went away is no reason to stop the work.
        self.bars
            .suspend(|| _ = writeln!(std::io::stdout(), "{line}"));
    }

    /// A line about the work, on standard error.
    pub(crate) fn note(&self, line: &str) {
        self.bars.suspend(|| eprintln!("{line}"));
    }

    /// A line that only stands in for a bar where there are none.
    pub(crate) fn plain(&self, line: &str) {
        if !self.terminal {
            eprintln!("{line}");
        }
    }
}

impl Bar {
    pub(crate) fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// `bytes` of them are done, in all.
    pub(crate) fn at(&self, bytes: u64) {
        self.bar.set_position(bytes);
    }

    pub(crate) fn message(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }

    /// Removes the bar.
    pub(crate) fn done(&self) {
        self.bar.finish_and_clear();
    }
}

/// The first digits of a digest, enough to tell an image's layers apart.
pub(crate) fn short(digest: &ztoc::Digest) -> String {
    let mut hex = digest.hex();
    hex.truncate(12);
    hex
}

//! What was measured, as a table and as JSON.

use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// One run.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// From the pull's start to its end.
    pub(crate) pull: Duration,
    /// From there to the container's first line.
    pub(crate) start: Duration,
    /// Bytes of all bodies the registry sent, by its own log.
    pub(crate) fetched_bytes: u64,
    /// Requests the registry answered, by its own log.
    pub(crate) registry_requests: u64,
    /// What the container printed.
    pub(crate) output: String,
}

/// Both runs.
#[derive(Debug)]
pub(crate) struct Report {
    /// Bytes of the image's layers, compressed.
    pub(crate) image_bytes: u64,
    /// How many layers.
    pub(crate) layers: usize,
    /// After a full pull.
    pub(crate) full: Outcome,
    /// Lazily.
    pub(crate) lazy: Outcome,
    /// FUSE mounts that served the lazy container.
    pub(crate) fuse_mounts: usize,
}

impl Outcome {
    fn total(&self) -> Duration {
        self.pull + self.start
    }

    fn to_json(&self) -> Value {
        json!({
            "pull_s": self.pull.as_secs_f64(),
            "start_s": self.start.as_secs_f64(),
            "total_s": self.total().as_secs_f64(),
            "fetched_bytes": self.fetched_bytes,
            "registry_requests": self.registry_requests,
            "output": self.output,
        })
    }
}

impl Report {
    /// The numbers, in seconds and bytes.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "image_bytes": self.image_bytes,
            "full": self.full.to_json(),
            "lazy": self.lazy.to_json(),
            "fuse_mounts": self.fuse_mounts,
        })
    }

    fn row(&self, name: &str, run: &Outcome, mounts: usize) -> String {
        let seconds = |duration: Duration| format!("{:.2} s", duration.as_secs_f64());
        format!(
            "{name:<18}{:>9}{:>9}{:>9}{:>22}{:>10}{:>13}",
            seconds(run.pull),
            seconds(run.start),
            seconds(run.total()),
            format!(
                "{:.1} of {:.1} MB",
                megabytes(run.fetched_bytes),
                megabytes(self.image_bytes)
            ),
            run.registry_requests,
            mounts
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = [
            "",
            "pull",
            "start",
            "total",
            "fetched",
            "requests",
            "FUSE mounts",
        ];
        let [name, pull, start, total, fetched, requests, mounts] = head;
        writeln!(
            f,
            "\nan image of {} layers; caches dropped before each run; lazily without the background fetch, so that\n\
             the bytes are those that the start needs\n",
            self.layers
        )?;
        writeln!(
            f,
            "{name:<18}{pull:>9}{start:>9}{total:>9}{fetched:>22}{requests:>10}{mounts:>13}"
        )?;
        writeln!(f, "{}", self.row("full (overlayfs)", &self.full, 0))?;
        writeln!(
            f,
            "{}",
            self.row("lazy (soci)", &self.lazy, self.fuse_mounts)
        )?;
        writeln!(f, "\nthe container's output, full: {}", self.full.output)?;
        write!(f, "                        lazy: {}", self.lazy.output)
    }
}

#[expect(clippy::cast_precision_loss, reason = "printed with one decimal")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// A line that says what is happening, and how long after the first of them.
pub(crate) fn progress(what: &str) {
    static START: OnceLock<Instant> = OnceLock::new();
    let elapsed = START.get_or_init(Instant::now).elapsed();
    eprintln!("demo: {:>4} s  {what}", elapsed.as_secs());
}

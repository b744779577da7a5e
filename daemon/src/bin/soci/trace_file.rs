//! Recorded start-ups: which bytes of which layers were wanted, in the order of their first use.
//!
//! Bytes of the uncompressed tar, not spans, so that a record holds for any span size.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use ztoc::{Digest, UncompressedOffset};

/// Largest record read.
const MAX_SIZE: u64 = 256 << 20;
const VERSION: u32 = 1;

/// A record.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TraceFile {
    version: u32,
    /// The images whose layers they are.
    pub(crate) images: Vec<String>,
    /// Whether everything that was read is here; a record is bounded.
    pub(crate) complete: bool,
    /// In the order of time.
    pub(crate) reads: Vec<TraceRead>,
}

/// One read.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TraceRead {
    /// Microseconds since the view was mounted.
    pub(crate) at_us: u64,
    /// The compressed layer.
    pub(crate) layer: Digest,
    /// First byte of the uncompressed tar.
    pub(crate) start: u64,
    /// The byte after the last.
    pub(crate) end: u64,
    /// The file, one of its names.
    pub(crate) path: String,
}

impl TraceRead {
    pub(crate) fn range(&self) -> Range<UncompressedOffset> {
        UncompressedOffset(self.start)..UncompressedOffset(self.end.max(self.start))
    }
}

impl TraceFile {
    pub(crate) fn new(images: Vec<String>, complete: bool, reads: Vec<TraceRead>) -> Self {
        Self {
            version: VERSION,
            images,
            complete,
            reads,
        }
    }

    pub(crate) fn read(path: &Path) -> Result<Self> {
        let trace: Self = read_json(path, MAX_SIZE)
            .with_context(|| format!("{}: not a record of soci trace", path.display()))?;
        ensure!(
            trace.version == VERSION,
            "{}: records of version {} are not known here",
            path.display(),
            trace.version
        );
        Ok(trace)
    }
}

/// Reads a JSON file of at most `limit` bytes.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<T> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= limit, "more than {limit} bytes");
    Ok(serde_json::from_slice(&bytes)?)
}

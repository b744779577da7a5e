//! `origin`: what a layer's directory belongs to.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use ztoc::Digest;

const VERSION: u32 = 1;
/// Far more than a record has.
const LARGEST: u64 = 64 << 10;

/// Ties the files of a directory together: a zTOC does not say which layer it describes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    version: u32,
    layer: String,
    ztoc: String,
    /// The image it was first prepared for; for people.
    image: String,
}

impl Origin {
    /// The record of `layer` with the zTOC `ztoc`.
    pub(crate) fn new(layer: &Digest, ztoc: &Digest, image: &str) -> Self {
        Self {
            version: VERSION,
            layer: layer.to_string(),
            ztoc: ztoc.to_string(),
            image: image.to_owned(),
        }
    }

    /// The file's text.
    pub(crate) fn to_text(&self) -> io::Result<String> {
        serde_json::to_string_pretty(self).map_err(io::Error::other)
    }

    /// The digest of the zTOC that the directory of `layer` holds by the record at `path`.
    pub(crate) fn read(path: &Path, layer: &Digest) -> io::Result<Digest> {
        let invalid = |detail: &str| io::Error::new(io::ErrorKind::InvalidData, detail);
        if path.metadata()?.len() > LARGEST {
            return Err(invalid("the record is too large"));
        }
        let record: Self = serde_json::from_slice(&std::fs::read(path)?)?;
        if record.version != VERSION {
            return Err(invalid("the record has an unknown version"));
        }
        if record.layer != layer.to_string() {
            return Err(invalid("the record is of another layer"));
        }
        record.ztoc.parse().map_err(io::Error::other)
    }
}

//! `origin`: what a layer's directory belongs to.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use ztoc::Digest;

use super::kept_ztoc::Held;
use super::map::Checksum;
use super::store::NewLayer;
use crate::registry::digest_text;

const VERSION: u32 = 1;
/// Far more than a record has.
const LARGEST: u64 = 64 << 10;

/// Ties the files of a directory together: a zTOC does not say which layer it describes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    version: u32,
    #[serde(with = "digest_text")]
    layer: Digest,
    #[serde(with = "digest_text")]
    ztoc: Digest,
    /// Compressed bytes of the layer by its zTOC.
    size: u64,
    /// The image it was first prepared for; for people.
    image: String,
    /// How the zTOC begins, if it is compact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    head: Option<Head>,
    /// Of what is read of the zTOC at opening, once its digest has been found right. Earlier versions wrote none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checksum: Option<Checksum>,
}

/// What is checked of a compact zTOC when the layer is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    size: u64,
    #[serde(with = "digest_text")]
    digest: Digest,
    blob_size: u64,
}

impl Origin {
    /// The record of a layer that has `size` compressed bytes by its zTOC, of which `read` is read at opening.
    pub(crate) fn new(new: &NewLayer, size: u64, read: &[u8]) -> Self {
        Self {
            version: VERSION,
            layer: new.layer,
            ztoc: new.ztoc,
            size,
            image: new.image.clone(),
            head: None,
            checksum: Some(Checksum::of(read)),
        }
    }

    /// The same of a compact zTOC of `blob_size` bytes that begins with `head`.
    pub(crate) fn with_head(self, head: &[u8], blob_size: u64) -> Self {
        Self {
            head: Some(Head {
                size: head.len() as u64,
                digest: Digest::of(head),
                blob_size,
            }),
            ..self
        }
    }

    /// Length of the head, if the zTOC is compact.
    pub(crate) fn head_len(&self) -> Option<u64> {
        self.head.map(|head| head.size)
    }

    /// Whether what was read, the head of a compact zTOC or all of another, is what was stored.
    pub(crate) fn vouches_for(&self, read: &Held) -> bool {
        let digest = self.head.map_or(self.ztoc, |head| head.digest);
        match self.checksum {
            Some(checksum) => checksum == read.checksum,
            None => digest == Digest::of(read),
        }
    }

    /// Bytes of all of the zTOC, if it is compact.
    pub(crate) fn blob_len(&self) -> Option<u64> {
        self.head.map(|head| head.blob_size)
    }

    /// Digest of the zTOC.
    pub(crate) fn ztoc(&self) -> Digest {
        self.ztoc
    }

    /// Compressed bytes of the layer by its zTOC.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The file's text.
    pub(crate) fn to_text(&self) -> io::Result<String> {
        serde_json::to_string_pretty(self).map_err(io::Error::other)
    }

    /// The record at `path`, in the directory of `layer`.
    pub(crate) fn read(path: &Path, layer: &Digest) -> io::Result<Self> {
        let invalid = |detail: &str| io::Error::new(io::ErrorKind::InvalidData, detail);
        if path.metadata()?.len() > LARGEST {
            return Err(invalid("the record is too large"));
        }
        let record: Self = serde_json::from_slice(&std::fs::read(path)?)?;
        if record.version != VERSION {
            return Err(invalid("the record has an unknown version"));
        }
        if record.layer != *layer {
            return Err(invalid("the record is of another layer"));
        }
        Ok(record)
    }
}

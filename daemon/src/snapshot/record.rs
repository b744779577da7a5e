//! What is known of one snapshot.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use ztoc::Digest;

use super::images::LazyLayer;
use crate::error::SnapshotError;

/// Labels of a snapshot.
pub type Labels = BTreeMap<String, String>;

/// Number of a snapshot, the name of its directory; never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SnapshotId(pub u64);

impl std::fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// containerd's kinds of snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Read-only, not committable.
    View,
    /// Writable.
    Active,
    /// Immutable; the only kind that can be a parent.
    Committed,
}

impl Kind {
    /// The word that filters use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// What provides a snapshot's own files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The directory `snapshots/<id>/fs`.
    Directory,
    /// A layer that is served span by span; there is no directory.
    Lazy {
        /// Digest of the compressed layer.
        layer: String,
        /// The image it was prepared for, as labelled.
        image: String,
    },
}

impl Source {
    /// The source that a lazy layer is.
    pub fn lazy(layer: &LazyLayer) -> Self {
        Self::Lazy {
            layer: layer.digest.to_string(),
            image: layer.image.to_string(),
        }
    }

    /// The digest of the layer, if this is a lazy one and its record can be read.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::Lazy { layer, .. } => layer.parse().ok(),
            Self::Directory => None,
        }
    }

    /// The layer, if this is a lazy one.
    ///
    /// # Errors
    /// The record holds a digest or reference that cannot be parsed: the store was tampered with.
    pub fn layer(&self) -> Result<Option<LazyLayer>, SnapshotError> {
        let Self::Lazy { layer, image } = self else {
            return Ok(None);
        };
        let corrupt = |what: &str| SnapshotError::Corrupt {
            detail: format!("{what} of lazy layer {layer} ({image})"),
        };
        Ok(Some(LazyLayer {
            digest: layer.parse::<Digest>().map_err(|_| corrupt("digest"))?,
            image: image.parse().map_err(|_| corrupt("image reference"))?,
        }))
    }
}

/// Disk space that a snapshot itself takes, without its parents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes in allocated blocks.
    pub size: u64,
    /// Inodes; hard links to one inode count once.
    pub inodes: u64,
}

/// One snapshot as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number.
    pub id: SnapshotId,
    /// Its kind.
    pub kind: Kind,
    /// Key of the snapshot below; a committed one.
    pub parent: Option<String>,
    /// Its labels.
    pub labels: Labels,
    /// When it was prepared.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub created: OffsetDateTime,
    /// When its labels or kind last changed.
    #[serde(with = "time::serde::timestamp::nanoseconds")]
    pub updated: OffsetDateTime,
    /// Where its files are.
    pub source: Source,
    /// What it takes on disk, fixed when it is committed.
    pub usage: Option<Usage>,
}

/// A snapshot with its key, as `Stat` and `List` show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key; after a commit, the name.
    pub key: String,
    /// All else.
    pub record: Record,
}

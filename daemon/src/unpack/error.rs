//! What can go wrong when a layer is unpacked.

use std::io;
use std::path::PathBuf;

use ztoc::Digest;
use ztoc::tar::TarError;

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The blob could not be read or decompressed.
    #[error("cannot read the layer: {0}")]
    Read(#[source] io::Error),
    /// The blob is not the layer.
    #[error("the blob's digest is {actual} instead of {expected}")]
    Layer {
        /// Digest of the layer.
        expected: Digest,
        /// Digest of what was read.
        actual: Digest,
    },
    /// The tar is not what the image's configuration names.
    #[error("the layer's diff ID is {actual} instead of {expected}")]
    DiffId {
        /// By the image's configuration.
        expected: Digest,
        /// Digest of the tar.
        actual: Digest,
    },
    /// It is no tar.
    #[error("cannot read the layer: {0}")]
    Tar(#[from] TarError),
    /// More members than accepted.
    #[error("the layer has more than {0} members")]
    TooMany(u64),
    /// A member could not be made.
    #[error("cannot unpack {name:?}: {source}")]
    Entry {
        /// Its name, as far as it can be shown.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The directory it goes to.
    #[error("{path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was given up: time is over, or nobody waits any more.
    #[error("unpacking was given up")]
    GivenUp,
}

impl UnpackError {
    /// Whether the bytes were at fault, so that the same layer from elsewhere may be right.
    pub fn is_of_the_blob(&self) -> bool {
        matches!(self, Self::Read(_) | Self::Layer { .. } | Self::Tar(_))
    }

    /// Whether there was no room for it on the disk.
    pub fn is_for_want_of_room(&self) -> bool {
        let kind = match self {
            Self::Entry { source, .. } | Self::Directory { source, .. } => source.kind(),
            _ => return false,
        };
        matches!(
            kind,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }

    pub(super) fn entry(name: &[u8], source: io::Error) -> Self {
        let name = String::from_utf8_lossy(name).chars().take(200).collect();
        Self::Entry { name, source }
    }
}

//! Errors of the snapshots service, and the one place that chooses their gRPC status.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use tonic::{Code, Status};

use crate::snapshot::filter::FilterError;
use crate::snapshot::images::MountError;
use crate::snapshot::mapped::NotMapped;

/// Why a call of the snapshots service failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// A key or name is taken. For a layer this is the good answer: it need not be fetched.
    #[error("snapshot {key:?} already exists")]
    AlreadyExists {
        /// The key.
        key: String,
    },
    /// No such snapshot.
    #[error("snapshot {key:?} does not exist")]
    NotFound {
        /// The key.
        key: String,
    },
    /// The parent is not committed.
    #[error("parent {parent:?} is not a committed snapshot")]
    Parent {
        /// The parent.
        parent: String,
    },
    /// The call makes no sense for a snapshot of this kind.
    #[error("snapshot {key:?} is {kind}: it cannot be {operation}")]
    Kind {
        /// The key.
        key: String,
        /// Its kind.
        kind: &'static str,
        /// What was asked for, as a participle.
        operation: &'static str,
    },
    /// Others are built on it.
    #[error("snapshot {key:?} has children, {child:?} for one: remove them first")]
    HasChildren {
        /// The key.
        key: String,
        /// One of the children.
        child: String,
    },
    /// An argument is unusable.
    #[error("invalid {what}: {detail}")]
    Argument {
        /// Which.
        what: &'static str,
        /// Why.
        detail: String,
    },
    /// A list filter is malformed.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A layer below cannot be served.
    #[error("cannot mount the layers below snapshot {key:?}")]
    Mount {
        /// The snapshot that needs them.
        key: String,
        /// What failed.
        source: MountError,
    },
    /// The files below cannot be shown to a container in a user namespace.
    #[error("cannot map the ids of snapshot {key:?}")]
    Mapping {
        /// The snapshot.
        key: String,
        /// What failed.
        source: NotMapped,
    },
    /// A file operation failed.
    #[error("cannot {operation} {path}", path = path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The record store failed.
    #[error("snapshot records: {operation}")]
    Store {
        /// What was tried.
        operation: &'static str,
        /// What the store said.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A record is not what was once written.
    #[error("snapshot records are corrupt: {detail}")]
    Corrupt {
        /// Which.
        detail: String,
    },
}

impl SnapshotError {
    /// A failed file operation.
    pub fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }

    /// The gRPC status code; containerd's errdefs are read from these.
    pub fn code(&self) -> Code {
        match self {
            Self::AlreadyExists { .. } => Code::AlreadyExists,
            Self::NotFound { .. } => Code::NotFound,
            Self::Parent { .. } | Self::Argument { .. } | Self::Filter(_) => Code::InvalidArgument,
            Self::Kind { .. } | Self::HasChildren { .. } | Self::Mapping { .. } => {
                Code::FailedPrecondition
            }
            Self::Mount { .. } => Code::Unavailable,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Code::ResourceExhausted
            }
            Self::Io { .. } | Self::Store { .. } => Code::Internal,
            Self::Corrupt { .. } => Code::DataLoss,
        }
    }
}

impl From<SnapshotError> for Status {
    fn from(error: SnapshotError) -> Self {
        Self::new(error.code(), chain(&error))
    }
}

/// An error and all its causes in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_every_cause() {
        let error = SnapshotError::io("create", Path::new("/d"))(io::Error::other("no luck"));
        let status = Status::from(error);
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(status.message(), "cannot create /d: no luck");
    }

    #[test]
    fn a_full_disk_is_told_apart() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = SnapshotError::io("write", Path::new("/d"))(full);
        assert_eq!(error.code(), Code::ResourceExhausted);
    }
}

//! Why a request fails, and the one place where that becomes an errno.

use fuser::Errno;

use crate::content::ReadError;

/// Why a request of the kernel fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("no file of this view has that node id")]
    Stale,
    #[error("not a directory")]
    NotADirectory,
    #[error("a directory has no data")]
    IsADirectory,
    #[error("not a symbolic link")]
    NotASymlink,
    #[error("not a regular file")]
    NotAFile,
    #[error("no such extended attribute")]
    NoAttribute,
    #[error("the buffer is too small for the extended attribute")]
    BufferTooSmall,
    #[error("nothing in this view has extended attributes")]
    NoAttributes,
    #[error("this request is not served")]
    NotServed,
    #[error("the file's sparse map cannot be read")]
    SparseMap,
    #[error("the tar headers in front of the file are not those of its entry")]
    Headers,
    #[error("the layer gave another number of bytes than asked for")]
    WrongLength,
    #[error("the file system behind the layers cannot be asked for its size")]
    Statfs,
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Error {
    /// Whether something is wrong, with the layers or with us. The other errors are answers.
    pub(crate) fn is_failure(self) -> bool {
        matches!(
            self,
            Self::Stale
                | Self::SparseMap
                | Self::Headers
                | Self::WrongLength
                | Self::Statfs
                | Self::Read(ReadError::Unavailable)
        )
    }
}

impl From<Error> for Errno {
    fn from(error: Error) -> Self {
        match error {
            Error::Stale => Self::ESTALE,
            Error::NotADirectory => Self::ENOTDIR,
            Error::IsADirectory => Self::EISDIR,
            Error::NotASymlink | Error::NotAFile => Self::EINVAL,
            Error::NoAttribute => Self::ENODATA,
            Error::BufferTooSmall => Self::ERANGE,
            // The kernel stops asking for good after ENOSYS.
            Error::NoAttributes | Error::NotServed => Self::ENOSYS,
            Error::Read(ReadError::Interrupted) => Self::EINTR,
            Error::SparseMap
            | Error::Headers
            | Error::WrongLength
            | Error::Statfs
            | Error::Read(ReadError::Unavailable) => Self::EIO,
        }
    }
}

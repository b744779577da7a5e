//! Where the daemon listens.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};
use tokio::net::UnixListener;

use super::activation::Passed;

/// Where the socket is if the user names none.
pub const DEFAULT_ADDRESS: &str = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock";

/// What `--address` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket of our own.
    Path(PathBuf),
    /// The socket that systemd passes; [`DEFAULT_ADDRESS`] if it passes none.
    Systemd,
}

/// A text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no address: give an absolute path, unix://PATH, or fd:// for socket activation")]
pub struct ParseAddressError(String);

impl FromStr for Address {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, ParseAddressError> {
        if text == "fd://" {
            return Ok(Self::Systemd);
        }
        let path = Path::new(text.strip_prefix("unix://").unwrap_or(text));
        if !path.is_absolute() {
            return Err(ParseAddressError(text.to_owned()));
        }
        Ok(Self::Path(path.to_owned()))
    }
}

impl Address {
    /// Listens. Answers the socket's path if it is ours to remove.
    ///
    /// # Errors
    /// The socket cannot be had; or another process listens there.
    pub(super) fn listen(&self, passed: &mut Passed) -> Result<(UnixListener, Option<PathBuf>)> {
        let path = match self {
            Self::Path(path) => path.clone(),
            Self::Systemd => match passed.listener()? {
                Some(listener) => return Ok((listener, None)),
                None => PathBuf::from(DEFAULT_ADDRESS),
            },
        };
        let listener =
            listen(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
        Ok((listener, Some(path)))
    }
}

/// Listens on a socket of mode 0660 at `path`, whose directory is made if it is missing. A socket that
/// a dead process left is replaced.
///
/// # Errors
/// A process listens there already, something else is there, or the kernel refused.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
    }
    remove_stale(path)?;
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o660))?;
    Ok(listener)
}

fn remove_stale(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(
            ErrorKind::AlreadyExists,
            "there is a file that is no socket",
        ));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(
            ErrorKind::AddrInUse,
            "another process is listening there: stop it, or choose another --address",
        )),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn addresses_are_paths_or_systemds() {
        let path = Address::Path("/run/a.sock".into());
        assert_eq!("/run/a.sock".parse(), Ok(path.clone()));
        assert_eq!("unix:///run/a.sock".parse(), Ok(path));
        assert_eq!("fd://".parse(), Ok(Address::Systemd));
        for text in ["", "a.sock", "tcp://h:1", "unix://a", "fd://3"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_dead_processes_socket_is_replaced_and_a_living_ones_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/s.sock");
        let first = listen(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o660);
        let refused = listen(&path).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AddrInUse);
        drop(first);
        listen(&path).unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(listen(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }
}

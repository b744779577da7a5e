//! The local fallback: a layer without zTOC is pulled and unpacked by us, so that the layers above it can
//! still be lazy.
//!
//! What is unpacked is what containerd's overlayfs snapshotter would have on disk: whiteouts as character
//! devices 0:0, opaque directories as `trusted.overlay.opaque`, owners, modes, times, extended attributes.
//! Hard links to members that come later are made too, where containerd gives up.

mod apply;
mod archive;
mod error;
mod lower;
mod rooted;
mod stream;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::Stream;
use ztoc::Digest;

use self::apply::Applier;
use self::archive::Archive;
use self::stream::{Hashed, Receiver};

pub use self::error::UnpackError;

/// Most members of a layer.
const MAX_MEMBERS: u64 = 8_000_000;
/// Most bytes of a layer, decompressed.
const MAX_BYTES: u64 = 1 << 40;

/// What a blob must turn out to be.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// Digest of the blob.
    pub layer: Digest,
    /// Digest of the tar in it, if the image's configuration is known.
    pub diff_id: Option<Digest>,
}

/// Unpacks `blob` (gzip, zstd or plain) into `dir`, which exists and is empty; `parents` are the lower
/// directories, nearest first. `dir` stays empty unless everything was right. Dropping the future
/// gives up.
pub async fn unpack(
    blob: impl Stream<Item = io::Result<Bytes>> + Send + Unpin,
    expected: Expected,
    dir: &Path,
    parents: &[PathBuf],
) -> Result<(), UnpackError> {
    let (download, receiver) = stream::channel(blob);
    let (dir, parents) = (dir.to_owned(), parents.to_vec());
    let work = move || into_place(receiver, expected, &dir, &parents);
    let (done, ()) = tokio::join!(tokio::task::spawn_blocking(work), download);
    done.unwrap_or(Err(UnpackError::GivenUp))
}

/// Unpacks beside `dir`, then puts the result in its place.
fn into_place(
    blob: Receiver,
    expected: Expected,
    dir: &Path,
    parents: &[PathBuf],
) -> Result<(), UnpackError> {
    let failed = |source| UnpackError::Directory {
        path: dir.to_owned(),
        source,
    };
    let beside = dir
        .parent()
        .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let staging = tempfile::Builder::new()
        .prefix(".unpack-")
        .tempdir_in(beside)
        .map_err(failed)?;
    let looks = dir.metadata().map_err(failed)?;
    unpack_into(blob, expected, staging.path(), parents)?;
    fs::set_permissions(
        staging.path(),
        fs::Permissions::from_mode(looks.mode() & 0o7777),
    )
    .and_then(|()| chown(staging.path(), Some(looks.uid()), Some(looks.gid())))
    .and_then(|()| fs::rename(staging.path(), dir))
    .map_err(failed)?;
    // It has its name; there is nothing left to remove under the old one.
    let _ = staging.keep();
    Ok(())
}

fn unpack_into(
    blob: impl Read,
    expected: Expected,
    dir: &Path,
    parents: &[PathBuf],
) -> Result<(), UnpackError> {
    let mut blob = Hashed::new(blob, MAX_BYTES);
    let tar = stream::decompress(&mut blob).map_err(UnpackError::Read)?;
    let mut tar = Hashed::new(tar, MAX_BYTES);
    apply_all(&mut tar, dir, parents)?;
    let diff_id = tar.finish().map_err(UnpackError::Read)?;
    drop(tar);
    let layer = blob.finish().map_err(UnpackError::Read)?;
    if layer != expected.layer {
        return Err(UnpackError::Layer {
            expected: expected.layer,
            actual: layer,
        });
    }
    match expected.diff_id {
        Some(expected) if expected != diff_id => Err(UnpackError::DiffId {
            expected,
            actual: diff_id,
        }),
        _ => Ok(()),
    }
}

fn apply_all(tar: impl Read, dir: &Path, parents: &[PathBuf]) -> Result<(), UnpackError> {
    let opened = Applier::new(dir, parents);
    let mut applier = opened.map_err(|source| UnpackError::Directory {
        path: dir.to_owned(),
        source,
    })?;
    let mut archive = Archive::new(tar);
    let mut members = 0;
    while let Some(entry) = archive.next_member()? {
        members += 1;
        if members > MAX_MEMBERS {
            return Err(UnpackError::TooMany(MAX_MEMBERS));
        }
        applier.apply(entry, &mut archive)?;
    }
    applier.finish()
}

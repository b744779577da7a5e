//! The local fallback: a layer without zTOC is pulled and unpacked by us, so that the layers above it can
//! still be lazy.
//!
//! What is unpacked is what containerd's overlayfs snapshotter would have on disk: whiteouts as character
//! devices 0:0, opaque directories as `trusted.overlay.opaque`, owners, modes, times, extended attributes.
//! Hard links to members that come later are made too, where containerd gives up.

mod apply;
mod archive;
mod decode;
mod error;
mod implied;
mod lower;
mod pipeline;
mod rooted;
mod stream;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::{self, BufRead};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::Stream;
use tempfile::TempDir;
use tokio::sync::oneshot;
use ztoc::Digest;

use self::apply::Applier;
use self::archive::Archive;
use self::implied::Implied;
use self::lower::Lowers;
use self::pipeline::Digests;
use self::rooted::Rooted;
use self::stream::Receiver;

pub use self::error::UnpackError;

/// Most members of a layer.
const MAX_MEMBERS: u64 = 8_000_000;

/// What a blob must turn out to be.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// Digest of the blob.
    pub layer: Digest,
    /// Digest of the tar in it, if the image's configuration is known.
    pub diff_id: Option<Digest>,
}

/// Where a layer is unpacked.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// A directory on the snapshots' file system; what is left in it by a process that died may be
    /// removed.
    pub beside: &'a Path,
    /// No layer lies below: there is nothing to hide.
    pub lowest: bool,
}

/// A layer that is unpacked and verified, and that nobody sees yet. Dropping it deletes it, which blocks.
#[derive(Debug)]
pub struct Unpacked {
    dir: TempDir,
    implied: Vec<Implied>,
    lowest: bool,
}

/// Unpacks `blob` (gzip, zstd or plain) at `site`. Nothing is left there unless everything was
/// right. Dropping the future gives up.
pub async fn unpack(
    blob: impl Stream<Item = io::Result<Bytes>> + Send + Unpin,
    expected: Expected,
    site: Site<'_>,
) -> Result<Unpacked, UnpackError> {
    let (download, receiver) = stream::channel(blob);
    let (downloading, unwanted) = oneshot::channel();
    let download = async {
        tokio::select! {
            () = download => {}
            _ = unwanted => {}
        }
    };
    let (beside, lowest) = (site.beside.to_owned(), site.lowest);
    let work = move || {
        let site = Site {
            beside: &beside,
            lowest,
        };
        unpack_at(receiver, downloading, expected, site)
    };
    let (done, ()) = tokio::join!(tokio::task::spawn_blocking(work), download);
    done.unwrap_or(Err(UnpackError::GivenUp))
}

impl Unpacked {
    /// Whether it was unpacked as the lowest layer.
    pub fn is_lowest(&self) -> bool {
        self.lowest
    }

    /// Whether it has directories that look like those below.
    pub fn wants_parents(&self) -> bool {
        !self.implied.is_empty()
    }

    /// Puts the layer in the place of `dir`, which exists and is empty, at once; `parents` are the
    /// lower directories, nearest first, needed if it [wants](Self::wants_parents) them. `dir` stays as it is if that fails. Blocks.
    pub fn move_to(self, dir: &Path, parents: &[PathBuf]) -> Result<(), UnpackError> {
        self.settle(parents)
            .and_then(|()| self.take_place(dir))
            .map_err(|source| failed(dir, source))?;
        // It has its name; there is nothing left to remove under the old one.
        let _ = self.dir.keep();
        Ok(())
    }

    fn settle(&self, parents: &[PathBuf]) -> io::Result<()> {
        if self.implied.is_empty() || parents.is_empty() {
            return Ok(());
        }
        let (root, mut lowers) = (Rooted::open(self.dir.path())?, Lowers::new(parents));
        let mut implied = self.implied.iter();
        implied.try_for_each(|implied| implied.settle(&root, &mut lowers))
    }

    fn take_place(&self, dir: &Path) -> io::Result<()> {
        let looks = dir.metadata()?;
        let mode = fs::Permissions::from_mode(looks.mode() & 0o7777);
        fs::set_permissions(self.dir.path(), mode)?;
        chown(self.dir.path(), Some(looks.uid()), Some(looks.gid()))?;
        fs::rename(self.dir.path(), dir)
    }
}

fn failed(dir: &Path, source: io::Error) -> UnpackError {
    UnpackError::Directory {
        path: dir.to_owned(),
        source,
    }
}

fn unpack_at(
    blob: Receiver,
    downloading: oneshot::Sender<()>,
    expected: Expected,
    site: Site<'_>,
) -> Result<Unpacked, UnpackError> {
    let dir = tempfile::Builder::new()
        .prefix(".unpack-")
        .tempdir_in(site.beside)
        .map_err(|source| failed(site.beside, source))?;
    let (implied, digests) = pipeline::run(blob, downloading, |tar| {
        apply_all(tar, dir.path(), site.lowest)
    })?;
    check(digests, expected)?;
    Ok(Unpacked {
        dir,
        implied,
        lowest: site.lowest,
    })
}

fn check(actual: Digests, expected: Expected) -> Result<(), UnpackError> {
    if actual.blob != expected.layer {
        return Err(UnpackError::Layer {
            expected: expected.layer,
            actual: actual.blob,
        });
    }
    match expected.diff_id {
        Some(expected) if expected != actual.tar => Err(UnpackError::DiffId {
            expected,
            actual: actual.tar,
        }),
        _ => Ok(()),
    }
}

fn apply_all(tar: impl BufRead, dir: &Path, lowest: bool) -> Result<Vec<Implied>, UnpackError> {
    let mut applier = Applier::new(dir, lowest).map_err(|source| failed(dir, source))?;
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

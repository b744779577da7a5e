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
mod staged;
mod stream;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::{self, BufRead};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::Stream;
use tokio::sync::oneshot;
use ztoc::Digest;

use self::apply::Applier;
use self::archive::Archive;
use self::implied::Implied;
use self::lower::Lowers;
use self::pipeline::Digests;
use self::rooted::Rooted;
use self::staged::{Finished, Staged};
use self::stream::Receiver;

pub use self::error::UnpackError;
pub(crate) use self::rooted::proc_path;

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
    /// A directory on the snapshots' file system; what a process that died has left in it is for
    /// [`Unpacked::find`], or to be removed.
    pub beside: &'a Path,
    /// No layer lies below: there is nothing to hide.
    pub lowest: bool,
}

/// A layer that is unpacked and verified, and that nobody sees yet. Dropping it deletes it, which blocks; killing the
/// process does not.
#[derive(Debug)]
pub struct Unpacked {
    staged: Staged,
    finished: Finished,
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
    /// The layer that an earlier process unpacked at `path`, in the directory of a [`Site`], and did not come to use;
    /// `None` if it is not whole, or the machine was booted since. Blocks.
    pub fn find(path: &Path) -> Option<Self> {
        let (staged, finished) = Staged::find(path)?;
        Some(Self { staged, finished })
    }

    /// Whether it is the layer expected.
    pub fn is(&self, expected: Expected) -> bool {
        let known = &self.finished;
        known.layer == expected.layer && expected.diff_id.is_none_or(|own| own == known.diff_id)
    }

    /// Whether it was unpacked as the lowest layer.
    pub fn is_lowest(&self) -> bool {
        self.finished.lowest
    }

    /// Whether it has directories that look like those below.
    pub fn wants_parents(&self) -> bool {
        !self.finished.implied.is_empty()
    }

    /// Leaves it to a later process to [find](Self::find).
    pub fn leave(self) {
        self.staged.leave();
    }

    /// Puts the layer in the place of `dir`, which exists and is empty, at once; `parents` are the
    /// lower directories, nearest first, needed if it [wants](Self::wants_parents) them. `dir` stays as it is if that fails. Blocks.
    pub fn move_to(self, dir: &Path, parents: &[PathBuf]) -> Result<(), UnpackError> {
        self.settle(parents)
            .and_then(|()| self.take_place(dir))
            .map_err(|source| failed(dir, source))
    }

    fn settle(&self, parents: &[PathBuf]) -> io::Result<()> {
        if !self.wants_parents() || parents.is_empty() {
            return Ok(());
        }
        let root = Rooted::open(&self.staged.tree())?;
        let mut lowers = Lowers::new(parents);
        let mut implied = self.finished.implied.iter();
        implied.try_for_each(|implied| implied.settle(&root, &mut lowers))
    }

    fn take_place(self, dir: &Path) -> io::Result<()> {
        let (looks, tree) = (dir.metadata()?, self.staged.tree());
        let mode = fs::Permissions::from_mode(looks.mode() & 0o7777);
        fs::set_permissions(&tree, mode)?;
        chown(&tree, Some(looks.uid()), Some(looks.gid()))?;
        self.staged.give(dir)
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
    let staged = Staged::new(site.beside).map_err(|source| failed(site.beside, source))?;
    let tree = staged.tree();
    let (implied, digests) =
        pipeline::run(blob, downloading, |tar| apply_all(tar, &tree, site.lowest))?;
    check(digests, expected)?;
    let finished = Finished {
        layer: digests.blob,
        diff_id: digests.tar,
        lowest: site.lowest,
        implied,
    };
    let finished = staged.record(finished);
    let finished = finished.map_err(|source| failed(site.beside, source))?;
    Ok(Unpacked { staged, finished })
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

//! What makes a view another one.

use std::io;
use std::path::{Path, PathBuf};

use fuse::{IdMapping, LowerDirectory, View};
use ztoc::Digest;

use crate::snapshot::images::LazyRun;

/// What a view shows, and above which directories; the images its layers were prepared for do not matter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Bottom first.
    pub(super) layers: Vec<Digest>,
    /// The lowerdirs below it, nearest first.
    pub(super) below: Vec<PathBuf>,
    /// The users and groups that it shows instead of the image's.
    pub(super) ids: Option<IdMapping>,
}

impl Key {
    /// Of the view of `run` above the lowerdirs `below`, nearest first.
    pub(super) fn of(run: &LazyRun, below: &[PathBuf]) -> Self {
        Self {
            layers: run.layers.iter().map(|layer| layer.digest).collect(),
            below: below.to_owned(),
            ids: run.ids.clone(),
        }
    }

    /// The view, made of its `layers`, bottom first. What is below it is a view with the same ids if it is in `views`, and
    /// an unpacked layer otherwise. Blocks on file I/O.
    ///
    /// # Errors
    /// A directory below it cannot be opened.
    pub(super) fn view(&self, layers: Vec<fuse::Layer>, views: &Path) -> io::Result<View> {
        let below = self.below.iter().map(|path| LowerDirectory {
            path,
            ids: self.ids.as_ref().filter(|_| path.starts_with(views)),
        });
        let below: Vec<_> = below.collect();
        View::new(layers, !below.is_empty())
            .with_ids(self.ids.clone())
            .with_lower(&below)
    }
}

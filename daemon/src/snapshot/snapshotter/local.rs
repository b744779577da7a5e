//! Records, directories and held views of this node. Every method may block.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use ztoc::Digest;

use crate::error::SnapshotError;
use crate::snapshot::directory::{self, Claim, Directories};
use crate::snapshot::images::{Images, MountedView};
use crate::snapshot::lowers::Mounted;
use crate::snapshot::mounts::{self, Lower};
use crate::snapshot::record::{Entry, Kind, Labels, Record, SnapshotId, Source, Usage};
use crate::snapshot::store::{CommitRequest, NewSnapshot, Store, kind};

type Views = Vec<Arc<dyn MountedView>>;

#[derive(Debug)]
pub(super) struct Local {
    pub(super) store: Store,
    pub(super) directories: Arc<Directories>,
    /// What snapshots have mounted below them. Never locked while a handle is dropped: that
    /// unmounts.
    views: Mutex<HashMap<SnapshotId, Views>>,
}

/// A snapshot with a directory, to be recorded.
#[derive(Debug)]
pub(super) struct NewDirectory {
    pub(super) kind: Kind,
    pub(super) key: String,
    pub(super) parent: Option<String>,
    pub(super) labels: Labels,
}

impl Local {
    pub(super) fn new(store: Store, directories: Directories) -> Self {
        Self {
            store,
            directories: Arc::new(directories),
            views: Mutex::default(),
        }
    }

    /// Room for a new snapshot.
    pub(super) fn claim(&self) -> Claim {
        self.directories.claim(self.store.allocate())
    }

    /// Makes the directory of a snapshot, holds its views, and records it; all or nothing.
    pub(super) fn insert(
        &self,
        new: NewDirectory,
        claim: Claim,
        mounted: Mounted,
    ) -> Result<(), SnapshotError> {
        let id = claim.id();
        let Mounted { paths, views } = mounted;
        let created = claim.create(new.kind, paths.first().map(std::path::PathBuf::as_path));
        let inserted = created.and_then(|()| {
            self.exchange(id, views);
            self.store.insert(&NewSnapshot {
                id,
                key: new.key,
                kind: new.kind,
                parent: new.parent,
                labels: new.labels,
                source: Source::Directory,
                usage: None,
            })
        });
        if inserted.is_err() {
            self.exchange(id, Views::new());
            // The next sweep tries again; the error to tell is the first one.
            let _ = claim.discard();
        }
        inserted
    }

    /// Holds views for a snapshot, unless it is gone by now.
    pub(super) fn hold(
        &self,
        key: &str,
        id: SnapshotId,
        views: Views,
    ) -> Result<(), SnapshotError> {
        self.exchange(id, views);
        let still = self.store.get(key).and_then(|record| match record.id {
            found if found == id && record.kind != Kind::Committed => Ok(()),
            _ => Err(SnapshotError::NotFound {
                key: key.to_owned(),
            }),
        });
        if still.is_err() {
            self.exchange(id, Views::new());
        }
        still
    }

    pub(super) fn commit(&self, request: &CommitRequest) -> Result<(), SnapshotError> {
        let record = self.store.get(&request.key)?;
        if record.kind != Kind::Active {
            return Err(kind(&request.key, record.kind, "committed"));
        }
        let usage = self.measure(record.id)?;
        self.store.commit(request, usage)?;
        self.exchange(record.id, Views::new());
        Ok(())
    }

    pub(super) fn remove(&self, key: &str) -> Result<(), SnapshotError> {
        let record = self.store.remove(key)?;
        self.exchange(record.id, Views::new());
        Ok(())
    }

    pub(super) fn measure(&self, id: SnapshotId) -> Result<Usage, SnapshotError> {
        let files = self.directories.files(id);
        directory::usage(&files).map_err(SnapshotError::io("measure", &files))
    }

    /// See [`super::Snapshotter::restore`].
    pub(super) fn restore(&self, images: &dyn Images) -> Result<(), SnapshotError> {
        let (mut held, mut unmounted) = (0, 0);
        for Entry { key, record } in self
            .store
            .list(|entry| entry.record.kind != Kind::Committed)?
        {
            match self.views_of(&record, images) {
                Ok(Some(views)) => {
                    held += views.len();
                    self.exchange(record.id, views);
                }
                Ok(None) => unmounted += 1,
                Err(error) => tracing::error!(
                    key,
                    error = crate::error::chain(&error),
                    "a snapshot cannot be restored"
                ),
            }
        }
        tracing::info!(held, unmounted, "snapshots are restored");
        Ok(())
    }

    /// The mounted views below a snapshot; `None` if one of them is not mounted.
    fn views_of(
        &self,
        record: &Record,
        images: &dyn Images,
    ) -> Result<Option<Views>, SnapshotError> {
        let chain = self.store.chain(record.parent.as_deref())?;
        let lowers = mounts::lowers(&chain, |id| self.directories.files(id))?;
        let (mut paths, mut views) = (Vec::new(), Views::new());
        for lower in lowers.iter().rev() {
            match lower {
                Lower::Directory(path) => paths.insert(0, path.clone()),
                Lower::View(run) => {
                    let Some(view) = images.mounted(run, &paths) else {
                        return Ok(None);
                    };
                    paths.insert(0, view.path().to_owned());
                    views.push(view);
                }
            }
        }
        Ok(Some(views))
    }

    pub(super) fn sweep(&self) -> Result<usize, SnapshotError> {
        self.directories.sweep(|| {
            let entries = self.store.all()?;
            Ok(entries.into_iter().map(|entry| entry.record.id).collect())
        })
    }

    pub(super) fn lazy_layers(&self) -> Result<BTreeSet<Digest>, SnapshotError> {
        let entries = self.store.all()?;
        let layers = entries.iter().map(|entry| entry.record.source.layer());
        layers
            .filter_map(|layer| layer.map(|layer| Some(layer?.digest)).transpose())
            .collect()
    }

    pub(super) fn release_all(&self) {
        let views = std::mem::take(&mut *self.views.lock());
        drop(views);
    }

    pub(super) fn abandon_all(&self) {
        let views = std::mem::take(&mut *self.views.lock());
        // The last handle to be dropped would unmount.
        std::mem::forget(views);
    }

    fn exchange(&self, id: SnapshotId, views: Views) {
        let mut held = self.views.lock();
        let old = if views.is_empty() {
            held.remove(&id)
        } else {
            held.insert(id, views)
        };
        drop(held);
        drop(old);
    }
}

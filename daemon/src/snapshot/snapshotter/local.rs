//! Records, directories and held views of this node. Every method may block.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use fuse::IdMapping;
use parking_lot::Mutex;
use ztoc::Digest;

use crate::error::SnapshotError;
use crate::snapshot::directory::{self, Claim, Directories};
use crate::snapshot::images::{Images, MountedView};
use crate::snapshot::lowers::Mounted;
use crate::snapshot::mapped::Mapped;
use crate::snapshot::mapping;
use crate::snapshot::mounts::{self, Lower};
use crate::snapshot::record::{Entry, Kind, Labels, Record, SnapshotId, Source, Usage};
use crate::snapshot::store::{CommitRequest, NewSnapshot, Store, kind};

type Views = Vec<Arc<dyn MountedView>>;

#[derive(Debug)]
pub(super) struct Local {
    pub(super) store: Store,
    pub(super) directories: Arc<Directories>,
    mapped: Mapped,
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
    /// The container's ids, if they are others than this node's.
    pub(super) mapping: Option<IdMapping>,
}

impl Local {
    pub(super) fn new(store: Store, directories: Directories, mapped: Mapped) -> Self {
        Self {
            store,
            directories: Arc::new(directories),
            mapped,
            views: Mutex::default(),
        }
    }

    /// Room for a new snapshot.
    pub(super) fn claim(&self) -> Claim {
        self.directories.claim(self.store.allocate())
    }

    /// The ids that the views of a container with `mapping` are to show by themselves.
    pub(super) fn ids_of_views<'m>(&self, mapping: Option<&'m IdMapping>) -> Option<&'m IdMapping> {
        self.mapped.of_views(mapping)
    }

    /// The lower directories as a container with `mapping` is to see them.
    pub(super) fn mapped(
        &self,
        key: &str,
        id: SnapshotId,
        mapping: Option<&IdMapping>,
        lowers: Vec<PathBuf>,
    ) -> Result<Vec<PathBuf>, SnapshotError> {
        let Some(mapping) = mapping else {
            return Ok(lowers);
        };
        let mapped = self.mapped.put(id, mapping, &lowers);
        mapped.map_err(|source| {
            // Some of them may have been mounted.
            self.mapped.remove(id);
            SnapshotError::Mapping {
                key: key.to_owned(),
                source,
            }
        })
    }

    /// Makes the directory of a snapshot, holds its views, and records it; all or nothing. `mounted` is as the container
    /// is to see it.
    pub(super) fn insert(
        &self,
        new: NewDirectory,
        claim: Claim,
        mounted: Mounted,
    ) -> Result<(), SnapshotError> {
        let id = claim.id();
        let Mounted { paths, views } = mounted;
        let created = claim.create(new.kind, paths.first().map(PathBuf::as_path));
        let created = created.and_then(|()| match &new.mapping {
            // There is no mapped root whose owner it could get.
            Some(mapping) if paths.is_empty() => claim.give_to(mapping.root()),
            _ => Ok(()),
        });
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
            self.let_go(id);
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
            self.let_go(id);
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
        self.let_go(record.id);
        Ok(())
    }

    pub(super) fn remove(&self, key: &str) -> Result<(), SnapshotError> {
        let record = self.store.remove(key)?;
        self.let_go(record.id);
        Ok(())
    }

    pub(super) fn measure(&self, id: SnapshotId) -> Result<Usage, SnapshotError> {
        let files = self.directories.files(id);
        directory::usage(&files).map_err(SnapshotError::io("measure", &files))
    }

    /// See [`super::Snapshotter::restore`].
    pub(super) fn restore(&self, images: &dyn Images) -> Result<(), SnapshotError> {
        let (mut held, mut unmounted) = (0, 0);
        let entries = self
            .store
            .list(|entry| entry.record.kind != Kind::Committed)?;
        let known: BTreeSet<SnapshotId> = entries.iter().map(|entry| entry.record.id).collect();
        self.mapped.sweep(|id| known.contains(&id));
        for Entry { key, record } in entries {
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

    /// The mounted views that a snapshot has below it; `None` if one of them is not mounted.
    fn views_of(
        &self,
        record: &Record,
        images: &dyn Images,
    ) -> Result<Option<Views>, SnapshotError> {
        let chain = self.store.chain(record.parent.as_deref())?;
        let plain = self.views_below(&chain, None, images)?;
        let Some(mapping) = mapping::of(&record.labels)? else {
            return Ok(plain);
        };
        // Who maps the ids of views may have been decided anew since the snapshot was made.
        let mapped = |view: &Arc<dyn MountedView>| self.mapped.has(record.id, view.path());
        let plain = plain.filter(|views| views.iter().all(mapped));
        let shifted = self.views_below(&chain, Some(&mapping), images)?;
        Ok(match (plain, shifted) {
            (None, views) | (views, None) => views,
            (Some(plain), Some(shifted)) => Some([plain, shifted].concat()),
        })
    }

    /// The mounted views of a chain that show `ids`; `None` if one of them is not mounted.
    fn views_below(
        &self,
        chain: &[Record],
        ids: Option<&IdMapping>,
        images: &dyn Images,
    ) -> Result<Option<Views>, SnapshotError> {
        let lowers = mounts::lowers(chain, ids, |id| self.directories.files(id))?;
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
        self.mapped.clear();
        let views = std::mem::take(&mut *self.views.lock());
        drop(views);
    }

    pub(super) fn abandon_all(&self) {
        let views = std::mem::take(&mut *self.views.lock());
        // The last handle to be dropped would unmount.
        std::mem::forget(views);
    }

    /// Takes off what a snapshot that is gone had mounted below it.
    fn let_go(&self, id: SnapshotId) {
        self.mapped.remove(id);
        self.exchange(id, Views::new());
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

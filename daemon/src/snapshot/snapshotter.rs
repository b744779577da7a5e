//! The logic of the snapshots service: records, directories and views kept together.

mod flights;
mod layer;
mod local;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fuse::IdMapping;
use ztoc::Digest;

use self::flights::Flights;
use self::local::{Local, NewDirectory};
use super::decision::Wanted;
use super::directory::Directories;
use super::filter::Filters;
use super::images::Images;
use super::lowers::LowerDirs;
use super::mapped::{Mapped, MappedBy};
use super::mapping;
use super::mounts::{self, Mount, OverlayOptions};
use super::record::{Entry, Kind, Labels, Record, Usage};
use super::store::{self, CommitRequest, Store};
use crate::error::SnapshotError;
use crate::metrics::Metrics;

/// Longest key or name, in bytes; containerd's own have some 200.
const MAX_KEY: usize = 4096;
/// Longest label with its value, in bytes: containerd's own limit.
const MAX_LABEL: usize = 4096;
/// Most labels of a snapshot; containerd's unpacker sets about ten.
const MAX_LABELS: usize = 1024;

/// Between a clean-up that found something in use and the next, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// All snapshots of this node.
pub struct Snapshotter {
    local: Arc<Local>,
    images: Arc<dyn Images>,
    overlay: OverlayOptions,
    metrics: Arc<Metrics>,
    /// One `Prepare` per layer and parent at a time.
    flights: Flights<(String, Option<String>)>,
    /// Held shared for the moment in which a layer is announced in `preparing`, and exclusively
    /// while layers are collected: a layer that is being prepared is not collected.
    collecting: tokio::sync::RwLock<()>,
    preparing: flights::Preparing,
    sweeping: tokio::sync::Mutex<()>,
    /// A clean-up has left a layer that was in use still.
    unfinished: tokio::sync::Notify,
}

/// What `Prepare` and `View` ask for.
#[derive(Debug, Clone)]
pub struct NewRequest {
    /// Unique key.
    pub key: String,
    /// Committed snapshot below; none at the bottom.
    pub parent: Option<String>,
    /// Labels.
    pub labels: Labels,
    /// Namespace of the caller.
    pub namespace: String,
}

impl NewRequest {
    /// Refuses what is larger than anything containerd sends.
    pub(super) fn check(&self) -> Result<(), SnapshotError> {
        check_key("key", &self.key)?;
        check_labels(&self.labels)
    }
}

/// Which labels `Update` changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelChange {
    /// All: those given are all there are from now on.
    Replace(Labels),
    /// Only these; one without a value goes.
    Merge(Vec<(String, Option<String>)>),
}

impl Snapshotter {
    /// Opens the snapshots below `root`, an existing directory that no other process uses. The ids of views of containers in
    /// user namespaces are mapped by `mapped_by`. Blocks.
    ///
    /// # Errors
    /// The directory or the records cannot be used.
    pub fn open(
        root: &Path,
        images: Arc<dyn Images>,
        overlay: OverlayOptions,
        mapped_by: MappedBy,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SnapshotError> {
        let own = root.join("snapshotter");
        std::fs::create_dir_all(&own).map_err(SnapshotError::io("create", &own))?;
        let directories = Directories::open(&own.join("snapshots"))?;
        let store = Store::open(&own.join("metadata.redb"), directories.first_free()?)?;
        let mapped = Mapped::new(root, directories.root()).with_views(mapped_by);
        Ok(Self {
            local: Arc::new(Local::new(store, directories, mapped)),
            images,
            overlay,
            metrics,
            flights: Flights::default(),
            collecting: tokio::sync::RwLock::default(),
            preparing: flights::Preparing::default(),
            sweeping: tokio::sync::Mutex::default(),
            unfinished: tokio::sync::Notify::new(),
        })
    }

    /// Gives the snapshots of an earlier process the views that it left mounted, so that they stay until
    /// the snapshots go. What is not mounted is mounted again when it is asked for. To be called before
    /// anything else; no network is asked.
    ///
    /// # Errors
    /// The records cannot be read; what concerns one snapshot is logged.
    pub async fn restore(&self) -> Result<(), SnapshotError> {
        let images = Arc::clone(&self.images);
        self.blocking(move |local| local.restore(&*images)).await?;
        self.images.settle();
        Ok(())
    }

    /// Prepares a writable snapshot, or provides an image layer.
    ///
    /// # Errors
    /// `AlreadyExists` if the layer is there, and that is the good answer; or what went wrong.
    pub async fn prepare(&self, request: NewRequest) -> Result<Vec<Mount>, SnapshotError> {
        request.check()?;
        match Wanted::of(&request.labels, &request.namespace) {
            Wanted::Container => self.create(Kind::Active, request).await,
            Wanted::Layer {
                target,
                request: layer,
            } => self.prepare_layer(request, target, layer).await,
        }
    }

    /// Prepares a read-only snapshot.
    ///
    /// # Errors
    /// The key is taken, the parent is not there, or something went wrong.
    pub async fn view(&self, request: NewRequest) -> Result<Vec<Mount>, SnapshotError> {
        request.check()?;
        self.create(Kind::View, request).await
    }

    async fn create(&self, kind: Kind, request: NewRequest) -> Result<Vec<Mount>, SnapshotError> {
        let parent = request.parent.clone();
        let key = request.key.clone();
        let chain = self
            .blocking(move |local| {
                local.store.check_free(&key)?;
                local.store.chain(parent.as_deref())
            })
            .await?;
        let mapping = mapping::of(&request.labels)?;
        let lowers = self.lower_dirs(&chain, mapping.as_ref())?;
        let claim = self.local.claim();
        self.finish(kind, request, lowers, claim).await
    }

    /// Mounts what lies below, makes the directory and records the snapshot.
    async fn finish(
        &self,
        kind: Kind,
        request: NewRequest,
        lowers: LowerDirs,
        claim: super::directory::Claim,
    ) -> Result<Vec<Mount>, SnapshotError> {
        let mapping = mapping::of(&request.labels)?;
        let mut mounted = self.mounted(&request.key, &lowers).await?;
        let overlay = self.overlay;
        self.blocking(move |local| {
            let own = local.directories.path(claim.id());
            mounted.paths =
                local.mapped(&request.key, claim.id(), mapping.as_ref(), mounted.paths)?;
            let mounts = mounts::mounts(kind, &own, &mounted.paths, overlay);
            let new = NewDirectory {
                kind,
                key: request.key,
                parent: request.parent,
                labels: request.labels,
                mapping,
            };
            local.insert(new, claim, mounted)?;
            Ok(mounts)
        })
        .await
    }

    /// The mounts of a view or active snapshot. Views that went with an earlier process come back.
    ///
    /// # Errors
    /// `NotFound`; `Kind` for a committed one; `Mount` if a layer below cannot be served.
    pub async fn mounts(&self, key: String) -> Result<Vec<Mount>, SnapshotError> {
        let asked = key.clone();
        let (record, chain) = self
            .blocking(move |local| {
                let record = local.store.get(&asked)?;
                if record.kind == Kind::Committed {
                    return Err(store::kind(&asked, record.kind, "mounted"));
                }
                let chain = local.store.chain(record.parent.as_deref())?;
                Ok((record, chain))
            })
            .await?;
        let mapping = mapping::of(&record.labels)?;
        let lowers = self.lower_dirs(&chain, mapping.as_ref())?;
        let mounted = self.mounted(&key, &lowers).await?;
        let overlay = self.overlay;
        self.blocking(move |local| {
            let own = local.directories.path(record.id);
            let paths = local.mapped(&key, record.id, mapping.as_ref(), mounted.paths)?;
            let mounts = mounts::mounts(record.kind, &own, &paths, overlay);
            local.hold(&key, record.id, mounted.views)?;
            Ok(mounts)
        })
        .await
    }

    /// Commits an active snapshot under `request.name`; its usage is measured.
    ///
    /// # Errors
    /// `NotFound`, `Kind` (not active), `AlreadyExists` (the name), `Argument` (another parent).
    pub async fn commit(&self, request: CommitRequest) -> Result<(), SnapshotError> {
        check_key("name", &request.name)?;
        check_labels(&request.labels)?;
        self.blocking(move |local| local.commit(&request)).await
    }

    /// Forgets a snapshot. Its directory goes with the next [`Snapshotter::cleanup`].
    ///
    /// # Errors
    /// `NotFound`, `HasChildren`.
    pub async fn remove(&self, key: String) -> Result<(), SnapshotError> {
        self.blocking(move |local| local.remove(&key)).await
    }

    /// One snapshot.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn stat(&self, key: String) -> Result<Entry, SnapshotError> {
        self.blocking(move |local| {
            let record = local.store.get(&key)?;
            Ok(Entry { key, record })
        })
        .await
    }

    /// Changes labels.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn update(&self, key: String, change: LabelChange) -> Result<Entry, SnapshotError> {
        self.blocking(move |local| {
            let record = local.store.update(&key, |labels| change.apply(labels))?;
            Ok(Entry { key, record })
        })
        .await
    }

    /// The snapshots that match.
    ///
    /// # Errors
    /// The records cannot be read.
    pub async fn list(&self, filters: Filters) -> Result<Vec<Entry>, SnapshotError> {
        self.blocking(move |local| local.store.list(|entry| filters.matches(entry)))
            .await
    }

    /// What a snapshot itself takes on disk: an active one measured now, a committed one when it
    /// was committed, a lazy layer what is here of it now. Snapshots of one layer share that.
    ///
    /// # Errors
    /// `NotFound`, or the directory cannot be read.
    pub async fn usage(&self, key: String) -> Result<Usage, SnapshotError> {
        let images = Arc::clone(&self.images);
        self.blocking(move |local| {
            let record = local.store.get(&key)?;
            if let Some(layer) = record.source.digest() {
                let measured = images.usage(&layer);
                return measured.map_err(SnapshotError::io("measure", Path::new(&layer.hex())));
            }
            match record.kind {
                Kind::Active => local.measure(record.id),
                _ => Ok(record.usage.unwrap_or_default()),
            }
        })
        .await
    }

    /// Removes directories without a snapshot, and layers that no snapshot names.
    ///
    /// # Errors
    /// The directories or records cannot be listed; single failures are logged.
    pub async fn cleanup(&self) -> Result<(), SnapshotError> {
        if self.clean_up().await? {
            self.unfinished.notify_one();
        }
        Ok(())
    }

    /// Cleans up again whenever something was in use still: containerd asks for it once, when it has removed snapshots,
    /// and a view takes a moment to go. Never ends.
    pub async fn finish_cleanups(&self) {
        loop {
            self.unfinished.notified().await;
            let mut pause = FIRST_PAUSE;
            loop {
                tokio::time::sleep(pause).await;
                match self.clean_up().await {
                    Ok(true) => pause = LONGEST_PAUSE.min(pause * 2),
                    Ok(false) => break,
                    Err(error) => {
                        tracing::warn!(
                            error = crate::error::chain(&error),
                            "what was in use could not be cleaned up"
                        );
                        break;
                    }
                }
            }
        }
    }

    /// Whether something is to be looked at again.
    async fn clean_up(&self) -> Result<bool, SnapshotError> {
        let sweeping = self.sweeping.lock().await;
        let removed = self.blocking(|local| local.sweep()).await?;
        let _collecting = self.collecting.write().await;
        let mut live: BTreeSet<Digest> = self.preparing.layers();
        live.extend(self.blocking(|local| local.lazy_layers()).await?);
        let busy = self.images.collect(&live).await;
        drop(sweeping);
        tracing::debug!(removed, live = live.len(), busy, "cleaned up");
        Ok(busy)
    }

    /// Lets go of all views: whatever no one else holds is unmounted.
    ///
    /// # Errors
    /// The runtime is going down.
    pub async fn close(&self) -> Result<(), SnapshotError> {
        self.blocking(|local| {
            local.release_all();
            Ok(())
        })
        .await?;
        self.images.close().await;
        Ok(())
    }

    /// Gives up all views without unmounting them: containers go on seeing them for as long as the
    /// kernel can serve them, and the next process finds them.
    pub async fn abandon(&self) {
        self.images.hand_over().await;
        self.local.abandon_all();
    }

    /// What lies below a snapshot with `mapping`.
    fn lower_dirs(
        &self,
        chain: &[Record],
        mapping: Option<&IdMapping>,
    ) -> Result<LowerDirs, SnapshotError> {
        let ids = self.local.ids_of_views(mapping);
        let lowers = mounts::lowers(chain, ids, |id| self.local.directories.files(id))?;
        Ok(LowerDirs::new(lowers, Arc::clone(&self.images)))
    }

    async fn mounted(
        &self,
        key: &str,
        lowers: &LowerDirs,
    ) -> Result<super::lowers::Mounted, SnapshotError> {
        let mounted = lowers.mounted().await.cloned();
        mounted.map_err(|source| SnapshotError::Mount {
            key: key.to_owned(),
            source,
        })
    }

    /// Runs what reads or writes disks where that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Local) -> Result<T, SnapshotError> + Send + 'static,
    ) -> Result<T, SnapshotError> {
        let local = Arc::clone(&self.local);
        tokio::task::spawn_blocking(move || work(&local))
            .await
            .map_err(|error| SnapshotError::Store {
                operation: "run",
                source: Box::new(error),
            })?
    }
}

impl LabelChange {
    fn apply(self, labels: &mut Labels) -> Result<(), SnapshotError> {
        match self {
            Self::Replace(new) => *labels = new,
            Self::Merge(changes) => {
                for (label, value) in changes {
                    match value {
                        Some(value) => labels.insert(label, value),
                        None => labels.remove(&label),
                    };
                }
            }
        }
        // containerd keeps no label without a value.
        labels.retain(|_, value| !value.is_empty());
        check_labels(labels)
    }
}

fn check_key(what: &'static str, key: &str) -> Result<(), SnapshotError> {
    let detail = if key.is_empty() {
        "it is empty".to_owned()
    } else if key.len() > MAX_KEY {
        format!("it is longer than {MAX_KEY} bytes")
    } else {
        return Ok(());
    };
    Err(SnapshotError::Argument { what, detail })
}

fn check_labels(labels: &Labels) -> Result<(), SnapshotError> {
    let long = |(label, value): (&String, &String)| label.len() + value.len() > MAX_LABEL;
    let detail = if labels.len() > MAX_LABELS {
        format!("there are more than {MAX_LABELS}")
    } else if labels.iter().any(long) {
        format!("one is longer than {MAX_LABEL} bytes")
    } else {
        return Ok(());
    };
    Err(SnapshotError::Argument {
        what: "labels",
        detail,
    })
}

impl std::fmt::Debug for Snapshotter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshotter")
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;

//! The seam between snapshot records and whatever provides image layers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use fuse::IdMapping;
use ztoc::Digest;

use super::lowers::LowerDirs;
use super::record::Usage;
use crate::registry::Reference;

/// What the labels of a `Prepare` with `containerd.io/snapshot.ref` say about a layer.
#[derive(Debug, Clone)]
pub struct LayerRequest {
    /// `containerd.io/snapshot/cri.image-ref`.
    pub image: Reference,
    /// `containerd.io/snapshot/cri.manifest-digest`; absent with odd clients.
    pub manifest: Option<Digest>,
    /// `containerd.io/snapshot/cri.layer-digest`.
    pub layer: Digest,
    /// `containerd.io/snapshot/cri.image-layers`: this layer and those above, maybe cut short.
    pub layers_above: Vec<Digest>,
    /// `containerd.io/snapshot/remote/soci.size`: compressed size of this layer.
    pub size: Option<u64>,
    /// `containerd.io/snapshot/remote/soci.index.digest`: an index named by the user.
    pub index: Option<Digest>,
    /// The containerd namespace: the gRPC header, else the first component of the key.
    pub namespace: String,
}

/// How a layer came to be there, or why it did not.
#[derive(Debug)]
pub enum Prepared {
    /// Its zTOC is checked and stored: the layer can be served span by span.
    Lazy,
    /// It was pulled and unpacked into the directory given.
    Unpacked {
        /// Why not lazily.
        reason: NotLazy,
    },
    /// containerd should pull it by itself.
    Deferred {
        /// Why not lazily, and not by us.
        reason: NotLazy,
    },
}

/// Why a layer is not served lazily. The text is for the log; [`NotLazy::label`] is for metrics.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum NotLazy {
    /// The client sent no usable image labels.
    #[error("label {label} is missing or unusable")]
    Labels {
        /// The label.
        label: &'static str,
    },
    /// The image has no SOCI index.
    #[error("the image has no SOCI index")]
    NoIndex,
    /// The index has no zTOC for this layer.
    #[error("the SOCI index has no zTOC for this layer")]
    NoZtoc,
    /// The layer is below `snapshotter.min_layer_size`.
    #[error("the layer is smaller than min_layer_size")]
    TooSmall,
    /// An index or zTOC could not be fetched, or is not what it should be.
    #[error("SOCI artifact unusable: {detail}")]
    Artifact {
        /// What failed, on which host and digest.
        detail: String,
    },
    /// All pull modes that serve lazily are switched off.
    #[error("lazy loading is switched off in the configuration")]
    Disabled,
}

impl NotLazy {
    /// A short stable word for metrics and `soci inspect`.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Labels { .. } => "labels",
            Self::NoIndex => "no_index",
            Self::NoZtoc => "no_ztoc",
            Self::TooSmall => "too_small",
            Self::Artifact { .. } => "artifact",
            Self::Disabled => "disabled",
        }
    }
}

/// One lazy layer of a view.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LazyLayer {
    /// Digest of the compressed layer.
    pub digest: Digest,
    /// The image it was prepared for: where its bytes are fetched from.
    pub image: Reference,
}

/// A run of neighbouring lazy layers, bottom first, that one FUSE mount serves.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LazyRun {
    /// Bottom first; not empty.
    pub layers: Vec<LazyLayer>,
    /// Whether other lowerdirs lie below: then whiteouts and opaque marks stay visible to
    /// overlayfs.
    pub stacked: bool,
    /// The users and groups that it shows instead of the image's, for a container in a user namespace whose ids the kernel
    /// does not map. Views below it show the same.
    pub ids: Option<IdMapping>,
}

/// A mounted view. Alive while any handle to it is; the last one to go unmounts it.
pub trait MountedView: Send + Sync + std::fmt::Debug {
    /// The mount point, to be used as a lowerdir.
    fn path(&self) -> &Path;
}

/// What the snapshots service asks of the side that knows images and kernels.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// Makes a layer available: lazily if it can be, else unpacked into `dir` (exists, empty, mode 0755;
    /// `parents` are the lower directories nearest first, for hard links and implied
    /// directories; ask for them only to unpack, since the views among them are mounted by that),
    /// else not at all. Bounded in time; leaves `dir` empty unless unpacked.
    async fn prepare(&self, request: &LayerRequest, dir: &Path, parents: &LowerDirs) -> Prepared;

    /// The mounted view of `run`, to be a lowerdir above those at `below` (nearest first; empty
    /// unless the run is stacked): the one there is, or a new one.
    async fn mount(
        &self,
        run: &LazyRun,
        below: &[PathBuf],
    ) -> Result<Arc<dyn MountedView>, MountError>;

    /// The mounted view of `run` above `below`, if there is one: an earlier process may have left it.
    fn mounted(&self, _run: &LazyRun, _below: &[PathBuf]) -> Option<Arc<dyn MountedView>> {
        None
    }

    /// What a lazy layer takes on disk now. Blocks on file I/O.
    fn usage(&self, _layer: &Digest) -> std::io::Result<Usage> {
        Ok(Usage::default())
    }

    /// All snapshots hold the views they need: those that an earlier process left and nobody holds go.
    fn settle(&self) {}

    /// What is mounted is left to the next process, with the reads that wait. Where the kernel would not have them
    /// answered by that, waits for their answers, not for long.
    async fn hand_over(&self) {}

    /// Waits until all views that nobody holds are unmounted.
    async fn close(&self) {}

    /// Forgets layers that no snapshot names any more: unmounted, their caches deleted. Whether one is in use still, and
    /// has to be looked at again.
    async fn collect(&self, live: &BTreeSet<Digest>) -> bool;
}

/// Why a view could not be mounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// A layer's zTOC is gone from disk and could not be fetched again.
    #[error("layer {layer} of {image}: {detail}")]
    Layer {
        /// The layer.
        layer: Digest,
        /// Its image.
        image: String,
        /// What failed.
        detail: String,
    },
    /// The kernel refused.
    #[error("cannot mount the view at {path}")]
    Kernel {
        /// The mount point.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
}

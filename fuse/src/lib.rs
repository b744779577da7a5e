//! The kernel side: one read-only view of merged image layers as a FUSE file system.
//!
//! A layer's table of contents becomes a [`LayerTree`]; a run of layers becomes a [`View`], whose
//! directories are merged in memory; [`mount`] serves a view until its [`Session`] is dropped.
//!
//! No registry, no runtime, no gRPC is known here. Bytes come through [`content::LayerContent`],
//! which answers on the FUSE thread when it has them and otherwise takes the reply away.

mod access;
mod attr;
pub mod content;
mod counters;
mod error;
mod explain;
mod filesystem;
mod ids;
mod inode;
mod merge;
mod passthrough;
mod read;
mod reader;
mod session;
mod trace;
mod tree;
mod xattr;

pub use crate::access::{Access, AccessLog, Record};
pub use crate::counters::{Counters, Operation};
pub use crate::explain::{Inspection, Origin};
pub use crate::ids::{Extent, IdMap, IdMapError, IdMapping};
pub use crate::merge::{Layer, LowerDirectory, View};
pub use crate::passthrough::Passthrough;
pub use crate::reader::Reader;
pub use crate::session::{
    KernelOffer, MountOptions, OfferError, Session, adopt, detach, detach_all, device_number_at,
    kernel_maps_ids, kernel_resends, mount,
};
pub use crate::trace::{READ, READ_PATH, TRACE};
pub use crate::tree::LayerTree;

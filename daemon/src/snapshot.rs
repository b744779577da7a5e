//! containerd's snapshots service: records, mounts, and the decision how a layer is provided.
//!
//! [`service`] adapts the gRPC service to [`snapshotter`], which holds the logic over
//! [`store`] (records), [`directory`] (what snapshots have on disk), [`mapped`] (for user namespaces) and [`images`] (the seam to
//! layers and their views).

pub mod decision;
pub mod directory;
pub mod filter;
pub mod images;
pub mod labels;
pub mod lowers;
pub mod mapped;
pub mod mapping;
pub mod mounts;
pub mod record;
pub mod service;
pub mod snapshotter;
pub mod store;

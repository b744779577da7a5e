//! containerd's snapshots service: records, mounts, and the decision how a layer is provided.

pub mod images;

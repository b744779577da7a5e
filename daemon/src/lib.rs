//! The daemon's outside: snapshots, layers and spans, registry, containerd, configuration,
//! metrics. Two binaries are made of it: `soci-snapshotter-grpc` and `soci`.

pub mod artifacts;
pub mod containerd;
pub mod content;
pub mod discovery;
pub mod layer;
pub mod layout;
pub mod registry;
pub mod snapshot;

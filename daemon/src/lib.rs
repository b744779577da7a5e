//! The daemon's outside: snapshots, layers and spans, registry, containerd, configuration,
//! metrics. Two binaries are made of it: `soci-snapshotter-grpc` and `soci`.

pub mod content;
pub mod discovery;
pub mod layer;
pub mod registry;
pub mod snapshot;

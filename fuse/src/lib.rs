//! The kernel side: one read-only view of merged image layers as a FUSE file system.
//!
//! No registry, no runtime, no gRPC is known here. Bytes come through [`content::LayerContent`],
//! which answers on the FUSE thread when it has them and otherwise takes the reply away.

pub mod content;

//! Parts of whole-system tests: registries, containerd, images.

pub mod registry;

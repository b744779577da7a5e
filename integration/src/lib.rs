//! Parts of whole-system tests: containerd, snapshotter, registries, images, and the eyes that
//! compare what they make. Every part is a guard: when it goes, what it started goes with it.
//!
//! Everything lives below one [`Scratch`] directory. Parts are dropped in reverse order of their
//! start, so declare the scratch first.

pub mod acceptor;
pub mod binaries;
pub mod busybox;
pub mod cache;
pub mod collector;
pub mod command;
pub mod containerd;
pub mod cri;
pub mod ctr;
pub mod debian;
pub mod distribution;
pub mod golden;
pub mod host;
pub mod image;
pub mod link;
pub mod manager;
pub mod push;
pub mod registry;
pub mod relay;
pub mod scale;
pub mod scratch;
pub mod service;
pub mod snapshotter;
pub mod soak;
pub mod tamper;
pub mod terminal;
pub mod walk;

pub use containerd::Containerd;
pub use ctr::Ctr;
pub use distribution::DockerRegistry;
pub use host::Host;
pub use image::{Image, Layer, Layout};
pub use scratch::Scratch;
pub use snapshotter::{Snapshotter, Soci};

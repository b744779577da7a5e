//! Views mounted for real, looked at with the kernel's eyes. Needs root and /dev/fuse.
#![allow(clippy::unwrap_used, missing_docs)]

mod containerd;
mod fidelity;
mod layer;
mod mounts;
mod walk;

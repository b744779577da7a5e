//! Views mounted for real, looked at with the kernel's eyes. Needs root, /dev/fuse, containerd with
//! `ctr`, and GNU tar.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs)]

mod adoption;
mod bytes;
mod containerd;
mod directories;
mod fidelity;
mod layer;
mod lifecycle;
mod mounts;
mod passthrough;
mod security;
mod stacked;
mod walk;

//! A mounted view.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::counters::Counters;
use crate::merge::View;

/// How a view is mounted.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// Threads that answer the kernel, at least 1. Two are best: a third makes metadata slower.
    pub threads: usize,
    /// The file system whose numbers statfs(2) reports, usually the daemon's root.
    pub statfs_path: PathBuf,
    /// The kernel's read-ahead per file in KiB, and so the largest read it asks for.
    pub read_ahead_kib: u32,
}

impl MountOptions {
    /// Two threads, 1 MiB of read-ahead, statfs(2) from the file system of `statfs_path`.
    pub fn new(statfs_path: impl Into<PathBuf>) -> Self {
        Self {
            threads: 2,
            statfs_path: statfs_path.into(),
            read_ahead_kib: 1024,
        }
    }
}

/// A mounted view. Dropping it detaches the mount; whoever still uses it is served to the end.
#[derive(Debug)]
pub struct Session {}

/// Mounts `view` at `mountpoint`, read-only, and serves it from threads of its own.
///
/// # Errors
/// When /dev/fuse cannot be opened, mount(2) refuses, or the handshake with the kernel fails.
pub fn mount(_view: View, _mountpoint: &Path, _options: &MountOptions) -> io::Result<Session> {
    todo!()
}

impl Session {
    /// Whether the kernel is still served: false after somebody unmounted or aborted it.
    pub fn is_alive(&self) -> bool {
        todo!()
    }

    /// What the kernel has asked for so far.
    pub fn counters(&self) -> &Arc<Counters> {
        todo!()
    }

    /// The connection's `/dev/fuse` descriptor, to be kept through a crash by somebody else.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        todo!()
    }

    /// Where the view is mounted.
    pub fn mountpoint(&self) -> &Path {
        todo!()
    }
}

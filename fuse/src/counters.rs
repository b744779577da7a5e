//! What the kernel has asked for, counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers of one mounted view since it was mounted. Each only grows; read them at any time.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Names looked up one by one.
    pub lookup: AtomicU64,
    /// Attributes asked for by inode.
    pub getattr: AtomicU64,
    /// Reads of file data.
    pub read: AtomicU64,
    /// Bytes of file data given.
    pub read_bytes: AtomicU64,
    /// Runs of directory entries asked for.
    pub readdir: AtomicU64,
    /// Targets of symbolic links asked for.
    pub readlink: AtomicU64,
    /// Extended attributes asked for, one or the list.
    pub xattr: AtomicU64,
    /// Reads that failed because the bytes were not available (EIO).
    pub read_failures: AtomicU64,
    /// Requests for an inode that no view of this chain has (ESTALE).
    pub stale: AtomicU64,
}

impl Counters {
    /// Adds one to `counter`.
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

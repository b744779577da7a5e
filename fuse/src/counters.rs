//! What the kernel has asked for, counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the kernel asks of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A name in a directory.
    Lookup,
    /// The attributes of an inode.
    Getattr,
    /// A run of directory entries.
    Readdir,
    /// The target of a symbolic link.
    Readlink,
    /// One extended attribute.
    Getxattr,
    /// The names of the extended attributes.
    Listxattr,
    /// File data.
    Read,
}

impl Operation {
    /// All operations.
    pub const ALL: [Self; 7] = [
        Self::Lookup,
        Self::Getattr,
        Self::Readdir,
        Self::Readlink,
        Self::Getxattr,
        Self::Listxattr,
        Self::Read,
    ];

    /// The name that the original's metrics and logs have for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lookup => "node.Lookup",
            Self::Getattr => "node.Getattr",
            Self::Readdir => "node.Readdir",
            Self::Readlink => "node.Readlink",
            Self::Getxattr => "node.Getxattr",
            Self::Listxattr => "node.Listxattr",
            Self::Read => "file.Read",
        }
    }
}

/// Numbers of one mounted view since it was mounted or adopted. Each only grows; they may be read
/// at any time.
#[derive(Debug, Default)]
pub struct Counters {
    requests: [AtomicU64; Operation::ALL.len()],
    failures: [AtomicU64; Operation::ALL.len()],
    read_bytes: AtomicU64,
    answered_reads: AtomicU64,
    passed_through: AtomicU64,
}

impl Counters {
    /// Requests of this kind that have come.
    pub fn requests(&self, operation: Operation) -> u64 {
        self.requests[operation as usize].load(Ordering::Relaxed)
    }

    /// Requests of this kind that could not be answered though they should have been: that a name
    /// or an attribute is not there is an answer.
    pub fn failures(&self, operation: Operation) -> u64 {
        self.failures[operation as usize].load(Ordering::Relaxed)
    }

    /// Reads that have come and are not answered.
    pub fn unanswered_reads(&self) -> u64 {
        let answered = self.answered_reads.load(Ordering::Acquire);
        self.requests(Operation::Read).saturating_sub(answered)
    }

    /// Bytes of file data given.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// Opens of files that the kernel reads by itself.
    pub fn opens_passed_through(&self) -> u64 {
        self.passed_through.load(Ordering::Relaxed)
    }

    pub(crate) fn passed_through(&self) {
        self.passed_through.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn came(&self, operation: Operation) {
        self.requests[operation as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self, operation: Operation) {
        self.failures[operation as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn answered_read(&self) {
        self.answered_reads.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn gave(&self, bytes: usize) {
        self.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

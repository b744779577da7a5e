//! What of a file is in memory, as cachestat(2) tells since Linux 6.5.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd as _;

use nix::libc;

/// Number of the system call, on all architectures.
const CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range` of linux/mman.h.
#[repr(C)]
struct Part {
    offset: u64,
    length: u64,
}

/// `struct cachestat` of linux/mman.h: numbers of pages.
#[repr(C)]
#[derive(Default)]
struct Pages {
    cached: u64,
    dirty: u64,
    in_writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// How many pages of `range` of `file` the page cache has, those included that are being read; `None` if that cannot be
/// found out. An answer is old when it is there.
pub(crate) fn cached_pages(file: &File, range: &Range<u64>) -> Option<u64> {
    let part = Part {
        offset: range.start,
        length: range.end.checked_sub(range.start)?,
    };
    let mut pages = Pages::default();
    // SAFETY: both structures outlive the call, which keeps no pointer to them and writes five numbers, all of which
    // may be anything, into the second.
    let done = unsafe {
        libc::syscall(
            CACHESTAT,
            file.as_raw_fd(),
            &raw const part,
            &raw mut pages,
            0_u32,
        )
    };
    (done == 0).then_some(pages.cached)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn pages_are_counted_that_were_read_and_none_that_were_given_up() {
        let file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.write_all_at(&[1; 64 << 10], 0).unwrap();
        file.sync_all().unwrap();
        let count = |range| cached_pages(&file, &range);
        if count(0..1).is_none() {
            return;
        }
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        assert_eq!(count(0..64 << 10), Some(0));
        file.read_exact_at(&mut [0; 16], 8192).unwrap();
        assert!(count(8192..8193).unwrap() > 0);
    }
}

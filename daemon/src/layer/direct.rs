//! Large reads of what is on disk and not in memory, past the page cache.
//!
//! The kernel keeps what a view answers in the page cache of the view's files. Through the disk's own page cache each
//! byte is copied once more and takes its memory twice. What is in memory already, even in part, is better had from there.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc::O_DIRECT;

use super::residency::cached_pages;
use crate::unpack::proc_path;

/// What positions, lengths and addresses of such reads are multiples of: no disk has larger blocks.
const PAGE: u64 = 4096;
/// Smallest read that is worth it: smaller ones gain by what the page cache reads ahead.
pub(crate) const SMALLEST: u64 = 128 << 10;

/// A file as it is read past the page cache.
#[derive(Debug, Default)]
pub(crate) struct Direct {
    /// `None` if the file system has none.
    file: OnceLock<Option<File>>,
    /// The file system has refused a read.
    refused: AtomicBool,
}

impl Direct {
    /// Whether `range` of `data` is best read past the page cache.
    pub(crate) fn suits(&self, data: &File, range: &Range<u64>) -> bool {
        range.end - range.start >= SMALLEST
            && !self.refused.load(Ordering::Relaxed)
            && cached_pages(data, range) == Some(0)
    }

    /// Reads `range` of `data` into `buffer`, which begins at a page's beginning; where there it is. Waits for the disk.
    /// `None` if it cannot be had this way: the file system has no such reads, the range with the pages that it begins and
    /// ends in is longer than the buffer, or the file ends before it does.
    pub(crate) fn read(
        &self,
        data: &File,
        range: &Range<u64>,
        buffer: &mut [u8],
    ) -> Option<Range<usize>> {
        let file = self.file.get_or_init(|| reopen(data).ok()).as_ref()?;
        let first = range.start - range.start % PAGE;
        let length = usize::try_from(range.end - first).ok()?;
        let pages = usize::try_from((range.end - first).next_multiple_of(PAGE)).ok()?;
        let into = buffer.get_mut(..pages)?;
        if let Err(error) = read_pages(file, into, first, length) {
            tracing::debug!(?range, %error, "a layer on disk is read through the page cache from now on");
            self.refused.store(true, Ordering::Relaxed);
            return None;
        }
        Some(usize::try_from(range.start - first).ok()?..length)
    }
}

/// The same file, whatever its name is by now.
fn reopen(data: &File) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(O_DIRECT)
        .open(proc_path(data.as_fd()))
}

/// Reads whole pages from a page's beginning on, at least `wanted` bytes.
fn read_pages(file: &File, into: &mut [u8], start: u64, wanted: usize) -> io::Result<()> {
    let mut done = 0;
    while done < wanted {
        match file.read_at(&mut into[done..], start + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
    use super::*;
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    use proptest::prelude::*;
    use std::sync::{Arc, LazyLock};

    use crate::layer::large::{LEN, LargeBuffers};

    const SIZE: u64 = (3 << 20) + 1234;

    /// A file on a disk, and what is in it.
    static DATA: LazyLock<(File, Vec<u8>)> = LazyLock::new(|| {
        let bytes: Vec<u8> = (0..SIZE)
            .map(|at| (at ^ at >> 8 ^ at >> 16) as u8)
            .collect();
        let file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        file.sync_all().unwrap();
        (file, bytes)
    });

    /// Whether the file system has reads past the page cache.
    fn has_direct(data: &File) -> bool {
        let mut buffer = Arc::<LargeBuffers>::default().any();
        Direct::default()
            .read(data, &(0..4096), buffer.bytes())
            .is_some()
    }

    proptest! {
        #[test]
        fn a_range_is_read_as_it_is_in_the_file_however_it_lies(start in 0..SIZE, length in 1..LEN as u64 - 2 * PAGE) {
            let (data, bytes) = &*DATA;
            let range = start..SIZE.min(start + length);
            let mut buffer = Arc::<LargeBuffers>::default().any();
            let direct = Direct::default();
            match direct.read(data, &range, buffer.bytes()) {
                Some(place) => prop_assert!(buffer.bytes()[place] == bytes[range.start as usize..range.end as usize]),
                None => prop_assert!(!has_direct(data)),
            }
        }
    }

    #[test]
    fn what_the_buffer_cannot_hold_is_not_read_and_what_the_file_lacks_neither() {
        let (data, _) = &*DATA;
        let mut buffer = Arc::<LargeBuffers>::default().any();
        let direct = Direct::default();
        let too_long = 1..1 + LEN as u64;
        assert_eq!(direct.read(data, &too_long, buffer.bytes()), None);
        assert!(!direct.refused.load(Ordering::Relaxed));
        let beyond = SIZE - 5..SIZE + 1;
        assert_eq!(direct.read(data, &beyond, buffer.bytes()), None);
        assert!(!direct.suits(data, &(0..1 << 20)), "it is not tried again");
    }

    #[test]
    fn only_long_ranges_of_which_nothing_is_in_memory_are_read_so() {
        let data = tempfile::tempfile_in("/var/tmp").unwrap();
        data.write_all_at(&vec![1; 1 << 20], 0).unwrap();
        let direct = Direct::default();
        let all = 0..1 << 20;
        assert!(!direct.suits(&data, &all), "not yet on disk");
        data.sync_all().unwrap();
        posix_fadvise(&data, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        assert_eq!(
            direct.suits(&data, &all),
            cached_pages(&data, &all).is_some()
        );
        assert!(!direct.suits(&data, &(0..SMALLEST - 1)));
        data.read_exact_at(&mut [0], 0).unwrap();
        assert!(!direct.suits(&data, &all));
    }
}

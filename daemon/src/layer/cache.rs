//! A layer's plain bytes on disk: `data`, one sparse file that holds the uncompressed tar at its own
//! offsets, and `map`, which says what of it is there. No state of spans lives here (see
//! [`super::flight`]); every call does blocking file I/O.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use ztoc::unit::ByteLen as _;
use ztoc::{Digest, SpanId, UncompressedOffset};

use super::direct::Direct;
use super::map::{Checksum, SpanMap};

/// The two open files.
#[derive(Debug)]
pub(crate) struct SpanCache {
    data: File,
    direct: Direct,
    map: SpanMap,
}

impl SpanCache {
    /// Opens or begins the cache in `dir`. The second value says which spans are claimed to be there:
    /// each must pass [`Self::check`] once before it may be read.
    pub(crate) fn open(
        dir: &Path,
        ztoc: &Digest,
        spans: u32,
        size: u64,
    ) -> io::Result<(Self, Vec<bool>)> {
        let data = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join("data"))?;
        if data.metadata()?.len() != size {
            data.set_len(size)?;
        }
        let (map, claimed) = SpanMap::open(&dir.join("map"), ztoc, spans)?;
        let direct = Direct::default();
        Ok((Self { data, direct, map }, claimed))
    }

    /// Reads bytes of spans known to be there.
    pub(crate) fn read(&self, at: UncompressedOffset, into: &mut [u8]) -> io::Result<()> {
        self.data.read_exact_at(into, at.0)
    }

    /// [`Self::read`], as far as it need not wait for the disk: how many bytes those were. The disk has been asked for
    /// those behind them.
    pub(crate) fn read_at_once(
        &self,
        at: UncompressedOffset,
        into: &mut [u8],
    ) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            let mut rest = [IoSliceMut::new(&mut into[done..])];
            let from = at.0 + done as u64;
            match preadv2(&self.data, &mut rest, from, ReadWriteFlags::NOWAIT) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // A file system that cannot tell: its reads wait.
                Err(Errno::OPNOTSUPP) => {
                    let from = UncompressedOffset(from);
                    return self.read(from, &mut into[done..]).map(|()| into.len());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(done)
    }

    /// Whether bytes of spans known to be there are best read past the page cache: many, and none in memory.
    pub(crate) fn is_cold(&self, range: &Range<UncompressedOffset>) -> bool {
        self.direct.suits(&self.data, &(range.start.0..range.end.0))
    }

    /// [`Self::read`] past the page cache; see [`Direct::read`].
    pub(crate) fn read_direct(
        &self,
        range: &Range<UncompressedOffset>,
        buffer: &mut [u8],
    ) -> Option<Range<usize>> {
        let range = range.start.0..range.end.0;
        self.direct.read(&self.data, &range, buffer)
    }

    /// Writes a whole span, then vouches for it. After an error the span is not there, and the space
    /// of a part of it is given back.
    pub(crate) fn store(
        &self,
        span: SpanId,
        at: UncompressedOffset,
        bytes: &[u8],
    ) -> io::Result<()> {
        let stored = self
            .data
            .write_all_at(bytes, at.0)
            .and_then(|()| self.map.record(span, Checksum::of(bytes)));
        if stored.is_err() {
            self.forget(span, at..UncompressedOffset(at.0 + bytes.len() as u64));
        }
        stored
    }

    /// Reads a span that the map claims into `buffer` and compares it with its checksum.
    pub(crate) fn check(
        &self,
        span: SpanId,
        range: &Range<UncompressedOffset>,
        buffer: &mut Vec<u8>,
    ) -> io::Result<bool> {
        let Some(expected) = self.map.checksum(span)? else {
            return Ok(false);
        };
        let length = usize::try_from(range.byte_len()).map_err(io::Error::other)?;
        buffer.resize(length, 0);
        self.data.read_exact_at(buffer, range.start.0)?;
        Ok(Checksum::of(buffer) == expected)
    }

    /// Takes back the claim to a span and gives its blocks back to the file system. Best effort: what
    /// stays is found out by its checksum.
    pub(crate) fn forget(&self, span: SpanId, range: Range<UncompressedOffset>) {
        let _ = self.map.erase(span);
        let (Ok(start), Ok(length)) = (
            i64::try_from(range.start.0),
            i64::try_from(range.byte_len()),
        ) else {
            return;
        };
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let _ = fallocate(&self.data, punch, start, length);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    const SPAN: Range<UncompressedOffset> = UncompressedOffset(4096)..UncompressedOffset(12288);

    fn cache(dir: &Path) -> (SpanCache, Vec<bool>) {
        SpanCache::open(dir, &Digest::of(b"z"), 2, 1 << 20).unwrap()
    }

    #[test]
    fn a_stored_span_is_claimed_and_right_after_a_reopen() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = vec![7; 8192];
        cache(dir.path())
            .0
            .store(SpanId(1), SPAN.start, &bytes)
            .unwrap();

        let (reopened, claimed) = cache(dir.path());
        assert_eq!(claimed, [false, true]);
        let mut buffer = Vec::new();
        assert!(reopened.check(SpanId(1), &SPAN, &mut buffer).unwrap());
        assert_eq!(buffer, bytes);
        let mut two = [0; 2];
        reopened.read(UncompressedOffset(4095), &mut two).unwrap();
        assert_eq!(two, [0, 7]);
    }

    #[test]
    fn what_is_in_memory_is_read_at_once_and_what_is_not_waits_for_no_disk() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let bytes: Vec<u8> = (0..8192u32).map(|at| at.to_le_bytes()[0]).collect();
        let (cache, _) = cache(dir.path());
        cache.store(SpanId(1), SPAN.start, &bytes).unwrap();
        let mut read = vec![0; 8000];
        let at = UncompressedOffset(SPAN.start.0 + 100);
        // Memory may be short at this very moment.
        let done = cache.read_at_once(at, &mut read).unwrap();
        assert!(read[..done] == bytes[100..100 + done]);
        cache.data.sync_all().unwrap();
        nix::fcntl::posix_fadvise(
            &cache.data,
            0,
            0,
            nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED,
        )
        .unwrap();
        read.fill(0);
        let done = cache.read_at_once(at, &mut read).unwrap();
        let rest = UncompressedOffset(at.0 + done as u64);
        cache.read(rest, &mut read[done..]).unwrap();
        assert!(read == bytes[100..8100]);
        let beyond = cache.read_at_once(UncompressedOffset((1 << 20) - 5), &mut read);
        assert!(beyond.map_or(true, |done| done <= 5), "the file's end");
    }

    #[test]
    fn one_flipped_bit_in_data_or_map_fails_the_check() {
        let dir = tempfile::tempdir().unwrap();
        for (file, position) in [
            ("data", 5000),
            ("data", 12287),
            ("map", 64 + 8),
            ("map", 64 + 15),
        ] {
            let (open, _) = cache(dir.path());
            open.store(SpanId(1), SPAN.start, &[7; 8192]).unwrap();
            let path = dir.path().join(file);
            let raw = OpenOptions::new().read(true).write(true).open(path);
            let raw = raw.unwrap();
            let mut byte = [0];
            raw.read_exact_at(&mut byte, position).unwrap();
            raw.write_all_at(&[byte[0] ^ 0x10], position).unwrap();
            let checked = open.check(SpanId(1), &SPAN, &mut Vec::new());
            assert!(!checked.unwrap(), "{file} at {position}");
        }
    }

    #[test]
    fn a_forgotten_span_is_not_claimed_and_takes_no_space() {
        let dir = tempfile::tempdir().unwrap();
        let (open, _) = cache(dir.path());
        open.store(SpanId(1), SPAN.start, &[7; 8192]).unwrap();
        open.data.sync_all().unwrap();
        assert!(open.data.metadata().unwrap().blocks() > 0);
        open.forget(SpanId(1), SPAN);
        assert_eq!(open.data.metadata().unwrap().blocks(), 0);
        assert_eq!(cache(dir.path()).1, [false, false]);
    }
}

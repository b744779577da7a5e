//! Memory that is mapped from files, or lies where direct reads want it.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;
use std::ptr::NonNull;

use nix::libc::c_void;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// A mapping, unmapped when dropped.
struct Mapping {
    address: NonNull<c_void>,
    length: NonZeroUsize,
}

impl Mapping {
    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is readable, `length` bytes long, and lives as long as `self`. The file
        // belongs to an image and is never changed or cut short.
        unsafe { std::slice::from_raw_parts(self.address.cast().as_ptr(), self.length.get()) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; only the anonymous mapping, which is writable, is ever borrowed so.
        unsafe { std::slice::from_raw_parts_mut(self.address.cast().as_ptr(), self.length.get()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing borrows from a value that is being dropped.
        let _ = unsafe { munmap(self.address, self.length.get()) };
    }
}

fn length_of(expected: &[u8]) -> io::Result<NonZeroUsize> {
    NonZeroUsize::new(expected.len()).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Whether a mapping of `file` from the multiple `start` of the page size on holds the bytes expected.
pub(super) fn compare(file: &File, start: usize, expected: &[u8]) -> io::Result<bool> {
    let length = length_of(expected)?;
    let start = start.try_into().map_err(io::Error::other)?;
    let (read, shared) = (ProtFlags::PROT_READ, MapFlags::MAP_SHARED);
    // SAFETY: the kernel chooses the address, so that nothing else is there.
    let address = unsafe { mmap(None, length, read, shared, file, start) }?;
    let mapping = Mapping { address, length };
    Ok(mapping.bytes() == expected)
}

/// Whether a direct read of `file` from the multiple `start` of the block size on gives the bytes expected.
pub(super) fn read_direct(file: &File, start: u64, expected: &[u8]) -> io::Result<bool> {
    let length = NonZeroUsize::new(expected.len().next_multiple_of(super::BLOCK))
        .ok_or(io::ErrorKind::InvalidInput)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: the kernel chooses the address, so that nothing else is there.
    let address = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE) }?;
    let mut mapping = Mapping { address, length };
    let mut had = 0;
    while had < expected.len() {
        match file.read_at(&mut mapping.bytes_mut()[had..], start + had as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            // Only the end of the file is no multiple of a block.
            more => had += more,
        }
    }
    Ok(&mapping.bytes()[..expected.len()] == expected)
}

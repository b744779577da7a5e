//! A file mapped into memory.

#![allow(unsafe_code, reason = "there is no safe mmap(2)")]

use std::fs::File;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use anyhow::{Context as _, Result};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Unmapped when dropped.
pub(crate) struct Map {
    start: NonNull<std::ffi::c_void>,
    len: NonZeroUsize,
}

impl Map {
    pub(crate) fn of(file: &File) -> Result<Self> {
        let len = usize::try_from(file.metadata()?.len())?;
        let len = NonZeroUsize::new(len).context("an empty file cannot be mapped")?;
        // SAFETY: a new shared read-only mapping at an address that the kernel chooses touches no memory of
        // ours. Nobody changes or shortens the file while the bench runs.
        let start = unsafe {
            mmap(
                None,
                len,
                ProtFlags::PROT_READ,
                MapFlags::MAP_SHARED,
                file,
                0,
            )
        }?;
        Ok(Self { start, len })
    }

    /// The byte at `position`, which is taken modulo the length.
    pub(crate) fn byte(&self, position: u64) -> u8 {
        let position = usize::try_from(position).unwrap_or_default() % self.len;
        // SAFETY: the mapping has `len` readable bytes from `start` on and lives as long as `self`; volatile,
        // as the page is to be touched.
        unsafe { self.start.cast::<u8>().add(position).read_volatile() }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped, and no reference into it is given out.
        let _ = unsafe { munmap(self.start, self.len.get()) };
    }
}

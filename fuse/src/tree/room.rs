//! Room for what is made of a whole layer.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

/// Bytes from which on huge pages pay: each has so many.
const HUGE: usize = 2 << 20;
/// No page is smaller.
const PAGE: usize = 4096;

/// An empty vector with room for `len` elements. Much of it is had in huge pages, where the kernel has any: the memory for
/// the tree of 200,000 files is touched for the first time, and in pages of 4 KiB that was a third of the time to open such a
/// layer (166 ms for 100, in a virtual machine).
pub(super) fn room<T>(len: usize) -> Vec<T> {
    let mut vec = Vec::with_capacity(len);
    let spare = vec.spare_capacity_mut();
    if size_of_val(spare) >= HUGE {
        prefer_huge_pages(spare.as_mut_ptr_range());
    }
    vec
}

/// Asks the kernel to give the pages of `range` as huge ones, the first and the last as well: a mapping that is advised as a
/// whole stays one, and can grow in place. Without huge pages the kernel refuses, and nothing is different.
fn prefer_huge_pages<T>(range: std::ops::Range<*mut T>) {
    let start = range.start.cast::<c_void>();
    let start = start.wrapping_byte_sub(start.addr() % PAGE);
    let len = (range.end.addr() - start.addr()).next_multiple_of(PAGE);
    if let Some(start) = NonNull::new(start) {
        // SAFETY: the pages are mapped, as part of an allocation lies in each. This advice changes neither what they hold nor
        // who may use them, now or after they are freed.
        let _ = unsafe { madvise(start, len, MmapAdvise::MADV_HUGEPAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_of_any_size_holds_what_is_put_into_it() {
        for len in [0, 1, 1000, 700_001] {
            let mut vec = room::<[u32; 3]>(len);
            assert!(vec.capacity() >= len);
            vec.extend((0..).map(|number| [number; 3]).take(len));
            assert!(
                vec.iter()
                    .zip(0..)
                    .all(|(found, number)| *found == [number; 3])
            );
        }
    }
}

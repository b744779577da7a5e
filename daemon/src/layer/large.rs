//! Buffers in one large page each, for reads past the page cache.
//!
//! The disk writes into them by itself. A buffer in pages of 4 KiB is as many pieces to it as it has pages, which take
//! disks of virtual machines six times as long (250 ms in place of 40 for 128 MiB, by requests of 1 MiB).

use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io};

use memmap2::{Advice, MmapMut};
use nix::sys::resource::{UsageWho, getrusage};
use parking_lot::Mutex;

/// Bytes of a buffer: a large page of most machines.
pub(crate) const LEN: usize = 2 << 20;
/// Most buffers: as many reads past the page cache are under way at a time.
const MOST: usize = 8;
/// Page faults that touching a buffer takes at most if its pages are large, if only of 64 KiB.
const MOST_FAULTS: i64 = 32 + 4;
/// How long after the kernel had no large page for a buffer it is asked again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Those that are not in use, and how many there are.
#[derive(Default)]
pub(crate) struct LargeBuffers {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    free: Vec<Memory>,
    /// Those in use included.
    made: usize,
    /// When the kernel had no large page.
    refused: Option<Instant>,
}

/// Memory that begins at a multiple of [`LEN`] somewhere in a mapping of twice that.
struct Memory {
    mapping: MmapMut,
    start: usize,
}

/// A buffer in use; given back when dropped.
pub(crate) struct LargeBuffer {
    memory: Option<Memory>,
    owner: Arc<LargeBuffers>,
}

impl LargeBuffers {
    /// Whether there may be one.
    pub(crate) fn has_any(&self) -> bool {
        let state = self.state.lock();
        !state.is_refused() && (state.made < MOST || !state.free.is_empty())
    }

    /// A buffer, if one is free or may be made and the kernel has a large page for it.
    pub(crate) fn take(self: &Arc<Self>) -> Option<LargeBuffer> {
        let free = {
            let mut state = self.state.lock();
            let free = state.free.pop();
            if free.is_none() {
                if state.made >= MOST || state.is_refused() {
                    return None;
                }
                state.made += 1;
            }
            free
        };
        let memory = free.or_else(Memory::large);
        if memory.is_none() {
            let mut state = self.state.lock();
            state.made -= 1;
            state.refused = Some(Instant::now());
            tracing::debug!("no large pages: layers on disk are read through the page cache");
        }
        let owner = Arc::clone(self);
        memory.map(|memory| LargeBuffer {
            memory: Some(memory),
            owner,
        })
    }

    /// One more, be its pages large or not.
    #[cfg(test)]
    pub(super) fn any(self: &Arc<Self>) -> LargeBuffer {
        LargeBuffer {
            memory: Some(Memory::map().expect("there is memory")),
            owner: Arc::clone(self),
        }
    }

    /// Whether any is kept that is not in use.
    pub(crate) fn are_kept(&self) -> bool {
        !self.state.lock().free.is_empty()
    }

    /// Gives the memory of those not in use back.
    pub(crate) fn forget(&self) {
        let free = {
            let mut state = self.state.lock();
            let free = std::mem::take(&mut state.free);
            state.made -= free.len();
            free
        };
        drop(free);
    }
}

impl State {
    fn is_refused(&self) -> bool {
        self.refused.is_some_and(|at| at.elapsed() < PATIENCE)
    }
}

impl Memory {
    fn map() -> io::Result<Self> {
        let mapping = MmapMut::map_anon(2 * LEN)?;
        let start = mapping.as_ptr().align_offset(LEN);
        Ok(Self { mapping, start })
    }

    /// `None` if there is no large page for it.
    fn large() -> Option<Self> {
        let mut memory = Self::map().ok()?;
        let before = faults()?;
        // Only the part that is used is advised: the rest is never touched.
        let advice = Advice::HugePage;
        memory
            .mapping
            .advise_range(advice, memory.start, LEN)
            .ok()?;
        memory.bytes().fill(0);
        (faults()? - before <= MOST_FAULTS).then_some(memory)
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.mapping[self.start..self.start + LEN]
    }
}

/// Page faults of this thread that needed no disk.
fn faults() -> Option<i64> {
    Some(getrusage(UsageWho::RUSAGE_THREAD).ok()?.minor_page_faults())
}

impl LargeBuffer {
    /// Its [`LEN`] bytes.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        let memory = self.memory.as_mut().expect("it is there until the drop");
        memory.bytes()
    }
}

impl Drop for LargeBuffer {
    fn drop(&mut self) {
        self.owner.state.lock().free.extend(self.memory.take());
    }
}

impl fmt::Debug for LargeBuffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("LargeBuffers")
            .field("made", &state.made)
            .field("free", &state.free.len())
            .field("refused", &state.refused)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn there_are_only_so_many_and_they_are_used_again() {
        let buffers = Arc::<LargeBuffers>::default();
        let mut all: Vec<_> = std::iter::from_fn(|| buffers.take()).collect();
        if !all.is_empty() {
            assert_eq!(all.len(), MOST);
            assert!(!buffers.has_any());
        }
        for buffer in &mut all {
            assert!(buffer.bytes().as_ptr().addr().is_multiple_of(LEN));
            buffer.bytes().fill(7);
        }
        drop(all);
        assert_eq!(buffers.are_kept(), buffers.has_any());
        if let Some(mut buffer) = buffers.take() {
            assert_eq!(buffer.bytes()[LEN - 1], 7, "memory that was used before");
        }
        buffers.forget();
        assert!(!buffers.are_kept());
        assert_eq!(buffers.state.lock().made, 0);
    }

    #[test]
    fn a_kernel_without_large_pages_is_not_asked_each_time() {
        let buffers = Arc::<LargeBuffers>::default();
        buffers.state.lock().refused = Some(Instant::now());
        assert!(!buffers.has_any() && buffers.take().is_none());
    }
}

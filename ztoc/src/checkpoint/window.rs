//! Where the windows of a layer's checkpoints are kept: in memory, or left in the zTOC they came in.
//!
//! A layer of 4 GiB has 1000 windows, 32 MiB, and each is needed once: when its span is decoded. A
//! layer that is open for months must not hold them. The zTOC is on disk anyway; a window is
//! read from there in some 10 us, and 4 bytes of checksum stay in memory.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::WINDOW_LEN;
use crate::compact::GroupedWindows;
use crate::error::WindowError;

/// The bytes of a zTOC, kept somewhere else than in memory.
pub trait ZtocBytes: fmt::Debug + Send + Sync {
    /// Fills `into` with the bytes of the zTOC from `offset` on.
    ///
    /// # Errors
    ///
    /// They cannot be read, or the zTOC ends before.
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;
}

/// The window of each checkpoint.
#[derive(Debug, Clone)]
pub(super) struct Windows {
    /// Windows in front that are all zeros and kept nowhere.
    implied: usize,
    rest: Rest,
}

#[derive(Debug, Clone)]
enum Rest {
    /// One behind the other.
    Held(Vec<u8>),
    Left(Left),
    /// Those of a compact zTOC.
    Grouped(GroupedWindows),
}

/// Windows that are read when they are needed.
#[derive(Debug, Clone)]
struct Left {
    ztoc: Arc<dyn ZtocBytes>,
    /// Where in the zTOC the first one is.
    first: u64,
    /// From one to the next.
    step: u64,
    /// CRC32 of each as it was when the zTOC was decoded.
    checksums: Vec<u32>,
}

impl Windows {
    /// None yet, to be held in memory; the first `implied` are all zeros.
    pub(super) fn held(implied: usize) -> Self {
        let rest = Rest::Held(Vec::new());
        Self { implied, rest }
    }

    /// None yet, to be left in `ztoc`: there the first is at `first`, and each further one `step`
    /// bytes on.
    pub(super) fn left(implied: usize, ztoc: Arc<dyn ZtocBytes>, first: u64, step: u64) -> Self {
        let rest = Rest::Left(Left {
            ztoc,
            first,
            step,
            checksums: Vec::new(),
        });
        Self { implied, rest }
    }

    /// Those of a compact zTOC; none can be added.
    pub(super) fn grouped(windows: GroupedWindows) -> Self {
        let rest = Rest::Grouped(windows);
        Self { implied: 0, rest }
    }

    /// The groups that the windows are in, if they are those of a compact zTOC.
    pub(super) fn groups(&self) -> Option<&GroupedWindows> {
        match &self.rest {
            Rest::Grouped(windows) => Some(windows),
            Rest::Held(_) | Rest::Left(_) => None,
        }
    }

    /// Makes room for exactly `count` more.
    pub(super) fn reserve(&mut self, count: usize) {
        match &mut self.rest {
            Rest::Held(bytes) => bytes.reserve_exact(count * WINDOW_LEN),
            Rest::Left(left) => left.checksums.reserve_exact(count),
            Rest::Grouped(_) => {}
        }
    }

    pub(super) fn push(&mut self, window: &[u8]) {
        debug_assert_eq!(window.len(), WINDOW_LEN);
        match &mut self.rest {
            Rest::Held(bytes) => bytes.extend_from_slice(window),
            Rest::Left(left) => left.checksums.push(crc32fast::hash(window)),
            Rest::Grouped(_) => unreachable!("a compact zTOC has all its windows"),
        }
    }

    /// Writes window `index` to `into`, which has its length.
    pub(super) fn write(&self, index: usize, into: &mut [u8]) -> Result<(), WindowError> {
        let Some(index) = index.checked_sub(self.implied) else {
            into.fill(0);
            return Ok(());
        };
        match &self.rest {
            Rest::Held(bytes) => {
                into.copy_from_slice(&bytes[index * WINDOW_LEN..][..WINDOW_LEN]);
                Ok(())
            }
            Rest::Left(left) => left.read(index, into),
            Rest::Grouped(windows) => windows.write(index, into),
        }
    }

    /// Bytes of memory that they take.
    pub(super) fn memory(&self) -> usize {
        match &self.rest {
            Rest::Held(bytes) => bytes.capacity(),
            Rest::Left(left) => left.checksums.capacity() * size_of::<u32>(),
            Rest::Grouped(windows) => windows.memory(),
        }
    }
}

impl Left {
    fn read(&self, index: usize, into: &mut [u8]) -> Result<(), WindowError> {
        let offset = self.first + self.step * index as u64;
        self.ztoc
            .read_exact_at(into, offset)
            .map_err(|error| WindowError::Read(error.kind()))?;
        if crc32fast::hash(into) != self.checksums[index] {
            return Err(WindowError::Changed { offset });
        }
        Ok(())
    }
}

impl PartialEq for Windows {
    fn eq(&self, other: &Self) -> bool {
        let same = match (&self.rest, &other.rest) {
            (Rest::Held(one), Rest::Held(other)) => one == other,
            (Rest::Left(one), Rest::Left(other)) => {
                Arc::ptr_eq(&one.ztoc, &other.ztoc)
                    && (one.first, &one.checksums) == (other.first, &other.checksums)
            }
            (Rest::Grouped(one), Rest::Grouped(other)) => one == other,
            _ => false,
        };
        same && self.implied == other.implied
    }
}

impl Eq for Windows {}

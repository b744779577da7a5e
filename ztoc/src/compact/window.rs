//! Sparse windows: of the 32 KiB in front of a checkpoint only what the span refers to.
//!
//! DEFLATE reaches 32 KiB back, so only the first 32 KiB behind a checkpoint can refer to its window,
//! and they refer to a tenth of it. Windows of neighbouring spans are packed together in groups: a
//! group is what is fetched, checked and unpacked at a time.

use std::ops::Range;
use std::sync::Arc;

use super::CompactError;
use super::column::{Column, pack, put_number, unpack};
use crate::checkpoint::{WINDOW_LEN, ZtocBytes};
use crate::digest::Digest;
use crate::error::WindowError;
use crate::inflate::Tables;

/// Windows in a group. Fewer pack worse, more must be fetched and unpacked for a single span.
pub(super) const GROUP_LEN: usize = 8;

/// The longest group, unpacked: all of eight windows, with a run for each other byte.
const MAX_GROUP_LEN: usize = GROUP_LEN * 2 * WINDOW_LEN;

/// A gap between two runs that costs more to tell than its bytes do.
const SHORT_GAP: usize = 3;

/// Which bytes of a window are referred to.
#[derive(Debug, Clone)]
pub(crate) struct Used(Box<[bool; WINDOW_LEN]>);

impl Used {
    /// None.
    pub(crate) fn none() -> Self {
        Self(Box::new([false; WINDOW_LEN]))
    }

    /// All.
    pub(crate) fn all() -> Self {
        Self(Box::new([true; WINDOW_LEN]))
    }

    /// Notes that the byte at `position` of the window is used.
    pub(crate) fn mark(&mut self, position: usize) {
        self.0[position] = true;
    }
}

/// Runs of a window's bytes, ascending, and none adjacent to the next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct SparseWindow {
    runs: Vec<Range<usize>>,
    bytes: Vec<u8>,
}

impl SparseWindow {
    /// The `used` bytes of `window`, and those in short gaps between them.
    pub(crate) fn new(window: &[u8], used: &Used) -> Self {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for at in (0..WINDOW_LEN).filter(|at| used.0[*at]) {
            match runs.last_mut() {
                Some(run) if at - run.end <= SHORT_GAP => run.end = at + 1,
                _ => runs.push(at..at + 1),
            }
        }
        let bytes = runs.iter().flat_map(|run| &window[run.clone()]);
        Self {
            bytes: bytes.copied().collect(),
            runs,
        }
    }

    /// About how many bytes it will take: to choose between checkpoints.
    pub(crate) fn cost(&self) -> usize {
        self.bytes.len() + 2 * self.runs.len()
    }

    /// Writes it to `into`, a whole window, with zeros where nothing is kept.
    fn write(&self, into: &mut [u8]) {
        into.fill(0);
        let mut bytes = self.bytes.as_slice();
        for run in &self.runs {
            let (part, rest) = bytes.split_at(run.len());
            into[run.clone()].copy_from_slice(part);
            bytes = rest;
        }
    }
}

/// The bytes of a group, not yet packed: for each window the number of its runs; the gap in front of
/// each run and the run's length; what the runs hold.
pub(super) fn group(windows: &[&SparseWindow]) -> Vec<u8> {
    let mut plain = Vec::new();
    for window in windows {
        put_number(&mut plain, window.runs.len() as u64);
    }
    let (mut gaps, mut lengths) = (Vec::new(), Vec::new());
    for window in windows {
        let mut end = 0;
        for run in &window.runs {
            put_number(&mut gaps, (run.start - end) as u64);
            put_number(&mut lengths, run.len() as u64);
            end = run.end;
        }
    }
    plain.extend_from_slice(&gaps);
    plain.extend_from_slice(&lengths);
    for window in windows {
        plain.extend_from_slice(&window.bytes);
    }
    plain
}

/// Reads what [`group`] wrote for `count` windows.
fn ungroup(plain: &[u8], count: usize) -> Result<Vec<SparseWindow>, CompactError> {
    const NAME: &str = "group of windows";
    let mut column = Column::new(NAME, plain);
    let mut windows = vec![SparseWindow::default(); count];
    for window in &mut windows {
        let runs = column.length()?;
        if runs > column.len() {
            return Err(CompactError::Column(NAME));
        }
        window.runs.resize(runs, 0..0);
    }
    for run in windows.iter_mut().flat_map(|window| &mut window.runs) {
        run.start = column.length()?;
    }
    for window in &mut windows {
        let mut end = 0_usize;
        for run in &mut window.runs {
            run.start = end.saturating_add(run.start);
            run.end = run.start.saturating_add(column.length()?);
            end = run.end;
            if end > WINDOW_LEN {
                return Err(CompactError::Column(NAME));
            }
        }
    }
    for window in &mut windows {
        let len = window.runs.iter().map(ExactSizeIterator::len).sum();
        window.bytes = column.bytes(len)?.to_vec();
    }
    column.end()?;
    Ok(windows)
}

/// Where a group lies and what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// Position in the blob.
    pub(super) range: Range<u64>,
    /// Its length, unpacked.
    pub(super) len: u32,
    /// sha256 of its bytes in the blob.
    pub(super) digest: Digest,
}

/// Packs all windows; the body of the blob and what describes its groups, which begin at `start`.
pub(super) fn pack_windows(windows: &[&SparseWindow], start: u64) -> (Vec<u8>, Vec<Group>) {
    let (mut body, mut groups) = (Vec::new(), Vec::new());
    for windows in windows.chunks(GROUP_LEN) {
        let plain = group(windows);
        let packed = pack(&plain);
        let at = start + body.len() as u64;
        groups.push(Group {
            range: at..at + packed.len() as u64,
            len: u32::try_from(plain.len()).expect("eight windows"),
            digest: Digest::of(&packed),
        });
        body.extend_from_slice(&packed);
    }
    (body, groups)
}

/// The windows of a compact zTOC: its groups, which stay in its bytes until they are needed. Each is
/// checked against its digest whenever it is read.
#[derive(Debug, Clone)]
pub(crate) struct GroupedWindows {
    bytes: Arc<dyn ZtocBytes>,
    groups: Arc<[Group]>,
    /// Number of windows.
    count: usize,
}

impl GroupedWindows {
    pub(super) fn new(
        bytes: Arc<dyn ZtocBytes>,
        groups: Vec<Group>,
        count: usize,
    ) -> Result<Self, CompactError> {
        let fits = |group: &Group| {
            let packed = group.range.end - group.range.start;
            group.len as usize <= MAX_GROUP_LEN && packed <= u64::from(group.len)
        };
        if groups.len() != count.div_ceil(GROUP_LEN) || !groups.iter().all(fits) {
            return Err(CompactError::Section("groups"));
        }
        Ok(Self {
            bytes,
            groups: groups.into(),
            count,
        })
    }

    /// Where the group with window `index` lies in the blob.
    pub(crate) fn range(&self, index: usize) -> Range<u64> {
        self.groups[index / GROUP_LEN].range.clone()
    }

    /// Writes window `index` to `into`, which has its length.
    pub(crate) fn write(&self, index: usize, into: &mut [u8]) -> Result<(), WindowError> {
        if index == 0 {
            // Nothing is before the layer's first byte.
            into.fill(0);
            return Ok(());
        }
        let number = index / GROUP_LEN;
        let packed = self.read(number)?;
        let count = GROUP_LEN.min(self.count - number * GROUP_LEN);
        let group = &self.groups[number];
        let len = group.len as usize;
        let plain = unpack(&mut Tables::new(), "group of windows", &packed, len);
        let windows = plain.and_then(|plain| ungroup(&plain, count));
        let windows = windows.map_err(|_| WindowError::Malformed {
            offset: group.range.start,
        })?;
        windows[index % GROUP_LEN].write(into);
        Ok(())
    }

    fn read(&self, number: usize) -> Result<Vec<u8>, WindowError> {
        let group = &self.groups[number];
        let len = group.range.end - group.range.start;
        let mut packed = vec![0; usize::try_from(len).unwrap_or_default()];
        let offset = group.range.start;
        self.bytes
            .read_exact_at(&mut packed, offset)
            .map_err(|error| WindowError::Read(error.kind()))?;
        if Digest::of(&packed) != group.digest {
            return Err(WindowError::Changed { offset });
        }
        Ok(packed)
    }

    /// Whether `bytes` are the group with window `index`.
    pub(crate) fn is_group_of(&self, index: usize, bytes: &[u8]) -> bool {
        Digest::of(bytes) == self.groups[index / GROUP_LEN].digest
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory(&self) -> usize {
        self.groups.len() * size_of::<Group>()
    }
}

impl PartialEq for GroupedWindows {
    fn eq(&self, other: &Self) -> bool {
        self.count == other.count && self.groups == other.groups
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn window(used: &[usize]) -> SparseWindow {
        let bytes: Vec<u8> = (0..WINDOW_LEN).map(|at| at.to_le_bytes()[0] | 1).collect();
        let mut marks = Used::none();
        used.iter().for_each(|at| marks.mark(*at));
        SparseWindow::new(&bytes, &marks)
    }

    #[test]
    fn what_is_used_is_kept_and_the_rest_is_zero() {
        let mut whole = vec![9; WINDOW_LEN];
        window(&[5, 100, 101, WINDOW_LEN - 1]).write(&mut whole);
        let kept: Vec<_> = (0..WINDOW_LEN).filter(|at| whole[*at] != 0).collect();
        assert_eq!(kept, [5, 100, 101, WINDOW_LEN - 1]);
    }

    #[test]
    fn runs_that_leave_the_window_are_refused() {
        let mut plain = Vec::new();
        for number in [1, 32_000, 769] {
            put_number(&mut plain, number);
        }
        plain.extend_from_slice(&[1; 769]);
        assert!(ungroup(&plain, 1).is_err());
        let huge = [
            1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 5,
        ];
        assert!(ungroup(&huge, 1).is_err());
    }

    proptest! {
        #[test]
        fn groups_come_back(used in prop::collection::vec(
            prop::collection::vec(0..WINDOW_LEN, 0..200), 1..GROUP_LEN + 1)
        ) {
            let windows: Vec<_> = used.iter().map(|used| window(used)).collect();
            let plain = group(&windows.iter().collect::<Vec<_>>());
            prop_assert_eq!(ungroup(&plain, windows.len()).unwrap(), windows);
        }

        #[test]
        fn arbitrary_bytes_are_windows_or_refused(
            bytes: Vec<u8>, count in 0..GROUP_LEN + 1,
        ) {
            for window in ungroup(&bytes, count).unwrap_or_default() {
                window.write(&mut vec![0; WINDOW_LEN]);
            }
        }
    }
}

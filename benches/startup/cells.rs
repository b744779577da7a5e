//! Samples put in order: one cell for each workload, link and mode; and the floor under each.

use std::collections::BTreeMap;

use crate::mode::Mode;
use crate::sample::{LinkShape, Results, Sample};
use crate::stats::Summary;

/// Requests that have to follow one another before any byte of a layer comes: the image's index or
/// manifest, its manifest, the SOCI index, zTOCs; then one for spans.
const SEQUENCE: f64 = 5.0;

/// Where a sample belongs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cell {
    pub(crate) workload: String,
    pub(crate) link: LinkShape,
}

/// The samples of a cell by mode, in the order of [`Mode::ALL`].
#[derive(Debug, Default)]
pub(crate) struct Modes<'r>(BTreeMap<Mode, Vec<&'r Sample>>);

/// All cells.
pub(crate) fn cells(results: &Results) -> BTreeMap<Cell, Modes<'_>> {
    let mut cells: BTreeMap<Cell, Modes<'_>> = BTreeMap::new();
    for sample in &results.samples {
        let Some(mode) = Mode::named(&sample.mode) else {
            continue;
        };
        let cell = Cell {
            workload: sample.workload.clone(),
            link: sample.link,
        };
        let modes = &mut cells.entry(cell).or_default().0;
        modes.entry(mode).or_default().push(sample);
        if mode == Mode::Lazy {
            modes.entry(Mode::Warm).or_default().push(sample);
        }
    }
    cells
}

impl<'r> Modes<'r> {
    /// The modes there are.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Mode, &[&'r Sample])> {
        self.0
            .iter()
            .map(|(mode, samples)| (*mode, samples.as_slice()))
    }

    /// Seconds to ready of every sample of `mode`.
    pub(crate) fn ready(&self, mode: Mode) -> Vec<f64> {
        match mode {
            Mode::Warm => self.second(mode),
            _ => self.values(mode, |sample| sample.ready_s),
        }
    }

    /// Seconds that every second start of `mode` took.
    pub(crate) fn second(&self, mode: Mode) -> Vec<f64> {
        let samples = self.0.get(&mode).map(Vec::as_slice).unwrap_or_default();
        samples
            .iter()
            .filter_map(|sample| sample.second_s)
            .collect()
    }

    /// Something of every sample of `mode`.
    pub(crate) fn values(&self, mode: Mode, of: impl Fn(&Sample) -> f64) -> Vec<f64> {
        let samples = self.0.get(&mode).map(Vec::as_slice).unwrap_or_default();
        samples.iter().map(|sample| of(sample)).collect()
    }

    /// The physical floor under the time to ready, in seconds: the bytes that a start needs over the link's
    /// bandwidth, the requests that follow one another times its delay, and the time the start takes from a
    /// local disk. None if a part of it was not measured.
    #[expect(clippy::cast_precision_loss, reason = "printed with two decimals")]
    pub(crate) fn floor(&self, link: LinkShape) -> Option<f64> {
        let needed = |sample: &Sample| sample.bytes as f64;
        let mut bytes = self.values(Mode::OnDemand, needed);
        bytes.extend(self.values(Mode::Lazy, needed));
        let bytes = bytes.into_iter().reduce(f64::min)?;
        let local = Summary::of(&self.second(Mode::Overlayfs))?.median;
        let transfer = link.rate.map_or(0.0, |rate| bytes * 8.0 / rate as f64);
        Some(transfer + SEQUENCE * link.delay_ms as f64 / 1000.0 + local)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::report::tests::results;

    #[test]
    fn the_floor_is_transfer_and_delay_and_local_time() {
        let results = results();
        let cells = cells(&results);
        let (cell, modes) = cells.iter().next().unwrap();
        // 1,000,000 bytes at 8 Mbit/s, five requests of 20 ms, half a second from disk.
        assert!((modes.floor(cell.link).unwrap() - (1.0 + 0.1 + 0.5)).abs() < 1e-9);
        assert_eq!(modes.ready(Mode::Warm), modes.second(Mode::Lazy));
    }
}

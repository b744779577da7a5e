//! Whether what calls itself lazy was. A snapshotter that finds no index, or cannot talk to the registry, falls back to
//! unpacking whole layers, and its numbers are those of a pull.

use std::collections::BTreeMap;

use crate::mode::Mode;
use crate::report::shape;
use crate::sample::{Results, Sample};

/// Why `sample` of a lazy mode was not lazy, whose image has `image_bytes`; none if it was, or if nobody looked.
pub(crate) fn doubt(sample: &Sample, image_bytes: Option<u64>) -> Option<String> {
    Mode::named(&sample.mode).filter(|mode| mode.is_lazy())?;
    if sample.fuse_mounts == Some(0) {
        return Some("nothing was mounted by FUSE".to_owned());
    }
    let (pulled, whole) = (sample.pull_bytes?, image_bytes?);
    (pulled >= whole).then(|| "the pull fetched the whole image".to_owned())
}

/// A line for each workload, link and mode with such samples.
pub(crate) fn doubts(results: &Results) -> Vec<String> {
    let bytes = |sample: &Sample| {
        let mut workloads = results.workloads.iter();
        workloads
            .find(|about| about.name == sample.workload)?
            .image_bytes
    };
    let mut counted: BTreeMap<String, usize> = BTreeMap::new();
    for sample in &results.samples {
        if let Some(why) = doubt(sample, bytes(sample)) {
            let (workload, link) = (&sample.workload, shape(sample.link));
            let line = format!("{workload} over {link}, {}: {why}", sample.mode);
            *counted.entry(line).or_default() += 1;
        }
    }
    let lines = counted.into_iter();
    lines
        .map(|(line, count)| format!("{line} ({count} samples)"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::results;

    #[test]
    fn a_lazy_mode_that_mounts_nothing_or_pulls_everything_is_not_lazy() {
        let mut results = results();
        assert_eq!(doubts(&results), Vec::<String>::new());
        let mut lazy = results
            .samples
            .iter_mut()
            .filter(|sample| sample.mode == "lazy");
        if let Some(sample) = lazy.next() {
            sample.fuse_mounts = Some(0);
        }
        if let Some(sample) = lazy.next() {
            sample.pull_bytes = Some(60_000_000);
        }
        // An old result, of which nobody knows.
        if let Some(sample) = lazy.next() {
            (sample.fuse_mounts, sample.pull_bytes) = (None, None);
        }
        drop(lazy);
        let expected = [
            "w over 8 Mbit/s, 20 ms, lazy: nothing was mounted by FUSE (1 samples)",
            "w over 8 Mbit/s, 20 ms, lazy: the pull fetched the whole image (1 samples)",
        ];
        assert_eq!(doubts(&results), expected);
    }
}

//! All cells at a glance: links down, workloads across, what lazy loading is worth in each.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::cells::{Cell, Modes, cells};
use crate::mode::Mode;
use crate::report::shape;
use crate::sample::Results;
use crate::stats::Summary;

/// Markdown; nothing unless there are lazy starts and containerd's own to compare.
pub(crate) fn of(results: &Results) -> String {
    let cells = cells(results);
    let compared = |modes: &Modes<'_>| shown(modes).is_some();
    if !cells.values().any(compared) {
        return String::new();
    }
    let links: BTreeSet<_> = cells.keys().map(|cell| cell.link).collect();
    let names: Vec<&str> = results
        .workloads
        .iter()
        .map(|about| about.name.as_str())
        .collect();
    let mut text = String::new();
    let _ = writeln!(
        text,
        "\nMedian seconds to ready, lazily / with overlayfs = ratio, samples of each:\n"
    );
    let _ = writeln!(text, "| link | {} |", names.join(" | "));
    let _ = writeln!(text, "|---|{}", "---|".repeat(names.len()));
    for link in links {
        let cell = |name: &&str| {
            let cell = Cell {
                workload: (*name).to_owned(),
                link,
            };
            cells.get(&cell).and_then(shown).unwrap_or_default()
        };
        let row: Vec<_> = names.iter().map(cell).collect();
        let _ = writeln!(text, "| {} | {} |", shape(link), row.join(" | "));
    }
    text
}

fn shown(modes: &Modes<'_>) -> Option<String> {
    let lazy = Summary::of(&modes.ready(Mode::Lazy))?;
    let native = Summary::of(&modes.ready(Mode::Overlayfs))?;
    Some(format!(
        "{:.2} / {:.2} = **{:.2}** ({}, {})",
        lazy.median,
        native.median,
        lazy.median / native.median,
        lazy.count,
        native.count
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::results;

    #[test]
    fn each_link_has_a_row_and_each_workload_a_column_with_the_ratio() {
        let (mut all, mut far) = (results(), results());
        for sample in &mut far.samples {
            sample.link.delay_ms = 80;
            sample.ready_s *= 2.0;
        }
        far.samples.retain(|sample| sample.mode == "lazy");
        all.add(far);
        let expected = "| link | w |\n|---|---|\n\
            | 8 Mbit/s, 20 ms | 2.06 / 10.06 = **0.20** (4, 4) |\n| 8 Mbit/s, 80 ms |  |\n";
        assert!(of(&all).ends_with(expected), "{}", of(&all));

        let mut alone = results();
        alone.samples.retain(|sample| sample.mode == "lazy");
        assert_eq!(of(&alone), "");
    }
}

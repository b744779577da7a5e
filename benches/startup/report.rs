//! Tables.

use std::fmt::Write as _;

use integration::link::Shape;

use crate::cells::{Cell, Modes, cells};
use crate::lazy;
use crate::mode::Mode;
use crate::sample::{LinkShape, Results};
use crate::stats::{Summary, ratio};

/// Markdown, which a terminal shows as well.
pub(crate) fn markdown(results: &Results) -> String {
    let mut text = String::new();
    let machine = &results.machine;
    let _ = writeln!(
        text,
        "{}, {} cores, {:.0} GiB, Linux {}; containerd {}; spanshot {}.\n",
        machine.cpu,
        machine.cores,
        gib(machine.memory_bytes),
        machine.kernel,
        machine.containerd,
        machine.spanshot
    );
    for about in &results.workloads {
        let bytes = about
            .image_bytes
            .map(|bytes| format!(" ({:.0} MB compressed)", megabytes(bytes)));
        let _ = writeln!(
            text,
            "- **{}**: {}{}",
            about.name,
            about.about,
            bytes.unwrap_or_default()
        );
    }
    for (mode, why) in &results.missing {
        let _ = writeln!(text, "- {mode} is missing: {why}");
    }
    for failure in &results.failed {
        let _ = writeln!(
            text,
            "- failed: {} over {}, {}, round {}: {}",
            failure.workload,
            shape(failure.link),
            failure.mode,
            failure.round + 1,
            failure.why.lines().next().unwrap_or_default()
        );
    }
    for doubt in lazy::doubts(results) {
        let _ = writeln!(text, "- not lazy: {doubt}");
    }
    let _ = writeln!(text, "\n{HEAD}");
    for (cell, modes) in cells(results) {
        rows(&mut text, &cell, &modes);
    }
    text
}

const HEAD: &str = "| workload | link | mode | n | ready s | quartiles | x overlayfs | x floor | pull s | second s | complete s | MB | requests | CPU s | peak MiB | disk MB |
|---|---|---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|";

fn rows(text: &mut String, cell: &Cell, modes: &Modes<'_>) {
    let native = Summary::of(&modes.ready(Mode::Overlayfs));
    let floor = modes.floor(cell.link);
    for (mode, _) in modes.iter() {
        let Some(ready) = Summary::of(&modes.ready(mode)) else {
            continue;
        };
        let of = |over: Option<f64>| match over {
            Some(over) if mode.is_first_start() => format!("{:.2}", ready.median / over),
            _ => String::new(),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | **{:.2}** | {:.2}-{:.2} | {} | {} |{}",
            cell.workload,
            shape(cell.link),
            mode.name(),
            ready.count,
            ready.median,
            ready.quartiles.0,
            ready.quartiles.1,
            of(native.map(|native| native.median)),
            of(floor),
            details(modes, mode)
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "printed with few digits")]
fn details(modes: &Modes<'_>, mode: Mode) -> String {
    if !mode.is_first_start() {
        return " | | | | | | | |".to_owned();
    }
    let median = |values: Vec<f64>| Summary::of(&values).map_or(f64::NAN, |summary| summary.median);
    let seconds = [
        median(modes.values(mode, |sample| sample.pull_s)),
        median(modes.second(mode)),
        median(modes.values(mode, |sample| sample.complete_s)),
    ];
    let counted = [
        median(modes.values(mode, |sample| sample.bytes as f64)) / 1e6,
        median(modes.values(mode, |sample| sample.requests as f64)),
    ];
    let cpu = median(modes.values(mode, |sample| sample.cpu_s));
    let memory = median(modes.values(mode, |sample| sample.peak_memory_bytes as f64));
    let disk = median(modes.values(mode, |sample| sample.disk_bytes as f64));
    format!(
        " {} | {} | {} | {:.1} | {:.0} | {cpu:.2} | {:.0} | {:.0} |",
        shown(seconds[0]),
        shown(seconds[1]),
        shown(seconds[2]),
        counted[0],
        counted[1],
        memory / f64::from(1 << 20),
        disk / 1e6
    )
}

/// Nothing for what was left out.
fn shown(seconds: f64) -> String {
    match seconds.is_nan() {
        true => String::new(),
        false => format!("{seconds:.2}"),
    }
}

/// Medians to ready with a column for each mode: what fits in a README. The best of each line is bold.
pub(crate) fn short(results: &Results) -> String {
    let cells = cells(results);
    let has = |mode: &Mode| cells.values().any(|modes| !modes.ready(*mode).is_empty());
    let columns: Vec<Mode> = Mode::ALL.into_iter().filter(has).collect();
    let names: Vec<_> = columns.iter().map(|mode| mode.name()).collect();
    let mut text = String::new();
    let _ = writeln!(text, "| workload | link | floor | {} |", names.join(" | "));
    let _ = writeln!(text, "|---|---|--:|{}", "--:|".repeat(columns.len()));
    for (cell, modes) in &cells {
        let median = |mode: Mode| Some(Summary::of(&modes.ready(mode))?.median);
        let first_starts = columns.iter().filter(|mode| mode.is_first_start());
        let best = first_starts
            .filter_map(|mode| median(*mode))
            .fold(f64::INFINITY, f64::min);
        let shown = |mode: &Mode| match median(*mode) {
            Some(seconds) if seconds <= best && mode.is_first_start() => {
                format!("**{seconds:.2}**")
            }
            Some(seconds) => format!("{seconds:.2}"),
            None => String::new(),
        };
        let row: Vec<_> = columns.iter().map(shown).collect();
        let floor = modes.floor(cell.link);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            cell.workload,
            shape(cell.link),
            floor.map_or_else(String::new, |floor| format!("{floor:.2}")),
            row.join(" | ")
        );
    }
    text
}

/// What has changed since `old`, by the time to ready; whether anything got slower.
pub(crate) fn comparison(new: &Results, old: &Results) -> (String, bool) {
    let (new, old) = (cells(new), cells(old));
    let mut text =
        "| workload | link | mode | new / old, 95 % interval | |\n|---|---|---|---|---|\n"
            .to_owned();
    let mut slower = false;
    for (cell, modes) in &new {
        let Some(before) = old.get(cell) else {
            continue;
        };
        for (mode, _) in modes.iter() {
            let Some(change) = ratio(&modes.ready(mode), &before.ready(mode)) else {
                continue;
            };
            let verdict = match () {
                () if change.low > 1.0 => "slower",
                () if change.high < 1.0 => "faster",
                () => "",
            };
            slower |= change.low > 1.0;
            let _ = writeln!(
                text,
                "| {} | {} | {} | {:.2}-{:.2} | {verdict} |",
                cell.workload,
                shape(cell.link),
                mode.name(),
                change.low,
                change.high
            );
        }
    }
    (text, slower)
}

/// The last line, for scripts: the worst and the typical ratio of a lazy start to containerd's.
pub(crate) fn summary_line(results: &Results) -> String {
    let ratios: Vec<f64> = cells(results)
        .values()
        .filter_map(|modes| {
            let lazy = Summary::of(&modes.ready(Mode::Lazy))?.median;
            Some(lazy / Summary::of(&modes.ready(Mode::Overlayfs))?.median)
        })
        .collect();
    let worst = ratios.iter().copied().fold(f64::NAN, f64::max);
    let median = Summary::of(&ratios).map_or(f64::NAN, |summary| summary.median);
    format!(
        "startup: cells={} lazy_x_overlayfs={median:.3} worst_lazy_x_overlayfs={worst:.3} missing={}",
        ratios.len(),
        results.missing.len()
    )
}

/// A link as tables name it.
pub(crate) fn shape(link: LinkShape) -> String {
    Shape {
        rate: link.rate,
        delay: std::time::Duration::from_millis(link.delay_ms),
    }
    .to_string()
}

#[expect(clippy::cast_precision_loss, reason = "printed without decimals")]
fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

#[expect(clippy::cast_precision_loss, reason = "printed without decimals")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sample::{About, Machine, Sample};

    fn sample(mode: Mode, round: usize, ready_s: f64) -> Sample {
        Sample {
            workload: "w".to_owned(),
            link: LinkShape {
                rate: Some(8_000_000),
                delay_ms: 20,
            },
            mode: mode.name().to_owned(),
            round,
            pull_s: 0.1,
            create_s: 0.1,
            start_s: ready_s - 0.2,
            ready_s,
            complete_s: ready_s,
            second_s: Some(0.5),
            pull_bytes: Some(500_000),
            fuse_mounts: Some(usize::from(mode != Mode::Overlayfs)),
            bytes: if mode == Mode::Overlayfs {
                50_000_000
            } else {
                1_000_000
            },
            requests: 7,
            cpu_s: 1.0,
            peak_memory_bytes: 64 << 20,
            disk_bytes: 1_000_000,
            timeline: vec![(0.1, 1000), (0.2, 900_000)],
        }
    }

    /// Four rounds of a start that is lazily five times as fast.
    pub(crate) fn results() -> Results {
        let modes = [(Mode::Overlayfs, 10.0), (Mode::Lazy, 2.0)];
        let rounds = (0..4).flat_map(|round| {
            modes.map(|(mode, ready)| {
                #[expect(clippy::cast_precision_loss, reason = "four rounds")]
                sample(mode, round, ready + round as f64 * 0.04)
            })
        });
        Results {
            version: 1,
            machine: Machine::default(),
            workloads: vec![About {
                name: "w".to_owned(),
                about: "a test".to_owned(),
                image_bytes: Some(60_000_000),
            }],
            missing: vec![("original".to_owned(), "not installed".to_owned())],
            failed: Vec::new(),
            samples: rounds.collect(),
        }
    }

    #[test]
    fn the_table_has_a_row_for_each_mode_with_its_ratios_and_says_what_is_missing() {
        let text = markdown(&results());
        assert!(
            text.contains(
                "| w | 8 Mbit/s, 20 ms | overlayfs | 4 | **10.06** | 10.03-10.09 | 1.00 |"
            ),
            "{text}"
        );
        assert!(
            text.contains(
                "| w | 8 Mbit/s, 20 ms | lazy | 4 | **2.06** | 2.03-2.09 | 0.20 | 1.29 |"
            ),
            "{text}"
        );
        assert!(
            text.contains("| w | 8 Mbit/s, 20 ms | warm | 4 | **0.50** |"),
            "{text}"
        );
        assert!(
            text.contains("original is missing: not installed"),
            "{text}"
        );
        let columns = text
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.matches('|').count());
        assert!(
            columns
                .clone()
                .all(|count| Some(count) == columns.clone().next()),
            "{text}"
        );
        let line = summary_line(&results());
        assert_eq!(
            line,
            "startup: cells=1 lazy_x_overlayfs=0.205 worst_lazy_x_overlayfs=0.205 missing=1"
        );
    }

    #[test]
    fn the_short_table_has_a_line_for_each_cell_and_marks_the_best_first_start() {
        let text = short(&results());
        let expected = "| workload | link | floor | overlayfs | lazy | warm |\n|---|---|--:|--:|--:|--:|\n\
            | w | 8 Mbit/s, 20 ms | 1.60 | 10.06 | **2.06** | 0.50 |\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn results_of_two_runs_are_shown_together() {
        let (mut one, mut other) = (results(), results());
        for sample in &mut other.samples {
            sample.link.delay_ms = 5;
        }
        other
            .missing
            .push(("nydus".to_owned(), "not installed".to_owned()));
        one.add(other);
        assert_eq!(one.samples.len(), 16);
        assert_eq!((one.workloads.len(), one.missing.len()), (1, 2));
        assert_eq!(short(&one).lines().count(), 4);
    }

    #[test]
    fn a_comparison_names_what_got_slower() {
        let (old, mut new) = (results(), results());
        let (text, slower) = comparison(&new, &old);
        assert!(!slower && !text.contains("slower"), "{text}");
        for sample in new
            .samples
            .iter_mut()
            .filter(|sample| sample.mode == "lazy")
        {
            sample.ready_s *= 1.5;
        }
        let (text, slower) = comparison(&new, &old);
        assert!(slower, "{text}");
        assert_eq!(text.matches("slower").count(), 1, "{text}");
    }
}

//! Reads through a mounted view against the same files on the disk, in the same run.
//!
//! Both lie under an overlay, as a container sees them. Everything is printed as a ratio of speeds: 1.00 is as
//! fast as the disk's own file system, 2.00 twice as fast. "cold" is data not in the page cache, on the disk in
//! both cases; "first" is names never asked for since the mount; "fetched" has nothing local at all, with a registry in memory; against
//! inflating the same bytes with the common decoder. "everything" is read through a line of limited bandwidth
//! and with delay, against the time the compressed bytes need on it.
//!
//! `read_path [ROUNDS [NAME...]]`: only what has one of the names in its own, as "sequential" or "4 jobs".

#![allow(missing_docs, reason = "a program")]

mod map;
mod overlay;
mod served;
mod tree;
mod work;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use daemon::app::heap;
use fuse::Operation;

use crate::overlay::Overlay;
use crate::served::{Form, Line, Packed, Served};
use crate::tree::Tree;
use crate::work::Work;

/// Rounds of each measurement if not told; the median ratio counts.
const ROUNDS: usize = 5;
/// Rounds of what is fetched, which takes longest.
const FETCHED_ROUNDS: usize = 3;

/// Files of the layer that is only opened.
const FILES: u32 = 200_000;

/// What the last line shows, and of which measurement.
const SUMMARY: [(&str, &str); 13] = [
    ("seq_cold", "sequential, cold, 1 job"),
    ("seq_warm", "sequential, warm, 1 job"),
    ("rand4k_cold", "random 4 KiB, cold, 1 job"),
    ("mmap_cold", "page faults, cold, 1 job"),
    (
        "seq_cold_through",
        "sequential, passed through, cold, 1 job",
    ),
    (
        "seq_warm_through",
        "sequential, passed through, warm, 1 job",
    ),
    ("find_first", "find with stat, first"),
    ("find_warm", "find with stat, again"),
    ("stat_warm", "stat at random, again"),
    ("seq_fetched", "sequential, fetched"),
    ("all_200m_80ms", "everything, 200 Mbit/s, 80 ms"),
    ("all_1g_20ms", "everything, 1000 Mbit/s, 20 ms"),
    ("all_1g_80ms", "everything, 1000 Mbit/s, 80 ms"),
];

/// How often to measure what.
struct Options {
    rounds: usize,
    /// Parts of names; everything if there are none.
    names: Vec<String>,
}

impl Options {
    fn of_arguments() -> Result<Self> {
        let arguments = std::env::args().skip(1);
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        let rounds = arguments.next().map_or(Ok(ROUNDS), |rounds| rounds.parse());
        Ok(Self {
            rounds: rounds.context("ROUNDS is a number")?,
            names: arguments.collect(),
        })
    }

    /// Whether what is called `name` is wanted.
    fn want(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|part| name.contains(part.as_str()))
    }
}

/// Where the same tree is seen, and where its bytes lie.
struct Side {
    root: PathBuf,
    /// Files whose pages must go as well when a file is to be cold.
    below: Option<PathBuf>,
}

fn main() -> Result<()> {
    let options = Options::of_arguments()?;
    // As the daemon does.
    heap::return_large_buffers();
    let base =
        std::env::var_os("SPANSHOT_BENCH_DIR").map_or_else(|| "/var/tmp".into(), PathBuf::from);
    let place = tempfile::Builder::new()
        .prefix("read-path-")
        .tempdir_in(&base)
        .with_context(|| format!("cannot work in {}", base.display()))?;
    if options.want("opening") {
        for form in [Form::Ztoc, Form::Compact] {
            opening(place.path(), form, options.rounds)?;
        }
    }
    let tree = Tree::make(&place.path().join("native"))?;
    let packed = Packed::of(&tree)?;
    let mut ratios = BTreeMap::new();
    if options.want(FETCHED) {
        fetched(&packed, &tree, place.path(), &mut ratios)?;
    }
    lines(&packed, &tree, place.path(), &options, &mut ratios)?;
    let served = Served::start(&packed, place.path(), "local", Line::default())?;
    served.fetch_all()?;
    names(&served, &tree, place.path(), &options, &mut ratios)?;
    let before = served.requests();
    let native = Overlay::over(&tree.root, place.path(), "native-data")?;
    let ours = Overlay::over(served.path(), place.path(), "ours-data")?;
    let sides = [
        Side {
            root: native.path().to_owned(),
            below: None,
        },
        Side {
            root: ours.path().to_owned(),
            below: Some(served.data()),
        },
    ];
    data(&sides, &tree, "", &[1, 4, 16], &options, &mut ratios)?;
    println!(
        "\nFUSE requests for all data workloads: {}\n",
        served.requests() - before
    );
    let [native, _] = sides;
    let world = (&packed, &tree, place.path());
    passed_through(native, &served, world, &options, &mut ratios)?;
    println!("The layer: {:?}", served.layer.counters());
    let summary = SUMMARY.iter().map(|(key, name)| {
        format!(
            "{key}={:.2}",
            ratios.get(*name).copied().unwrap_or_default()
        )
    });
    println!("\nread_path: {}", summary.collect::<Vec<_>>().join(" "));
    Ok(())
}

/// A view of a layer with many files is there quickly.
fn opening(place: &Path, form: Form, rounds: usize) -> Result<()> {
    let packed = Packed::of_names(FILES, form)?;
    let name = form.name();
    let mut times = Vec::new();
    let mut memory = 0;
    for round in 0..rounds {
        let served = Served::start(
            &packed,
            place,
            &format!("names-{form:?}-{round}"),
            Line::default(),
        )?;
        let (took, bytes) = served.reopen(&packed, place)?;
        times.push(took);
        memory = bytes;
    }
    times.sort();
    println!(
        "opening: {FILES} files of a {name} in {:.0} ms (best {:.0}), {} bytes of memory a file\n",
        times[times.len() / 2].as_secs_f64() * 1e3,
        times[0].as_secs_f64() * 1e3,
        memory / FILES as usize
    );
    Ok(())
}

/// What [`fetched`] measures.
const FETCHED: &str = "sequential, fetched";

/// One reader of a file of which nothing is here, against unpacking it with the common decoder.
fn fetched(
    packed: &Packed,
    tree: &Tree,
    place: &Path,
    ratios: &mut BTreeMap<String, f64>,
) -> Result<()> {
    let mut pairs = Vec::new();
    for round in 0..FETCHED_ROUNDS {
        let native = packed.gunzip()?;
        let served = Served::start(packed, place, &format!("cold-{round}"), Line::default())?;
        let ours = Work::Sequential.run(served.path(), tree, 1)?;
        // The whole layer took so long to unpack; the file is a part of it.
        let part = native.mul_f64(tree.large_share());
        pairs.push((part, ours));
        if round == 0 {
            let counters = served.layer.counters();
            println!(
                "fetched: {} registry requests, {} of {} compressed bytes for {:.0} % of the plain bytes, {} spans decoded\n",
                counters.requests,
                counters.bytes_fetched,
                packed.blob.len(),
                tree.large_share() * 100.0,
                counters.spans_decoded
            );
        }
    }
    println!("| workload | native | ours | speed, ours to native |\n|---|---|---|---|");
    report(FETCHED, pairs, ratios);
    Ok(())
}

/// Everything read by one reader as soon as the view is mounted, against the time that the compressed bytes
/// need on the line: no pull can end before.
fn lines(
    packed: &Packed,
    tree: &Tree,
    place: &Path,
    options: &Options,
    ratios: &mut BTreeMap<String, f64>,
) -> Result<()> {
    for (megabits, millis) in [(200, 5), (200, 80), (1000, 5), (1000, 20), (1000, 80)] {
        let name = format!("everything, {megabits} Mbit/s, {millis} ms");
        if !options.want(&name) {
            continue;
        }
        let line = Line {
            rate: megabits * 125_000,
            delay: Duration::from_millis(millis),
        };
        let alone = line.delay + line.time(packed.blob.len() as u64);
        let served = Served::start(packed, place, &format!("line-{megabits}-{millis}"), line)?;
        served.layer.fill_up();
        let ours = Work::Everything.run(served.path(), tree, 1)?;
        report(&name, vec![(alone, ours)], ratios);
        let counters = served.layer.counters();
        anyhow::ensure!(counters.failed_reads == 0, "reads failed: {counters:?}");
    }
    Ok(())
}

/// Look-ups and attributes, on fresh mounts and again.
fn names(
    served: &Served,
    tree: &Tree,
    place: &Path,
    options: &Options,
    ratios: &mut BTreeMap<String, f64>,
) -> Result<()> {
    let mut kinds = vec![Work::Find, Work::Stat, Work::Open];
    kinds.retain(|kind| options.want(&kind.name()));
    if kinds.is_empty() {
        return Ok(());
    }
    let mut all: BTreeMap<String, Vec<(Duration, Duration)>> = BTreeMap::new();
    for round in 0..options.rounds {
        let view = served.mount_again(place, &format!("view-{round}"))?;
        work::forget_names()?;
        let native = Overlay::over(&tree.root, place, &format!("native-{round}"))?;
        let ours = Overlay::over(view.mountpoint(), place, &format!("ours-{round}"))?;
        for &kind in &kinds {
            let name = kind.name();
            let first = (
                kind.run(native.path(), tree, 1)?,
                kind.run(ours.path(), tree, 1)?,
            );
            if matches!(kind, Work::Find) {
                all.entry(format!("{name}, first")).or_default().push(first);
            }
            let again = (
                kind.run(native.path(), tree, 1)?,
                kind.run(ours.path(), tree, 1)?,
            );
            all.entry(format!("{name}, again")).or_default().push(again);
        }
    }
    for (name, pairs) in all {
        report(&name, pairs, ratios);
    }
    Ok(())
}

/// The data of the large file when the kernel reads it by itself from a file of its own.
fn passed_through(
    native: Side,
    served: &Served,
    (packed, tree, place): (&Packed, &Tree, &Path),
    options: &Options,
    ratios: &mut BTreeMap<String, f64>,
) -> Result<()> {
    let Some((view, own_file)) = served.mount_passing_through(packed, place)? else {
        println!("This kernel has no passthrough.\n");
        return Ok(());
    };
    let ours = Overlay::over(view.mountpoint(), place, "ours-through")?;
    let sides = [
        native,
        Side {
            root: ours.path().to_owned(),
            below: Some(own_file),
        },
    ];
    let reads = || view.counters().requests(Operation::Read);
    let before = reads();
    data(&sides, tree, ", passed through", &[1], options, ratios)?;
    println!(
        "\nFUSE reads for the data passed through: {}",
        reads() - before
    );
    Ok(())
}

/// File data, by so many readers.
fn data(
    sides: &[Side; 2],
    tree: &Tree,
    how: &str,
    jobs: &[u64],
    options: &Options,
    ratios: &mut BTreeMap<String, f64>,
) -> Result<()> {
    let kinds = [
        Work::Sequential,
        Work::Random(4 << 10),
        Work::Random(128 << 10),
        Work::Faults,
    ];
    for kind in kinds {
        for &jobs in jobs {
            let plural = if jobs == 1 { "" } else { "s" };
            let name = |state: &str| format!("{}{how}, {state}{jobs} job{plural}", kind.name());
            if !options.want(&name("")) {
                continue;
            }
            let (mut cold, mut warm) = (Vec::new(), Vec::new());
            for _ in 0..options.rounds {
                let mut times = Vec::new();
                for side in sides {
                    let large = side.root.join(tree::LARGE);
                    work::forget_data(&large)?;
                    if let Some(below) = &side.below {
                        work::forget_data(below)?;
                    }
                    times.push(kind.run(&side.root, tree, jobs)?);
                    // What the first run did not touch is there as well from now on.
                    Work::Sequential.run(&side.root, tree, 1)?;
                    times.push(kind.run(&side.root, tree, jobs)?);
                }
                cold.push((times[0], times[2]));
                warm.push((times[1], times[3]));
            }
            report(&name("cold, "), cold, ratios);
            report(&name("warm, "), warm, ratios);
        }
    }
    Ok(())
}

/// Prints the median of what native and ours took, and the median of their ratios.
fn report(name: &str, pairs: Vec<(Duration, Duration)>, ratios: &mut BTreeMap<String, f64>) {
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    let native = median(
        pairs
            .iter()
            .map(|(native, _)| native.as_secs_f64())
            .collect(),
    );
    let ours = median(pairs.iter().map(|(_, ours)| ours.as_secs_f64()).collect());
    let ratio = median(
        pairs
            .iter()
            .map(|(native, ours)| native.as_secs_f64() / ours.as_secs_f64())
            .collect(),
    );
    println!(
        "| {name} | {:.1} ms | {:.1} ms | {ratio:.2} |",
        native * 1e3,
        ours * 1e3
    );
    ratios.insert(name.to_owned(), ratio);
}

//! `scripts/bench full_pull`: a whole image pulled and unpacked by us, and by containerd.
//!
//! Both pull the same image from the same registry into fresh roots, one after the other, over links of different
//! speed; once the trees are compared. Only the ratios mean something.
#![allow(missing_docs)]

mod image;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::command::run;
use integration::host::Published;
use integration::link::{Link, Shape};
use integration::walk::{Kind, Tree, differences, walk};
use integration::{Containerd, DockerRegistry, Scratch, Snapshotter, Soci};

/// Where the private roots are; not an overlay.
const WORK: &str = "/var/tmp";
/// Bits per second, name, rounds.
const LINKS: [(Option<u64>, &str, usize); 3] = [
    (None, "unlimited", 3),
    (Some(1_000_000_000), "1gbit", 1),
    (Some(200_000_000), "200mbit", 1),
];
const CONFIG: &str = "[pull_modes.parallel_pull_unpack]\nenable = true\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Ours,
    Containerd,
}

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("full_pull: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let mut megabytes = arguments
        .iter()
        .filter_map(|argument| argument.parse().ok());
    let layers = image::layers(megabytes.next_back().unwrap_or(600))?;
    let named = |name: &str| arguments.iter().any(|argument| argument == name);
    let some = LINKS.iter().any(|(_, name, _)| named(name));
    let stage = Scratch::within(Path::new(WORK))?;
    let seed = DockerRegistry::start(&stage)?;
    let published = image::publish(&stage, &seed, &layers)?;
    drop(seed);
    let bytes = image::size(&layers)?;
    let (major, minor) = integration::containerd::version()?;
    println!(
        "{} layers, {} MB compressed; containerd {major}.{minor}\n",
        layers.len(),
        bytes / 1_000_000
    );
    println!("| link | containerd s | ours s | ours / containerd | of the link |");
    println!("|---|---|---|---|---|");
    let mut summary = String::from("full_pull:");
    for (rate, name, rounds) in LINKS {
        if some && !named(name) {
            continue;
        }
        let (theirs, ours) = both(&stage, rate, &published, rounds)?;
        let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
        let at_least = rate.map(|rate| 8.0 * to_f64(bytes) / to_f64(rate));
        let share = at_least.map_or_else(
            || String::from("-"),
            |least| format!("{:.2}", least / ours.as_secs_f64()),
        );
        let shape = Shape {
            rate,
            delay: Duration::ZERO,
        };
        println!(
            "| {shape} | {:.2} | {:.2} | {ratio:.2} | {share} |",
            theirs.as_secs_f64(),
            ours.as_secs_f64(),
        );
        let name = match rate {
            None => String::new(),
            Some(_) => format!("_{name}"),
        };
        summary += &format!(" x_containerd{name}={ratio:.2}");
        if rate.is_some() {
            summary += &format!(" of_link{name}={share}");
        }
    }
    println!("\n{summary}");
    Ok(())
}

/// Sizes here are far below 2^52.
#[allow(clippy::cast_precision_loss)]
fn to_f64(number: u64) -> f64 {
    number as f64
}

/// The median times of containerd's and our pulls.
fn both(
    stage: &Scratch,
    rate: Option<u64>,
    published: &Published,
    rounds: usize,
) -> Result<(Duration, Duration)> {
    let shape = Shape {
        rate,
        delay: Duration::ZERO,
    };
    let link = match rate {
        Some(_) => Some(open(stage, shape)?),
        None => None,
    };
    let data = stage.dir("registry")?;
    let registry = match &link {
        Some(link) => DockerRegistry::start_behind(&data, link)?,
        None => DockerRegistry::start_at(&data)?,
    };
    let reference = registry.reference("full:latest");
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let compared = rate.is_none() && round == 0;
        let (time, expected) = pull(Who::Containerd, &reference, compared.then_some(published))?;
        theirs.push(time);
        let (time, actual) = pull(Who::Ours, &reference, compared.then_some(published))?;
        ours.push(time);
        if let (Some(expected), Some(actual)) = (expected, actual) {
            compare(expected, &actual)?;
        }
    }
    Ok((median(theirs), median(ours)))
}

/// The kernel takes its time to take the link before away.
fn open(stage: &Scratch, shape: Shape) -> Result<Link> {
    let mut tries = 0;
    loop {
        match Link::open(stage, shape) {
            Err(_) if tries < 50 => tries += 1,
            opened => return opened,
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Pulls into fresh roots; how long that took, and the tree of `compared`.
fn pull(
    who: Who,
    reference: &str,
    compared: Option<&Published>,
) -> Result<(Duration, Option<Tree>)> {
    let scratch = Scratch::within(Path::new(WORK))?;
    let containerd = Containerd::start(&scratch)?;
    let snapshotter = match who {
        Who::Ours => Some(Snapshotter::start(&scratch, &containerd, CONFIG)?),
        Who::Containerd => None,
    };
    drop_caches()?;
    let clock = Instant::now();
    let name = match who {
        Who::Ours => {
            Soci::with(&scratch, &containerd)?.rpull(reference)?;
            "soci"
        }
        Who::Containerd => {
            containerd.ctr().pull("overlayfs", reference)?;
            "overlayfs"
        }
    };
    let time = clock.elapsed();
    if let Some(snapshotter) = &snapshotter {
        let unpacked = snapshotter
            .log()
            .matches("layer was pulled and unpacked")
            .count();
        ensure!(
            unpacked == image::LAYERS.len(),
            "{unpacked} layers were unpacked by us"
        );
    }
    let tree = match compared {
        None => None,
        Some(published) => {
            let chain = published.image.chain_id();
            let mounts = containerd.ctr().prepare(name, "walk", &chain)?;
            Some(walk(mounts.mount(&scratch, "walk")?.path())?)
        }
    };
    Ok((time, tree))
}

fn compare(mut expected: Tree, actual: &Tree) -> Result<()> {
    // containerd stamps directories that it had to make by itself with the current time.
    for (path, node) in &mut expected {
        if let (Kind::Directory, Some(ours)) = (&node.kind, actual.get(path)) {
            node.mtime = ours.mtime;
        }
    }
    let found = differences(&expected, actual);
    ensure!(found.is_empty(), "the trees differ: {}", found.join("\n"));
    Ok(())
}

fn drop_caches() -> Result<()> {
    run(&mut integration::command::command("sync"))?;
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the page cache")
}

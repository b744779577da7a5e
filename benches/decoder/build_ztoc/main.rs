//! Building a zTOC in one pass against the three passes of the original: zlib with checksums for
//! the checkpoints, a second inflate for the table of contents, and the spans' digests.
//!
//! Wall time of a process each, in turn, the least of all rounds; memory is the highest resident
//! set of the process. Only the ratio means something. `build_ztoc DIR [ROUNDS]` with the
//! directory of layers that `scripts/corpus` makes.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)]

mod passes;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use ztoc::builder::{self, BuildOptions};
use ztoc::{Compression, SpanSize};

const LAYERS: [&str; 4] = ["rootfs", "python", "text", "binaries"];
/// What a process does: ours from a file, ours from chunks that arrive, three passes.
const WAYS: [&str; 3] = ["one-pass", "arriving", "three-passes"];
/// Bytes in which a layer arrives.
const CHUNK_LEN: usize = 128 << 10;

/// What one process did.
#[derive(Clone, Copy)]
struct Run {
    seconds: f64,
    peak_mib: f64,
    /// Checksum of where the checkpoints are: all ways must agree.
    checkpoints: u32,
}

/// Chunks of a download as a reader.
struct Arriving {
    chunks: Receiver<Vec<u8>>,
    current: io::Cursor<Vec<u8>>,
}

impl Read for Arriving {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.current.read(into)?;
            if count > 0 || into.is_empty() {
                return Ok(count);
            }
            match self.chunks.recv() {
                Ok(chunk) => self.current = io::Cursor::new(chunk),
                Err(_) => return Ok(0),
            }
        }
    }
}

/// Checksum of the checkpoints of a zTOC that is built from `layer`.
fn one_pass(layer: impl Read + Send) -> Result<u32> {
    let options = BuildOptions {
        span_size: SpanSize::DEFAULT,
        build_tool: "bench".to_owned(),
    };
    let built = builder::build(Compression::Gzip, layer, &options)?;
    let spans = built.ztoc.spans();
    let points = spans.ids().map(|id| spans.checkpoint(id));
    Ok(passes::checksum(
        points.map(|point| (point.compressed.0, point.uncompressed.0)),
    ))
}

fn arriving(mut layer: File) -> Result<u32> {
    let (sender, chunks) = sync_channel(4);
    let download = std::thread::spawn(move || -> io::Result<()> {
        loop {
            let mut chunk = vec![0; CHUNK_LEN];
            let count = layer.read(&mut chunk)?;
            chunk.truncate(count);
            if count == 0 || sender.send(chunk).is_err() {
                return Ok(());
            }
        }
    });
    let checkpoints = one_pass(Arriving {
        chunks,
        current: io::Cursor::default(),
    })?;
    download.join().expect("it does not panic")?;
    Ok(checkpoints)
}

/// One process: does it and prints what [`Run`] holds.
fn work(way: &str, layer: &Path) -> Result<()> {
    let start = Instant::now();
    let checkpoints = match way {
        "one-pass" => one_pass(File::open(layer)?)?,
        "arriving" => arriving(File::open(layer)?)?,
        _ => passes::three(layer)?,
    };
    let seconds = start.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|peak| peak.trim().strip_suffix(" kB"));
    println!("{seconds} {} {checkpoints}", peak.context("no VmHWM")?);
    Ok(())
}

/// Starts a process and reads what it prints.
fn run(way: &str, layer: &Path) -> Result<Run> {
    let output = Command::new(std::env::current_exe()?)
        .args(["--work", way])
        .arg(layer)
        .output()?;
    ensure!(
        output.status.success(),
        "{way}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout)?;
    let fields: Vec<&str> = text.split_whitespace().collect();
    let [seconds, peak, checkpoints] = fields[..] else {
        bail!("{way} printed {text:?}")
    };
    Ok(Run {
        seconds: seconds.parse()?,
        peak_mib: peak.parse::<f64>()? / 1024.0,
        checkpoints: checkpoints.parse()?,
    })
}

/// The best of each of [`WAYS`].
fn measure(layer: &Path, rounds: usize) -> Result<[Run; 3]> {
    let mut best: Option<[Run; 3]> = None;
    for _ in 0..rounds {
        let mut runs = Vec::new();
        for way in WAYS {
            runs.push(run(way, layer)?);
        }
        let runs: [Run; 3] = runs.try_into().ok().context("as many as there are ways")?;
        let same = runs
            .iter()
            .all(|run| run.checkpoints == runs[0].checkpoints);
        ensure!(same, "the ways disagree about {}", layer.display());
        let mut kept = best.unwrap_or(runs);
        for (kept, run) in kept.iter_mut().zip(runs) {
            kept.seconds = kept.seconds.min(run.seconds);
            kept.peak_mib = kept.peak_mib.max(run.peak_mib);
        }
        best = Some(kept);
    }
    best.context("no rounds")
}

fn main() -> Result<()> {
    let arguments = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench");
    let arguments: Vec<String> = arguments.collect();
    if let [flag, way, layer] = &arguments[..]
        && flag == "--work"
    {
        return work(way, Path::new(layer));
    }
    let dir = PathBuf::from(
        arguments
            .first()
            .context("the directory of layers is missing")?,
    );
    let rounds = arguments.get(1).map_or(Ok(3), |rounds| rounds.parse())?;
    println!("| layer | tar MB | ours s | as it arrives s | three passes s | x | peak MiB |");
    println!("|---|---|---|---|---|---|---|");
    let (mut ratios, mut peak) = (Vec::new(), 0.0_f64);
    for name in LAYERS {
        let [ours, arriving, three] = measure(&dir.join(format!("{name}.go.gz")), rounds)?;
        let tar = std::fs::metadata(dir.join(format!("{name}.tar")))?.len();
        let ratio = three.seconds / ours.seconds;
        peak = peak.max(ours.peak_mib).max(arriving.peak_mib);
        println!(
            "| {name} | {:.0} | {:.2} | {:.2} | {:.2} | {ratio:.2} | {:.0} |",
            tar as f64 / 1e6,
            ours.seconds,
            arriving.seconds,
            three.seconds,
            ours.peak_mib
        );
        ratios.push(ratio);
    }
    let mean = ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64;
    println!(
        "\nbuild_ztoc: x_three_pass={:.2} peak_mib={peak:.0}",
        mean.exp()
    );
    Ok(())
}

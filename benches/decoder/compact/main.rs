//! The compact zTOC against the zTOC, over the corpus: bytes, and time to open.
//!
//! `compact DIR [ROUNDS]` with the directory of layers that `scripts/corpus` makes. To open is what a daemon
//! does with the bytes in its cache: check their digest, decode, and, of a zTOC, leave the windows where
//! they are. Times are CPU time of one thread, the least of the rounds, each round asking each form once.
#![allow(clippy::cast_precision_loss)]

use std::io::{self};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use ztoc::builder::{self, BuildOptions};
use ztoc::checkpoint::{WINDOW_LEN, ZtocBytes};
use ztoc::compact::{self, InMemory};
use ztoc::{Compression, Digest, SpanSize, SpanTable, Ztoc};

const LAYERS: [&str; 5] = ["rootfs", "python", "text", "binaries", "incompressible"];
const SIZES: [(u64, &str); 3] = [
    (4 << 20, "4 MiB"),
    (1 << 20, "1 MiB"),
    (256 << 10, "256 KiB"),
];

/// What a form of one layer costs.
#[derive(Debug, Clone, Default)]
struct Cost {
    bytes: f64,
    /// Of the bytes, those that a mount needs.
    head: f64,
    open: f64,
    /// To get the window of a span, and to decode all spans.
    window: f64,
}

/// A zTOC and a compact zTOC of one layer with spans of one size.
struct Forms {
    ztoc: Vec<u8>,
    compact: Vec<u8>,
    head: usize,
}

fn cpu() -> f64 {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has this clock");
    now.tv_sec() as f64 * 1e6 + now.tv_nsec() as f64 / 1e3
}

/// Microseconds of CPU of this thread for `call`, and what it returns.
fn timed<T>(call: impl FnOnce() -> T) -> (f64, T) {
    let start = cpu();
    let value = call();
    (cpu() - start, value)
}

/// Bytes that are read from memory, as from a file in the page cache.
#[derive(Debug)]
struct Left(Arc<Vec<u8>>);

impl ZtocBytes for Left {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        into.copy_from_slice(&self.0[at..at + into.len()]);
        Ok(())
    }
}

fn build(layer: &[u8], size: u64) -> Result<Forms> {
    let span_size = SpanSize::new(size).context("a span size")?;
    let options = BuildOptions {
        span_size,
        build_tool: "bench".to_owned(),
    };
    let built = builder::build_both(Compression::Gzip, layer, &options, span_size)?;
    let compact = built.encode_compact().context("it was asked for")??;
    let decoded = compact::decode(&compact, Arc::new(InMemory::new(compact.clone())))?;
    ensure!(
        decoded.toc == *built.ztoc.toc(),
        "another table of contents"
    );
    Ok(Forms {
        ztoc: built.ztoc.encode(),
        head: decoded.head_len,
        compact,
    })
}

/// The mean time to get a window, in microseconds.
fn windows(spans: &SpanTable) -> Result<f64> {
    let mut window = vec![0; WINDOW_LEN];
    let (took, got) = timed(|| {
        spans
            .ids()
            .try_for_each(|id| spans.write_window(id, &mut window))
    });
    got?;
    Ok(took / f64::from(spans.count()))
}

fn measure(forms: &Forms, rounds: usize) -> Result<[Cost; 2]> {
    let ztoc = Arc::new(forms.ztoc.clone());
    let compact = Arc::new(forms.compact.clone());
    let head = &forms.compact[..forms.head];
    let (mut ztoc_open, mut compact_open) = (f64::MAX, f64::MAX);
    let (mut ztoc_window, mut compact_window) = (f64::MAX, f64::MAX);
    for _ in 0..rounds {
        let (took, opened) = timed(|| {
            let digest = Digest::of(&ztoc);
            let (mut toc, spans) = Ztoc::decode_lean(&ztoc, Arc::new(Left(Arc::clone(&ztoc))))?;
            toc.check()?;
            anyhow::Ok((digest, spans))
        });
        let (_, spans) = opened?;
        ztoc_open = ztoc_open.min(took);
        ztoc_window = ztoc_window.min(windows(&spans)?);
        let (took, opened) = timed(|| {
            let digest = Digest::of(head);
            let lean = compact::decode_lean(head, Arc::new(Left(Arc::clone(&compact))))?;
            lean.toc.check()?;
            anyhow::Ok((digest, lean.spans))
        });
        let (_, spans) = opened?;
        compact_open = compact_open.min(took);
        compact_window = compact_window.min(windows(&spans)?);
    }
    Ok([
        Cost {
            bytes: forms.ztoc.len() as f64,
            head: forms.ztoc.len() as f64,
            open: ztoc_open,
            window: ztoc_window,
        },
        Cost {
            bytes: forms.compact.len() as f64,
            head: forms.head as f64,
            open: compact_open,
            window: compact_window,
        },
    ])
}

fn layer(dir: &Path, name: &str, rounds: usize) -> Result<Vec<[Cost; 2]>> {
    let layer = std::fs::read(dir.join(format!("{name}.go.gz")))?;
    let mut costs = Vec::new();
    for (size, _) in SIZES {
        costs.push(measure(&build(&layer, size)?, rounds)?);
    }
    Ok(costs)
}

fn geometric(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| {
        (sum + f64::ln(value), count + 1.0)
    });
    f64::exp(sum / count)
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|it| it != "--bench");
    let dir = PathBuf::from(
        arguments
            .next()
            .context("the directory of layers is missing")?,
    );
    let rounds = arguments.next().map_or(Ok(5), |rounds| rounds.parse())?;
    println!(
        "| layer | spans | zTOC, bytes | compact, bytes | to mount | x zTOC at 4 MiB | x open | us a window |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let (mut sizes, mut opens) = (Vec::new(), Vec::new());
    for name in LAYERS {
        let costs = layer(&dir, name, rounds)?;
        let reference = costs[0][0].clone();
        for ((_, size), [ztoc, compact]) in SIZES.iter().zip(&costs) {
            println!(
                "| {name} | {size} | {:.0} | {:.0} | {:.0} | {:.3} | {:.2} | {:.0} |",
                ztoc.bytes,
                compact.bytes,
                compact.head,
                compact.bytes / reference.bytes,
                compact.open / reference.open,
                compact.window
            );
        }
        sizes.push(costs[1][1].bytes / reference.bytes);
        opens.push(costs[1][1].open / reference.open);
    }
    println!(
        "\ncompact: x_bytes={:.3} x_bytes_worst={:.3} x_open={:.2} x_open_worst={:.2}",
        geometric(sizes.iter().copied()),
        sizes.iter().copied().fold(0.0, f64::max),
        geometric(opens.iter().copied()),
        opens.iter().copied().fold(0.0, f64::max)
    );
    Ok(())
}

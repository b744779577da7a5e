//! Restore and decode of spans: ours against zlib, zlib-ng, zlib-rs and libdeflate.
//!
//! All decode the same spans in turn, in CPU time of one thread; a span's time is the
//! least of all rounds, as others may use the machine. Only the ratios mean something.
//! `inflate DIR` with the directory of layers that `scripts/corpus` makes.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)]

mod going_on;
mod layer;
mod peers;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use nix::time::{ClockId, clock_gettime};

use crate::layer::{Layer, Span, WINDOW};
use crate::peers::{Inflater, Libdeflate, Ours, Zlib, ZlibNg, ZlibRs};

const LAYERS: [&str; 5] = ["rootfs", "python", "text", "binaries", "incompressible"];
const SIZES: [(usize, &str); 3] = [
    (4 << 20, "4 MiB"),
    (1 << 20, "1 MiB"),
    (256 << 10, "256 KiB"),
];
const NAMES: [&str; 5] = ["ours", "zlib", "zlib-ng", "zlib-rs", "libdeflate"];
const OURS: &str = if cfg!(feature = "fast") {
    "ours"
} else {
    "ours, no unsafe"
};
const NAME: &str = if cfg!(feature = "fast") {
    "inflate"
} else {
    "inflate-safe"
};
/// Content decoded of each layer per round, as a number of 4 MiB spans.
const SPANS: usize = 16;

/// CPU time of this thread in seconds.
fn now() -> f64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has this clock");
    time.tv_sec() as f64 + time.tv_nsec() as f64 * 1e-9
}

/// All decoders, and what they work on.
struct Bench {
    inflaters: [Box<dyn Inflater>; 4],
    libdeflate: Libdeflate,
    out: Vec<u8>,
    /// Touched before each decode, as other work does between two faults.
    other: Vec<u8>,
    rounds: usize,
    /// Seconds that reading the clock takes: a tenth of those for the first 4 KiB.
    clock: f64,
}

impl Bench {
    fn new(rounds: usize) -> Self {
        let mut bench = Self {
            inflaters: [
                Box::new(Ours::new()),
                Box::new(Zlib::new()),
                Box::new(ZlibNg::new()),
                Box::new(ZlibRs::new()),
            ],
            libdeflate: Libdeflate::new(),
            out: vec![0; WINDOW + (16 << 20)],
            other: vec![0; 4 << 20],
            rounds,
            clock: 0.0,
        };
        // Read behind other work, as it is measured, and not again and again.
        let pauses = (0..100).map(|_| bench.time(|_| {}));
        bench.clock = pauses.fold(f64::INFINITY, f64::min);
        bench
    }

    /// Seconds of one call on a cold cache, without the clock's own.
    fn time(&mut self, call: impl FnOnce(&mut Self)) -> f64 {
        self.other
            .iter_mut()
            .step_by(64)
            .for_each(|byte| *byte = byte.wrapping_add(1));
        let start = now();
        call(self);
        now() - start - self.clock
    }

    /// Seconds of each of [`NAMES`] for whole spans, summed up over the spans.
    fn whole(&mut self, spans: &[Span<'_>]) -> Result<[f64; 5]> {
        let mut sums = [0.0; 5];
        for span in spans {
            let stream = peers::whole_stream(span);
            let end = WINDOW + span.content.len();
            let mut best = [f64::INFINITY; 5];
            for round in 0..self.rounds {
                for turn in 0..best.len() {
                    let which = (round + turn) % best.len();
                    let seconds = self.time(|bench| {
                        let out = &mut bench.out[..end];
                        match bench.inflaters.get_mut(which) {
                            Some(inflater) => inflater.inflate(span, out),
                            None => bench.libdeflate.inflate(&stream, out),
                        }
                    });
                    best[which] = best[which].min(seconds);
                    let same = round > 0 || self.out[WINDOW..end] == *span.content;
                    ensure!(same, "{} decodes to something else", NAMES[which]);
                }
            }
            sums.iter_mut()
                .zip(best)
                .for_each(|(sum, best)| *sum += best);
        }
        Ok(sums)
    }

    /// Seconds of ours and of zlib for parts of spans: each up to its own end. A round goes through all spans: one that is decoded
    /// again and again is soon known to the processor by heart, which guesses no branch of it wrong.
    fn parts(
        &mut self,
        spans: &[Span<'_>],
        ends: impl Fn(usize, &Span<'_>) -> [usize; 2],
    ) -> [f64; 2] {
        let mut best = [(); 2].map(|()| vec![f64::INFINITY; spans.len()]);
        for _ in 0..self.rounds {
            for (which, best) in best.iter_mut().enumerate() {
                for (index, (span, best)) in spans.iter().zip(best).enumerate() {
                    let end = WINDOW + ends(index, span)[which];
                    let seconds = self.time(|bench| {
                        bench.inflaters[which].inflate(span, &mut bench.out[..end]);
                    });
                    *best = best.min(seconds);
                }
            }
        }
        best.map(|seconds| seconds.iter().sum())
    }
}

/// Geometric mean.
fn mean(values: &[f64]) -> f64 {
    (values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64).exp()
}

/// Where a read of 128 KiB ends, at a place that only looks random.
fn read_end(index: usize, span: &Span<'_>) -> usize {
    let place = (index as f64 + 1.0) * 0.618_033_988_749;
    let room = span.content.len() - (128 << 10);
    (place.fract() * room as f64) as usize + (128 << 10)
}

/// Prints the table of whole spans; returns the ratios to all peers at 4 MiB, by layer.
fn print_whole(bench: &mut Bench, layers: &[Layer]) -> Result<Vec<[f64; 5]>> {
    println!("| span | layer | {OURS} MB/s | x zlib | x zlib-ng | x zlib-rs | x libdeflate |");
    println!("|---|---|---|---|---|---|---|");
    let mut at_4_mib = Vec::new();
    for (size, label) in SIZES {
        for layer in layers {
            let spans = layer.spans(size, SPANS * (4 << 20) / size / 2 + SPANS / 2);
            let bytes: usize = spans.iter().map(|span| span.content.len()).sum();
            let seconds = bench.whole(&spans)?;
            let x = seconds.map(|peer| peer / seconds[0]);
            println!(
                "| {label} | {} | {:.0} | {:.2} | {:.2} | {:.2} | {:.2} |",
                layer.name,
                bytes as f64 / seconds[0] / 1e6,
                x[1],
                x[2],
                x[3],
                x[4]
            );
            if size == SIZES[0].0 {
                at_4_mib.push(x);
            }
        }
    }
    Ok(at_4_mib)
}

/// Prints the table of parts of 4 MiB spans, against zlib.
fn print_parts(bench: &mut Bench, layers: &[Layer]) {
    println!(
        "\n| layer | first 4 KiB, x zlib | first 128 KiB | any 128 KiB, x zlib's whole span |"
    );
    println!("|---|---|---|---|");
    let mut all = [const { Vec::new() }; 3];
    for layer in layers {
        let spans = layer.spans(SIZES[0].0, SPANS);
        let first = |bench: &mut Bench, count| {
            let [ours, zlib] = bench.parts(&spans, |_, _| [count; 2]);
            zlib / ours
        };
        let (page, read) = (first(bench, 4 << 10), first(bench, 128 << 10));
        let ends = |index, span: &Span<'_>| [read_end(index, span), span.content.len()];
        let [ours, zlib] = bench.parts(&spans, ends);
        let ratios = [page, read, zlib / ours];
        println!("| {} | {} |", layer.name, cells(&ratios));
        all.iter_mut()
            .zip(ratios)
            .for_each(|(all, ratio)| all.push(ratio));
    }
    println!("| all | {} |", cells(&all.map(|ratios| mean(&ratios))));
}

fn cells(ratios: &[f64]) -> String {
    let cells: Vec<_> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
    cells.join(" | ")
}

fn main() -> Result<()> {
    let arguments = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench");
    let mut arguments = arguments.collect::<Vec<_>>().into_iter();
    let dir = PathBuf::from(
        arguments
            .next()
            .context("the directory of layers is missing")?,
    );
    let rounds = arguments.next().map_or(Ok(9), |rounds| rounds.parse())?;
    let compressor = arguments.next().unwrap_or_else(|| "go".into());
    let mut bench = Bench::new(rounds);
    let load = |name| Layer::load(&dir, name, &compressor);
    let layers = LAYERS.into_iter().map(load).collect::<Result<Vec<_>>>()?;
    let ratios = print_whole(&mut bench, &layers)?;
    print_parts(&mut bench, &layers);
    going_on::print(&mut bench, &layers, SIZES[0].0, SPANS);
    let x = |peer: usize| mean(&ratios.iter().map(|ratio| ratio[peer]).collect::<Vec<_>>());
    let worst = ratios
        .iter()
        .map(|ratio| ratio[4])
        .fold(f64::INFINITY, f64::min);
    println!(
        "\n{NAME}: x_zlib={:.2} x_zlib_rs={:.2} x_libdeflate={:.2} worst_x_libdeflate={worst:.2}",
        x(1),
        x(3),
        x(4)
    );
    Ok(())
}

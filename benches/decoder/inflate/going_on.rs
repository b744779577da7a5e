//! What it costs to stop and go on, and what a second thread brings.

use std::time::Instant;

use ztoc::inflate::{self, Cursor, Tables};

use crate::layer::{Layer, Span, WINDOW};
use crate::{Bench, mean};

/// Bytes between two stops.
const STEP: usize = 128 << 10;
/// Room for a span behind its window.
const ROOM: usize = WINDOW + (16 << 20);

/// How a span is decoded.
#[derive(Clone, Copy)]
enum Way {
    /// At one go.
    Whole,
    /// In steps, with the tables that are there.
    Steps,
    /// In steps, each with tables that hold nothing, as another thread's do.
    Strangers,
}

fn decode(span: &Span<'_>, out: &mut [u8], tables: &mut Tables, way: Way) {
    out[..WINDOW].copy_from_slice(span.window);
    let end = WINDOW + span.content.len();
    let (mut cursor, mut pos) = (Cursor::at_bit(span.bits.0.into()), WINDOW);
    while pos < end {
        let upto = match way {
            Way::Whole => end,
            Way::Steps | Way::Strangers => end.min(pos + STEP),
        };
        if let Way::Strangers = way {
            *tables = Tables::new();
        }
        let decoded = inflate::run(tables, span.input, &mut cursor, out, pos, upto);
        pos = decoded.expect("it was decoded before").1;
    }
}

/// Seconds of each way for all spans.
fn steps(bench: &mut Bench, spans: &[Span<'_>]) -> [f64; 3] {
    let mut sums = [0.0; 3];
    let mut tables = Tables::new();
    for span in spans {
        let mut best = [f64::INFINITY; 3];
        for _ in 0..bench.rounds {
            for (best, way) in best
                .iter_mut()
                .zip([Way::Whole, Way::Steps, Way::Strangers])
            {
                let seconds = bench.time(|bench| decode(span, &mut bench.out, &mut tables, way));
                *best = best.min(seconds);
            }
        }
        sums.iter_mut()
            .zip(best)
            .for_each(|(sum, best)| *sum += best);
    }
    sums
}

/// Decodes all spans on as many threads; the seconds on the clock.
fn on_threads(spans: &[Span<'_>], outs: &mut [Vec<u8>]) -> f64 {
    let share = spans.len().div_ceil(outs.len());
    let start = Instant::now();
    std::thread::scope(|scope| {
        for (spans, out) in spans.chunks(share).zip(outs) {
            scope.spawn(move || {
                let mut tables = Tables::new();
                for span in spans {
                    decode(span, out, &mut tables, Way::Whole);
                }
            });
        }
    });
    start.elapsed().as_secs_f64()
}

/// How much sooner two threads are done than one.
fn two_threads(bench: &Bench, spans: &[Span<'_>]) -> f64 {
    let spans = &spans[..spans.len() / 2 * 2];
    let mut outs = vec![vec![0; ROOM]; 2];
    let mut best = [f64::INFINITY; 2];
    for _ in 0..bench.rounds {
        best[0] = best[0].min(on_threads(spans, &mut outs[..1]));
        best[1] = best[1].min(on_threads(spans, &mut outs));
    }
    best[0] / best[1]
}

/// Prints the table of both.
pub(crate) fn print(bench: &mut Bench, layers: &[Layer], size: usize, count: usize) {
    println!(
        "\n| layer | in steps of 128 KiB, x one go | each step with empty tables | two threads, x one |"
    );
    println!("|---|---|---|---|");
    let mut all = [const { Vec::new() }; 3];
    for layer in layers {
        let spans = layer.spans(size, count);
        let [whole, steps, strangers] = steps(bench, &spans);
        let row = [whole / steps, whole / strangers, two_threads(bench, &spans)];
        println!(
            "| {} | {:.3} | {:.3} | {:.2} |",
            layer.name, row[0], row[1], row[2]
        );
        all.iter_mut()
            .zip(row)
            .for_each(|(all, value)| all.push(value));
    }
    let [steps, strangers, threads] = all.map(|values| mean(&values));
    println!("| all | {steps:.3} | {strangers:.3} | {threads:.2} |");
}

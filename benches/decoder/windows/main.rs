//! What the windows of an open layer's checkpoints cost, kept in different ways: memory for each,
//! time to get one back, time for each when the layer is opened.
//!
//! `windows DIR` with the directory of layers that `scripts/corpus` makes. Times are CPU time of one
//! thread, the median over all windows of the corpus; files are in the page cache.
#![allow(
    unsafe_code,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)]

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use ztoc::builder::{self, BuildOptions};
use ztoc::checkpoint::{WINDOW_LEN, ZtocBytes};
use ztoc::inflate::{self, Cursor, Tables};
use ztoc::{Compression, SpanId, SpanSize, SpanTable, Ztoc};

const LAYERS: [&str; 5] = ["rootfs", "python", "text", "binaries", "incompressible"];

/// One way of keeping windows.
#[derive(Default)]
struct Way {
    bytes: Vec<f64>,
    opening: Vec<f64>,
    restoring: Vec<f64>,
}

impl Way {
    fn add(&mut self, bytes: usize, opening: f64, restoring: f64) {
        self.bytes.push(bytes as f64);
        self.opening.push(opening);
        self.restoring.push(restoring);
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Microseconds of CPU of this thread for `call`, and what it returns.
fn timed<T>(call: impl FnOnce() -> T) -> (f64, T) {
    let now = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("Linux has this clock");
    let start = now();
    let value = call();
    let took = now() - start;
    let seconds = took.tv_sec() as f64 + took.tv_nsec() as f64 * 1e-9;
    (seconds * 1e6, value)
}

/// A zTOC in a file.
#[derive(Debug)]
struct Stored(File);

impl ZtocBytes for Stored {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(into, offset)
    }
}

fn deflate(level: i32, plain: &[u8]) -> Vec<u8> {
    let mut out = vec![0; plain.len() + 1024];
    // SAFETY: the pointers and lengths are those of vectors; the compressor is freed once.
    let len = unsafe {
        let compressor = libdeflate_sys::libdeflate_alloc_compressor(level);
        let (from, to) = (plain.as_ptr().cast(), out.as_mut_ptr().cast());
        let len = libdeflate_sys::libdeflate_deflate_compress(
            compressor,
            from,
            plain.len(),
            to,
            out.len(),
        );
        libdeflate_sys::libdeflate_free_compressor(compressor);
        len
    };
    out.truncate(len);
    out
}

fn inflate_window(tables: &mut Tables, packed: &[u8], into: &mut [u8]) {
    let mut cursor = Cursor::at_bit(0);
    let len = into.len();
    inflate::run(tables, packed, &mut cursor, into, 0, len).expect("it was just compressed");
}

/// The window with zeros where the span that follows refers to nothing: found by decoding its first
/// 32 KiB behind windows whose bytes say where they stand.
fn sparse(window: &[u8], span: &[u8], bit: u64, len: usize) -> Vec<u8> {
    let len = len.min(WINDOW_LEN);
    let decode = |byte: &dyn Fn(usize) -> u8| {
        let mut out: Vec<u8> = (0..WINDOW_LEN).map(byte).collect();
        out.resize(WINDOW_LEN + len, 0);
        let (mut tables, mut cursor, end) = (Tables::new(), Cursor::at_bit(bit), WINDOW_LEN + len);
        inflate::run(&mut tables, span, &mut cursor, &mut out, WINDOW_LEN, end).map(|_| out)
    };
    let low = decode(&|at| at as u8);
    let (high, other) = (decode(&|at| (at >> 8) as u8), decode(&|at| !(at as u8)));
    let mut kept = vec![0; WINDOW_LEN];
    let (Ok(low), Ok(high), Ok(other)) = (low, high, other) else {
        return window.to_vec();
    };
    for at in WINDOW_LEN..WINDOW_LEN + len {
        if low[at] != other[at] {
            let used = usize::from(low[at]) | usize::from(high[at]) << 8;
            kept[used] = window[used];
        }
    }
    kept
}

/// The ways, in the order of the table.
const NAMES: [&str; 5] = [
    "as they are, in memory",
    "deflate, level 1",
    "deflate, level 6",
    "referenced bytes only, deflate, level 6",
    "left in the zTOC's file",
];

fn measure(dir: &Path, name: &str, ways: &mut [Way; 5]) -> Result<()> {
    let layer = std::fs::read(dir.join(format!("{name}.go.gz")))?;
    let options = BuildOptions {
        span_size: SpanSize::DEFAULT,
        build_tool: "bench".to_owned(),
    };
    let built = builder::build(Compression::Gzip, &layer[..], &options)?;
    let bytes = built.ztoc.encode();
    let mut file = tempfile::tempfile()?;
    file.write_all(&bytes)?;
    let (opening_held, held) = timed(|| Ztoc::decode(&bytes));
    let stored: Arc<dyn ZtocBytes> = Arc::new(Stored(file));
    let (opening_left, left) = timed(|| {
        let (mut toc, spans) = Ztoc::decode_lean(&bytes, stored)?;
        toc.check()?;
        anyhow::Ok(spans)
    });
    let (held, left) = (held?, left?);
    let held = held.spans();
    let count = f64::from(held.count());
    let mut window = vec![0; WINDOW_LEN];
    let mut tables = Tables::new();
    for id in held.ids().skip(1) {
        let (copy, copied) = timed(|| held.write_window(id, &mut window));
        copied?;
        ways[0].add(WINDOW_LEN, opening_held / count, copy);
        let expected = window.clone();
        for (way, level) in [(1, 1), (2, 6)] {
            let (packing, packed) = timed(|| deflate(level, &expected));
            let (restoring, ()) = timed(|| inflate_window(&mut tables, &packed, &mut window));
            ensure!(window == expected, "{name} {id}: another window comes back");
            ways[way].add(packed.len(), packing, restoring);
        }
        let (finding, kept) = timed(|| sparse_of(held, id, &layer, &expected));
        let (packing, packed) = timed(|| deflate(6, &kept));
        let (restoring, ()) = timed(|| inflate_window(&mut tables, &packed, &mut window));
        ways[3].add(packed.len(), finding + packing, restoring);
        let (reading, read) = timed(|| left.write_window(id, &mut window));
        read?;
        ensure!(window == expected, "{name} {id}: another window is read");
        ways[4].add(4, opening_left / count, reading);
    }
    Ok(())
}

fn sparse_of(spans: &SpanTable, id: SpanId, layer: &[u8], window: &[u8]) -> Vec<u8> {
    let (from, to) = (spans.compressed(id), spans.uncompressed(id));
    let bits = u64::from(spans.checkpoint(id).bits);
    let len = (to.end.0 - to.start.0) as usize;
    let bytes = &layer[from.start.0 as usize..from.end.0 as usize];
    sparse(window, bytes, (8 - bits) % 8, len)
}

fn main() -> Result<()> {
    let dir = std::env::args()
        .skip(1)
        .find(|argument| argument != "--bench");
    let dir = PathBuf::from(dir.context("the directory of layers is missing")?);
    let mut ways: [Way; 5] = Default::default();
    for name in LAYERS {
        measure(&dir, name, &mut ways)?;
    }
    println!("| windows kept | bytes each | us each at opening | us to get one back |");
    println!("|---|---|---|---|");
    for (name, way) in NAMES.iter().zip(&ways) {
        println!(
            "| {name} | {:.0} | {:.0} | {:.1} |",
            mean(&way.bytes),
            mean(&way.opening),
            median(&way.restoring)
        );
    }
    let [held, .., left] = &ways;
    println!(
        "\nwindows: x_memory={:.0} restore_us={:.1}",
        mean(&held.bytes) / mean(&left.bytes),
        median(&left.restoring)
    );
    Ok(())
}

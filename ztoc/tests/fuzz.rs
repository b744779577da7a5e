//! What the fuzz targets check, on their seeds and on damaged ones: a short run of `scripts/fuzz`
//! that needs no nightly toolchain and is the same each time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    missing_docs
)]

#[path = "../fuzz/checks/builder.rs"]
mod builder;
#[path = "../fuzz/checks/compact.rs"]
mod compact;
#[allow(dead_code)]
#[path = "hostile/craft.rs"]
mod craft;
#[path = "../fuzz/checks/inflate.rs"]
mod inflate;
#[allow(dead_code)]
#[path = "inflate/oracle.rs"]
mod oracle;
#[path = "../fuzz/checks/span.rs"]
mod span;
#[path = "../fuzz/checks/tar.rs"]
mod tar;
#[path = "../fuzz/checks/zinfo.rs"]
mod zinfo;
#[path = "../fuzz/checks/ztoc_decode.rs"]
mod ztoc_decode;

use std::fs;
use std::path::Path;

/// Numbers without pattern, always the same.
struct Dice(u64);

impl Dice {
    fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit.max(1) as u64) as usize
    }

    /// A seed, damaged in a few places.
    fn damaged(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..self.below(4) {
            let (at, byte) = (self.below(bytes.len()), self.number() as u8);
            let end = bytes.len().min(at + self.below(40));
            match self.below(5) {
                0 => bytes.truncate(at),
                1 => drop(bytes.drain(at..end)),
                2 => bytes.insert(at, byte),
                3 if !bytes.is_empty() => bytes[at] ^= 1 << (byte % 8),
                _ if !bytes.is_empty() => bytes[at] = byte,
                _ => {}
            }
        }
        bytes
    }
}

/// The files of a directory, of at most `limit` bytes each.
fn seeds(dir: &str, limit: usize) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
    let mut paths: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    let seeds: Vec<_> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    let small: Vec<_> = seeds
        .into_iter()
        .filter(|seed| seed.len() <= limit)
        .collect();
    assert!(!small.is_empty());
    small
}

/// Splits what a fuzzer writes for (u16, u8, u16, u16, rest).
fn numbers(bytes: &[u8]) -> (u16, u8, u16, u16, &[u8]) {
    let pair = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    (pair(0), bytes[2], pair(3), pair(5), &bytes[7..])
}

#[test]
fn streams_are_decoded_as_zlib_decodes_them() {
    let mut dice = Dice(1);
    for seed in seeds("fuzz/seeds/inflate", usize::MAX) {
        inflate::check(numbers(&seed));
        for _ in 0..100 {
            let bytes = dice.damaged(&seed);
            if bytes.len() > 7 {
                inflate::check(numbers(&bytes));
            }
        }
    }
}

#[test]
fn spans_have_the_length_that_is_claimed_or_are_refused() {
    let mut dice = Dice(2);
    for seed in seeds("fuzz/seeds/inflate", usize::MAX) {
        let stream = &seed[7..];
        for _ in 0..30 {
            let damaged = dice.damaged(stream);
            let [a, b, c, d, ..] = dice.number().to_le_bytes();
            let number = |high: u8, low: u8| u16::from_le_bytes([low, high]);
            span::check((number(a, b), d % 8, number(b, c), number(c, a), &damaged));
        }
    }
}

#[test]
fn layers_get_a_ztoc_that_can_be_loaded_or_are_refused() {
    let mut dice = Dice(3);
    for seed in seeds("tests/golden/layers", 100_000) {
        for _ in 0..20 {
            let span_size = dice.number() as u16;
            builder::check((span_size, true, &dice.damaged(&seed)));
            builder::check((span_size, false, &dice.damaged(&seed)));
        }
    }
}

#[test]
fn ztocs_are_consistent_or_refused() {
    let mut dice = Dice(4);
    for seed in seeds("tests/golden/ztocs", 200_000) {
        for _ in 0..150 {
            ztoc_decode::check(&dice.damaged(&seed));
        }
    }
}

#[test]
fn compact_ztocs_are_consistent_or_refused() {
    use ztoc::builder::{BuildOptions, build_both};
    let mut dice = Dice(7);
    for layer in seeds("tests/golden/layers", 300_000) {
        let options = BuildOptions {
            span_size: ztoc::SpanSize::DEFAULT,
            build_tool: String::new(),
        };
        let size = ztoc::compact::MIN_SPAN_SIZE;
        let built = build_both(ztoc::Compression::Gzip, &layer[..], &options, size);
        let Some(Ok(blob)) = built.ok().and_then(|built| built.encode_compact()) else {
            continue;
        };
        compact::check(&blob);
        for _ in 0..150 {
            compact::check(&dice.damaged(&blob));
        }
    }
    for seed in seeds("fuzz/seeds/compact", usize::MAX) {
        compact::check(&seed);
        for _ in 0..300 {
            compact::check(&dice.damaged(&seed));
        }
    }
}

#[test]
fn tars_are_read_alike_in_any_pieces() {
    use std::io::Read as _;
    let mut dice = Dice(5);
    for layer in seeds("tests/golden/layers", 100_000) {
        let mut plain = vec![7];
        // A layer that is cut off gives what it has.
        let _ = flate2::read::MultiGzDecoder::new(&layer[..]).read_to_end(&mut plain);
        plain.truncate(200_000);
        for _ in 0..40 {
            let mut bytes = dice.damaged(&plain);
            if let Some(step) = bytes.first_mut() {
                *step = dice.number() as u8;
            }
            tar::check(&bytes);
        }
    }
}

#[test]
fn checkpoints_are_used_or_refused() {
    let mut dice = Dice(6);
    for _ in 0..300 {
        let count = dice.below(5);
        let mut offset = || dice.number().cast_signed() >> (dice.number() % 64);
        let mut points: Vec<_> = (0..count).map(|_| (offset(), offset(), 0)).collect();
        points.sort_unstable();
        points
            .iter_mut()
            .for_each(|point| point.2 = dice.number() as u8 % 9);
        let (gzip, have) = (dice.below(3) > 0, count + dice.below(2));
        let (compressed, plain) = (dice.number() as u32, dice.number() as u32);
        let raw = vec![dice.number() as u8; dice.below(3) * dice.below(40)];
        zinfo::check((gzip, have as u16, compressed, plain, points, raw));
    }
}

//! Data like in layers, and worse, compressed in many ways.

use flate2::{Compress, Compression, FlushCompress};
use proptest::collection::vec;
use proptest::prelude::*;

/// What lengths are divided by: Miri is some hundred times slower than a processor.
const SHARE: usize = if cfg!(miri) { 40 } else { 1 };

/// A piece of data of one kind.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..3000 / SHARE),
        // Few values: long matches at small distances.
        vec(prop_oneof![Just(b'a'), Just(b'b')], 0..3000 / SHARE),
        (any::<u8>(), 1..5000 / SHARE).prop_map(|(byte, count)| vec![byte; count]),
        // Words, so that there are matches of all lengths at all distances.
        vec(prop::sample::select(WORDS), 0..2000 / SHARE)
            .prop_map(|words| words.concat().into_bytes()),
        // Each value half as frequent as the one before: codes of up to 15 bits.
        (any::<u64>(), 0..20_000 / SHARE).prop_map(|(seed, count)| skewed(seed, count)),
    ]
}

const WORDS: &[&str] = &[
    "the ",
    "of\n",
    "\0\0\0\0",
    "usr/share/doc/",
    "0000644\0",
    "ustar",
    "\u{7f}ELF",
    "{\"a\":",
    ", ",
    "x",
    "fn ",
    "return ",
    "0x",
    "deadbeef",
];

fn skewed(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 16
    };
    (0..count)
        .map(|_| (next().trailing_zeros() * 7 + (next() & 3) as u32) as u8)
        .collect()
}

/// Some data, up to a few hundred KiB, in which later parts repeat earlier ones.
pub fn data() -> impl Strategy<Value = Vec<u8>> {
    vec(
        (piece(), any::<prop::sample::Index>(), 0..40_000 / SHARE),
        1..8,
    )
    .prop_map(|pieces| {
        let mut all = Vec::new();
        for (piece, from, count) in pieces {
            all.extend(piece);
            if !all.is_empty() {
                let from = from.index(all.len());
                all.extend_from_within(from..(from + count).min(all.len()));
            }
        }
        all
    })
}

/// Compresses as raw DEFLATE, in parts that end in a flush.
pub fn deflate(data: &[u8], level: u32, part: usize) -> Vec<u8> {
    let mut zlib = Compress::new(Compression::new(level), false);
    let mut out = Vec::with_capacity(data.len() * 2 + 1024 + data.len() / part * 16);
    for chunk in data.chunks(part) {
        zlib.compress_vec(chunk, &mut out, FlushCompress::Sync)
            .unwrap();
    }
    zlib.compress_vec(&[], &mut out, FlushCompress::Finish)
        .unwrap();
    assert_eq!(zlib.total_in() as usize, data.len());
    out
}

/// Data and a stream of it.
pub fn stream() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    (
        data(),
        0..=9_u32,
        prop_oneof![Just(usize::MAX), 1000 / SHARE..50_000 / SHARE],
    )
        .prop_map(|(data, level, part)| {
            let stream = deflate(&data, level, part);
            (data, stream)
        })
}

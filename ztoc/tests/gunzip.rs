//! Whole gzip streams against flate2, and damaged ones.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io::{Read, Write as _};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use ztoc::gunzip::{Gunzip, GunzipError, PIECE_LEN};

fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::new(level));
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// Gives a few bytes at a time.
struct Dripping<'a>(&'a [u8], usize);

impl Read for Dripping<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let step = self.1.min(into.len());
        self.0
            .take(step as u64)
            .read(into)
            .inspect(|read| self.0 = &self.0[*read..])
    }
}

fn gunzip(reader: impl Read) -> Result<Vec<u8>, GunzipError> {
    let (mut gunzip, mut piece, mut plain) = (Gunzip::new(reader), Vec::new(), Vec::new());
    loop {
        let range = gunzip.read_piece(&mut piece)?;
        if range.is_empty() {
            return Ok(plain);
        }
        assert!(range.len() <= PIECE_LEN);
        plain.extend_from_slice(&piece[range]);
    }
}

/// Compressible in part, with matches from near and far.
fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 64);
    while bytes.len() < length {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let random = usize::try_from(state >> 33).unwrap();
        if random.is_multiple_of(3) || bytes.len() < 100 {
            bytes.extend_from_slice(&state.to_le_bytes());
        } else {
            let back = 1 + random % bytes.len().min(32_768);
            let from = bytes.len() - back;
            for at in from..from + back.min(50) {
                bytes.push(bytes[at]);
            }
        }
    }
    bytes.truncate(length);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn members_of_any_size_and_level_come_out_as_they_went_in(
        members in prop::collection::vec((any::<u64>(), 0usize..900_000, 0u32..=9), 1..4),
        step in 1usize..200_000,
        zeros in 0usize..2_000,
    ) {
        let mut blob = Vec::new();
        let mut plain = Vec::new();
        for (seed, length, level) in members {
            let bytes = content(seed, length);
            blob.extend(gzip(&bytes, level));
            plain.extend(bytes);
        }
        blob.resize(blob.len() + zeros, 0);
        prop_assert!(gunzip(Dripping(&blob, step)).unwrap() == plain);
    }

    #[test]
    fn a_damaged_stream_is_an_error_and_never_other_bytes(
        at in 0usize..40_000, flip in 1u8..=255, length in 0usize..60_000,
    ) {
        let plain = content(7, length);
        let mut blob = gzip(&plain, 6);
        let at = at % blob.len();
        blob[at] ^= flip;
        // Flags, time, level and system of the header may change without harm.
        if let Ok(bytes) = gunzip(&*blob) {
            prop_assert!(at < 10 && bytes == plain);
        }
    }
}

#[test]
fn what_is_cut_off_or_followed_by_garbage_is_refused() {
    let blob = gzip(&content(3, 300_000), 6);
    for end in [
        0,
        1,
        9,
        10,
        11,
        blob.len() / 2,
        blob.len() - 8,
        blob.len() - 1,
    ] {
        let cut = gunzip(&blob[..end]);
        assert!(
            matches!(cut, Err(GunzipError::CutOff(at)) if at == end as u64),
            "{cut:?}"
        );
    }
    for rest in [&b"x"[..], &[0, 0, 1], &[0, 0x1f, 0x8b]] {
        let longer = gunzip(&*[&blob[..], rest].concat());
        assert!(matches!(longer, Err(GunzipError::Garbage(_))), "{longer:?}");
    }
    let twice = gunzip(&*[&blob[..], &[0x1f, 0x8b, 7]].concat());
    assert!(
        matches!(twice, Err(GunzipError::Header { .. })),
        "{twice:?}"
    );
}

#[test]
fn a_match_does_not_reach_into_the_member_before() {
    // A fixed block whose first token is a match of distance 1.
    let reaching = [
        0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 0x03, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let blob = [gzip(b"before", 6), reaching.to_vec()].concat();
    assert!(matches!(gunzip(&*blob), Err(GunzipError::Deflate { .. })));
}

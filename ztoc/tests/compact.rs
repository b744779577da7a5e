//! Compact zTOCs: any span inflates from a sparse window to the same bytes, the zTOC beside it stays
//! what it is, and what is damaged is refused.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use ztoc::builder::{self, BuildOptions, Built};
use ztoc::checkpoint::{WINDOW_LEN, ZtocBytes};
use ztoc::compact::{self, Compact, CompactError, InMemory};
use ztoc::error::{InflateError, WindowError};
use ztoc::unit::{ByteLen as _, SpanId, UncompressedOffset};
use ztoc::{CompressedSpan, Compression, Digest, SpanBuffer, SpanSize};

fn size(bytes: u64) -> SpanSize {
    SpanSize::new(bytes).unwrap()
}

fn options(span_size: u64) -> BuildOptions {
    BuildOptions {
        span_size: size(span_size),
        build_tool: String::from("test"),
    }
}

/// What both builds make of a layer; that they agree on the zTOC is checked on the way.
fn build(compression: Compression, layer: &[u8], span_size: u64) -> Built {
    let both = builder::build_both(compression, layer, &options(4096), size(span_size)).unwrap();
    let one = builder::build(compression, layer, &options(4096)).unwrap();
    assert!(both.ztoc.encode() == one.ztoc.encode(), "the zTOCs differ");
    assert_eq!(
        (both.layer_digest, both.diff_id),
        (one.layer_digest, one.diff_id)
    );
    assert!(one.encode_compact().is_none());
    both
}

fn decode(blob: &[u8]) -> Result<Compact, CompactError> {
    compact::decode(blob, Arc::new(InMemory::new(blob.to_vec())))
}

fn gunzip(layer: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    MultiGzDecoder::new(layer).read_to_end(&mut plain).unwrap();
    plain
}

/// Inflates all spans; what is in them is what an independent decoder makes of the layer.
fn check_spans(compact: &Compact, compression: Compression, layer: &[u8]) {
    let plain = match compression {
        Compression::Gzip => gunzip(layer),
        Compression::Uncompressed => layer.to_vec(),
    };
    let spans = &compact.spans;
    assert_eq!(spans.compressed_size(), layer.len() as u64);
    let mut buffer = SpanBuffer::new();
    for id in spans.ids() {
        let range = spans.compressed(id);
        let bytes = &layer[index(range.start.0)..index(range.end.0)];
        let verified = CompressedSpan::new(id, bytes).verify(spans).unwrap();
        let inflated = verified.inflate(&mut buffer).unwrap();
        let range = spans.uncompressed(id);
        let expected = &plain[index(range.start.0)..index(range.end.0)];
        assert!(inflated == expected, "span {id} has other bytes");
        assert_eq!(
            spans.checksum(id),
            Some(crc32fast::hash(expected)),
            "span {id}"
        );
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

fn check_layer(compression: Compression, layer: &[u8], span_size: u64) -> Compact {
    let built = build(compression, layer, span_size);
    let blob = built.encode_compact().unwrap().unwrap();
    assert!(compact::is_compact(&blob));
    let decoded = decode(&blob).unwrap();
    assert_eq!(decoded.layer, Digest::of(layer));
    assert!(
        decoded.toc == *built.ztoc.toc(),
        "the tables of contents differ"
    );
    assert_eq!(decoded.blob_len, blob.len() as u64);
    check_spans(&decoded, compression, layer);
    decoded
}

/// Files of several kinds with content that refers to itself, near and far.
fn archive(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut roll = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        index(state >> 33)
    };
    let mut content: Vec<u8> = Vec::with_capacity(len);
    while content.len() < len {
        match roll() % 12 {
            0..=6 => content.extend_from_slice(&roll().to_le_bytes()),
            7 => content.extend(std::iter::repeat_n(b'x', roll() % 300)),
            8 if content.len() > 40_000 => {
                let from = content.len() - 1 - roll() % 40_000;
                let end = content.len().min(from + roll() % 400);
                content.extend_from_within(from..end);
            }
            _ => content.extend_from_slice(format!("word{} ", roll() % 60).as_bytes()),
        }
    }
    let mut tar = tar::Builder::new(Vec::new());
    for (number, part) in content.chunks(90_000).enumerate() {
        let mut header = tar::Header::new_gnu();
        header.set_size(part.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000 + number as u64);
        tar.append_data(&mut header, format!("directory/file{number}"), part)
            .unwrap();
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        tar.append_link(&mut link, format!("directory/link{number}"), "file0")
            .unwrap();
    }
    tar.into_inner().unwrap()
}

/// gzip in members of `member` bytes.
fn gzip(plain: &[u8], member: usize, level: u32) -> Vec<u8> {
    let mut layer = Vec::new();
    for part in plain.chunks(member) {
        let mut encoder = GzEncoder::new(layer, flate2::Compression::new(level));
        encoder.write_all(part).unwrap();
        layer = encoder.finish().unwrap();
    }
    layer
}

fn golden() -> Vec<(String, Compression, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/layers");
    let mut layers: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|file| file.unwrap().path())
        .map(|path| {
            (
                path.display().to_string(),
                Compression::Gzip,
                fs::read(path).unwrap(),
            )
        })
        .collect();
    layers.sort_by(|one, other| one.0.cmp(&other.0));
    assert!(layers.len() >= 6);
    layers
}

#[test]
fn golden_layers_come_back_whole_and_small() {
    let mut compared = 0;
    for (name, compression, layer) in golden() {
        let whole = builder::build(compression, &layer[..], &options(4 << 20));
        let Ok(built) = whole else { continue };
        for span_size in [16 << 10, 256 << 10, 1 << 20] {
            check_layer(compression, &layer, span_size);
        }
        let plain = gunzip(&layer);
        check_layer(Compression::Uncompressed, &plain, 1 << 16);
        let both = builder::build_both(
            compression,
            &layer[..],
            &options(4 << 20),
            compact::SPAN_SIZE,
        );
        let blob = both.unwrap().encode_compact().unwrap().unwrap();
        let ratio = blob.len() as f64 / built.ztoc.encode().len() as f64;
        assert!(ratio < 0.35, "{name}: {ratio}");
        compared += 1;
    }
    assert!(compared >= 6);
}

#[test]
fn a_window_is_needed_only_for_what_the_span_refers_to() {
    let layer = gzip(&archive(3, 6 << 20), usize::MAX, 6);
    let compact = check_layer(Compression::Gzip, &layer, 256 << 10);
    assert!(compact.spans.count() > 8, "more than one group");
    let (mut window, mut kept) = (vec![0; WINDOW_LEN], 0);
    assert_eq!(compact.spans.window_group(SpanId(0)), None);
    for id in compact.spans.ids().skip(1) {
        compact.spans.write_window(id, &mut window).unwrap();
        kept += window.iter().filter(|byte| **byte != 0).count();
        let [start, end] = [
            compact.spans.window_group(id).unwrap().start,
            compact.blob_len,
        ];
        assert!(start < end);
    }
    let most = WINDOW_LEN * compact.spans.ids().count();
    assert!(kept > 0 && kept < most / 2, "{kept} of {most}");
}

#[test]
fn checkpoints_lie_within_an_eighth_behind_the_span_size() {
    let layer = gzip(&archive(5, 9 << 20), usize::MAX, 6);
    let compact = check_layer(Compression::Gzip, &layer, 2 << 20);
    let spans = &compact.spans;
    for id in spans.ids().take(spans.ids().count() - 1) {
        let len = spans.uncompressed(id).byte_len();
        assert!((2 << 20..=2304 << 10).contains(&len), "span {id}: {len}");
    }
}

/// All of a blob but one byte.
#[derive(Debug)]
struct Damaged(Vec<u8>, u64);

impl ZtocBytes for Damaged {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let at = index(offset);
        into.copy_from_slice(&self.0[at..at + into.len()]);
        if let Some(byte) = self
            .1
            .checked_sub(offset)
            .and_then(|at| into.get_mut(index(at)))
        {
            *byte ^= 1;
        }
        Ok(())
    }
}

#[test]
fn a_damaged_window_is_noticed_before_it_is_used() {
    let layer = gzip(&archive(3, 6 << 20), usize::MAX, 6);
    let built = build(Compression::Gzip, &layer, 256 << 10);
    let blob = built.encode_compact().unwrap().unwrap();
    let whole = decode(&blob).unwrap();
    let group = whole.spans.window_group(SpanId(3)).unwrap();
    let compact = compact::decode(&blob, Arc::new(Damaged(blob.clone(), group.end - 1))).unwrap();
    let mut window = vec![0; WINDOW_LEN];
    let refused = compact.spans.write_window(SpanId(3), &mut window);
    assert_eq!(
        refused,
        Err(WindowError::Changed {
            offset: group.start
        })
    );
    assert!(compact.spans.write_window(SpanId(9), &mut window).is_ok());
    let bytes = &blob[index(group.start)..index(group.end)];
    assert!(whole.spans.is_window_group(SpanId(3), bytes));
    assert!(!whole.spans.is_window_group(SpanId(9), bytes));
    assert!(!whole.spans.is_window_group(SpanId(3), &bytes[1..]));
}

#[test]
fn a_wrong_checksum_fails_the_span_only_at_its_end() {
    let layer = gzip(&archive(3, 1 << 20), usize::MAX, 6);
    let built = build(Compression::Gzip, &layer, 256 << 10);
    let blob = built.encode_compact().unwrap().unwrap();
    let spans = decode(&blob).unwrap().spans;
    let sum = spans.checksum(SpanId(1)).unwrap().to_le_bytes();
    // Checksums do not compress: they stand in the blob as they are.
    let at = blob.windows(4).position(|bytes| bytes == sum).unwrap();
    let mut wrong = blob;
    wrong[at] ^= 1;
    let compact = decode(&wrong).unwrap();
    let range = compact.spans.compressed(SpanId(1));
    let bytes = &layer[index(range.start.0)..index(range.end.0)];
    let verified = CompressedSpan::new(SpanId(1), bytes)
        .verify(&compact.spans)
        .unwrap();
    let mut decoder = verified.decoder(SpanBuffer::new()).unwrap();
    let start = compact.spans.uncompressed(SpanId(1)).start.0;
    assert_eq!(
        decoder
            .decode_to(UncompressedOffset(start + 100))
            .unwrap()
            .len(),
        100
    );
    let refused = decoder.decode_all().map(<[u8]>::len);
    assert!(
        matches!(refused, Err(InflateError::Checksum { .. })),
        "{refused:?}"
    );
}

#[test]
fn only_the_head_is_needed_to_decode() {
    let layer = gzip(&archive(3, 2 << 20), usize::MAX, 6);
    let blob = build(Compression::Gzip, &layer, 256 << 10)
        .encode_compact()
        .unwrap()
        .unwrap();
    let whole = decode(&blob).unwrap();
    assert_eq!(
        compact::head_len(&blob[..compact::HEADER_LEN]),
        Ok(Some(whole.head_len))
    );
    assert_eq!(
        compact::head_len(&blob[..compact::HEADER_LEN - 1]),
        Ok(None)
    );
    assert!(whole.head_len < blob.len());
    let late: Arc<dyn ZtocBytes> = Arc::new(InMemory::new(Vec::new()));
    let lean = compact::decode(&blob[..whole.head_len], late).unwrap();
    assert_eq!(lean, whole);
    let refused = lean.spans.write_window(SpanId(1), &mut vec![0; WINDOW_LEN]);
    assert!(matches!(refused, Err(WindowError::Read(_))));
    let short = decode(&blob[..whole.head_len - 1]);
    assert!(
        matches!(short, Err(CompactError::CutOff { .. })),
        "{short:?}"
    );
}

#[test]
fn the_same_layer_has_the_same_compact_ztoc_however_it_is_read() {
    struct Trickle<'a>(&'a [u8], usize);
    impl io::Read for Trickle<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.1 = self.1 % 7919 + 1;
            let len = self.1.min(into.len());
            self.0.read(&mut into[..len])
        }
    }
    let layer = gzip(&archive(11, 3 << 20), 1_000_000, 6);
    let blob = build(Compression::Gzip, &layer, 100_000)
        .encode_compact()
        .unwrap()
        .unwrap();
    for step in [1, 500, 7000] {
        let read = Trickle(&layer, step);
        let again = builder::build_both(Compression::Gzip, read, &options(1 << 20), size(100_000));
        assert!(again.unwrap().encode_compact().unwrap().unwrap() == blob);
    }
}

#[test]
fn a_tar_with_much_padding_behind_its_end_has_right_checksums() {
    let mut plain = archive(9, 200_000);
    plain.resize(plain.len() + 300_000, 0);
    check_layer(Compression::Gzip, &gzip(&plain, usize::MAX, 6), 1 << 16);
    check_layer(Compression::Uncompressed, &plain, 1 << 16);
}

#[test]
fn what_is_no_compact_ztoc_is_refused() {
    let layer = gzip(&archive(3, 300_000), usize::MAX, 6);
    let built = build(Compression::Gzip, &layer, 1 << 16);
    let blob = built.encode_compact().unwrap().unwrap();
    assert!(!compact::is_compact(&built.ztoc.encode()));
    assert_eq!(decode(&built.ztoc.encode()), Err(CompactError::Magic));
    let changed = |at: usize, byte: u8| {
        let mut blob = blob.clone();
        blob[at] = byte;
        decode(&blob)
    };
    assert_eq!(changed(8, 2), Err(CompactError::Version(2)));
    assert_eq!(changed(10, 9), Err(CompactError::Compression(9)));
    assert!(changed(11, 1).is_err(), "the reserved byte");
    assert!(changed(15, 0xff).is_err(), "an endless head");
    assert!(
        changed(16, blob[16] ^ 1).is_err(),
        "a blob of another length"
    );
    assert!(
        changed(48, blob[48] ^ 1).is_err(),
        "another number of spans"
    );
    assert!(
        changed(52, blob[52] ^ 1).is_err(),
        "another number of entries"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn spans_of_random_streams_come_back(
        seed: u64, len in 1_usize..900_000, member in 50_000_usize..2_000_000, level in 0_u32..10,
        span_size in 1_u64..200_000,
    ) {
        check_layer(Compression::Gzip, &gzip(&archive(seed, len), member, level), span_size);
    }

    #[test]
    fn a_damaged_blob_is_refused_or_consistent(
        seed in 0_u64..4, at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>(),
    ) {
        let layer = gzip(&archive(seed, 200_000), usize::MAX, 6);
        let built = builder::build_both(Compression::Gzip, &layer[..], &options(1 << 20), size(1 << 15));
        let mut blob = built.unwrap().encode_compact().unwrap().unwrap();
        let at = at.index(blob.len());
        blob[at] = byte;
        if byte % 4 == 0 {
            blob.truncate(cut.index(blob.len()));
        }
        let Ok(compact) = decode(&blob) else { return Ok(()) };
        let mut window = vec![0; WINDOW_LEN];
        let mut end = 0;
        for id in compact.spans.ids() {
            prop_assert_eq!(compact.spans.uncompressed(id).start.0, end);
            end = compact.spans.uncompressed(id).end.0;
            let _ = compact.spans.write_window(id, &mut window);
        }
        prop_assert_eq!(end, compact.spans.uncompressed_size());
    }
}

//! Spans decoded in steps, on several threads, with a lent or an own buffer; windows in memory and
//! left in the zTOC.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{self, Write as _};
use std::sync::{Arc, Mutex};

use flate2::write::GzEncoder;
use proptest::collection::vec;
use proptest::prelude::*;
use ztoc::builder::{self, BuildOptions};
use ztoc::checkpoint::ZtocBytes;
use ztoc::error::{InflateError, WindowError};
use ztoc::unit::{ByteLen as _, SpanId, UncompressedOffset};
use ztoc::{CompressedSpan, Compression, SpanBuffer, SpanDecoder, SpanSize, Ztoc};

/// Some hundred KiB that compress a little, as a tar of one file.
fn archive(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut content = Vec::with_capacity(len);
    while content.len() < len {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let [.., kind, byte] = state.to_le_bytes();
        match kind % 4 {
            0 => content.extend_from_slice(&state.to_le_bytes()),
            1 => content.extend(std::iter::repeat_n(byte, usize::from(byte))),
            _ => content.extend_from_slice(format!("word{} ", byte % 60).as_bytes()),
        }
    }
    content.truncate(len);
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(len as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "file", content.as_slice())
        .unwrap();
    tar.into_inner().unwrap()
}

/// gzip in members of `member` bytes.
fn gzip(plain: &[u8], member: usize) -> Vec<u8> {
    let mut layer = Vec::new();
    for part in plain.chunks(member) {
        let mut encoder = GzEncoder::new(layer, flate2::Compression::new(6));
        encoder.write_all(part).unwrap();
        layer = encoder.finish().unwrap();
    }
    layer
}

fn build(compression: Compression, layer: &[u8], span_size: u64) -> Ztoc {
    let options = BuildOptions {
        span_size: SpanSize::new(span_size).unwrap(),
        build_tool: String::new(),
    };
    builder::build(compression, layer, &options).unwrap().ztoc
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

/// A decoder of span `id` that owns what it needs.
fn decoder(ztoc: &Ztoc, layer: &[u8], id: SpanId) -> SpanDecoder<Arc<[u8]>> {
    let range = ztoc.spans().compressed(id);
    let bytes: Arc<[u8]> = layer[at(range.start.0)..at(range.end.0)].into();
    let verified = CompressedSpan::new(id, bytes).verify(ztoc.spans()).unwrap();
    verified.decoder(SpanBuffer::new()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn steps_give_what_the_layer_holds_wherever_they_end(
        seed: u64,
        plain: bool,
        member in prop_oneof![Just(usize::MAX), 2000..100_000_usize],
        steps in vec(1..70_000_u64, 1..20),
    ) {
        let tar = archive(seed, 300_000);
        let (compression, layer) = if plain {
            (Compression::Uncompressed, tar.clone())
        } else {
            (Compression::Gzip, gzip(&tar, member))
        };
        let ztoc = build(compression, &layer, 120_000);
        for id in ztoc.spans().ids() {
            let range = ztoc.spans().uncompressed(id);
            let expected = &tar[at(range.start.0)..at(range.end.0)];
            let mut decoder = decoder(&ztoc, &layer, id);
            let mut upto = range.start.0;
            for step in steps.iter().cycle() {
                if decoder.is_complete() {
                    break;
                }
                upto += step;
                let len = expected.len().min(at(upto - range.start.0));
                prop_assert!(decoder.decode_to(UncompressedOffset(upto)).unwrap() == &expected[..len]);
                prop_assert_eq!(decoder.decoded_to().0, range.start.0 + len as u64);
            }
            prop_assert!(decoder.decoded() == expected);
        }
    }
}

#[test]
fn a_span_begun_on_one_thread_is_finished_on_another() {
    let tar = archive(7, 400_000);
    let layer = gzip(&tar, usize::MAX);
    let ztoc = build(Compression::Gzip, &layer, 150_000);
    let range = ztoc.spans().uncompressed(SpanId(1));
    let mut decoder = decoder(&ztoc, &layer, SpanId(1));
    let wanted = UncompressedOffset(range.start.0 + 5000);
    assert_eq!(decoder.decode_to(wanted).unwrap().len(), 5000);
    // The decoder keeps nothing of the table.
    drop(ztoc);
    let end = range.end;
    let finished = std::thread::spawn(move || {
        decoder.decode_to(end).unwrap();
        decoder
    });
    let decoder = finished.join().unwrap();
    assert!(decoder.decoded() == &tar[at(range.start.0)..at(range.end.0)]);
}

#[test]
fn one_buffer_serves_span_after_span_without_growing() {
    let tar = archive(9, 900_000);
    let layer = gzip(&tar, usize::MAX);
    let ztoc = build(Compression::Gzip, &layer, 100_000);
    let longest = ztoc
        .spans()
        .ids()
        .map(|id| ztoc.spans().uncompressed(id).byte_len());
    let mut buffer = SpanBuffer::prefaulted(at(longest.max().unwrap()));
    let capacity = buffer.capacity();
    for id in ztoc.spans().ids() {
        let range = ztoc.spans().compressed(id);
        let bytes = &layer[at(range.start.0)..at(range.end.0)];
        let verified = CompressedSpan::new(id, bytes).verify(ztoc.spans()).unwrap();
        // Some are left half way.
        let mut decoder = verified.decoder(&mut buffer).unwrap();
        let plain = ztoc.spans().uncompressed(id);
        let upto = if id.0 % 2 == 0 {
            plain.end.0
        } else {
            plain.start.0 + 100
        };
        let decoded = decoder.decode_to(UncompressedOffset(upto)).unwrap();
        assert!(decoded == &tar[at(plain.start.0)..at(upto)], "{id}");
    }
    assert_eq!(buffer.capacity(), capacity);
}

#[test]
fn a_span_larger_than_usual_keeps_its_beginning_while_the_buffer_grows() {
    let tar = archive(11, 20 << 20);
    let layer = gzip(&tar, usize::MAX);
    let ztoc = build(Compression::Gzip, &layer, 1 << 30);
    let mut decoder = decoder(&ztoc, &layer, SpanId(0));
    for upto in [100, 5 << 20, 6 << 20, u64::MAX] {
        let decoded = decoder.decode_to(UncompressedOffset(upto)).unwrap();
        assert!(decoded == &tar[..tar.len().min(at(upto))], "{upto}");
    }
}

#[test]
fn behind_an_error_what_was_decoded_stays_and_the_error_is_told_again() {
    // The second member is none, and the zTOC is made for that: the digest is right.
    let tar = archive(13, 100_000);
    let good = gzip(&tar, 60_000);
    let ztoc = build(Compression::Gzip, &good, 1 << 30);
    let member = gzip(&tar[..60_000], usize::MAX).len();
    let mut bad = good.clone();
    bad[member + 2] = 7;
    let ztoc = with_digest_of(&ztoc, &good, &bad);
    let mut decoder = decoder(&ztoc, &bad, SpanId(0));
    decoder.decode_to(UncompressedOffset(50_000)).unwrap();
    for _ in 0..2 {
        let error = decoder.decode_all().unwrap_err();
        assert!(matches!(error, InflateError::Member(_)), "{error}");
        assert!(decoder.decoded() == &tar[..50_000]);
        assert!(decoder.decode_to(UncompressedOffset(10)).unwrap() == &tar[..50_000]);
    }
}

/// The zTOC of `good`, said to be of `bad`, which has as many bytes.
fn with_digest_of(ztoc: &Ztoc, good: &[u8], bad: &[u8]) -> Ztoc {
    let text = |layer: &[u8]| ztoc::Digest::of(&layer[10..]).to_string().into_bytes();
    let mut bytes = ztoc.encode();
    let (old, new) = (text(good), text(bad));
    let at = bytes
        .windows(old.len())
        .position(|window| window == old)
        .unwrap();
    bytes[at..at + new.len()].copy_from_slice(&new);
    Ztoc::decode(&bytes).unwrap()
}

/// A zTOC's bytes as a disk keeps them: well, or not.
#[derive(Debug, Default)]
struct Disk(Mutex<Vec<u8>>);

impl ZtocBytes for Disk {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = self.0.lock().unwrap();
        let found = bytes.get(at(offset)..at(offset) + into.len());
        into.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

#[test]
fn windows_left_in_the_ztoc_are_read_from_it_and_take_no_memory() {
    let tar = archive(17, 900_000);
    let layer = gzip(&tar, usize::MAX);
    let held = build(Compression::Gzip, &layer, 100_000);
    let bytes = held.encode();
    let disk = Arc::new(Disk(bytes.clone().into()));
    let (toc, spans) = Ztoc::decode_lean(&bytes, disk).unwrap();
    let entries = toc
        .members()
        .map(|member| member.unwrap().entry.into_owned());
    assert!(entries.eq(held.toc().entries().iter().cloned()));
    drop(bytes);
    let per_span = spans.memory() / spans.ids().count();
    assert!(per_span < 100, "{per_span} bytes a span");
    assert!(spans.count() > 3);
    assert!(held.spans().memory() > spans.ids().count() * 32 * 1024);
    let mut buffer = SpanBuffer::new();
    for id in spans.ids() {
        let (mut expected, mut window) = (vec![0; 32 * 1024], vec![1; 32 * 1024]);
        held.spans().write_window(id, &mut expected).unwrap();
        spans.write_window(id, &mut window).unwrap();
        assert!(window == expected, "{id}");
        let (from, to) = (spans.compressed(id), spans.uncompressed(id));
        let verified = CompressedSpan::new(id, &layer[at(from.start.0)..at(from.end.0)])
            .verify(&spans)
            .unwrap();
        assert!(verified.inflate(&mut buffer).unwrap() == &tar[at(to.start.0)..at(to.end.0)]);
    }
}

#[test]
fn a_window_that_changed_or_is_gone_is_an_error_of_its_span_only() {
    let tar = archive(19, 1_500_000);
    let layer = gzip(&tar, usize::MAX);
    let bytes = build(Compression::Gzip, &layer, 100_000).encode();
    let disk = Arc::new(Disk(bytes.clone().into()));
    let (_, spans) = Ztoc::decode_lean(&bytes, disk.clone()).unwrap();
    let inflate = |id: u32| {
        let range = spans.compressed(SpanId(id));
        let bytes = &layer[at(range.start.0)..at(range.end.0)];
        let verified = CompressedSpan::new(SpanId(id), bytes)
            .verify(&spans)
            .unwrap();
        verified.inflate(&mut SpanBuffer::new()).map(<[u8]>::len)
    };
    // A byte of the window of span 1, found by its content.
    let mut window = vec![0; 32 * 1024];
    spans.write_window(SpanId(1), &mut window).unwrap();
    let place = bytes
        .windows(window.len())
        .position(|bytes| bytes == window)
        .unwrap();
    disk.0.lock().unwrap()[place + 77] ^= 1;
    let changed = WindowError::Changed {
        offset: place as u64,
    };
    assert_eq!(inflate(1), Err(InflateError::Window(changed)));
    assert!(inflate(0).is_ok() && inflate(2).is_ok());
    disk.0.lock().unwrap()[place + 77] ^= 1;
    assert!(inflate(1).is_ok());
    disk.0.lock().unwrap().truncate(place + 100);
    let gone = WindowError::Read(io::ErrorKind::UnexpectedEof);
    assert_eq!(inflate(1), Err(InflateError::Window(gone)));
}

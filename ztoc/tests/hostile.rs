//! zTOCs and spans as an attacker would write them.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "hostile/craft.rs"]
mod craft;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use craft::{Crafted, CraftedEntry, zinfo};
use flate2::write::DeflateEncoder;
use proptest::prelude::*;
use ztoc::compact::InMemory;
use ztoc::error::{DecodeError, EntryError, InflateError, SpansError, VerifyError};
use ztoc::toc::FileData;
use ztoc::unit::{ByteLen as _, CompressedOffset, SpanId, UncompressedOffset};
use ztoc::{CompressedSpan, Digest, SpanBuffer, Ztoc};

/// A raw deflate stream behind ten bytes of header, as one span, and its zTOC.
fn one_span(plain: &[u8], claimed: i64) -> (Vec<u8>, Crafted) {
    let mut encoder = DeflateEncoder::new(vec![0; 10], flate2::Compression::default());
    encoder.write_all(plain).unwrap();
    let layer = encoder.finish().unwrap();
    let crafted = Crafted {
        algorithm: 1,
        digests: vec![Digest::of(&layer[10..]).to_string().into_bytes()],
        zinfo: zinfo(1, &[(10, 0, 0)]),
        compressed_size: i64::try_from(layer.len()).unwrap(),
        uncompressed_size: claimed,
        ..Crafted::default()
    };
    (layer, crafted)
}

fn two_spans(first: (i64, i64, u8), second: (i64, i64, u8)) -> Crafted {
    Crafted {
        algorithm: 1,
        max_id: 1,
        digests: vec![Digest::of(b"").to_string().into_bytes(); 2],
        zinfo: zinfo(2, &[first, second]),
        compressed_size: 10_000,
        uncompressed_size: 50_000,
        ..Crafted::default()
    }
}

fn file(name: &str, offset: i64, size: i64) -> CraftedEntry {
    CraftedEntry {
        name: name.into(),
        kind: b"reg".into(),
        offset,
        size,
        ..CraftedEntry::default()
    }
}

fn decode(crafted: &Crafted) -> Result<Ztoc, DecodeError> {
    Ztoc::decode(&crafted.encode())
}

fn spans_error(crafted: &Crafted) -> SpansError {
    match decode(crafted) {
        Err(DecodeError::Spans(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_span_that_ends_before_its_uncompressed_bytes_do_is_an_error() {
    let plain = vec![b'a'; 5000];
    let (layer, crafted) = one_span(&plain, 5001);
    let ztoc = decode(&crafted).unwrap();
    let span = CompressedSpan::new(SpanId(0), &layer[10..])
        .verify(ztoc.spans())
        .unwrap();
    let mut buffer = SpanBuffer::new();
    let error = span.inflate(&mut buffer);
    assert_eq!(
        error,
        Err(InflateError::EndsEarly {
            decoded: 5000,
            expected: 5001
        })
    );
    let prefix = span
        .inflate_prefix(&mut buffer, UncompressedOffset(5000))
        .unwrap();
    assert!(prefix == plain);
}

#[test]
fn bytes_of_another_length_content_or_number_are_not_verified() {
    let (layer, crafted) = one_span(b"content", 7);
    let ztoc = decode(&crafted).unwrap();
    let verify = |id, bytes: &[u8]| {
        CompressedSpan::new(SpanId(id), bytes)
            .verify(ztoc.spans())
            .map(|span| span.id())
    };
    assert_eq!(verify(0, &layer[10..]), Ok(SpanId(0)));
    assert!(matches!(
        verify(1, &layer[10..]),
        Err(VerifyError::NoSuchSpan { .. })
    ));
    assert!(matches!(
        verify(0, &layer[11..]),
        Err(VerifyError::Length { .. })
    ));
    let mut other = layer[10..].to_vec();
    other[0] ^= 1;
    assert!(matches!(verify(0, &other), Err(VerifyError::Digest { .. })));
}

#[test]
fn a_buffer_that_held_a_larger_span_gives_a_smaller_one_its_own_length() {
    let mut buffer = SpanBuffer::new();
    for plain in [
        vec![b'x'; 100_000],
        b"small".to_vec(),
        vec![b'y'; 200_000],
        Vec::new(),
    ] {
        let (layer, crafted) = one_span(&plain, i64::try_from(plain.len()).unwrap());
        let ztoc = decode(&crafted).unwrap();
        let span = CompressedSpan::new(SpanId(0), &layer[10..])
            .verify(ztoc.spans())
            .unwrap();
        assert!(span.inflate(&mut buffer).unwrap() == plain);
    }
}

#[test]
fn a_span_may_not_claim_more_than_deflate_can_expand_to() {
    let (_, mut crafted) = one_span(b"x", 1);
    let compressed = crafted.compressed_size - 10;
    crafted.uncompressed_size = compressed * 1032;
    assert!(decode(&crafted).is_ok());
    crafted.uncompressed_size += 1;
    assert!(matches!(
        spans_error(&crafted),
        SpansError::Expansion { .. }
    ));
    crafted.compressed_size = i64::MAX;
    crafted.uncompressed_size = (1 << 30) + 1;
    assert!(matches!(spans_error(&crafted), SpansError::TooLong { .. }));
}

#[test]
fn spans_must_ascend_within_the_layer_from_its_beginning() {
    assert!(decode(&two_spans((10, 0, 0), (5000, 20_000, 3))).is_ok());
    let error = spans_error(&two_spans((10, 1, 0), (5000, 20_000, 3)));
    assert_eq!(error, SpansError::First(1));
    for second in [(10, 20_000, 0), (10, 20_000, 1), (9, 20_000, 0)] {
        let error = spans_error(&two_spans((10, 0, 0), second));
        assert_eq!(error, SpansError::Order(SpanId(1)), "{second:?}");
    }
    let error = spans_error(&two_spans((10, 0, 0), (10_001, 20_000, 0)));
    assert!(matches!(error, SpansError::OutOfRange { .. }));
}

#[test]
fn several_spans_at_the_first_byte_are_accepted_and_the_last_of_them_holds_it() {
    let ztoc = decode(&two_spans((10, 0, 0), (15, 0, 3))).unwrap();
    let spans = ztoc.spans();
    assert_eq!(spans.uncompressed(SpanId(0)).byte_len(), 0);
    assert_eq!(
        spans.compressed(SpanId(0)),
        CompressedOffset(10)..CompressedOffset(15)
    );
    let first_byte = UncompressedOffset(0)..UncompressedOffset(1);
    assert_eq!(spans.covering(first_byte), SpanId(1)..SpanId(2));
}

#[test]
fn a_read_up_to_a_span_border_needs_no_further_span() {
    let ztoc = decode(&two_spans((10, 0, 0), (5000, 20_000, 3))).unwrap();
    let covering = |range: std::ops::Range<u64>| {
        let range = UncompressedOffset(range.start)..UncompressedOffset(range.end);
        let spans = ztoc.spans().covering(range);
        spans.start.0..spans.end.0
    };
    assert_eq!(covering(0..20_000), 0..1);
    assert_eq!(covering(0..20_001), 0..2);
    assert_eq!(covering(19_999..20_000), 0..1);
    assert_eq!(covering(20_000..20_001), 1..2);
    assert_eq!(covering(49_999..u64::MAX), 1..2);
    for nothing in [5..5, 50_000..60_000, u64::MAX..u64::MAX] {
        assert!(covering(nothing.clone()).is_empty(), "{nothing:?}");
    }
}

#[test]
fn counts_that_differ_are_refused() {
    let good = two_spans((10, 0, 0), (5000, 20_000, 3));
    let mut crafted = good.clone();
    crafted.max_id = 2;
    assert!(matches!(spans_error(&crafted), SpansError::Count { .. }));
    let mut crafted = good.clone();
    crafted.digests.pop();
    assert!(matches!(spans_error(&crafted), SpansError::Count { .. }));
    let mut crafted = good;
    crafted.digests[1] = b"sha256:short".to_vec();
    assert!(matches!(
        decode(&crafted),
        Err(DecodeError::SpanDigest { span: 1, .. })
    ));
}

#[test]
fn negative_numbers_and_unknown_algorithms_are_refused() {
    let good = two_spans((10, 0, 0), (5000, 20_000, 3));
    let broken: [fn(&mut Crafted); 5] = [
        |crafted| crafted.compressed_size = -1,
        |crafted| crafted.uncompressed_size = i64::MIN,
        |crafted| crafted.algorithm = 3,
        |crafted| crafted.max_id = -1,
        |crafted| crafted.zinfo = zinfo(-1, &[]),
    ];
    for (index, break_it) in broken.iter().enumerate() {
        let mut crafted = good.clone();
        break_it(&mut crafted);
        assert!(decode(&crafted).is_err(), "{index}");
    }
}

fn entry_error(entries: Vec<CraftedEntry>) -> EntryError {
    let crafted = Crafted {
        entries,
        ..two_spans((10, 0, 0), (5000, 20_000, 3))
    };
    match decode(&crafted) {
        Err(DecodeError::Entry { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn entries_that_overlap_or_leave_the_layer_are_refused() {
    let overlap = entry_error(vec![file("a", 512, 1000), file("b", 1200, 5)]);
    assert_eq!(
        overlap,
        EntryError::Overlap {
            offset: 1200,
            header: 1536
        }
    );
    let outside = entry_error(vec![file("a", 512, 50_000)]);
    assert_eq!(
        outside,
        EntryError::OutOfRange {
            end: 50_512,
            size: 50_000
        }
    );
    let overflow = entry_error(vec![file("a", i64::MAX, i64::MAX)]);
    assert!(matches!(overflow, EntryError::OutOfRange { .. }));
    let negative = entry_error(vec![file("a", -1, 5)]);
    assert_eq!(
        negative,
        EntryError::Number {
            field: "offset",
            value: -1
        }
    );
    let kind = CraftedEntry {
        kind: b"socket".into(),
        ..file("a", 512, 0)
    };
    assert_eq!(entry_error(vec![kind]), EntryError::Kind("socket".into()));
}

#[test]
fn the_error_names_the_entry() {
    let entries = vec![file("fine", 512, 0), file("too/large", 1024, 90_000)];
    let crafted = Crafted {
        entries,
        ..two_spans((10, 0, 0), (5000, 20_000, 3))
    };
    let error = decode(&crafted).unwrap_err().to_string();
    assert!(
        error.contains("entry 1 (\"too/large\")") && error.contains("91024"),
        "{error}"
    );
}

#[test]
fn a_size_on_a_link_moves_nothing_and_an_unreadable_time_is_none() {
    let link = CraftedEntry {
        kind: b"hardlink".into(),
        ..file("link", 512, 40_000)
    };
    let odd_time = CraftedEntry {
        mtime: b"yesterday".into(),
        ..file("b", 1024, 5)
    };
    let entries = vec![odd_time, link];
    let crafted = Crafted {
        entries,
        ..two_spans((10, 0, 0), (5000, 20_000, 3))
    };
    let ztoc = decode(&crafted).unwrap();
    let toc = ztoc.toc();
    assert_eq!(
        toc.entries()[0].name,
        b"link",
        "entries are in the order of their offsets"
    );
    assert_eq!(toc.header_offset(1), Some(UncompressedOffset(512)));
    assert_eq!(toc.header_offset(2), None);
    assert_eq!(toc.entries()[1].mtime, None);
}

#[test]
fn entries_in_another_order_than_the_tars_are_read_in_that_once_they_are_sorted() {
    // Two lie at one position.
    let entries = vec![
        file("c", 2560, 0),
        file("d", 2560, 100),
        file("a", 512, 100),
    ];
    let crafted = Crafted {
        entries,
        ..two_spans((10, 0, 0), (5000, 20_000, 3))
    };
    let bytes = crafted.encode();
    let (mut toc, _) = Ztoc::decode_lean(&bytes, Arc::new(InMemory::new(Vec::new()))).unwrap();
    let disorder = toc.members().find_map(Result::err);
    assert_eq!(disorder, Some(DecodeError::Disorder));
    toc.sort().unwrap();
    let members: Vec<_> = toc.members().map(Result::unwrap).collect();
    let decoded = Ztoc::decode(&bytes).unwrap();
    assert!(decoded.toc().members().eq(members.iter().cloned()));
    let headers = members.iter().map(|member| member.header.unwrap().0);
    assert!(headers.eq([0, 1024, 1024]), "{members:?}");
}

#[test]
fn sparse_maps_that_lead_out_of_the_file_are_refused() {
    let with_map = |map: &str, blocks: &str| {
        let record = |key: &str, value: &str| (key.into(), value.into());
        let pax = vec![
            record("GNU.sparse.map", map),
            record("GNU.sparse.numblocks", blocks),
            record("GNU.sparse.major", "0"),
            record("GNU.sparse.minor", "1"),
        ];
        CraftedEntry {
            pax,
            ..file("sparse", 512, 30_000)
        }
    };
    let fine = vec![with_map("100,50,20000,10000", "2"), file("next", 11_264, 1)];
    let crafted = Crafted {
        entries: fine,
        ..two_spans((10, 0, 0), (5000, 20_000, 3))
    };
    let ztoc = decode(&crafted).unwrap();
    assert_eq!(
        ztoc.toc().header_offset(1),
        Some(UncompressedOffset(10_752))
    );
    let FileData::Sparse(extents) = ztoc.toc().entries()[0].data() else {
        panic!("not sparse")
    };
    let extents: Vec<_> = extents
        .iter()
        .map(|e| (e.file_offset, e.tar_offset.0, e.len))
        .collect();
    assert_eq!(extents, [(100, 512, 50), (20_000, 562, 10_000)]);
    for (map, blocks) in [
        ("100,50,20000,10001", "2"),
        ("100,50,149,1", "2"),
        ("100,50", "2"),
        ("100", "1"),
        ("-1,5", "1"),
        ("9223372036854775807,9223372036854775807", "1"),
    ] {
        let error = entry_error(vec![with_map(map, blocks)]);
        assert!(matches!(error, EntryError::Sparse(_)), "{map}: {error}");
    }
}

/// Reads all there is to read.
fn use_it(ztoc: &Ztoc) {
    let spans = ztoc.spans();
    let mut end = 0;
    for id in spans.ids() {
        let range = spans.uncompressed(id);
        assert_eq!(range.start.0, end);
        end = range.end.0;
        assert!(spans.compressed(id).end.0 <= spans.compressed_size());
        let covering = spans.covering(range.clone());
        assert!(range.is_empty() || covering == (id..SpanId(id.0 + 1)));
    }
    assert!(end == spans.uncompressed_size());
    for (index, entry) in ztoc.toc().entries().iter().enumerate() {
        if let Some(header) = ztoc.toc().header_offset(index) {
            assert!(header <= entry.offset);
        }
        if let FileData::Contiguous(range) = entry.data() {
            assert!(range.end.0 <= spans.uncompressed_size());
        }
    }
    let again = Ztoc::decode(&ztoc.encode()).unwrap();
    assert!(again == *ztoc);
}

fn golden() -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/ztocs");
    let files = fs::read_dir(directory).unwrap();
    files
        .map(|file| fs::read(file.unwrap().path()).unwrap())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn golden_ztocs_with_changed_bytes_are_refused_or_consistent(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let golden = golden();
        let mut bytes = which.get(&golden).clone();
        for (at, value, near_an_end) in changes {
            // Most bytes are windows; what matters lies at both ends.
            let reach = if near_an_end { bytes.len().min(6000) } else { bytes.len() };
            let at = at.index(reach);
            let at = if value % 2 == 0 { at } else { bytes.len() - 1 - at };
            bytes[at] = value;
        }
        if let Some(cut) = cut.filter(|_| which.index(4) == 0) {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(ztoc) = Ztoc::decode(&bytes) {
            use_it(&ztoc);
        }
    }

    #[test]
    fn crafted_ztocs_are_refused_or_consistent(
        checkpoints in prop::collection::vec((0..300_i64, 0..3000_i64, 0..9_u8), 0..4),
        have in 0..4_i32, sizes in (-1..400_i64, -1..4000_i64),
        entries in prop::collection::vec((0..8_i64, -1..3000_i64, 0..9_usize), 0..5),
    ) {
        let kinds = ["hardlink", "symlink", "dir", "reg", "reg", "char", "block", "fifo", ""];
        let mut checkpoints = checkpoints;
        checkpoints.sort_unstable();
        if let Some(first) = checkpoints.first_mut() {
            first.1 = 0;
        }
        let crafted = Crafted {
            algorithm: 1,
            max_id: have - 1,
            digests: vec![Digest::of(b"").to_string().into_bytes(); usize::try_from(have).unwrap()],
            zinfo: zinfo(have, &checkpoints),
            compressed_size: sizes.0,
            uncompressed_size: sizes.1,
            entries: entries.iter().map(|(offset, size, kind)| CraftedEntry {
                kind: kinds[*kind].into(),
                ..file("f", offset * 512, *size)
            }).collect(),
        };
        if let Ok(ztoc) = decode(&crafted) {
            use_it(&ztoc);
        }
    }

    #[test]
    fn arbitrary_compressed_bytes_inflate_or_are_refused(
        bytes in prop::collection::vec(any::<u8>(), 1..300), claimed in 0..40_000_u16, bits in 0..8_u8,
    ) {
        let first = if bits == 0 { 10 } else { 11 };
        let crafted = Crafted {
            algorithm: 1,
            digests: vec![Digest::of(&bytes).to_string().into_bytes()],
            zinfo: zinfo(1, &[(first, 0, bits)]),
            compressed_size: 10 + i64::try_from(bytes.len()).unwrap(),
            uncompressed_size: claimed.into(),
            ..Crafted::default()
        };
        if let Ok(ztoc) = decode(&crafted) {
            let span = CompressedSpan::new(SpanId(0), &bytes).verify(ztoc.spans()).unwrap();
            let mut buffer = SpanBuffer::new();
            if let Ok(plain) = span.inflate(&mut buffer) {
                prop_assert_eq!(plain.len(), usize::from(claimed));
            }
        }
    }
}

//! Layers made here by several compressors and tar writers: what is built from them must read as
//! they do.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::io::{Read, Write as _};
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use flate2::{FlushCompress, GzBuilder};
use proptest::prelude::*;
use ztoc::builder::{self, BuildError, BuildOptions, Built};
use ztoc::error::SpansError;
use ztoc::toc::FileData;
use ztoc::unit::{ByteLen as _, SpanId, SpanSize, UncompressedOffset};
use ztoc::{CompressedSpan, Compression, Digest, Entry, EntryKind, SpanBuffer, Ztoc};

fn build(
    compression: Compression,
    layer: impl Read + Send,
    span: u64,
) -> Result<Built, BuildError> {
    let span_size = SpanSize::new(span).unwrap();
    let options = BuildOptions {
        span_size,
        build_tool: "a test".to_owned(),
    };
    builder::build(compression, layer, &options)
}

fn built(layer: &[u8], span: u64) -> Ztoc {
    let built = build(Compression::Gzip, layer, span).unwrap();
    assert_eq!(built.layer_digest, Digest::of(layer));
    assert_eq!(built.diff_id, Digest::of(&gunzip(layer)));
    assert_eq!(Ztoc::decode(&built.ztoc.encode()).as_ref(), Ok(&built.ztoc));
    built.ztoc
}

fn gunzip(layer: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    // flate2 takes zeros behind the last member for garbage.
    let end = layer
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    let padded = (end + 8).min(layer.len());
    if MultiGzDecoder::new(layer).read_to_end(&mut plain).is_err() {
        plain.clear();
        let whole = (end..=padded).any(|end| {
            plain.clear();
            MultiGzDecoder::new(&layer[..end])
                .read_to_end(&mut plain)
                .is_ok()
        });
        assert!(whole, "no gzip");
    }
    plain
}

fn gzip(level: u32, plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(level));
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that compress a little: words from a small vocabulary, some noise, some runs.
fn text(len: usize, mut seed: u64) -> Vec<u8> {
    let mut text = Vec::with_capacity(len + 300);
    while text.len() < len {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let [.., a, b, c] = seed.to_le_bytes();
        match a % 8 {
            0 => text.extend_from_slice(&seed.to_be_bytes()),
            1 => text.extend(std::iter::repeat_n(b, usize::from(c))),
            _ => text.extend_from_slice(format!("word{} ", b % 50).as_bytes()),
        }
    }
    text.truncate(len);
    text
}

fn archive(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_600_000_000);
        archive
            .append_data(&mut header, name, content.as_slice())
            .unwrap();
    }
    archive.into_inner().unwrap()
}

fn ordinary() -> Vec<u8> {
    let names = [
        "bin/sh",
        "etc/passwd",
        "usr/lib/libc.so",
        "empty",
        "usr/share/doc/README",
    ];
    let lens = [300_000, 1200, 1_500_000, 0, 70_000];
    let files: Vec<_> = names
        .into_iter()
        .zip(lens)
        .map(|(name, len)| (name, text(len, len as u64)))
        .collect();
    archive(&files)
}

fn to_usize(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

fn span(ztoc: &Ztoc, id: SpanId, layer: &[u8]) -> Vec<u8> {
    let range = ztoc.spans().compressed(id);
    let bytes = &layer[to_usize(range.start.0)..to_usize(range.end.0)];
    let verified = CompressedSpan::new(id, bytes).verify(ztoc.spans()).unwrap();
    verified.inflate(&mut SpanBuffer::new()).unwrap().to_vec()
}

fn read(ztoc: &Ztoc, layer: &[u8], range: Range<UncompressedOffset>) -> Vec<u8> {
    let spans = ztoc.spans().covering(range.clone());
    let mut bytes = Vec::new();
    for id in (spans.start.0..spans.end.0).map(SpanId) {
        let lies = ztoc.spans().uncompressed(id);
        assert!(
            lies.start < range.end && lies.end > range.start,
            "{id} is not needed"
        );
        let from = to_usize(range.start.0.saturating_sub(lies.start.0));
        let to = to_usize(range.end.min(lies.end).0 - lies.start.0);
        bytes.extend_from_slice(&span(ztoc, id, layer)[from..to]);
    }
    bytes
}

/// Every span, and the table around them.
fn check_spans(ztoc: &Ztoc, layer: &[u8], plain: &[u8]) {
    let spans = ztoc.spans();
    assert_eq!(spans.compressed_size(), layer.len() as u64);
    let mut end = UncompressedOffset(0);
    for id in spans.ids() {
        let range = spans.uncompressed(id);
        assert_eq!(range.start, end);
        end = range.end;
        let expected = &plain[to_usize(range.start.0)..to_usize(range.end.0)];
        assert!(span(ztoc, id, layer) == expected, "span {id}");
    }
    assert_eq!(end.0, spans.uncompressed_size());
}

/// The same archive, compressed in ways that differ in what lies at block and member borders.
fn compressed_variously(plain: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut layers: Vec<_> = [0, 1, 4, 6, 9]
        .map(|level| (format!("level {level}"), gzip(level, plain)))
        .into();
    let members = |len: usize| plain.chunks(len).flat_map(|chunk| gzip(6, chunk)).collect();
    layers.push(("large members".to_owned(), members(400_000)));
    layers.push(("tiny members".to_owned(), members(700)));
    let empty = gzip(6, b"");
    let with_empty = [
        &empty,
        &empty,
        &gzip(6, &plain[..5000]),
        &empty,
        &gzip(1, &plain[5000..]),
        &empty,
    ];
    layers.push((
        "empty members".to_owned(),
        with_empty.into_iter().flatten().copied().collect(),
    ));
    let header = GzBuilder::new()
        .filename("layer.tar")
        .comment("a comment")
        .extra(vec![7; 5000]);
    let mut encoder = header.write(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(plain).unwrap();
    layers.push(("header fields".to_owned(), encoder.finish().unwrap()));
    layers.push(("flushes".to_owned(), flushed(plain)));
    layers.push((
        "zeros behind".to_owned(),
        [gzip(6, plain), vec![0; 5000]].concat(),
    ));
    layers
}

/// Sync flushes everywhere, two of them before the first byte: blocks without output.
fn flushed(plain: &[u8]) -> Vec<u8> {
    let mut deflate = flate2::Compress::new(flate2::Compression::new(6), false);
    let mut layer = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    layer.reserve(plain.len() * 2);
    let mut step = |bytes: &[u8], flush| {
        let before = layer.len();
        let taken = deflate.total_in();
        deflate.compress_vec(bytes, &mut layer, flush).unwrap();
        assert_eq!(deflate.total_in() - taken, bytes.len() as u64);
        layer.len() - before
    };
    assert!(step(&[], FlushCompress::Sync) > 0);
    step(&[], FlushCompress::Full);
    for chunk in plain.chunks(33_333) {
        step(chunk, FlushCompress::Sync);
        step(&[], FlushCompress::Full);
    }
    step(&[], FlushCompress::Finish);
    let mut crc = flate2::Crc::new();
    crc.update(plain);
    layer.extend_from_slice(&crc.sum().to_le_bytes());
    layer.extend_from_slice(&crc.amount().to_le_bytes());
    layer
}

#[test]
fn whatever_compressor_made_a_layer_its_spans_inflate_to_the_archive() {
    let plain = ordinary();
    for (how, layer) in compressed_variously(&plain) {
        for span_size in [1, 60_000, 1 << 20] {
            if span_size == 1 && how != "tiny members" && how != "flushes" {
                continue;
            }
            let ztoc = built(&layer, span_size);
            println!("{how}: {} spans of {span_size}", ztoc.spans().count());
            check_spans(&ztoc, &layer, &plain);
        }
    }
}

#[test]
fn blocks_and_members_without_output_in_front_make_no_second_checkpoint_there() {
    let plain = ordinary();
    for (how, layer) in compressed_variously(&plain) {
        let ztoc = built(&layer, 60_000);
        let at_zero = ztoc
            .spans()
            .ids()
            .filter(|id| ztoc.spans().checkpoint(*id).uncompressed.0 == 0);
        assert_eq!(at_zero.count(), 1, "{how}");
    }
}

#[test]
fn a_plain_layer_is_cut_into_equal_spans() {
    let plain = ordinary();
    for span_size in [512, 65_536, plain.len() as u64, 1 << 40] {
        let built = build(Compression::Uncompressed, plain.as_slice(), span_size).unwrap();
        assert_eq!(built.layer_digest, Digest::of(&plain));
        assert_eq!(built.diff_id, built.layer_digest);
        let count = (plain.len() as u64).div_ceil(span_size);
        assert_eq!(u64::from(built.ztoc.spans().count()), count);
        assert_eq!(Ztoc::decode(&built.ztoc.encode()).as_ref(), Ok(&built.ztoc));
        check_spans(&built.ztoc, &plain, &plain);
    }
}

#[test]
fn an_empty_plain_layer_has_no_spans_and_an_empty_gzip_layer_is_refused() {
    let ztoc = build(Compression::Uncompressed, &[][..], 4096)
        .unwrap()
        .ztoc;
    assert_eq!((ztoc.spans().count(), ztoc.toc().entries().len()), (0, 0));
    assert_eq!(Ztoc::decode(&ztoc.encode()), Ok(ztoc));
    let error = build(Compression::Gzip, &[][..], 4096).unwrap_err();
    assert!(matches!(error, BuildError::Empty), "{error}");
}

#[test]
fn padding_behind_the_archive_is_hashed_and_not_served() {
    let mut plain = archive(&[("a", text(100_000, 1))]);
    let end = plain.len();
    plain.extend_from_slice(&text(500_000, 2));
    for (how, layer) in compressed_variously(&plain) {
        let ztoc = built(&layer, 50_000);
        assert_eq!(ztoc.spans().uncompressed_size(), end as u64, "{how}");
        assert!(
            ztoc.spans()
                .checkpoint(SpanId(ztoc.spans().count() - 1))
                .uncompressed
                .0
                > end as u64
        );
        check_spans(&ztoc, &layer, &plain);
        let whole = read(
            &ztoc,
            &layer,
            UncompressedOffset(0)..UncompressedOffset(u64::MAX),
        );
        assert!(whole == plain[..end], "{how}");
    }
}

#[test]
fn every_cut_of_a_layer_is_refused() {
    let layer = gzip(9, &archive(&[("a", b"content".to_vec())]));
    for len in 0..layer.len() {
        let error = build(Compression::Gzip, &layer[..len], 4096).unwrap_err();
        assert!(!matches!(error, BuildError::Read(_)), "{len}: {error}");
    }
    assert!(build(Compression::Gzip, layer.as_slice(), 4096).is_ok());
}

#[test]
fn a_flipped_bit_is_noticed_unless_it_changes_nothing() {
    let plain = archive(&[("a", b"content".to_vec())]);
    let layer = gzip(9, &plain);
    let mut unnoticed = 0;
    for bit in 80..layer.len() * 8 {
        let mut layer = layer.clone();
        layer[bit / 8] ^= 1 << (bit % 8);
        let mut unpacked = Vec::new();
        let read = MultiGzDecoder::new(layer.as_slice()).read_to_end(&mut unpacked);
        let harmless = read.is_ok() && unpacked == plain;
        let built = build(Compression::Gzip, layer.as_slice(), 4096);
        assert_eq!(built.is_ok(), harmless, "bit {bit}");
        unnoticed += usize::from(harmless);
    }
    // Padding behind the last block, code lengths of symbols that do not occur.
    assert!(
        unnoticed < layer.len(),
        "{unnoticed} of {} bits",
        layer.len() * 8
    );
}

#[test]
fn a_match_may_not_reach_into_the_member_before() {
    // A fixed block with a match of length 3, distance 1, as the first token of a member.
    let bad = [
        0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 0x03, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let layer = [&gzip(6, &archive(&[("a", vec![])])), &bad[..]].concat();
    let error = build(Compression::Gzip, layer.as_slice(), 4096).unwrap_err();
    assert!(matches!(error, BuildError::Deflate { .. }), "{error}");
}

#[test]
fn a_layer_with_a_span_beyond_the_limit_is_refused_before_it_is_read_to_the_end() {
    struct Endless(Vec<u8>, usize);
    impl Read for Endless {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            let rest = &self.0[self.1 % self.0.len()..];
            let len = rest.len().min(buf.len());
            buf[..len].copy_from_slice(&rest[..len]);
            self.1 += len;
            Ok(len)
        }
    }
    let layer = Endless(gzip(1, &vec![0; 8 << 20]), 0);
    let error = build(Compression::Gzip, layer, 1 << 40).unwrap_err();
    assert!(
        matches!(error, BuildError::Spans(SpansError::TooLong { .. })),
        "{error}"
    );
}

#[test]
fn a_read_error_is_told_as_it_is() {
    struct Failing(usize);
    impl Read for Failing {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            let layer = gzip(1, &ordinary());
            if self.0 >= 1000 {
                return Err(std::io::Error::other("the disk is on fire"));
            }
            let len = buf.len().min(1000 - self.0);
            buf[..len].copy_from_slice(&layer[self.0..self.0 + len]);
            self.0 += len;
            Ok(len)
        }
    }
    let error = build(Compression::Gzip, Failing(0), 4096).unwrap_err();
    assert!(matches!(&error, BuildError::Read(cause) if cause.to_string().contains("fire")));
}

/// Hands out a few bytes at a time.
struct Dribble<'a>(&'a [u8], Vec<usize>);

impl Read for Dribble<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.1.rotate_left(1);
        let len = self.1[0].min(buf.len());
        self.0.read(&mut buf[..len])
    }
}

fn gnu_tar(dir: &Path, arguments: &[&str]) -> Vec<u8> {
    let mut tar = Command::new("tar");
    let output = tar
        .arg("--create")
        .args(arguments)
        .arg("--directory")
        .arg(dir)
        .arg(".")
        .output();
    let output = output.unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn contents(ztoc: &Ztoc, layer: &[u8], entry: &Entry) -> Vec<u8> {
    let extents = match entry.data() {
        FileData::Contiguous(range) => return read(ztoc, layer, range),
        FileData::Sparse(extents) => extents,
        FileData::MapInArchive(range) => entry.sparse_1_0(&read(ztoc, layer, range)).unwrap(),
    };
    let mut contents = vec![0; to_usize(entry.size)];
    for extent in extents {
        let end = UncompressedOffset(extent.tar_offset.0 + extent.len);
        let start = to_usize(extent.file_offset);
        contents[start..start + to_usize(extent.len)].copy_from_slice(&read(
            ztoc,
            layer,
            extent.tar_offset..end,
        ));
    }
    contents
}

fn sparse_directory() -> tempfile::TempDir {
    use std::os::unix::fs::FileExt as _;
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, len: u64, runs: &[(u64, usize)]| {
        let file = fs::File::create(dir.path().join(name)).unwrap();
        file.set_len(len).unwrap();
        for (at, len) in runs {
            file.write_all_at(&text(*len, *at), *at).unwrap();
        }
    };
    // More runs than fit in an old header and than in one block of a map.
    let many: Vec<_> = (0..60).map(|i| (i * 40_960 + 8192, 5000)).collect();
    file("holes", 3_000_000, &many);
    file("hole-only", 1_000_000, &[]);
    file("hole-at-end", 1_000_000, &[(0, 4096)]);
    file(
        "a-second-with-holes",
        900_000,
        &[(100_000, 10_000), (500_000, 77)],
    );
    fs::write(dir.path().join("ordinary"), text(20_000, 3)).unwrap();
    dir
}

#[test]
fn sparse_files_of_every_format_read_as_they_were() {
    let dir = sparse_directory();
    let formats: [&[&str]; 4] = [
        &["--format=gnu"],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ];
    for format in formats {
        let plain = gnu_tar(dir.path(), &[format, &["--sparse"]].concat());
        assert!(plain.len() < 2_000_000, "{format:?} holds the holes");
        let layer = gzip(6, &plain);
        let ztoc = built(&layer, 50_000);
        let mut sparse = 0;
        for entry in ztoc.toc().entries() {
            if entry.kind != EntryKind::Regular {
                continue;
            }
            let name = str::from_utf8(&entry.name).unwrap();
            let expected = fs::read(dir.path().join(name)).unwrap();
            sparse += usize::from(!matches!(entry.data(), FileData::Contiguous(_)));
            assert!(
                contents(&ztoc, &layer, entry) == expected,
                "{format:?}: {name}"
            );
        }
        assert!(sparse >= 3, "{format:?}: {sparse}");
        check_headers(&ztoc, &plain);
    }
}

/// Headers begin where a member's own or its extended header is, and end with the member's own.
fn check_headers(ztoc: &Ztoc, plain: &[u8]) {
    let mut known = 0;
    for (index, entry) in ztoc.toc().entries().iter().enumerate() {
        let Some(start) = ztoc.toc().header_offset(index) else {
            continue;
        };
        known += 1;
        let header = &plain[to_usize(start.0)..to_usize(entry.offset.0)];
        assert!(header.len() >= 512 && header.len().is_multiple_of(512));
        assert_eq!(&header[257..262], b"ustar", "{index}");
    }
    assert!(known >= 2);
}

#[test]
fn a_1_0_sparse_map_needs_no_more_than_the_bytes_from_its_own_header_on() {
    let dir = sparse_directory();
    let plain = gnu_tar(
        dir.path(),
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
    );
    let ztoc = build(Compression::Uncompressed, plain.as_slice(), 50_000)
        .unwrap()
        .ztoc;
    let mut compared = 0;
    for (index, entry) in ztoc.toc().entries().iter().enumerate() {
        let (FileData::MapInArchive(range), Some(start)) =
            (entry.data(), ztoc.toc().header_offset(index))
        else {
            continue;
        };
        compared += 1;
        let bytes = |from: UncompressedOffset| &plain[to_usize(from.0)..to_usize(entry.offset.0)];
        assert_eq!(
            entry.sparse_1_0(bytes(start)),
            entry.sparse_1_0(bytes(range.start))
        );
        assert!(entry.sparse_1_0(&[]).is_err());
        assert!(
            entry
                .sparse_1_0(bytes(UncompressedOffset(entry.offset.0 - 512)))
                .is_err()
        );
    }
    assert!(compared > 0);
}

#[test]
fn contiguous_files_are_regular_and_vendor_types_are_named_in_the_error() {
    let typed = |typeflag| {
        let mut header = tar::Header::new_ustar();
        header.set_path("odd").unwrap();
        header.set_size(3);
        header.set_entry_type(tar::EntryType::new(typeflag));
        header.set_cksum();
        let mut archive = tar::Builder::new(Vec::new());
        archive.append(&header, &b"abc"[..]).unwrap();
        build(
            Compression::Uncompressed,
            archive.into_inner().unwrap().as_slice(),
            4096,
        )
    };
    let contiguous = typed(b'7').unwrap().ztoc;
    assert_eq!(contiguous.toc().entries()[0].kind, EntryKind::Regular);
    assert_eq!(contiguous.toc().entries()[0].size, 3);
    let error = typed(b'V').unwrap_err().to_string();
    assert!(
        error.contains("\"odd\"") && error.contains("'V'"),
        "{error}"
    );
}

#[derive(Debug, Clone)]
struct Member {
    name: String,
    typeflag: u8,
    content: Vec<u8>,
    link: String,
    mode: u32,
    ids: (u32, u32),
    mtime: u64,
    pax: Vec<(String, Vec<u8>)>,
}

fn members() -> impl Strategy<Value = Vec<Member>> {
    let name = prop_oneof!["[a-z]{1,12}", "([a-zäß]{1,40}/){1,9}[a-z]{1,60}"];
    // The tar crate does not read values with line ends.
    let value = any::<u8>().prop_filter("a line end", |byte| *byte != b'\n');
    let pax = prop::collection::btree_map(
        "user\\.[a-z]{1,5}",
        prop::collection::vec(value, 0..40),
        0..3,
    );
    let member = (
        name,
        prop::sample::select(b"0123456".to_vec()),
        any::<u16>(),
        "[a-z/.]{1,150}",
        0..0o7777_u32,
        (0..0o7_777_777_u32, any::<u32>()),
        0..0x1_0000_0000_u64,
        pax,
    );
    let member = member.prop_map(
        |(name, typeflag, len, link, mode, ids, mtime, pax)| Member {
            name,
            typeflag,
            content: if typeflag == b'0' {
                text(usize::from(len), mtime)
            } else {
                Vec::new()
            },
            link: if b"12".contains(&typeflag) {
                link
            } else {
                String::new()
            },
            mode,
            ids,
            mtime,
            pax: pax
                .into_iter()
                .map(|(key, value)| (format!("SCHILY.xattr.{key}"), value))
                .collect(),
        },
    );
    prop::collection::vec(member, 0..12)
}

fn write(members: &[Member]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for member in members {
        let pax = member
            .pax
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_slice()));
        archive.append_pax_extensions(pax).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(member.typeflag));
        header.set_size(member.content.len() as u64);
        header.set_mode(member.mode);
        header.set_uid(member.ids.0.into());
        header.set_gid(member.ids.1.into());
        header.set_mtime(member.mtime);
        if member.link.is_empty() {
            archive
                .append_data(&mut header, &member.name, member.content.as_slice())
                .unwrap();
        } else {
            archive
                .append_link(&mut header, &member.name, &member.link)
                .unwrap();
        }
    }
    archive.into_inner().unwrap()
}

fn check_against_tar_crate(ztoc: &Ztoc, plain: &[u8]) {
    let mut archive = tar::Archive::new(plain);
    let mut entries = ztoc.toc().entries().iter();
    for expected in archive.entries().unwrap() {
        let mut expected = expected.unwrap();
        let entry = entries.next().unwrap();
        assert_eq!(entry.name, expected.path_bytes().into_owned());
        assert_eq!(
            entry.link,
            expected.link_name_bytes().unwrap_or_default().into_owned()
        );
        assert_eq!(entry.offset.0, expected.raw_file_position());
        assert_eq!(entry.size, expected.size());
        let header = expected.header();
        assert_eq!(entry.mode, i64::from(header.mode().unwrap()));
        assert_eq!(u64::from(entry.uid), header.uid().unwrap());
        assert_eq!(u64::from(entry.gid), header.gid().unwrap());
        let seconds = entry.mtime.unwrap().seconds;
        assert_eq!(u64::try_from(seconds), Ok(header.mtime().unwrap()));
        let pax = expected
            .pax_extensions()
            .unwrap()
            .into_iter()
            .flatten()
            .map(Result::unwrap);
        let pax: Vec<_> = pax
            .map(|record| (record.key_bytes().to_vec(), record.value_bytes().to_vec()))
            .collect();
        assert_eq!(entry.pax, pax);
    }
    assert_eq!(entries.next(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn members_are_found_as_the_tar_crate_finds_them(members in members()) {
        let plain = write(&members);
        let ztoc = build(Compression::Uncompressed, plain.as_slice(), 4096).unwrap().ztoc;
        prop_assert_eq!(ztoc.toc().entries().len(), members.len());
        check_against_tar_crate(&ztoc, &plain);
        check_spans(&ztoc, &plain, &plain);
        for (entry, member) in ztoc.toc().entries().iter().zip(&members) {
            let content = contents(&ztoc, &plain, entry);
            prop_assert_eq!(&content, &member.content);
        }
    }

    #[test]
    fn how_the_layer_arrives_makes_no_difference(
        steps in prop::collection::vec(1..5000_usize, 1..20), len in 0..200_000_usize, level in 0..10_u32,
    ) {
        let layer = gzip(level, &archive(&[("a", text(len, 7)), ("b", vec![])]));
        let whole = build(Compression::Gzip, layer.as_slice(), 10_000).unwrap();
        let dribbled = build(Compression::Gzip, Dribble(&layer, steps), 10_000).unwrap();
        prop_assert_eq!(whole.ztoc, dribbled.ztoc);
        prop_assert_eq!(whole.layer_digest, dribbled.layer_digest);
        prop_assert_eq!(whole.diff_id, dribbled.diff_id);
    }

    #[test]
    fn any_range_is_read_from_the_spans_that_cover_it(
        ranges in prop::collection::vec((0..600_000_u64, 0..70_000_u64), 1..20),
        level in 1..10_u32, span_size in 1..200_000_u64,
    ) {
        let plain = archive(&[("a", text(300_000, 5)), ("b", text(200_000, 6))]);
        let layer = gzip(level, &plain);
        let ztoc = built(&layer, span_size);
        for (start, len) in ranges {
            let range = UncompressedOffset(start)..UncompressedOffset(start + len);
            let clip = |offset: UncompressedOffset| to_usize(offset.0).min(plain.len());
            let expected = &plain[clip(range.start)..clip(range.end)];
            prop_assert!(range.byte_len() == len);
            prop_assert!(read(&ztoc, &layer, range) == expected);
        }
    }
}

//! Against zTOCs that the original made, and what it reads from them (see the golden README).
//!
//! The synthetic ones lie beside this file. All of them are used where they are found: in the
//! directory that `SPANSHOT_GOLDEN` names, or in `shared/golden` beside a parent of this crate.

#![allow(clippy::unwrap_used, missing_docs)]

// Shared with other tests, which use more of it.
#[allow(dead_code)]
#[path = "hostile/craft.rs"]
mod craft;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use craft::Crafted;
use flate2::read::MultiGzDecoder;
use serde_json::Value;
use ztoc::builder::{self, BuildError, BuildOptions, Built, LayerFormat};
use ztoc::checkpoint::ZinfoVersion;
use ztoc::toc::FileData;
use ztoc::unit::{ByteLen as _, SpanId, SpanSize, UncompressedOffset};
use ztoc::{CompressedSpan, Compression, Digest, Entry, SpanBuffer, Ztoc};

fn directories() -> Vec<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let all = match std::env::var_os("SPANSHOT_GOLDEN") {
        Some(given) => Some(PathBuf::from(given)),
        None => here
            .ancestors()
            .map(|dir| dir.join("shared/golden"))
            .find(|dir| dir.is_dir()),
    };
    all.into_iter().chain([here.join("tests/golden")]).collect()
}

/// Files of one kind by name; at least the synthetic ones.
fn files(kind: &str) -> BTreeMap<String, PathBuf> {
    let files: BTreeMap<_, _> = directories()
        .iter()
        .flat_map(|dir| fs::read_dir(dir.join(kind)).unwrap())
        .map(|file| file.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path))
        .collect();
    assert!(files.len() >= 8, "golden files are missing: {files:?}");
    files
}

/// zTOCs with their names (`NAME.SPAN.ztoc`).
fn ztocs() -> impl Iterator<Item = (String, Vec<u8>)> {
    files("ztocs")
        .into_iter()
        .map(|(name, path)| (name, fs::read(path).unwrap()))
}

fn layer(name: &str) -> (Compression, Vec<u8>) {
    let files = files("layers");
    let gzip = files.get(&format!("{name}.tar.gz"));
    let path = gzip.or_else(|| files.get(&format!("{name}.tar"))).unwrap();
    let compression = match gzip {
        Some(_) => Compression::Gzip,
        None => Compression::Uncompressed,
    };
    (compression, fs::read(path).unwrap())
}

/// `NAME.SPAN.ztoc` -> name and span size.
fn name_and_span(file: &str) -> (&str, u64) {
    let (name, span) = file
        .strip_suffix(".ztoc")
        .unwrap()
        .rsplit_once('.')
        .unwrap();
    (name, span.parse().unwrap())
}

fn plain(compression: Compression, layer: &[u8]) -> Vec<u8> {
    match compression {
        Compression::Uncompressed => layer.to_vec(),
        Compression::Gzip => {
            let mut plain = Vec::new();
            MultiGzDecoder::new(layer).read_to_end(&mut plain).unwrap();
            plain
        }
    }
}

fn build(compression: Compression, layer: &[u8], span_size: u64) -> Result<Built, BuildError> {
    let options = BuildOptions {
        span_size: SpanSize::new(span_size).unwrap(),
        build_tool: "AWS SOCI CLI v0.2".to_owned(),
    };
    builder::build(compression, layer, &options)
}

fn dump(file: &str) -> Option<Value> {
    let name = file.strip_suffix("ztoc").unwrap();
    let files = files("dump");
    if let Some(path) = files.get(&format!("{name}json")) {
        return Some(serde_json::from_reader(File::open(path).unwrap()).unwrap());
    }
    let path = files.get(&format!("{name}json.xz"))?;
    let unpacked = Command::new("xz").arg("-dc").arg(path).output().unwrap();
    assert!(
        unpacked.status.success(),
        "xz cannot unpack {}",
        path.display()
    );
    Some(serde_json::from_slice(&unpacked.stdout).unwrap())
}

/// Texts that are not UTF-8 are `{"hex": ...}`; absent ones are empty.
fn bytes(text: &Value) -> Vec<u8> {
    match text {
        Value::Null => Vec::new(),
        Value::String(text) => text.clone().into_bytes(),
        other => {
            let hex = other["hex"].as_str().unwrap();
            let digits = hex
                .as_bytes()
                .chunks(2)
                .map(|pair| str::from_utf8(pair).unwrap());
            digits
                .map(|pair| u8::from_str_radix(pair, 16).unwrap())
                .collect()
        }
    }
}

fn checkpoint_blob(ztoc: &Ztoc) -> Vec<u8> {
    let spans = ztoc.spans();
    let mut blob = Vec::new();
    blob.extend_from_slice(&spans.count().to_le_bytes());
    blob.extend_from_slice(&spans.span_size().unwrap().bytes().to_le_bytes());
    for span in spans.ids() {
        let checkpoint = spans.checkpoint(span);
        blob.extend_from_slice(&checkpoint.compressed.0.to_le_bytes());
        blob.extend_from_slice(&checkpoint.uncompressed.0.to_le_bytes());
        blob.push(checkpoint.bits);
        let window = blob.len();
        blob.resize(window + 32 * 1024, 0);
        spans.write_window(span, &mut blob[window..]).unwrap();
    }
    blob
}

fn compare_spans(ztoc: &Ztoc, dump: &Value, file: &str) {
    let spans = ztoc.spans();
    assert_eq!(spans.compressed_size(), dump["compressed_size"], "{file}");
    assert_eq!(
        spans.uncompressed_size(),
        dump["uncompressed_size"],
        "{file}"
    );
    assert_eq!(
        spans.span_size().unwrap().bytes(),
        dump["span_size"],
        "{file}"
    );
    assert_eq!(ztoc.build_tool(), bytes(&dump["build_tool"]), "{file}");
    if spans.compression() == Compression::Gzip {
        let digest = Digest::of(&checkpoint_blob(ztoc)).hex();
        assert_eq!(digest, dump["checkpoints_sha256"], "{file}");
    }
    let dumped = dump["spans"].as_array().unwrap();
    assert_eq!(spans.count() as usize, dumped.len(), "{file}");
    for (id, dumped) in spans.ids().zip(dumped) {
        let (compressed, uncompressed) = (spans.compressed(id), spans.uncompressed(id));
        assert_eq!(compressed.start.0, dumped["c0"], "{file} span {id}");
        assert_eq!(compressed.end.0, dumped["c1"], "{file} span {id}");
        // Behind the end of the archive is only padding, which we leave out.
        let clip = |offset: &Value| offset.as_u64().unwrap().min(spans.uncompressed_size());
        assert_eq!(
            uncompressed.start.0,
            clip(&dumped["u0"]),
            "{file} span {id}"
        );
        assert_eq!(uncompressed.end.0, clip(&dumped["u1"]), "{file} span {id}");
        assert_eq!(
            spans.digest(id).to_string(),
            dumped["digest"],
            "{file} span {id}"
        );
    }
}

fn compare_entry(entry: &Entry, dumped: &Value) {
    let name = String::from_utf8_lossy(&entry.name);
    assert_eq!(entry.name, bytes(&dumped["name"]), "{name}");
    assert_eq!(entry.kind.text(), dumped["type"], "{name}");
    assert_eq!(entry.offset.0, dumped["uoff"], "{name}");
    assert_eq!(entry.size, dumped["usize"], "{name}");
    assert_eq!(entry.link, bytes(&dumped["link"]), "{name}");
    assert_eq!(entry.mode, dumped["mode"], "{name}");
    assert_eq!(entry.uid, dumped["uid"], "{name}");
    assert_eq!(entry.gid, dumped["gid"], "{name}");
    assert_eq!(entry.uname, bytes(&dumped["uname"]), "{name}");
    assert_eq!(entry.gname, bytes(&dumped["gname"]), "{name}");
    let device = |index: usize| {
        dumped["dev"]
            .get(index)
            .and_then(Value::as_i64)
            .unwrap_or(0)
    };
    assert_eq!(
        (entry.dev_major, entry.dev_minor),
        (device(0), device(1)),
        "{name}"
    );
    // Where there is no readable time the original has the year 1.
    let mtime = entry.mtime.and_then(|mtime| mtime.to_rfc3339());
    let mtime = mtime.unwrap_or_else(|| "0001-01-01T00:00:00Z".to_owned());
    assert_eq!(mtime, dumped["mtime"], "{name}");
    let pax: BTreeMap<_, _> = entry.pax.iter().cloned().collect();
    assert_eq!(pax.len(), entry.pax.len(), "{name}");
    let dumped_pax = dumped["pax"].as_object();
    assert_eq!(pax.len(), dumped_pax.map_or(0, |pax| pax.len()), "{name}");
    for (key, value) in dumped_pax.into_iter().flatten() {
        assert_eq!(pax[key.as_bytes()], bytes(value), "{name}: {key}");
    }
}

#[test]
fn every_ztoc_says_what_the_original_reads_from_it() {
    let mut dumps = 0;
    for (file, bytes) in ztocs() {
        let ztoc = Ztoc::decode(&bytes).unwrap_or_else(|error| panic!("{file}: {error}"));
        let Some(dump) = dump(&file) else { continue };
        dumps += 1;
        assert_eq!(ztoc.version(), b"0.9");
        compare_spans(&ztoc, &dump, &file);
        let Some(dumped) = dump.get("files").filter(|files| !files.is_null()) else {
            continue;
        };
        let (entries, dumped) = (ztoc.toc().entries(), dumped.as_array().unwrap());
        assert_eq!(entries.len(), dumped.len(), "{file}");
        for (index, (entry, dumped)) in entries.iter().zip(dumped).enumerate() {
            compare_entry(entry, dumped);
            assert_eq!(
                ztoc.toc().header_offset(index).unwrap().0,
                dumped["hdr"],
                "{file} {index}"
            );
        }
    }
    assert!(dumps >= 8);
}

#[test]
fn every_ztoc_is_encoded_back_to_its_own_bytes() {
    for (file, bytes) in ztocs() {
        let ztoc = Ztoc::decode(&bytes).unwrap();
        assert!(ztoc.encode() == bytes, "{file}");
    }
}

#[test]
fn every_layer_gives_the_ztoc_that_the_original_built() {
    for (file, bytes) in ztocs() {
        let (name, span_size) = name_and_span(&file);
        let (compression, layer) = layer(name);
        let built = build(compression, &layer, span_size).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(built.ztoc.encode() == bytes, "{file}");
        assert_eq!(built.layer_digest, Digest::of(&layer), "{file}");
        assert_eq!(
            built.diff_id,
            Digest::of(&plain(compression, &layer)),
            "{file}"
        );
        assert_eq!(built.ztoc, Ztoc::decode(&bytes).unwrap(), "{file}");
    }
}

#[test]
fn every_span_inflates_to_its_part_of_the_layer_from_its_own_bytes() {
    let mut buffer = SpanBuffer::new();
    for (file, bytes) in ztocs() {
        let ztoc = Ztoc::decode(&bytes).unwrap();
        let (compression, layer) = layer(name_and_span(&file).0);
        let plain = plain(compression, &layer);
        // Backwards, so that nothing is there that the span before could have left.
        for id in ztoc.spans().ids().rev() {
            let range = ztoc.spans().uncompressed(id);
            let expected = &plain[to_usize(range.start.0)..to_usize(range.end.0)];
            assert!(
                inflate(&ztoc, id, &layer, &mut buffer) == expected,
                "{file} span {id}"
            );
            let upto = UncompressedOffset(range.start.0 + range.byte_len() / 3);
            let prefix = verify(&ztoc, id, &layer)
                .inflate_prefix(&mut buffer, upto)
                .unwrap();
            assert!(
                prefix == &expected[..expected.len() / 3],
                "{file} span {id}"
            );
        }
    }
}

fn to_usize(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

fn verify<'a>(ztoc: &'a Ztoc, id: SpanId, layer: &'a [u8]) -> ztoc::VerifiedSpan<'a> {
    let range = ztoc.spans().compressed(id);
    let compressed = &layer[to_usize(range.start.0)..to_usize(range.end.0)];
    CompressedSpan::new(id, compressed)
        .verify(ztoc.spans())
        .unwrap()
}

fn inflate<'b>(ztoc: &Ztoc, id: SpanId, layer: &[u8], buffer: &'b mut SpanBuffer) -> &'b [u8] {
    verify(ztoc, id, layer).inflate(buffer).unwrap()
}

fn read(ztoc: &Ztoc, layer: &[u8], range: std::ops::Range<UncompressedOffset>) -> Vec<u8> {
    let mut buffer = SpanBuffer::new();
    let spans = ztoc.spans().covering(range.clone());
    let mut bytes = Vec::new();
    for id in (spans.start.0..spans.end.0).map(SpanId) {
        let span = ztoc.spans().uncompressed(id);
        let skip = to_usize(range.start.0.saturating_sub(span.start.0));
        let keep = to_usize(range.end.min(span.end).0 - span.start.0);
        bytes.extend_from_slice(&inflate(ztoc, id, layer, &mut buffer)[skip..keep]);
    }
    bytes
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

#[test]
fn every_regular_file_has_the_content_that_the_original_extracts() {
    let mut compared = 0;
    for (file, bytes) in ztocs() {
        let Some(dump) = dump(&file) else { continue };
        let ztoc = Ztoc::decode(&bytes).unwrap();
        let (_, layer) = layer(name_and_span(&file).0);
        let dumped = dump
            .get("files")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        for (entry, dumped) in ztoc.toc().entries().iter().zip(dumped).take(300) {
            let Some(expected) = dumped["sha256"].as_str() else {
                continue;
            };
            let digest = Digest::of(&contents(&ztoc, &layer, entry));
            assert_eq!(digest.hex(), expected, "{file}: {:?}", entry.name);
            compared += 1;
        }
    }
    assert!(compared > 20, "{compared}");
}

#[test]
fn sparse_files_whose_ztoc_the_original_cannot_load_read_as_gnu_tar_extracts_them() {
    let Some((file, bytes)) = ztocs().find(|(file, _)| file.starts_with("04d")) else {
        return;
    };
    let ztoc = Ztoc::decode(&bytes).unwrap();
    let (compression, layer) = layer(name_and_span(&file).0);
    let archive = plain(compression, &layer);
    let mut sparse = 0;
    for entry in ztoc.toc().entries() {
        if entry.kind != ztoc::EntryKind::Regular {
            continue;
        }
        sparse += usize::from(matches!(entry.data(), FileData::Sparse(_)));
        let name = str::from_utf8(&entry.name).unwrap();
        let expected = gnu_tar_extracts(&archive, name);
        assert!(contents(&ztoc, &layer, entry) == expected, "{name}");
    }
    assert!(sparse > 0);
}

fn gnu_tar_extracts(archive: &[u8], name: &str) -> Vec<u8> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(archive).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--to-stdout", "--extract", "--file"])
        .arg(file.path())
        .arg(name);
    let output = tar.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn layers_that_no_ztoc_can_describe_are_refused_for_what_they_are() {
    let (_, garbage) = layer("16e-trailing-garbage");
    let (_, truncated) = layer("16f-truncated");
    let garbage = build(Compression::Gzip, &garbage, 4 << 20).unwrap_err();
    assert!(matches!(garbage, BuildError::Garbage(_)), "{garbage}");
    let size = truncated.len() as u64;
    let truncated = build(Compression::Gzip, &truncated, 4 << 20).unwrap_err();
    assert!(
        matches!(truncated, BuildError::CutOff(at) if at == size),
        "{truncated}"
    );
    let zstd = [0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0, 0];
    for compression in [Compression::Gzip, Compression::Uncompressed] {
        let zstd = build(compression, &zstd, 4 << 20).unwrap_err();
        assert!(matches!(zstd, BuildError::Zstd), "{zstd}");
    }
    let (_, gzip) = layer("13-tiny");
    let stated_plain = build(Compression::Uncompressed, &gzip, 4 << 20).unwrap_err();
    assert!(matches!(
        stated_plain,
        BuildError::Format {
            found: LayerFormat::Gzip,
            ..
        }
    ));
}

#[test]
fn a_global_pax_header_is_passed_over_though_the_original_refuses_it() {
    let (compression, layer) = layer("16a-global-pax");
    let built = build(compression, &layer, 4 << 20).unwrap();
    let plain = plain(compression, &layer);
    let mut archive = tar::Archive::new(plain.as_slice());
    let expected: Vec<_> = archive
        .entries()
        .unwrap()
        .map(Result::unwrap)
        .filter(|entry| !entry.header().entry_type().is_pax_global_extensions())
        .map(|entry| (entry.path_bytes().into_owned(), entry.raw_file_position()))
        .collect();
    let found: Vec<_> = built
        .ztoc
        .toc()
        .entries()
        .iter()
        .map(|entry| (entry.name.clone(), entry.offset.0))
        .collect();
    assert!(!found.is_empty());
    assert_eq!(found, expected);
    assert_eq!(Ztoc::decode(&built.ztoc.encode()).unwrap(), built.ztoc);
}

#[test]
fn a_v1_ztoc_reads_like_its_v2_and_stays_v1() {
    let bytes = fs::read(&files("ztocs")["03-odd-pax-gzip9.262144.ztoc"]).unwrap();
    let v2 = Ztoc::decode(&bytes).unwrap();
    let mut zinfo = checkpoint_blob(&v2);
    zinfo.drain(12..12 + 17 + 32 * 1024);
    let spans = v2.spans();
    let digest = |id| spans.digest(id).to_string().into_bytes();
    let crafted = Crafted {
        algorithm: 1,
        max_id: i32::try_from(spans.count()).unwrap() - 1,
        digests: spans.ids().map(digest).collect(),
        zinfo: zinfo.clone(),
        compressed_size: spans.compressed_size().cast_signed(),
        uncompressed_size: spans.uncompressed_size().cast_signed(),
        ..Crafted::default()
    };
    let v1 = Ztoc::decode(&crafted.encode()).unwrap();
    assert_eq!(v1.spans().zinfo_version(), Some(ZinfoVersion::V1));
    let (_, layer) = layer("03-odd-pax-gzip9");
    let (mut one, mut other) = (SpanBuffer::new(), SpanBuffer::new());
    for id in spans.ids() {
        assert!(
            inflate(&v1, id, &layer, &mut one) == inflate(&v2, id, &layer, &mut other),
            "{id}"
        );
    }
    let encoded = v1.encode();
    let contains = |part: &[u8]| encoded.windows(part.len()).any(|window| window == part);
    let (head, records) = zinfo.split_at(12 + 17);
    assert!(
        contains(head) && contains(&records[..4096]),
        "the blob as it was"
    );
    assert!(
        encoded.len() < crafted.encode().len() + 64,
        "no record more"
    );
    assert_eq!(Ztoc::decode(&encoded).unwrap(), v1);
}

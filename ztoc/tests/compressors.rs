//! One layer as every gzip compressor writes it (`scripts/compressors` makes them): a zTOC can be
//! built of each, and each of its spans decodes from its checkpoint.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};

use ztoc::builder::{self, BuildOptions};
use ztoc::unit::SpanSize;
use ztoc::{CompressedSpan, Compression, Digest, SpanBuffer};

/// The compressed layers by their makers' names, and what they all hold.
fn layers() -> (BTreeMap<String, Vec<u8>>, Vec<u8>) {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compressors.tar.xz");
    let xz = Command::new("xz")
        .arg("-dc")
        .arg(packed)
        .stdout(Stdio::piped())
        .spawn();
    let mut xz = xz.expect("xz is installed: scripts/install test");
    let mut archive = tar::Archive::new(xz.stdout.take().unwrap());
    let mut layers = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry
            .path()
            .unwrap()
            .file_name()
            .map(|name| name.to_str().unwrap().to_owned());
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        layers.extend(name.filter(|_| !bytes.is_empty()).map(|name| (name, bytes)));
    }
    assert!(xz.wait().unwrap().success());
    let plain = layers.remove("layer.tar").unwrap();
    (layers, plain)
}

#[test]
fn layers_of_every_compressor_decode_span_by_span() {
    let (layers, tar) = layers();
    let makers = [
        "go",
        "klauspost",
        "pgzip",
        "gzip",
        "pigz",
        "zopfli",
        "libdeflate",
        "igzip",
        "bgzip",
    ];
    for maker in makers {
        assert!(layers.keys().any(|name| name.starts_with(maker)), "{maker}");
    }
    let mut buffer = SpanBuffer::new();
    for (name, layer) in &layers {
        for span_size in [1, 20_000, 1 << 22] {
            let options = BuildOptions {
                span_size: SpanSize::new(span_size).unwrap(),
                build_tool: String::new(),
            };
            let built = builder::build(Compression::Gzip, &layer[..], &options);
            let built = built.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(built.diff_id, Digest::of(&tar), "{name}");
            assert_eq!(built.layer_digest, Digest::of(layer), "{name}");
            let spans = built.ztoc.spans();
            let mut plain = Vec::new();
            for id in spans.ids() {
                let range = spans.compressed(id);
                let at = |offset: u64| usize::try_from(offset).unwrap();
                let bytes = &layer[at(range.start.0)..at(range.end.0)];
                let span = CompressedSpan::new(id, bytes).verify(spans).unwrap();
                let decoded = span.inflate(&mut buffer);
                plain.extend_from_slice(
                    decoded.unwrap_or_else(|error| panic!("{name} {id}: {error}")),
                );
            }
            // What follows the archive's end belongs to no span.
            let end = usize::try_from(spans.uncompressed_size()).unwrap();
            assert!(plain == tar[..end], "{name} in spans of {span_size}");
            assert!(tar[end..].iter().all(|byte| *byte == 0));
        }
    }
}

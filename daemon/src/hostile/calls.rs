//! Requests of the gRPC services as they come over the wire, and records of snapshots as they come from disk.

use std::io;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use fuse::content::{LayerContent, ReadReply};
use fuse::{LayerTree, View};
use ztoc::builder::{BuildOptions, build};
use ztoc::{Compression, SpanSize, UncompressedOffset};

/// A request of the snapshots service: its messages do not say which one they are, so it is taken for each.
pub fn snapshots_call(bytes: &[u8]) {
    crate::snapshot::service::probe(bytes);
}

/// A request of the control API, for a view whose links lead in circles and outside.
pub fn control_call(bytes: &[u8]) {
    static VIEW: LazyLock<View> = LazyLock::new(view);
    crate::control::probe(&VIEW, bytes);
    crate::control::overlay::Overlay::parse(bytes);
}

/// A request of the kubelet's image service, framed or bare.
pub fn cri_call(bytes: &[u8]) {
    crate::cri::probe(bytes);
}

/// The record of a snapshot.
pub fn stored_record(bytes: &[u8]) {
    crate::snapshot::store::probe(bytes);
}

/// No bytes at all.
struct Nothing;

impl LayerContent for Nothing {
    fn read(&self, _: Range<UncompressedOffset>, _: ReadReply) {}
}

fn view() -> View {
    let tree = tar_of_links().and_then(|tar| {
        let options = BuildOptions {
            span_size: SpanSize::DEFAULT,
            build_tool: String::new(),
        };
        let built = build(Compression::Uncompressed, &*tar, &options);
        built.map_err(io::Error::other)
    });
    let layer = fuse::Layer {
        tree: Arc::new(LayerTree::new(tree.expect("a valid tar").ztoc.toc())),
        content: Arc::new(Nothing),
    };
    View::new(vec![layer], false)
}

fn tar_of_links() -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o644);
    tar.append_data(&mut header, "dir/file", &b"data"[..])?;
    let links = [
        ("self", "self"),
        ("dir/up", "../../../dir"),
        ("dir/there", "/back"),
        ("back", "dir/there"),
        ("deep", "dir/up/up/up/file"),
    ];
    for (name, target) in links {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, name, target)?;
    }
    tar.into_inner()
}

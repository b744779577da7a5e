#![allow(clippy::unwrap_used)]

use std::ops::Range;

use fuse::content::{LayerContent, ReadReply};
use parking_lot::Mutex;
use ztoc::builder::{BuildOptions, build};
use ztoc::{Compression, SpanSize, UncompressedOffset};

use super::*;

/// Keeps replies until it is told to let them go.
#[derive(Default)]
struct Hoarder(Mutex<Vec<ReadReply>>);

impl LayerContent for Hoarder {
    fn read(&self, _: Range<UncompressedOffset>, reply: ReadReply) {
        self.0.lock().push(reply);
    }
}

fn layer(content: Arc<Hoarder>) -> fuse::Layer {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o644);
    tar.append_data(&mut header, "file", &b"data"[..]).unwrap();
    let options = BuildOptions {
        span_size: SpanSize::DEFAULT,
        build_tool: String::new(),
    };
    let tar = tar.into_inner().unwrap();
    let built = build(Compression::Uncompressed, &*tar, &options).unwrap();
    fuse::Layer {
        tree: Arc::new(fuse::LayerTree::new(&built.ztoc.into_parts().0)),
        content,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_waits_for_reads_that_have_come_but_not_for_ever() {
    let root = tempfile::tempdir().unwrap();
    let options = MountOptions::new(root.path());
    let views = Views::start(&root.path().join("views"), options, Handle::current()).unwrap();
    let run = LazyRun {
        layers: vec![LazyLayer {
            digest: Digest::of(b"layer"),
            image: "registry.test/image:1".parse().unwrap(),
        }],
        stacked: false,
        ids: None,
    };
    let hoarder = Arc::<Hoarder>::default();
    let content = Arc::clone(&hoarder);
    let open = || async { Ok(vec![layer(content)]) };
    let view = views.mount(&run, &[], open).await.unwrap();
    assert_eq!(
        views.answered(Duration::from_secs(60)).await,
        0,
        "nobody reads"
    );

    let file = view.path().join("file");
    let reader = tokio::task::spawn_blocking(move || fs::read(file));
    while hoarder.0.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(views.answered(Duration::from_millis(20)).await, 1);
    let waiting = tokio::spawn({
        let views = views.clone();
        async move { views.answered(Duration::from_secs(60)).await }
    });
    // Dropped, it is answered with an error; the kernel may ask once more for less.
    while !reader.is_finished() {
        hoarder.0.lock().clear();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(reader.await.unwrap().is_err());
    assert_eq!(waiting.await.unwrap(), 0);
    drop(view);
    views.close().await;
}

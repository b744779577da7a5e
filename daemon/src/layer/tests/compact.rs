//! Layers served by a compact zTOC of which only the head was fetched.

use std::sync::atomic::{AtomicUsize, Ordering};

use ztoc::builder::build_both;
use ztoc::compact;

use super::*;

/// A blob whose ranges are counted, and may come damaged.
#[derive(Debug)]
struct Body {
    blob: Bytes,
    requests: AtomicUsize,
    fetched: AtomicUsize,
    /// As many answers have a wrong byte.
    wrong: AtomicUsize,
}

impl Body {
    fn new(blob: &[u8]) -> Arc<Self> {
        Arc::new(Self {
            blob: Bytes::copy_from_slice(blob),
            requests: AtomicUsize::new(0),
            fetched: AtomicUsize::new(0),
            wrong: AtomicUsize::new(0),
        })
    }
}

#[async_trait::async_trait]
impl BlobSource for Body {
    async fn fetch(&self, range: Range<CompressedOffset>) -> Result<Bytes, FetchError> {
        let range = range.start.0 as usize..range.end.0 as usize;
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.fetched.fetch_add(range.len(), Ordering::Relaxed);
        let mut bytes = self.blob[range].to_vec();
        let wrong = |count: usize| count.checked_sub(1);
        if self
            .wrong
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, wrong)
            .is_ok()
        {
            bytes[0] ^= 1;
        }
        Ok(bytes.into())
    }
}

/// A node with a layer of which it has the head of the compact zTOC, and the rest of that.
async fn compact_node(compression: Compression) -> (Node, Arc<Body>) {
    let mut packed = packed(compression, 1);
    let options_of = BuildOptions {
        span_size: SpanSize::DEFAULT,
        build_tool: String::new(),
    };
    let span_size = SpanSize::new(64 << 10).unwrap();
    let built = build_both(compression, &packed.blob[..], &options_of, span_size).unwrap();
    let blob = built.encode_compact().unwrap().unwrap();
    let head_len = compact::head_len(&blob).unwrap().unwrap();
    packed.ztoc = Bytes::copy_from_slice(&blob[..head_len]);
    let node = Node::with(packed, options()).await;
    let body = Body::new(&blob);
    node.layer
        .add_window_source(String::from("registry"), Arc::clone(&body) as _);
    (node, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_reads_right_from_the_head_of_its_compact_ztoc_alone() {
    for compression in [Compression::Gzip, Compression::Uncompressed] {
        let (node, body) = compact_node(compression).await;
        assert!(node.layer.compact_ztoc().is_some());
        assert!(
            node.layer.spans().count() > 20,
            "{}",
            node.layer.spans().count()
        );
        node.assert_right(0..10).await;
        assert_eq!(
            body.requests.load(Ordering::Relaxed),
            0,
            "nothing is before the first span"
        );
        node.assert_right(node.all()).await;
        quiet(&node.layer).await;
        let gzip = usize::from(compression == Compression::Gzip);
        assert!(body.requests.load(Ordering::Relaxed) >= gzip);
        let body_len = body.blob.len() - node.packed.ztoc.len();
        assert_eq!(
            body.fetched.load(Ordering::Relaxed),
            body_len,
            "each group once"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_windows_that_a_read_needs_are_fetched_and_a_restart_keeps_them() {
    let (node, body) = compact_node(Compression::Gzip).await;
    let span = node.span(10);
    node.assert_right(span.start..span.start + 100).await;
    let group = node.layer.spans().window_group(SpanId(10)).unwrap();
    assert_eq!(
        body.fetched.load(Ordering::Relaxed) as u64,
        group.end - group.start
    );
    quiet(&node.layer).await;
    let node = node.restart().await;
    // The neighbour's window is in the same group; nobody is there to ask for another.
    let neighbour = node.span(11);
    node.assert_right(neighbour.start + 5..neighbour.end).await;
    let elsewhere = node.span(20);
    let failed = node.read(elsewhere.start..elsewhere.start + 1).await;
    assert_eq!(failed, Err(ReadError::Unavailable));
    node.layer
        .add_window_source(String::from("registry"), Arc::clone(&body) as _);
    node.assert_right(elsewhere).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_that_come_damaged_are_never_used_and_fetched_again() {
    let (node, body) = compact_node(Compression::Gzip).await;
    body.wrong.store(1, Ordering::Relaxed);
    let span = node.span(10);
    node.assert_right(span.clone()).await;
    assert_eq!(body.requests.load(Ordering::Relaxed), 2);
    body.wrong.store(usize::MAX, Ordering::Relaxed);
    let other = node.span(20);
    let failed = node.read(other.start..other.start + 1).await;
    assert_eq!(failed, Err(ReadError::Unavailable));
    quiet(&node.layer).await;
    body.wrong.store(0, Ordering::Relaxed);
    node.assert_right(other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_damaged_on_disk_are_fetched_again() {
    let (node, body) = compact_node(Compression::Gzip).await;
    let span = node.span(10);
    node.assert_right(span.start..span.start + 1).await;
    quiet(&node.layer).await;
    let group = node.layer.spans().window_group(SpanId(10)).unwrap();
    let node = node.restart().await;
    node.flip("ztoc", group.start + 3);
    node.layer
        .add_window_source(String::from("registry"), Arc::clone(&body) as _);
    let neighbour = node.span(11);
    node.assert_right(neighbour).await;
    assert_eq!(body.requests.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compact_ztoc_of_another_layer_is_refused_and_a_damaged_head_is_noticed() {
    let (node, _) = compact_node(Compression::Gzip).await;
    let mut other = new_layer(&node.packed);
    other.layer = Digest::of(b"another layer");
    let refused = node.store.insert(other).await;
    assert!(
        matches!(refused, Err(LayerError::OtherLayer { .. })),
        "{refused:?}"
    );
    let digest = node.packed.digest;
    node.flip("ztoc", node.packed.ztoc.len() as u64 - 1);
    let Node {
        store,
        layer,
        source,
        _dir,
        ..
    } = node;
    drop(layer);
    let opened = open(&store, digest, source).await;
    assert!(
        matches!(opened, Err(LayerError::Damaged { .. })),
        "{opened:?}"
    );
}

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::reversed_empty_ranges
)]

use std::collections::VecDeque;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use ztoc::builder::{BuildOptions, build};
use ztoc::{CompressedOffset, Compression, SpanSize};

use self::answers::{Answer, answered, reply};
use super::*;

mod abandoned;
mod answers;
mod cold;
mod compact;
mod disk;
mod early;
mod evict;
mod fill;
mod flights;
mod interleavings;
mod model;
mod own_files;
mod power_cut;
mod proof;

/// What the scripted source does instead of answering well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Fewer bytes than asked for.
    Short,
    /// One flipped bit.
    Corrupt,
    /// An error.
    Fail,
    /// No answer ever.
    Stall,
}

/// A blob in memory that answers the next requests as scripted, then well.
#[derive(Debug)]
pub(super) struct Script {
    blob: Bytes,
    faults: Mutex<VecDeque<Option<Fault>>>,
    requests: Mutex<Vec<Range<u64>>>,
    delay: Mutex<Duration>,
}

impl Script {
    fn new(blob: Bytes) -> Arc<Self> {
        Arc::new(Self {
            blob,
            faults: Mutex::default(),
            requests: Mutex::default(),
            delay: Mutex::default(),
        })
    }

    pub(super) fn will(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.faults.lock().extend(faults);
    }

    pub(super) fn slow(&self, delay: Duration) {
        *self.delay.lock() = delay;
    }

    pub(super) fn requests(&self) -> Vec<Range<u64>> {
        self.requests.lock().clone()
    }
}

#[async_trait]
impl BlobSource for Script {
    async fn fetch(&self, range: Range<CompressedOffset>) -> Result<Bytes, FetchError> {
        let range = range.start.0..range.end.0;
        self.requests.lock().push(range.clone());
        let (fault, delay) = (self.faults.lock().pop_front().flatten(), *self.delay.lock());
        tokio::time::sleep(delay).await;
        let bytes = self.blob.slice(range.start as usize..range.end as usize);
        match fault {
            None => Ok(bytes),
            Some(Fault::Short) => Ok(bytes.slice(..bytes.len() / 2)),
            Some(Fault::Corrupt) => {
                let mut bytes = bytes.to_vec();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                Ok(bytes.into())
            }
            Some(Fault::Fail) => Err(FetchError {
                detail: String::from("registry.test: 503"),
            }),
            Some(Fault::Stall) => std::future::pending().await,
        }
    }
}

/// A layer as bytes: the tar, the blob, its zTOC.
#[derive(Debug, Clone)]
pub(super) struct Packed {
    tar: Bytes,
    blob: Bytes,
    ztoc: Bytes,
    digest: Digest,
}

/// Text-like bytes that compress about as well as a layer does.
pub(super) fn words(len: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let word = (seed >> 33) % 5000;
        bytes.extend_from_slice(format!("{word:x} ").as_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

pub(super) fn tar_of(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_000_000_000);
        tar.append_data(&mut header, name, &**content).unwrap();
    }
    tar.into_inner().unwrap()
}

/// A layer of about three megabytes in about a dozen spans, made once of each kind.
pub(super) fn packed(compression: Compression, members: usize) -> Packed {
    static MADE: Mutex<Vec<((Compression, usize), Packed)>> = Mutex::new(Vec::new());
    let kind = (compression, members);
    let mut made = MADE.lock();
    if let Some((_, packed)) = made.iter().find(|(known, _)| *known == kind) {
        return packed.clone();
    }
    let packed = pack(compression, members);
    made.push((kind, packed.clone()));
    packed
}

fn pack(compression: Compression, members: usize) -> Packed {
    let tar = tar_of(&[
        ("small", b"small file".to_vec()),
        ("large", words(2 << 20, 1)),
        ("zeros", vec![0; 300_000]),
        ("other", words(700_000, 2)),
    ]);
    let blob = match compression {
        Compression::Uncompressed => tar.clone(),
        Compression::Gzip => tar
            .chunks(tar.len().div_ceil(members))
            .flat_map(gzip)
            .collect(),
    };
    let options = BuildOptions {
        span_size: SpanSize::new(256 << 10).unwrap(),
        build_tool: String::from("test"),
    };
    let built = build(compression, &*blob, &options).unwrap();
    Packed {
        tar: tar.into(),
        blob: blob.into(),
        ztoc: built.ztoc.encode().into(),
        digest: built.layer_digest,
    }
}

/// A store with one layer in it, open.
pub(super) struct Node {
    root: PathBuf,
    _dir: Option<TempDir>,
    store: LayerStore,
    layer: Arc<Layer>,
    source: Arc<Script>,
    packed: Packed,
}

pub(super) fn options() -> LayerOptions {
    LayerOptions {
        readahead: false,
        straggler: Duration::from_secs(3600),
        ..LayerOptions::default()
    }
}

pub(super) fn new_layer(packed: &Packed) -> NewLayer {
    NewLayer {
        layer: packed.digest,
        size: Some(packed.blob.len() as u64),
        ztoc: Digest::of(&packed.ztoc),
        bytes: packed.ztoc.clone(),
        image: String::from("registry.test/image:1"),
    }
}

impl Node {
    async fn new() -> Self {
        Self::with(packed(Compression::Gzip, 1), options()).await
    }

    async fn with(packed: Packed, options: LayerOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        let mut node = Self::at(root, packed, options).await;
        node._dir = Some(dir);
        node
    }

    async fn at(root: PathBuf, packed: Packed, options: LayerOptions) -> Self {
        let store = LayerStore::start(&root, options, Handle::current()).unwrap();
        store.insert(new_layer(&packed)).await.unwrap();
        let source = Script::new(packed.blob.clone());
        let layer = open(&store, packed.digest, Arc::clone(&source))
            .await
            .unwrap();
        Self {
            root,
            _dir: None,
            store,
            layer,
            source,
            packed,
        }
    }

    /// The daemon dies; what is left of it.
    async fn end(self) -> (PathBuf, Option<TempDir>, Packed) {
        self.store.stop().await;
        let Self {
            root,
            _dir,
            store,
            layer,
            packed,
            ..
        } = self;
        // What a decode thread still does ends with the process; here it must have ended before the files
        // are opened again.
        let ended = Arc::downgrade(&layer);
        drop((store, layer));
        while ended.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        (root, _dir, packed)
    }

    /// The daemon dies and comes again.
    async fn restart(self) -> Self {
        let (root, dir, packed) = self.end().await;
        let mut node = Self::at(root, packed, options()).await;
        node._dir = dir;
        node
    }

    fn file(&self, name: &str) -> fs::File {
        let path = self.root.join(self.packed.digest.hex()).join(name);
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap()
    }

    fn flip(&self, name: &str, position: u64) {
        let mut byte = [0];
        self.file(name).read_exact_at(&mut byte, position).unwrap();
        self.file(name)
            .write_all_at(&[byte[0] ^ 4], position)
            .unwrap();
    }

    fn expected(&self, range: Range<u64>) -> Result<Vec<u8>, ReadError> {
        Ok(self.packed.tar[range.start as usize..range.end as usize].to_vec())
    }

    async fn read(&self, range: Range<u64>) -> Result<Vec<u8>, ReadError> {
        read(&self.layer, range).await
    }

    async fn assert_right(&self, range: Range<u64>) {
        let right = self.read(range.clone()).await == self.expected(range.clone());
        assert!(right, "the bytes {range:?}");
    }

    /// The plain bytes of a span.
    fn span(&self, id: u32) -> Range<u64> {
        let range = self.layer.spans().uncompressed(SpanId(id));
        range.start.0..range.end.0
    }

    fn all(&self) -> Range<u64> {
        0..self.layer.spans().uncompressed_size()
    }
}

/// Nothing is in flight any more: a span is handed out before it is counted and written.
async fn quiet(layer: &Layer) {
    for _ in 0..30_000 {
        if layer.flights.is_quiet() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("spans are in flight for ever");
}

async fn open(
    store: &LayerStore,
    digest: Digest,
    source: Arc<Script>,
) -> Result<Arc<Layer>, LayerError> {
    store
        .open(&digest, String::from("registry.test/image:1"), |_| source)
        .await
}

fn ask(layer: &Layer, range: Range<u64>) -> Answer {
    let (reply, receive) = reply();
    layer.read(
        UncompressedOffset(range.start)..UncompressedOffset(range.end),
        reply,
    );
    receive
}

pub(super) async fn read(layer: &Layer, range: Range<u64>) -> Result<Vec<u8>, ReadError> {
    answered(ask(layer, range)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_range_reads_as_in_the_plain_tar_for_each_kind_of_layer() {
    for (compression, members) in [
        (Compression::Gzip, 1),
        (Compression::Gzip, 3),
        (Compression::Uncompressed, 1),
    ] {
        let node = Node::with(packed(compression, members), options()).await;
        let end = node.all().end;
        let boundary = node.span(2).start;
        for range in [
            boundary - 1..boundary + 1,
            boundary..boundary,
            0..1,
            end - 1..end,
        ] {
            node.assert_right(range).await;
        }
        for start in (0..end).step_by(200_003) {
            node.assert_right(start..(start + 131_072).min(end)).await;
        }
        node.assert_right(node.all()).await;
        node.assert_right(node.all()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_beyond_the_end_or_backwards_fails_and_fetches_nothing() {
    let node = Node::new().await;
    let end = node.all().end;
    for range in [end - 1..end + 1, end + 1..end + 2, 10..5, 0..u64::MAX] {
        assert_eq!(node.read(range).await, Err(ReadError::Unavailable));
    }
    assert_eq!(node.source.requests(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_local_is_answered_before_read_returns() {
    let node = Node::new().await;
    node.assert_right(1000..2000).await;
    // The span is handed out before it is written.
    while node.layer.spans_present() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut answer = ask(&node.layer, 500..700);
    assert_eq!(answer.try_recv().unwrap(), node.expected(500..700));
    assert_eq!(node.layer.counters().hits, 1);
    assert_eq!(node.source.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_may_read_again() {
    let node = Node::new().await;
    node.assert_right(0..1).await;
    let (send, receive) = oneshot::channel();
    let layer = Arc::clone(&node.layer);
    let reply = ReadReply::new(move |_| {
        let _ = send.send(ask(&layer, 10..20));
    });
    node.layer
        .read(UncompressedOffset(0)..UncompressedOffset(5), reply);
    assert_eq!(receive.await.unwrap().await.unwrap(), node.expected(10..20));
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_readers_of_one_span_cause_one_request() {
    let node = Node::new().await;
    node.source.slow(Duration::from_millis(50));
    let span = node.span(3);
    let answers = (0..64).map(|reader| {
        let start = span.start + reader * 100;
        (start, ask(&node.layer, start..start + 100))
    });
    for (start, answer) in answers.collect::<Vec<_>>() {
        assert_eq!(answer.await.unwrap(), node.expected(start..start + 100));
    }
    quiet(&node.layer).await;
    assert_eq!(node.source.requests().len(), 1);
    assert_eq!(node.layer.counters().spans_decoded, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixty_four_readers_of_everything_fetch_each_byte_once() {
    let node = Arc::new(Node::new().await);
    let readers = (0..64_u64).map(|reader| {
        let node = Arc::clone(&node);
        tokio::spawn(async move {
            let end = node.all().end;
            for step in 0..40 {
                let start = (reader * 997 + step * 79_999) % (end - 50_000);
                node.assert_right(start..start + 50_000).await;
            }
            node.assert_right(node.all()).await;
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.unwrap();
    }
    quiet(&node.layer).await;
    let counters = node.layer.counters();
    let spans = u64::from(node.layer.spans().count());
    assert_eq!(counters.spans_decoded, spans);
    // Neighbours that were fetched apart share at most a byte.
    assert!(counters.bytes_fetched <= node.packed.blob.len() as u64 + spans);
    assert_eq!(counters.failed_reads, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbouring_missing_spans_are_one_request_up_to_the_limit() {
    let node = Node::new().await;
    node.assert_right(node.span(4).start..node.span(4).start + 1)
        .await;
    node.assert_right(node.span(1).start..node.span(8).end)
        .await;
    let spans = node.layer.spans();
    let bytes =
        |first, last| spans.compressed(SpanId(first)).start.0..spans.compressed(SpanId(last)).end.0;
    let mut requests = node.source.requests();
    requests.sort_by_key(|range| range.start);
    assert_eq!(requests, [bytes(1, 3), bytes(4, 4), bytes(5, 8)]);

    let small = LayerOptions {
        max_request: bytes(0, 1).end - bytes(0, 1).start,
        ..options()
    };
    let node = Node::with(packed(Compression::Gzip, 1), small.clone()).await;
    node.assert_right(node.all()).await;
    let requests = node.source.requests();
    assert!(requests.len() > 2, "{requests:?}");
    assert!(
        requests
            .iter()
            .all(|range| range.end - range.start <= small.max_request)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_span_whose_digest_or_length_is_wrong_is_fetched_again() {
    for fault in [Fault::Corrupt, Fault::Short] {
        let node = Node::new().await;
        node.source.will([Some(fault), Some(fault)]);
        node.assert_right(0..100).await;
        assert_eq!(node.source.requests().len(), 3);
        assert_eq!(node.layer.counters().bad_spans, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_bad_run_only_the_bad_spans_are_fetched_again() {
    let node = Node::new().await;
    node.source.will([Some(Fault::Corrupt)]);
    node.assert_right(node.span(0).start..node.span(4).end)
        .await;
    let requests = node.source.requests();
    assert_eq!(requests.len(), 2, "one bit was wrong: {requests:?}");
    let bad = &requests[1];
    let middle = (requests[0].start + requests[0].end) / 2;
    assert!(bad.contains(&middle) && bad.end - bad.start < requests[0].end / 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_span_that_stays_wrong_fails_its_reads_and_the_next_read_tries_again() {
    let node = Node::new().await;
    let attempts = 1 + options().verification_retries as usize;
    node.source.will(vec![Some(Fault::Corrupt); attempts]);
    assert_eq!(node.read(0..100).await, Err(ReadError::Unavailable));
    assert_eq!(node.source.requests().len(), attempts);
    node.assert_right(0..100).await;
    assert_eq!(node.layer.counters().failed_reads, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_fetch_fails_all_who_wait_and_the_next_read_tries_again() {
    let node = Node::new().await;
    node.source.slow(Duration::from_millis(20));
    node.source.will([Some(Fault::Fail)]);
    let both = [ask(&node.layer, 0..10), ask(&node.layer, 20..30)];
    for answer in both {
        assert_eq!(answer.await.unwrap(), Err(ReadError::Unavailable));
    }
    node.assert_right(0..10).await;
    assert_eq!(node.source.requests().len(), 2);
    assert_eq!(node.layer.counters().failed_requests, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_image_that_has_the_layer_is_asked_when_the_first_fails() {
    let node = Node::new().await;
    node.source.will(vec![Some(Fault::Fail); 10]);
    let other = Script::new(node.packed.blob.clone());
    let name = String::from("other.test/image:1");
    let again = node
        .store
        .open(&node.packed.digest, name, |_| Arc::clone(&other) as _)
        .await;
    assert!(Arc::ptr_eq(&again.unwrap(), &node.layer));
    node.assert_right(0..10).await;
    node.assert_right(node.span(5)).await;
    assert_eq!(
        (node.source.requests().len(), other.requests().len()),
        (1, 2)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_fetch_holds_up_neither_hits_nor_other_spans() {
    let node = Node::new().await;
    node.assert_right(0..10).await;
    node.source.will([Some(Fault::Stall)]);
    let mut stalled = ask(&node.layer, node.span(5));
    while node.source.requests().len() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    node.assert_right(20..30).await;
    node.assert_right(node.span(7)).await;
    assert!(stalled.try_recv().is_err());
    node.store.stop().await;
    assert_eq!(
        stalled.await.unwrap(),
        Err(ReadError::Unavailable),
        "stopping gives up"
    );
    node.assert_right(20..30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_open_once_however_often_it_is_asked_for() {
    let node = Node::new().await;
    let store = LayerStore::start(&node.root, options(), Handle::current()).unwrap();
    let opens = (0..16).map(|_| open(&store, node.packed.digest, Arc::clone(&node.source)));
    let layers: Vec<_> = futures::future::join_all(opens).await;
    let first = layers[0].as_ref().unwrap();
    assert!(
        layers
            .iter()
            .all(|layer| Arc::ptr_eq(layer.as_ref().unwrap(), first))
    );
    assert_eq!(store.open_layers().len(), 1);
}

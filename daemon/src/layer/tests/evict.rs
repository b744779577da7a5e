//! What goes when there is too much.

use super::*;

fn limited(bytes: u64) -> LayerOptions {
    LayerOptions {
        cache_limit: Some(bytes),
        ..options()
    }
}

/// Bytes that the file system has given to the layer.
fn on_disk(node: &Node) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let data = node.file("data");
    data.sync_all().unwrap();
    data.metadata().unwrap().blocks() * 512
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_holds_on_disk_and_every_read_is_right() {
    let limit = 1 << 20;
    let node = Node::with(packed(Compression::Gzip, 1), limited(limit)).await;
    for _ in 0..2 {
        for start in (0..node.all().end).step_by(100_000) {
            node.assert_right(start..(start + 100_000).min(node.all().end))
                .await;
        }
    }
    quiet(&node.layer).await;
    node.layer.engine.ledger.evict();
    let (counters, used) = (node.layer.counters(), node.store.bytes_cached());
    assert!(used > 0 && used <= limit, "{used}");
    assert!(on_disk(&node) <= limit + 16 * 4096, "{}", on_disk(&node));
    assert!(
        counters.spans_evicted > 0 && counters.failed_reads == 0,
        "{counters:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_last_stays() {
    let node = Node::with(packed(Compression::Gzip, 1), options()).await;
    node.assert_right(node.all()).await;
    quiet(&node.layer).await;
    assert!(node.layer.spans().count() > 8, "two groups");
    // Something is stored, so that the clock goes on, then the first group is read again.
    node.layer.evict(SpanId(9));
    node.assert_right(node.span(9)).await;
    quiet(&node.layer).await;
    node.assert_right(node.span(2).start..node.span(2).start + 10)
        .await;
    let store = LayerStore::start(&node.root, limited(1), Handle::current()).unwrap();
    assert_eq!(store.bytes_cached(), on_disk(&node), "counted at the start");
    let order = node.layer.engine.ledger.order();
    assert_eq!(order, [(node.packed.digest, 8), (node.packed.digest, 0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_nobody_has_open_goes_first_and_is_whole_again_when_read() {
    let node = Node::new().await;
    node.assert_right(node.all()).await;
    quiet(&node.layer).await;
    let Node {
        root,
        _dir,
        store,
        layer,
        packed: first,
        ..
    } = node;
    let held = layer.held();
    store.stop().await;
    drop((layer, store));

    let other = packed(Compression::Gzip, 3);
    let second = Node::at(root.clone(), other, limited(held + 1000)).await;
    second.assert_right(second.all()).await;
    quiet(&second.layer).await;
    second.layer.engine.ledger.evict();
    let data = root.join(first.digest.hex()).join("data");
    assert!(!data.exists(), "the closed layer made room");
    assert!(second.store.bytes_cached() <= held + 1000);

    let source = Script::new(first.blob.clone());
    let again = open(&second.store, first.digest, source).await.unwrap();
    let right = read(&again, 0..100_000).await.unwrap();
    assert!(right == first.tar[..100_000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fill_makes_nothing_go_and_stops_at_the_limit() {
    let limit = 2 << 20;
    let node = Node::with(packed(Compression::Gzip, 1), limited(limit)).await;
    node.layer.fill_up();
    while node.store.filling().0 > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    quiet(&node.layer).await;
    let counters = node.layer.counters();
    assert!(counters.spans_decoded > 0);
    assert_eq!(counters.spans_evicted, 0, "{counters:?}");
    assert!(node.store.bytes_cached() <= limit);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_and_fill_and_eviction_at_once_give_right_bytes_only() {
    let node = Arc::new(Node::new().await);
    let ended = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let evictor = {
        let (layer, ended) = (Arc::clone(&node.layer), Arc::clone(&ended));
        std::thread::spawn(move || {
            let mut span = 0;
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                span = (span * 7 + 3) % layer.spans().count();
                layer.evict(SpanId(span));
                std::thread::yield_now();
            }
        })
    };
    let readers = (0..8_u64).map(|reader| {
        let node = Arc::clone(&node);
        tokio::spawn(async move {
            for step in 0..60 {
                let end = node.all().end;
                let start = (reader * 99_991 + step * 79_999) % (end - 300_000);
                node.assert_right(start..start + 300_000).await;
                node.layer.fill_up();
            }
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.unwrap();
    }
    ended.store(true, std::sync::atomic::Ordering::Relaxed);
    evictor.join().unwrap();
    let counters = node.layer.counters();
    assert!(
        counters.spans_evicted > 0 && counters.failed_reads == 0,
        "{counters:?}"
    );
    quiet(&node.layer).await;
    let held = node
        .layer
        .spans()
        .ids()
        .filter(|&span| node.layer.flights.is_held(span));
    let held: u64 = held
        .map(|span| node.span(span.0).end - node.span(span.0).start)
        .sum();
    assert_eq!(node.layer.held(), held, "nothing is counted twice or lost");
    assert_eq!(node.store.bytes_cached(), held);
}

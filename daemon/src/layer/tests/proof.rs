//! The proof of whole layers.

use super::*;

async fn concluded(layer: &Layer) {
    for _ in 0..30_000 {
        if layer.is_proven() || layer.proof.is_wrong() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("the proof is never made");
}

fn expect(node: &Node, diff_id: Digest) {
    node.store
        .expect(node.packed.digest, async move { Some(diff_id) });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_proven_once_all_of_it_is_here_and_not_again_after_a_restart() {
    let node = Node::new().await;
    expect(&node, Digest::of(&node.packed.tar));
    node.assert_right(0..100).await;
    assert!(!node.layer.is_proven());
    node.layer.fill_up();
    concluded(&node.layer).await;
    assert!(node.layer.is_proven());
    let node = node.restart().await;
    assert!(node.layer.is_proven());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_whole_before_its_digest_is_known_is_proven_then() {
    let node = Node::new().await;
    node.layer.fill_up();
    while !node.layer.flights.is_full() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    expect(&node, Digest::of(&node.packed.tar));
    concluded(&node.layer).await;
    assert!(node.layer.is_proven());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_what_the_image_says_is_read_no_more_and_not_served_again() {
    let node = Node::new().await;
    expect(&node, Digest::of(b"another layer"));
    node.layer.fill_up();
    concluded(&node.layer).await;
    quiet(&node.layer).await;
    assert_eq!(node.read(0..10).await, Err(ReadError::Unavailable));
    assert_eq!(node.layer.counters().quarantined, 1);

    let (root, _dir, packed) = node.end().await;
    let store = LayerStore::start(&root, options(), Handle::current()).unwrap();
    assert_eq!(store.stored(&packed.digest), None);
    let source = Script::new(packed.blob.clone());
    let opened = open(&store, packed.digest, Arc::clone(&source)).await;
    assert!(
        matches!(opened, Err(LayerError::Quarantined { .. })),
        "{opened:?}"
    );
    let again = store.insert(new_layer(&packed)).await;
    assert!(
        matches!(again, Err(LayerError::Quarantined { .. })),
        "{again:?}"
    );

    let options = BuildOptions {
        span_size: SpanSize::new(512 << 10).unwrap(),
        build_tool: String::from("another"),
    };
    let other = build(Compression::Gzip, &*packed.blob, &options).unwrap();
    let other: Bytes = other.ztoc.encode().into();
    let new = NewLayer {
        ztoc: Digest::of(&other),
        bytes: other,
        ..new_layer(&packed)
    };
    store.insert(new).await.unwrap();
    let layer = open(&store, packed.digest, source).await.unwrap();
    assert!(read(&layer, 0..1000).await.unwrap() == packed.tar[..1000]);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_on_disk_is_no_proof_against_the_image() {
    let node = Node::new().await;
    node.layer.fill_up();
    while !node.layer.flights.is_full() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    node.flip("data", node.span(4).start + 5);
    expect(&node, Digest::of(&node.packed.tar));
    while node.layer.counters().bad_cached_spans == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The span is fetched again, and then the proof is made.
    node.assert_right(node.span(4)).await;
    concluded(&node.layer).await;
    assert!(node.layer.is_proven());
}

/// A layer whose archive is followed by `tail`, with a diff ID that says so.
fn with_tail(compression: Compression, tail: &[u8]) -> (Packed, Digest) {
    let whole = [&packed(Compression::Gzip, 1).tar[..], tail].concat();
    let blob = match compression {
        // Two members, the second with nothing but the end of the tail.
        Compression::Gzip => [
            gzip(&whole[..whole.len() - 7]),
            gzip(&whole[whole.len() - 7..]),
        ]
        .concat(),
        Compression::Uncompressed => whole.clone(),
    };
    let options = BuildOptions {
        span_size: SpanSize::new(256 << 10).unwrap(),
        build_tool: String::from("test"),
    };
    let built = build(compression, &*blob, &options).unwrap();
    let diff_id = Digest::of(&whole);
    let packed = Packed {
        tar: whole.into(),
        blob: blob.into(),
        ztoc: built.ztoc.encode().into(),
        digest: built.layer_digest,
    };
    (packed, diff_id)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_the_archive_is_of_the_layer_whatever_it_is_and_however_much() {
    let zeros = vec![0; 3 << 20];
    let garbage = words(900_000, 7);
    for compression in [Compression::Gzip, Compression::Uncompressed] {
        for tail in [&zeros, &garbage] {
            let (packed, diff_id) = with_tail(compression, tail);
            for (expected, right) in [(diff_id, true), (Digest::of(b"another"), false)] {
                let node = Node::with(packed.clone(), options()).await;
                expect(&node, expected);
                node.layer.fill_up();
                concluded(&node.layer).await;
                assert_eq!(
                    node.layer.is_proven(),
                    right,
                    "{compression:?}, {} bytes",
                    tail.len()
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_cannot_be_had_or_is_not_the_layers_accuses_nobody() {
    for fault in [Fault::Fail, Fault::Short, Fault::Corrupt] {
        let (packed, diff_id) = with_tail(Compression::Gzip, &words(900_000, 7));
        let node = Node::with(packed, options()).await;
        node.layer.fill_up();
        while !node.layer.flights.is_full() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        node.source.will([Some(fault)]);
        let before = node.source.requests().len();
        node.layer.expect(diff_id);
        while node.source.requests().len() == before || node.layer.proof.is_running() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(
            !node.layer.proof.is_wrong() && !node.layer.is_proven(),
            "{fault:?}"
        );
        node.layer.prove_if_whole();
        concluded(&node.layer).await;
        assert!(node.layer.is_proven(), "{fault:?}");
    }
}

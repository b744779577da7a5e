//! What is fetched when nobody asks for it.

use std::time::Instant;

use super::*;
use crate::layer::fill::Filler;

async fn filled(layer: &Layer) {
    let all = layer.spans().count() as usize;
    for _ in 0..30_000 {
        if layer.spans_present() == all {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{} of {all} spans are present", layer.spans_present());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filled_layer_is_all_there_each_byte_once_and_neighbours_in_one_request() {
    let node = Node::new().await;
    node.layer.fill_up();
    filled(&node.layer).await;
    node.layer.fill_up();
    node.assert_right(node.all()).await;
    let counters = node.layer.counters();
    let spans = u64::from(node.layer.spans().count());
    assert!(counters.requests < spans / 2, "{counters:?} for {spans}");
    assert_eq!(counters.spans_decoded, spans);
    assert_eq!(counters.misses, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_filled_when_it_is_switched_off() {
    let off = LayerOptions {
        fill: None,
        ..options()
    };
    let node = Node::with(packed(Compression::Gzip, 1), off).await;
    node.layer.fill_up();
    node.store.fill_up(&[node.packed.digest]);
    node.assert_right(0..10).await;
    assert_eq!(node.source.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_of_a_file_that_is_read_comes_before_the_rest_of_the_layer() {
    let slowly = LayerOptions {
        fill: Some(FillOptions {
            period: Duration::from_millis(10),
            ..FillOptions::default()
        }),
        ..options()
    };
    let node = Node::with(packed(Compression::Gzip, 1), slowly).await;
    let (first, last) = (
        node.layer.spans().count() - 4,
        node.layer.spans().count() - 1,
    );
    let file = node.span(first).start..node.span(last).start;
    let (reply, receive) = reply();
    let at = |offset: u64| UncompressedOffset(offset);
    let range = at(file.start)..at(file.start + 10);
    node.layer
        .read_in_file(at(file.start)..at(file.end), range, reply);
    receive.await.unwrap().unwrap();
    node.layer.fill_up();
    filled(&node.layer).await;
    let starts: Vec<u64> = node
        .source
        .requests()
        .iter()
        .map(|range| range.start)
        .collect();
    let of = |span: u32| node.layer.spans().compressed(SpanId(span)).start.0;
    // Each request is a task of its own: two that follow each other may change places.
    assert_eq!(starts[0], of(first));
    assert!(starts.len() > 10, "{starts:?}");
    for span in [first + 1, first + 2] {
        let turn = starts.iter().position(|start| *start == of(span)).unwrap();
        assert!(turn < 6, "the file, then the layer: {starts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_layer_is_filled_no_further() {
    let node = Node::new().await;
    node.source.will([Some(Fault::Stall), Some(Fault::Stall)]);
    node.layer.fill_up();
    while node.source.requests().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let Node {
        store,
        layer,
        source,
        ..
    } = node;
    drop(layer);
    // Requests under way still hold it; nothing new may begin.
    tokio::time::timeout(Duration::from_secs(20), store.stop())
        .await
        .unwrap();
    assert_eq!(store.open_layers().len(), 0);
    assert!(source.requests().len() <= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_cannot_be_fetched_holds_up_no_other_and_is_tried_again() {
    let node = Node::new().await;
    node.source.will([Some(Fault::Fail); 40]);
    let other = packed(Compression::Gzip, 3);
    node.store.insert(new_layer(&other)).await.unwrap();
    let good = Script::new(other.blob.clone());
    let second = open(&node.store, other.digest, good).await.unwrap();
    node.store.fill_up(&[node.packed.digest, other.digest]);
    filled(&second).await;
    assert!(node.layer.spans_present() < node.layer.spans().count() as usize);
    assert!(node.source.requests().len() < 10, "not again and again");
    node.source.faults.lock().clear();
    filled(&node.layer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_turns_the_newest_or_the_oldest_away() {
    for drop_oldest in [false, true] {
        let node = Node::with(
            packed(Compression::Gzip, 1),
            LayerOptions {
                fill: None,
                ..options()
            },
        );
        let node = node.await;
        let other = packed(Compression::Gzip, 3);
        node.store.insert(new_layer(&other)).await.unwrap();
        let blob = Script::new(other.blob.clone());
        let second = open(&node.store, other.digest, blob).await.unwrap();
        let filler = Filler::new(FillOptions {
            most_waiting: 1,
            drop_oldest,
            ..FillOptions::default()
        });
        filler.add(&node.layer);
        filler.add(&node.layer);
        assert_eq!(
            (filler.waiting(), filler.turned_away()),
            (1, 0),
            "once is enough"
        );
        filler.add(&second);
        assert_eq!((filler.waiting(), filler.turned_away()), (1, 1));
        let next = filler.next_layer(Instant::now());
        let expected = if drop_oldest { &second } else { &node.layer };
        assert_eq!(next, Some(expected.digest()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_in_a_row_doubles_the_wait_and_a_success_ends_it() {
    let node = Node::with(
        packed(Compression::Gzip, 1),
        LayerOptions {
            fill: None,
            ..options()
        },
    )
    .await;
    let filler = Filler::new(FillOptions::default());
    filler.add(&node.layer);
    let digest = Some(node.layer.digest());
    let mut now = Instant::now();
    for wait in [1, 2, 4, 8] {
        assert_eq!(filler.next_layer(now), digest);
        filler.landed(&node.layer, Some(SpanId(1)), now);
        filler.landed(&node.layer, Some(SpanId(0)), now);
        assert_eq!(
            filler.next_layer(now + Duration::from_millis(wait * 1000 - 1)),
            None
        );
        now += Duration::from_secs(wait);
    }
    assert_eq!(filler.next_layer(now), digest);
    filler.landed(&node.layer, None, now);
    filler.landed(&node.layer, Some(SpanId(0)), now);
    assert_eq!(filler.next_layer(now + Duration::from_secs(1)), digest);
}

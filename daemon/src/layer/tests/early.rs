//! When a read is answered.

use super::*;

/// A span's bytes are handed out as soon as they are decoded, not when all of the span is: the answer
/// itself holds up the decode thread here.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_is_answered_before_the_rest_of_its_span_is_decoded() {
    let node = Node::new().await;
    let span = node.span(3);
    let (send, receive) = oneshot::channel();
    let layer = Arc::clone(&node.layer);
    let reply = ReadReply::new(move |answer| {
        let decoded = layer.counters().spans_decoded;
        let _ = send.send((answer.map(<[u8]>::to_vec), decoded));
    });
    let at = UncompressedOffset;
    node.layer
        .read(at(span.start)..at(span.start + 1000), reply);
    let (bytes, decoded) = receive.await.unwrap();
    assert_eq!(bytes, node.expected(span.start..span.start + 1000));
    assert_eq!(decoded, 0);
    quiet(&node.layer).await;
    assert_eq!(node.layer.counters().spans_decoded, 1);
    node.assert_right(span).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_never_answers_is_made_again_for_who_waits_and_not_for_the_fill() {
    let hasty = LayerOptions {
        straggler: Duration::from_millis(20),
        ..options()
    };
    let node = Node::with(packed(Compression::Gzip, 1), hasty).await;
    node.source.will([Some(Fault::Stall), Some(Fault::Stall)]);
    node.layer.request(SpanId(7)..SpanId(8), Lane::Fill);
    while node.source.requests().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    node.assert_right(0..10).await;
    let of = |span: u32| node.layer.spans().compressed(SpanId(span)).start.0;
    let starts = || -> Vec<u64> {
        let requests = node.source.requests();
        requests.iter().map(|range| range.start).collect()
    };
    assert_eq!(starts(), [of(7), of(0), of(0)]);
    assert_eq!(node.layer.counters().stragglers, 1);
    node.assert_right(node.span(7)).await;
    assert_eq!(starts().len(), 4, "now somebody waits for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demand_read_does_not_wait_behind_a_stalled_fill() {
    let tight = LayerOptions {
        in_flight: 1,
        max_request: 1,
        ..options()
    };
    let node = Node::with(packed(Compression::Gzip, 1), tight).await;
    node.source.will([Some(Fault::Stall)]);
    node.layer.request(SpanId(2)..SpanId(9), Lane::Fill);
    while node.source.requests().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // One fetch of the fill holds all of its budget; this span is queued behind it, and hurried.
    // The last of them: a wake-up must reach the right request.
    let queued = (2..9).rev().find(|&id| {
        node.layer.spans().compressed(SpanId(id)).start.0 != node.source.requests()[0].start
    });
    node.assert_right(node.span(queued.unwrap())).await;
    node.assert_right(node.span(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequential_reader_finds_its_next_spans_there() {
    let ahead = LayerOptions {
        readahead: true,
        ..options()
    };
    let node = Node::with(packed(Compression::Gzip, 1), ahead).await;
    let (from, to) = (node.span(0).start, node.span(6).end);
    for start in (from..to).step_by(65_536) {
        node.assert_right(start..(start + 65_536).min(to)).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let counters = node.layer.counters();
    assert!(counters.misses <= 4, "{counters:?}");
    assert_eq!(counters.requests, counters.requests.min(7), "{counters:?}");
}

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

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

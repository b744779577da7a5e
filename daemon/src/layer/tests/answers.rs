//! What a read is answered with.

use super::*;

pub(super) type Answer = oneshot::Receiver<Result<Vec<u8>, ReadError>>;

/// A reply, and what it is answered with.
pub(super) fn reply() -> (ReadReply, Answer) {
    let (send, receive) = oneshot::channel();
    let answer = move |answer: Result<&[u8], _>| {
        let _ = send.send(answer.map(<[u8]>::to_vec));
    };
    (ReadReply::new(answer), receive)
}

pub(super) async fn answered(answer: Answer) -> Result<Vec<u8>, ReadError> {
    let answer = tokio::time::timeout(Duration::from_secs(60), answer);
    answer.await.expect("a read is answered").unwrap()
}

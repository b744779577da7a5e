//! A layer blob on its way from the runtime to the threads that unpack it.

use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use futures::{Stream, StreamExt as _};
use tokio::sync::mpsc;

/// Chunks between the two. Few: a chunk of a parallel download is megabytes.
const CHUNKS: usize = 2;

/// What the sending side says.
enum Message {
    Chunk(Bytes),
    Failed(io::Error),
    End,
}

/// The receiving end; blocks. Ends only when the sender said so: one that is dropped is an error.
pub(super) struct Receiver {
    messages: mpsc::Receiver<Message>,
    ended: bool,
}

/// The sending work and the receiving end of one blob.
pub(super) fn channel(
    mut blob: impl Stream<Item = io::Result<Bytes>> + Send + Unpin,
) -> (impl Future<Output = ()> + Send, Receiver) {
    let (send, messages) = mpsc::channel(CHUNKS);
    let receiver = Receiver {
        messages,
        ended: false,
    };
    let work = async move {
        while let Some(chunk) = blob.next().await {
            let (message, last) = match chunk {
                Ok(chunk) => (Message::Chunk(chunk), false),
                Err(error) => (Message::Failed(error), true),
            };
            if send.send(message).await.is_err() || last {
                return;
            }
        }
        let _ = send.send(Message::End).await;
    };
    (work, receiver)
}

impl Receiver {
    /// The next bytes, not none; `None` at the end.
    pub(super) fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        while !self.ended {
            match self.messages.blocking_recv() {
                Some(Message::Chunk(chunk)) if chunk.is_empty() => {}
                Some(Message::Chunk(chunk)) => return Ok(Some(chunk)),
                Some(Message::End) => self.ended = true,
                Some(Message::Failed(error)) => return Err(error),
                None => return Err(io::Error::other("the download was given up")),
            }
        }
        Ok(None)
    }
}

/// Reads a receiver through, and shows each chunk to `seen` as it comes.
pub(super) struct Chunks<F> {
    receiver: Receiver,
    chunk: Bytes,
    seen: F,
}

impl<F: FnMut(&Bytes) -> io::Result<()>> Chunks<F> {
    pub(super) fn new(receiver: Receiver, seen: F) -> Self {
        Self {
            receiver,
            chunk: Bytes::new(),
            seen,
        }
    }
}

impl<F: FnMut(&Bytes) -> io::Result<()>> Read for Chunks<F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.chunk.is_empty()
            && let Some(chunk) = self.receiver.chunk()?
        {
            (self.seen)(&chunk)?;
            self.chunk = chunk;
        }
        let length = into.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut into[..length]);
        if self.chunk.is_empty() {
            // Whoever lent its bytes may have them back.
            self.chunk = Bytes::new();
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_download_that_is_given_up_is_no_end_of_file() {
        let blob = futures::stream::iter([Ok(Bytes::from_static(b"abc"))]);
        let (work, receiver) = channel(blob.chain(futures::stream::pending()));
        let mut reader = Chunks::new(receiver, |_| Ok(()));
        let reader = tokio::task::spawn_blocking(move || reader.read_to_end(&mut Vec::new()));
        let given_up = tokio::time::timeout(std::time::Duration::from_millis(5), work);
        assert!(given_up.await.is_err());
        assert!(reader.await.unwrap().is_err());
    }
}

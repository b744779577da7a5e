//! A layer blob on its way from the runtime to the thread that unpacks it.

use std::io::{self, BufRead, BufReader, Read};

use bytes::{Buf as _, Bytes};
use futures::{Stream, StreamExt as _};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use ztoc::Digest;

/// Chunks between the two; a chunk is what arrives at once, usually 16 to 64 KiB.
const CHUNKS: usize = 32;

/// What the sending side says.
enum Message {
    Chunk(Bytes),
    Failed(io::Error),
    End,
}

/// The receiving end; blocks. Ends only when the sender said so: one that is dropped is an error.
pub(super) struct Receiver {
    messages: mpsc::Receiver<Message>,
    chunk: Bytes,
    ended: bool,
}

/// Reads through, hashes and counts what was read.
pub(super) struct Hashed<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
    limit: u64,
}

/// The sending work and the receiving end of one blob.
pub(super) fn channel(
    mut blob: impl Stream<Item = io::Result<Bytes>> + Send + Unpin,
) -> (impl Future<Output = ()> + Send, Receiver) {
    let (send, messages) = mpsc::channel(CHUNKS);
    let receiver = Receiver {
        messages,
        chunk: Bytes::new(),
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

impl Read for Receiver {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() && !self.ended {
            match self.messages.blocking_recv() {
                Some(Message::Chunk(chunk)) => self.chunk = chunk,
                Some(Message::End) => self.ended = true,
                Some(Message::Failed(error)) => return Err(error),
                None => return Err(io::Error::other("the download was given up")),
            }
        }
        let length = into.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut into[..length]);
        Ok(length)
    }
}

impl<R: Read> Hashed<R> {
    /// Refuses to read more than `limit` bytes.
    pub(super) fn new(inner: R, limit: u64) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            bytes: 0,
            limit,
        }
    }

    /// Reads what is left and tells the digest of all of it.
    pub(super) fn finish(&mut self) -> io::Result<Digest> {
        io::copy(self, &mut io::sink())?;
        Ok(Digest::from_bytes(self.hash.clone().finalize().into()))
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(into)?;
        self.bytes += length as u64;
        if self.bytes > self.limit {
            let detail = format!("more than the {} bytes accepted", self.limit);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, detail));
        }
        self.hash.update(&into[..length]);
        Ok(length)
    }
}

/// The plain tar in `blob`, whatever it is compressed with, told by its first bytes.
pub(super) fn decompress<'a, R: Read + 'a>(blob: R) -> io::Result<Box<dyn Read + 'a>> {
    let mut blob = BufReader::with_capacity(128 << 10, blob);
    let start = blob.fill_buf()?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(blob)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(blob)?),
        // A skippable frame, as written in front of seekable zstd.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(blob)?)
        }
        _ => Box::new(blob),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write as _;

    #[test]
    fn gzip_of_several_members_zstd_of_several_frames_and_plain_bytes_are_told_apart() {
        let member = |bytes: &[u8]| {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(bytes).unwrap();
            gzip.finish().unwrap()
        };
        let frame = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        let both = |make: &dyn Fn(&[u8]) -> Vec<u8>| [make(b"one "), make(b"two")].concat();
        for blob in [both(&member), both(&frame), b"one two".to_vec()] {
            let mut plain = String::new();
            decompress(&*blob)
                .unwrap()
                .read_to_string(&mut plain)
                .unwrap();
            assert_eq!(plain, "one two");
        }
    }

    #[tokio::test]
    async fn a_download_that_is_given_up_is_no_end_of_file() {
        let blob = futures::stream::iter([Ok(Bytes::from_static(b"abc"))]);
        let (work, mut receiver) = channel(blob.chain(futures::stream::pending()));
        let reader = tokio::task::spawn_blocking(move || receiver.read_to_end(&mut Vec::new()));
        let given_up = tokio::time::timeout(std::time::Duration::from_millis(5), work);
        assert!(given_up.await.is_err());
        assert!(reader.await.unwrap().is_err());
    }

    #[test]
    fn more_bytes_than_accepted_are_an_error() {
        let mut hashed = Hashed::new(&[0; 100][..], 99);
        assert!(hashed.finish().is_err());
        assert_eq!(
            Hashed::new(&b"{}"[..], 2).finish().unwrap(),
            Digest::of(b"{}")
        );
    }
}

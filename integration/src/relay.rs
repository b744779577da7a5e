//! Passes TCP connections on, later.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::acceptor::Acceptor;

/// Bytes read at once.
const CHUNK: usize = 64 << 10;
/// Chunks on their way in one direction of one connection: 16 MiB, more than fit into a link of
/// 1 Gbit/s and 80 ms.
const ON_THEIR_WAY: usize = 256;

/// Listens on loopback and passes on to another address, each byte half a round trip later; a new
/// connection costs a whole one. Ends when dropped.
#[derive(Debug)]
pub struct Relay {
    acceptor: Acceptor,
    passed: Arc<AtomicU64>,
}

impl Relay {
    /// Starts it in front of `target`.
    pub fn start(target: SocketAddr, round_trip: Duration) -> Result<Self> {
        let passed = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&passed);
        let acceptor = Acceptor::start(move |near| {
            let passed = Arc::clone(&counter);
            async move {
                sleep(round_trip).await;
                // Either end may break off; the other one is told by its connection's end.
                let _ = pass(near, target, round_trip / 2, &passed).await;
            }
        })?;
        Ok(Self { acceptor, passed })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.acceptor.address()
    }

    /// Bytes that came back through it so far; goes on counting.
    pub fn passed(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.passed)
    }
}

async fn pass(
    near: TcpStream,
    target: SocketAddr,
    delay: Duration,
    passed: &AtomicU64,
) -> io::Result<()> {
    let far = TcpStream::connect(target).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let unseen = AtomicU64::new(0);
    tokio::try_join!(
        one_way(near_in, far_out, delay, &unseen),
        one_way(far_in, near_out, delay, passed)
    )?;
    Ok(())
}

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    delay: Duration,
    passed: &AtomicU64,
) -> io::Result<()> {
    let (push, mut pull) = mpsc::channel::<(Instant, Bytes)>(ON_THEIR_WAY);
    let reading = async move {
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = from.read(&mut buffer).await?;
            let chunk = Bytes::copy_from_slice(&buffer[..count]);
            if count == 0 || push.send((Instant::now() + delay, chunk)).await.is_err() {
                return io::Result::Ok(());
            }
        }
    };
    let writing = async move {
        while let Some((due, chunk)) = pull.recv().await {
            sleep_until(due).await;
            to.write_all(&chunk).await?;
            passed.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
        to.shutdown().await
    };
    tokio::try_join!(reading, writing)?;
    Ok(())
}

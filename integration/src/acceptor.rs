//! Accepts TCP connections on a thread of its own.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use anyhow::Result;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// Listens on loopback and has each connection served in a task. Ends, with all of them, when dropped.
#[derive(Debug)]
pub struct Acceptor {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    /// Starts it; `serve` makes what serves one connection.
    pub fn start<S>(serve: impl Fn(TcpStream) -> S + Send + 'static) -> Result<Self>
    where
        S: Future<Output = ()> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let accept = async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(serve(near));
            }
        };
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = accept => {}
                }
            });
        });
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic has been printed; its connections are gone either way.
            let _ = thread.join();
        }
    }
}

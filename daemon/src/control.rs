//! The control API: looking into the running daemon, and acting on it, on a socket of its own next to the
//! one that containerd calls.

pub mod journal;
pub mod overlay;
mod service;
mod stream;

#[cfg(any(test, fuzzing))]
pub(crate) use self::service::probe;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::spanshot::control::v1::control_server::ControlServer;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use self::service::Service;
pub use self::stream::read_messages;
use crate::app::socket;
use crate::layer::LayerStore;
use crate::metrics::Metrics;
use crate::view::Views;

/// The version of the API; one more with each change that a client must know of.
pub const API: u32 = 1;

/// What can be looked into.
#[derive(Debug, Clone)]
pub struct Inside {
    /// Mounted views.
    pub views: Views,
    /// Layers.
    pub layers: LayerStore,
    /// Holds the journal.
    pub metrics: Arc<Metrics>,
}

/// The API being served; ends when dropped.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    serving: JoinHandle<()>,
}

/// The control socket that belongs to the socket at `address`.
pub fn socket_of(address: &Path) -> PathBuf {
    address.with_extension("control.sock")
}

impl Control {
    /// Serves on `path`, with mode 0660.
    ///
    /// # Errors
    /// The socket cannot be had.
    pub fn start(path: &Path, inside: Inside) -> std::io::Result<Self> {
        let listener = socket::listen(path)?;
        let server = Server::builder().add_service(ControlServer::new(Service::new(inside)));
        let serving = tokio::spawn(async move {
            if let Err(error) = server
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
            {
                tracing::error!("the control API is served no more: {error}");
            }
        });
        Ok(Self {
            path: path.to_owned(),
            serving,
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.serving.abort();
        // It is stale from here on; the next start would remove it as well.
        let _ = std::fs::remove_file(&self.path);
    }
}

//! The running daemon, through its control API.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use daemon::control::socket_of;
use hyper_util::rt::TokioIo;
use proto::spanshot::control::v1 as api;
use proto::spanshot::control::v1::control_client::ControlClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Response, Status};

use crate::options::Globals;

/// A record of a view's reads is the largest message.
const MAX_MESSAGE: usize = 64 << 20;

/// The client, and where it asks.
pub(crate) struct Control {
    pub(crate) client: ControlClient<Channel>,
    socket: PathBuf,
}

/// A channel to a unix socket; connects with the first request.
pub(crate) fn channel(socket: PathBuf) -> Channel {
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(
        move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        },
    ))
}

impl Control {
    pub(crate) fn new(globals: &Globals) -> Self {
        let socket = socket_of(&globals.snapshotter_address);
        let client = ControlClient::new(channel(socket.clone()));
        Self {
            client: client.max_decoding_message_size(MAX_MESSAGE),
            socket,
        }
    }

    /// The answer of a call, or an error that says what to do.
    pub(crate) fn answer<T>(&self, outcome: Result<Response<T>, Status>) -> Result<T> {
        let status = match outcome {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => status,
        };
        if status.code() == tonic::Code::Unavailable || status.code() == tonic::Code::Unknown {
            let socket = self.socket.display();
            return Err(anyhow!("{}", status.message())).with_context(|| {
                format!("no snapshotter answers at {socket}; is soci-snapshotter-grpc running, and are you root? (soci doctor tells more)")
            });
        }
        bail!("{}", status.message())
    }

    pub(crate) async fn views(&mut self) -> Result<Vec<api::View>> {
        let outcome = self.client.views(()).await;
        Ok(self.answer(outcome)?.views)
    }

    /// The view that a person means by its number, mount point, image or container.
    pub(crate) async fn find(&mut self, name: &str) -> Result<Target> {
        let views = self.views().await?;
        let mut found: Vec<Target> = Vec::new();
        for view in views {
            let containers = view.containers.iter();
            let mut named = containers.filter(|it| !it.id.is_empty() && it.id.starts_with(name));
            let container = named.next().cloned();
            let is_view = view.id.to_string() == name || view.mountpoint == name;
            if is_view || container.is_some() || is_image(&view, name) {
                found.push(Target { view, container });
            }
        }
        match found.len() {
            0 => bail!("no mounted view is, or belongs to, {name:?}; soci inspect lists them"),
            1 => Ok(found.remove(0)),
            _ => {
                let views: Vec<_> = found.iter().map(|it| label(&it.view)).collect();
                bail!("{name:?} is several views; say which: {}", views.join(", "))
            }
        }
    }
}

/// A view, and the container it was named by.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) view: api::View,
    pub(crate) container: Option<api::Container>,
}

/// A view's number, and whose ids it shows if they are not the image's.
fn label(view: &api::View) -> String {
    match &view.ids {
        Some(ids) => format!("{} (users {})", view.id, ids.users),
        None => view.id.to_string(),
    }
}

fn is_image(view: &api::View, name: &str) -> bool {
    let full = name.parse::<daemon::registry::Reference>();
    let full = full.map(|it| it.to_string()).unwrap_or_default();
    images(view)
        .iter()
        .any(|image| image == name || *image == full)
}

/// The images whose layers a view shows; the one of its top-most layer first.
pub(crate) fn images(view: &api::View) -> Vec<String> {
    let mut images: Vec<String> = Vec::new();
    for image in view.layers.iter().rev().flat_map(|layer| &layer.images) {
        if !images.contains(image) {
            images.push(image.clone());
        }
    }
    images
}

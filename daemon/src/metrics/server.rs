//! `GET /metrics` over TCP or a unix socket.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Metrics;
use crate::config::MetricsAddress;

/// Scrapes at once; more wait.
const MAX_CONNECTIONS: usize = 16;
/// Patience with a client that sends its request slowly.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest life of a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// Pause after a failed accept: most often descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listener of the metrics, not serving yet.
#[derive(Debug)]
pub struct MetricsServer {
    listener: Listener,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The metrics address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address:?} (metrics_address in the configuration)")]
pub struct ServeError {
    address: String,
    source: io::Error,
}

impl MetricsServer {
    /// Listens where the configuration says; nowhere if it names no address.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn bind(
        config: MetricsAddress<'_>,
        metrics: Arc<Metrics>,
    ) -> Result<Option<Self>, ServeError> {
        let (bound, address) = match config {
            MetricsAddress::Off => return Ok(None),
            MetricsAddress::Tcp(address) => {
                (TcpListener::bind(address).await.map(Listener::Tcp), address)
            }
            MetricsAddress::Unix(path) => {
                let listener = crate::app::socket::listen(path.as_ref());
                (listener.map(Listener::Unix), path)
            }
        };
        let listener = bound.map_err(|source| ServeError {
            address: address.to_owned(),
            source,
        })?;
        Ok(Some(Self { listener, metrics }))
    }

    /// Serves for ever; ends when dropped.
    pub async fn serve(self) -> Infallible {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
                continue;
            };
            let metrics = Arc::clone(&self.metrics);
            let accepted = match &self.listener {
                Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    connections.spawn(async move {
                        connection(stream, metrics).await;
                        drop(slot);
                    });
                }),
                Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                    connections.spawn(async move {
                        connection(stream, metrics).await;
                        drop(slot);
                    });
                }),
            };
            if let Err(error) = accepted {
                tracing::debug!(%error, "a connection for metrics could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin, metrics: Arc<Metrics>) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = answer(&request, &metrics);
        async { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    // A client that went away or talked nonsense is its own problem.
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, served).await;
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if request.uri().path() != "/metrics" {
        *response.status_mut() = StatusCode::NOT_FOUND;
    } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    } else {
        let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        *response.body_mut() = Full::from(metrics.text());
    }
    response
}

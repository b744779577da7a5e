//! Connections: each request is recorded, struck by the script, answered.

use std::future::pending;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderName, RANGE, USER_AGENT};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::answer::{Answer, Body};
use super::fault::Fault;
use super::state::{Recorded, State};

/// What answers a request that has come in whole.
pub(super) type Handler = fn(&State, &Asked) -> Answer;

/// A request with its body.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) record: Recorded,
    /// `Authorization`, whole.
    pub(super) credentials: Option<String>,
    pub(super) content_type: String,
    pub(super) body: Bytes,
}

/// Serves connections for ever; they end with this task.
pub(super) async fn serve(listener: TcpListener, state: Arc<State>, handler: Handler) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        connections.spawn(connection(stream, state.clone(), handler));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: TcpStream, state: Arc<State>, handler: Handler) {
    let storage = stream
        .local_addr()
        .is_ok_and(|address| address == state.storage);
    let service = service_fn(|request| handle(&state, handler, storage, request));
    // A connection that a fault has broken is not worth a word.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn handle(
    state: &State,
    handler: Handler,
    storage: bool,
    request: Request<Incoming>,
) -> io::Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let header = |name: HeaderName| {
        head.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    let credentials = header(AUTHORIZATION);
    let scheme = credentials
        .as_deref()
        .and_then(|text| text.split(' ').next());
    let record = Recorded {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        range: header(RANGE),
        authorization: scheme.map(str::to_owned),
        user_agent: header(USER_AGENT),
        storage,
    };
    state.requests.lock().push(record.clone());
    let fault = state.script.lock().strike(&record.method, &record.path);
    if fault == Some(Fault::Stall) {
        pending::<()>().await;
    }
    let asked = Asked {
        credentials,
        content_type: header(hyper::header::CONTENT_TYPE).unwrap_or_default(),
        body: body.collect().await.map_err(io::Error::other)?.to_bytes(),
        record,
    };
    let mut answer = handler(state, &asked);
    answer.bodiless = asked.record.method == "HEAD";
    answer.finish(fault)
}

//! Requests to the collector, on the daemon's own HTTP client and runtime.

use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use opentelemetry_http::{HttpClient, HttpError};
use tokio::runtime::Handle;

use crate::layer::Throttle;
use crate::registry::RegistryConfig;
use crate::registry::tls::{self, HostTls};

/// Longest time for one request.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest answer that is read, in bytes: a collector says how many spans it refused.
const MAX_ANSWER: usize = 64 << 10;
/// How often it is logged that a collector is away.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Sends requests to a collector. Called on the thread that sends spans, which has no runtime.
#[derive(Debug)]
pub(super) struct Collector {
    client: reqwest::Client,
    runtime: Handle,
    trouble: Throttle,
}

impl Collector {
    pub(super) fn new(runtime: Handle) -> Result<Self, String> {
        let client = tls::client(&RegistryConfig::default(), &HostTls::default());
        Ok(Self {
            client: client.map_err(|problem| problem.to_string())?,
            runtime,
            trouble: Throttle::default(),
        })
    }

    async fn exchange(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let request = reqwest::Request::try_from(request)?;
        let asked = async move { read(client.execute(request).await?).await };
        // The timer too is the runtime's.
        let limited = async move { tokio::time::timeout(PATIENCE, asked).await };
        let asked = self.runtime.spawn(limited);
        let answered = asked
            .await?
            .map_err(|_| format!("no answer in {PATIENCE:?}"))?;
        answered.map_err(|error| tls::root_cause(&*error).into())
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(
        &self,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Bytes>, HttpError> {
        let answer = self.exchange(request).await;
        let wrong = match &answer {
            Ok(answer) if answer.status().is_success() => return Ok(answer.clone()),
            Ok(answer) => format!("status {}", answer.status().as_u16()),
            Err(error) => error.to_string(),
        };
        if let Some(suppressed) = self.trouble.pass(LOG_INTERVAL) {
            tracing::warn!(
                suppressed,
                "the collector of traces does not take them, they are lost: {wrong}"
            );
        }
        answer
    }
}

async fn read(mut answer: reqwest::Response) -> Result<http::Response<Bytes>, HttpError> {
    let mut body = BytesMut::new();
    while let Some(piece) = answer.chunk().await? {
        if body.len() + piece.len() > MAX_ANSWER {
            return Err("the answer is too long".into());
        }
        body.extend_from_slice(&piece);
    }
    let mut read = http::Response::new(body.freeze());
    *read.status_mut() = answer.status();
    *read.headers_mut() = std::mem::take(answer.headers_mut());
    Ok(read)
}

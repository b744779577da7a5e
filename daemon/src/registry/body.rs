//! Bodies of answers, read with limits on size and on silence.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::error::Problem;
use super::tls::root_cause;

/// Largest buffer reserved before bytes have come, in bytes.
const MAX_RESERVED: u64 = 8 << 20;

/// The body of an answer.
#[derive(Debug)]
pub(crate) struct Body {
    response: reqwest::Response,
    stall: Duration,
    /// What [`Body::skip`] has read too much.
    rest: Option<Bytes>,
}

impl Body {
    /// Gives up when no byte comes for `stall`.
    pub(crate) fn new(response: reqwest::Response, stall: Duration) -> Self {
        Self {
            response,
            stall,
            rest: None,
        }
    }

    /// The next bytes; `None` at the end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Problem> {
        match self.rest.take() {
            Some(rest) => Ok(Some(rest)),
            None => self.response_chunk().await,
        }
    }

    async fn response_chunk(&mut self) -> Result<Option<Bytes>, Problem> {
        match tokio::time::timeout(self.stall, self.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(Problem::Interrupted {
                detail: root_cause(&error),
            }),
            Err(_) => Err(Problem::Timeout {
                awaited: "byte of the body",
                limit: self.stall,
            }),
        }
    }

    /// Everything, if it is at most `limit` bytes.
    pub(crate) async fn read_all(mut self, limit: u64) -> Result<Bytes, Problem> {
        let announced = self.response.content_length().unwrap_or_default();
        if announced > limit {
            return Err(Problem::TooLarge { limit });
        }
        let mut bytes = BytesMut::with_capacity(reserve(announced));
        while let Some(chunk) = self.chunk().await? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(Problem::TooLarge { limit });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    /// Reads past the first `count` bytes; the next chunk begins behind them.
    pub(crate) async fn skip(&mut self, mut count: u64) -> Result<(), Problem> {
        while count > 0 {
            let Some(mut chunk) = self.response_chunk().await? else {
                return Err(Problem::Short {
                    got: 0,
                    wanted: count,
                });
            };
            let skipped = usize::try_from(count)
                .unwrap_or(usize::MAX)
                .min(chunk.len());
            count -= skipped as u64;
            let rest = chunk.split_off(skipped);
            self.rest = Some(rest).filter(|rest| !rest.is_empty());
        }
        Ok(())
    }

    /// `wanted` bytes after the first `skip`; what follows is left unread.
    pub(crate) async fn read_part(mut self, skip: u64, wanted: u64) -> Result<Bytes, Problem> {
        self.skip(skip).await?;
        let mut bytes = BytesMut::with_capacity(reserve(wanted));
        while (bytes.len() as u64) < wanted {
            let Some(mut chunk) = self.chunk().await? else {
                let got = bytes.len() as u64;
                return Err(Problem::Short { got, wanted });
            };
            let missing = usize::try_from(wanted - bytes.len() as u64).unwrap_or(usize::MAX);
            chunk.truncate(missing);
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }
}

fn reserve(bytes: u64) -> usize {
    usize::try_from(bytes.min(MAX_RESERVED)).unwrap_or_default()
}

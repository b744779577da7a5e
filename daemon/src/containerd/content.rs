//! Content: blobs by digest, written through ingests.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use proto::containerd::services::content::v1 as api;
use proto::containerd::services::content::v1::content_client::ContentClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use ztoc::Digest;

use super::{Containerd, ContainerdError, MAX_MESSAGE_SIZE, optional};

/// Bytes of one message of an ingest.
const WRITE_SIZE: usize = 1 << 20;

/// What containerd knows about a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentInfo {
    /// Digest.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// Labels; the garbage collector follows those of `containerd.io/gc.ref.`.
    pub labels: BTreeMap<String, String>,
}

impl Containerd {
    fn content(&self) -> ContentClient<tonic::transport::Channel> {
        ContentClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_SIZE)
    }

    /// Size and labels of a blob.
    pub async fn content_info(
        &self,
        digest: &Digest,
    ) -> Result<Option<ContentInfo>, ContainerdError> {
        let request = self.request(api::InfoRequest {
            digest: digest.to_string(),
        });
        let answer = optional(self.content().info(request).await)
            .map_err(self.failed(format!("look up content {digest}")))?;
        Ok(answer
            .and_then(|answer| answer.into_inner().info)
            .and_then(read_info))
    }

    /// All blobs of the namespace.
    pub async fn content_list(&self) -> Result<Vec<ContentInfo>, ContainerdError> {
        let failed = || self.failed("list content");
        let request = self.request(api::ListContentRequest {
            filters: Vec::new(),
        });
        let pages: Vec<api::ListContentResponse> = self
            .content()
            .list(request)
            .await
            .map_err(failed())?
            .into_inner()
            .try_collect()
            .await
            .map_err(failed())?;
        let infos = pages.into_iter().flat_map(|page| page.info);
        Ok(infos.filter_map(read_info).collect())
    }

    /// The bytes of a blob from `offset` on.
    pub async fn content_read(
        &self,
        digest: &Digest,
        offset: u64,
    ) -> Result<impl Stream<Item = Result<Bytes, ContainerdError>> + Send + 'static, ContainerdError>
    {
        let request = self.request(api::ReadContentRequest {
            digest: digest.to_string(),
            offset: i64::try_from(offset).unwrap_or(i64::MAX),
            size: 0,
        });
        let action = format!("read content {digest}");
        let answer = self.content().read(request).await;
        let stream = answer.map_err(self.failed(&action))?.into_inner();
        let containerd = self.clone();
        Ok(stream.map(move |part| {
            part.map(|part| Bytes::from(part.data))
                .map_err(containerd.failed(&action))
        }))
    }

    /// Sets `labels` of a blob, leaving its other labels.
    pub async fn content_label(
        &self,
        digest: &Digest,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ContainerdError> {
        if labels.is_empty() {
            return Ok(());
        }
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let request = self.request(api::UpdateRequest {
            info: Some(api::Info {
                digest: digest.to_string(),
                labels: labels.clone().into_iter().collect(),
                ..api::Info::default()
            }),
            update_mask: Some(prost_types::FieldMask { paths }),
        });
        self.content()
            .update(request)
            .await
            .map_err(self.failed(format!("label content {digest}")))?;
        Ok(())
    }

    /// Removes a blob; whether it was there.
    pub async fn content_delete(&self, digest: &Digest) -> Result<bool, ContainerdError> {
        let request = self.request(api::DeleteContentRequest {
            digest: digest.to_string(),
        });
        let answer = optional(self.content().delete(request).await)
            .map_err(self.failed(format!("delete content {digest}")))?;
        Ok(answer.is_some())
    }

    /// Stores `size` bytes that hash to `digest` (containerd checks), and labels them. Content
    /// that exists already is only labelled.
    pub async fn content_write(
        &self,
        digest: &Digest,
        size: u64,
        labels: &BTreeMap<String, String>,
        source: impl Stream<Item = std::io::Result<Bytes>> + Send,
    ) -> Result<(), ContainerdError> {
        let mut ingest = match Ingest::open(self, digest, size).await {
            Err(error) if error.is_already_exists() => {
                return self.content_label(digest, labels).await;
            }
            other => other?,
        };
        let written = ingest.copy(source, labels).await;
        match written {
            Err(error) if error.is_already_exists() => self.content_label(digest, labels).await,
            Err(error) => {
                ingest.abort().await;
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }
}

fn read_info(info: api::Info) -> Option<ContentInfo> {
    Some(ContentInfo {
        digest: info.digest.parse().ok()?,
        size: u64::try_from(info.size).ok()?,
        labels: info.labels.into_iter().collect(),
    })
}

/// A blob being written, one message and its answer at a time. Its name is its own: two processes that
/// write the same blob do not get into each other's way.
struct Ingest {
    containerd: Containerd,
    action: String,
    reference: String,
    digest: Digest,
    total: i64,
    offset: i64,
    requests: mpsc::Sender<api::WriteContentRequest>,
    answers: Streaming<api::WriteContentResponse>,
}

impl Ingest {
    async fn open(
        containerd: &Containerd,
        digest: &Digest,
        size: u64,
    ) -> Result<Self, ContainerdError> {
        let action = format!("store content {digest}");
        let total = i64::try_from(size)
            .map_err(|_| containerd.malformed(&action, format!("{size} bytes")))?;
        let reference = format!("soci-{}-{digest}", unique());
        let (requests, receiver) = mpsc::channel(1);
        let first = api::WriteContentRequest {
            action: api::WriteAction::Stat.into(),
            r#ref: reference.clone(),
            total,
            expected: digest.to_string(),
            ..api::WriteContentRequest::default()
        };
        // The server answers the call with its first message, so the first request must be under way.
        let _ = requests.try_send(first);
        let request = containerd.request(ReceiverStream::new(receiver));
        let failed = || containerd.failed(&action);
        let answer = containerd.content().write(request).await;
        let mut answers = answer.map_err(failed())?.into_inner();
        answers.message().await.map_err(failed())?;
        Ok(Self {
            containerd: containerd.clone(),
            action,
            reference,
            digest: *digest,
            total,
            offset: 0,
            requests,
            answers,
        })
    }

    async fn copy(
        &mut self,
        source: impl Stream<Item = std::io::Result<Bytes>> + Send,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), ContainerdError> {
        let mut source = std::pin::pin!(source);
        while let Some(part) = source.next().await {
            let mut part = part.map_err(|source| ContainerdError::Source {
                address: self.containerd.address.display().to_string(),
                action: self.action.clone(),
                source,
            })?;
            while !part.is_empty() {
                let piece = part.split_to(part.len().min(WRITE_SIZE));
                self.send(api::WriteAction::Write, piece, HashMap::new())
                    .await?;
            }
        }
        let labels = labels.clone().into_iter().collect();
        self.send(api::WriteAction::Commit, Bytes::new(), labels)
            .await
    }

    async fn send(
        &mut self,
        action: api::WriteAction,
        data: Bytes,
        labels: HashMap<String, String>,
    ) -> Result<(), ContainerdError> {
        let length = i64::try_from(data.len()).unwrap_or(i64::MAX);
        let request = api::WriteContentRequest {
            action: action.into(),
            r#ref: self.reference.clone(),
            total: self.total,
            expected: self.digest.to_string(),
            offset: self.offset,
            data: data.into(),
            labels,
        };
        // A closed channel means that the server ended the call: its answer says why.
        let _ = self.requests.send(request).await;
        let answer = self.answers.message().await.and_then(|answer| {
            answer.ok_or_else(|| Status::new(Code::Aborted, "containerd ended the transfer"))
        });
        answer.map_err(self.containerd.failed(&self.action))?;
        self.offset = self.offset.saturating_add(length);
        Ok(())
    }

    /// Best effort: what is left is collected a day later.
    async fn abort(self) {
        let Self {
            containerd,
            reference,
            requests,
            answers,
            ..
        } = self;
        drop((requests, answers));
        let request = containerd.request(api::AbortRequest { r#ref: reference });
        let _ = containerd.content().abort(request).await;
    }
}

/// Differs from every other of this host: process and a counter.
fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nanos = time::OffsetDateTime::now_utc().unix_timestamp_nanos();
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{}-{nanos}-{count}", std::process::id())
}

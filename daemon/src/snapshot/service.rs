//! containerd's gRPC service on top of [`Snapshotter`]. The only file that knows its messages.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, stream};
use proto::containerd::services::snapshots::v1 as api;
use proto::containerd::services::snapshots::v1::snapshots_server::{Snapshots, SnapshotsServer};
use proto::containerd::types;
use time::OffsetDateTime;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};
use tracing::Instrument as _;

use super::filter::Filters;
use super::labels;
use super::mounts::Mount;
use super::record::{Entry, Kind};
use super::snapshotter::{LabelChange, NewRequest, Snapshotter};
use super::store::CommitRequest;
use crate::error::SnapshotError;
use crate::traces;

/// Snapshots per message of a list.
const BATCH: usize = 100;
/// Largest request that is read, in bytes. containerd's limit for its own messages is the same.
const MAX_REQUEST: usize = 16 << 20;

/// The service. See the module.
#[derive(Debug, Clone)]
pub struct Service(Arc<Snapshotter>);

impl Service {
    /// The service of a snapshotter, to be added to a server.
    pub fn server(snapshotter: Arc<Snapshotter>) -> SnapshotsServer<Self> {
        SnapshotsServer::new(Self(snapshotter)).max_decoding_message_size(MAX_REQUEST)
    }
}

/// What a call answers, or the status of its failure.
type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Answer<api::PrepareSnapshotResponse> {
        let (metadata, _, call) = request.into_parts();
        let namespace = namespace(&metadata, &call.key);
        let trace = traces::prepare(metadata.as_ref(), &call.key);
        let mounts = self.0.prepare(NewRequest {
            key: call.key,
            parent: some(call.parent),
            labels: call.labels.into_iter().collect(),
            namespace,
        });
        let mounts = mounts.instrument(trace).await;
        let mounts = answer("Prepare", mounts)?.into_iter();
        Ok(Response::new(api::PrepareSnapshotResponse {
            mounts: mounts.map(mount).collect(),
        }))
    }

    async fn view(
        &self,
        request: Request<api::ViewSnapshotRequest>,
    ) -> Answer<api::ViewSnapshotResponse> {
        let (metadata, _, call) = request.into_parts();
        let namespace = namespace(&metadata, &call.key);
        let mounts = self.0.view(NewRequest {
            key: call.key,
            parent: some(call.parent),
            labels: call.labels.into_iter().collect(),
            namespace,
        });
        let mounts = answer("View", mounts.await)?.into_iter();
        Ok(Response::new(api::ViewSnapshotResponse {
            mounts: mounts.map(mount).collect(),
        }))
    }

    async fn mounts(&self, request: Request<api::MountsRequest>) -> Answer<api::MountsResponse> {
        let mounts = self.0.mounts(request.into_inner().key).await;
        let mounts = answer("Mounts", mounts)?.into_iter();
        Ok(Response::new(api::MountsResponse {
            mounts: mounts.map(mount).collect(),
        }))
    }

    async fn commit(&self, request: Request<api::CommitSnapshotRequest>) -> Answer<()> {
        let call = request.into_inner();
        let committed = self.0.commit(CommitRequest {
            key: call.key,
            name: call.name,
            parent: some(call.parent),
            labels: call.labels.into_iter().collect(),
        });
        answer("Commit", committed.await).map(Response::new)
    }

    async fn remove(&self, request: Request<api::RemoveSnapshotRequest>) -> Answer<()> {
        let removed = self.0.remove(request.into_inner().key).await;
        answer("Remove", removed).map(Response::new)
    }

    async fn stat(
        &self,
        request: Request<api::StatSnapshotRequest>,
    ) -> Answer<api::StatSnapshotResponse> {
        let entry = self.0.stat(request.into_inner().key).await;
        let info = Some(info(answer("Stat", entry)?));
        Ok(Response::new(api::StatSnapshotResponse { info }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> Answer<api::UpdateSnapshotResponse> {
        let call = request.into_inner();
        let wanted = call.info.unwrap_or_default();
        let paths = call.update_mask.unwrap_or_default().paths;
        let (key, change) = (
            wanted.name.clone(),
            answer("Update", change(wanted, &paths))?,
        );
        let entry = self.0.update(key, change).await;
        let info = Some(info(answer("Update", entry)?));
        Ok(Response::new(api::UpdateSnapshotResponse { info }))
    }

    type ListStream =
        Pin<Box<dyn Stream<Item = Result<api::ListSnapshotsResponse, Status>> + Send>>;

    async fn list(&self, request: Request<api::ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let filters = Filters::parse(&request.into_inner().filters);
        let filters = answer("List", filters.map_err(SnapshotError::from))?;
        let mut infos = answer("List", self.0.list(filters).await)?
            .into_iter()
            .map(info);
        let batches = std::iter::from_fn(move || {
            let info: Vec<api::Info> = infos.by_ref().take(BATCH).collect();
            (!info.is_empty()).then_some(Ok(api::ListSnapshotsResponse { info }))
        });
        Ok(Response::new(Box::pin(stream::iter(batches))))
    }

    async fn usage(&self, request: Request<api::UsageRequest>) -> Answer<api::UsageResponse> {
        let usage = answer("Usage", self.0.usage(request.into_inner().key).await)?;
        let signed = |number| i64::try_from(number).unwrap_or(i64::MAX);
        Ok(Response::new(api::UsageResponse {
            size: signed(usage.size),
            inodes: signed(usage.inodes),
        }))
    }

    async fn cleanup(&self, _request: Request<api::CleanupRequest>) -> Answer<()> {
        answer("Cleanup", self.0.cleanup().await).map(Response::new)
    }
}

/// Turns a failure into its status. One that is our fault is logged as well: the caller may not
/// keep it.
fn answer<T>(call: &'static str, result: Result<T, SnapshotError>) -> Result<T, Status> {
    result.map_err(|error| {
        let status = Status::from(error);
        let expected = [
            Code::AlreadyExists,
            Code::NotFound,
            Code::InvalidArgument,
            Code::FailedPrecondition,
        ];
        if !expected.contains(&status.code()) {
            tracing::error!(call, error = status.message(), "a call failed");
        }
        status
    })
}

fn namespace(metadata: &MetadataMap, key: &str) -> String {
    let header = metadata.get("containerd-namespace");
    labels::namespace(header.and_then(|value| value.to_str().ok()), key)
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// Which labels an `Update` changes. Only labels can be changed.
fn change(wanted: api::Info, paths: &[String]) -> Result<LabelChange, SnapshotError> {
    let mut given = wanted.labels;
    if paths.is_empty() || paths.iter().any(|path| path == "labels") {
        check_paths(paths)?;
        return Ok(LabelChange::Replace(given.into_iter().collect()));
    }
    check_paths(paths)?;
    let changes = paths.iter().filter_map(|path| {
        let label = path.strip_prefix("labels.")?;
        Some((label.to_owned(), given.remove(label)))
    });
    Ok(LabelChange::Merge(changes.collect()))
}

fn check_paths(paths: &[String]) -> Result<(), SnapshotError> {
    let unknown = paths
        .iter()
        .find(|path| *path != "labels" && !path.starts_with("labels."));
    unknown.map_or(Ok(()), |path| {
        Err(SnapshotError::Argument {
            what: "update mask",
            detail: format!("{path:?} cannot be changed, only labels can"),
        })
    })
}

fn mount(mount: Mount) -> types::Mount {
    types::Mount {
        r#type: mount.kind.to_owned(),
        source: mount.source,
        target: String::new(),
        options: mount.options,
    }
}

fn info(entry: Entry) -> api::Info {
    let Entry { key, record } = entry;
    let kind = match record.kind {
        Kind::View => api::Kind::View,
        Kind::Active => api::Kind::Active,
        Kind::Committed => api::Kind::Committed,
    };
    api::Info {
        name: key,
        parent: record.parent.unwrap_or_default(),
        kind: kind.into(),
        created_at: Some(timestamp(record.created)),
        updated_at: Some(timestamp(record.updated)),
        labels: record.labels.into_iter().collect(),
    }
}

fn timestamp(time: OffsetDateTime) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.unix_timestamp(),
        nanos: i32::try_from(time.nanosecond()).unwrap_or_default(),
    }
}

/// For [`crate::hostile`]: some request, taken for each of those there are.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(bytes: &[u8]) {
    use super::decision::Wanted;
    use prost::Message as _;

    if let Ok(call) = api::PrepareSnapshotRequest::decode(bytes) {
        let request = NewRequest {
            namespace: namespace(&MetadataMap::new(), &call.key),
            key: call.key,
            parent: some(call.parent),
            labels: call.labels.into_iter().collect(),
        };
        if request.check().is_ok() {
            let _ = Wanted::of(&request.labels, &request.namespace);
        }
    }
    if let Ok(call) = api::CommitSnapshotRequest::decode(bytes) {
        let _ = some(call.parent);
    }
    if let Ok(call) = api::UpdateSnapshotRequest::decode(bytes) {
        let paths = call.update_mask.unwrap_or_default().paths;
        let _ = change(call.info.unwrap_or_default(), &paths);
    }
    if let Ok(call) = api::ListSnapshotsRequest::decode(bytes) {
        let _ = Filters::parse(&call.filters);
    }
    // These are no more than a key: views, mounts, removals, looks.
    if let Ok(call) = api::MountsRequest::decode(bytes) {
        let _ = namespace(&MetadataMap::new(), &call.key);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn wanted(labels: &[(&str, &str)]) -> api::Info {
        let labels = labels
            .iter()
            .map(|(label, value)| ((*label).to_owned(), (*value).to_owned()))
            .collect();
        api::Info {
            labels,
            ..api::Info::default()
        }
    }

    fn paths(paths: &[&str]) -> Vec<String> {
        paths.iter().map(|path| (*path).to_owned()).collect()
    }

    #[test]
    fn an_update_without_a_mask_replaces_all_labels() {
        let replace = LabelChange::Replace([("a".to_owned(), "1".to_owned())].into());
        assert_eq!(change(wanted(&[("a", "1")]), &[]).unwrap(), replace);
        let mask = paths(&["labels.b", "labels"]);
        assert_eq!(change(wanted(&[("a", "1")]), &mask).unwrap(), replace);
    }

    #[test]
    fn a_masked_update_changes_the_labels_named_and_removes_those_without_a_value() {
        let mask = paths(&["labels.a.b/c", "labels.gone"]);
        let merge = LabelChange::Merge(vec![
            ("a.b/c".to_owned(), Some("1".to_owned())),
            ("gone".to_owned(), None),
        ]);
        let wanted = wanted(&[("a.b/c", "1"), ("unmasked", "2")]);
        assert_eq!(change(wanted, &mask).unwrap(), merge);
    }

    #[test]
    fn nothing_but_labels_can_be_updated() {
        for mask in [paths(&["parent"]), paths(&["labels", "kind"])] {
            let refused = change(wanted(&[]), &mask);
            assert!(matches!(refused, Err(SnapshotError::Argument { .. })));
        }
    }
}

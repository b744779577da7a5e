//! Snapshots of one snapshotter, and the layers applied to them.

use std::collections::{BTreeMap, HashMap};

use proto::containerd::services::diff::v1 as diff_api;
use proto::containerd::services::leases::v1 as lease_api;
use proto::containerd::services::snapshots::v1 as api;
use proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use proto::containerd::types::Mount;
use ztoc::Digest;
use ztoc::index::Descriptor;

use super::images::write_descriptor;
use super::{Containerd, ContainerdError, optional};

/// One snapshotter of containerd, by its plugin's name.
#[derive(Debug, Clone)]
pub struct Snapshotter {
    containerd: Containerd,
    name: String,
}

/// What came of preparing a layer's snapshot.
#[derive(Debug)]
pub enum PreparedSnapshot {
    /// The snapshotter has the layer already, or provides it by itself: nothing is to be fetched.
    Provided,
    /// The layer must be fetched and applied to these mounts.
    Mounts(Vec<Mount>),
}

impl Containerd {
    /// The snapshotter `name`.
    pub fn snapshotter(&self, name: &str) -> Snapshotter {
        Snapshotter {
            containerd: self.clone(),
            name: name.to_owned(),
        }
    }

    /// Unpacks the layer `descriptor`, which the content store has, into `mounts`; the digest of
    /// the uncompressed tar.
    pub async fn apply(
        &self,
        descriptor: &Descriptor,
        mounts: Vec<Mount>,
    ) -> Result<Digest, ContainerdError> {
        let action = format!("unpack layer {}", descriptor.digest);
        let request = self.request(diff_api::ApplyRequest {
            diff: Some(write_descriptor(descriptor)),
            mounts,
            payloads: HashMap::new(),
            sync_fs: false,
        });
        let answer = diff_api::diff_client::DiffClient::new(self.channel.clone())
            .apply(request)
            .await
            .map_err(self.failed(&action))?;
        let applied = answer.into_inner().applied.unwrap_or_default().digest;
        applied
            .parse()
            .map_err(|error| self.malformed(action, format!("{error}")))
    }
}

impl Snapshotter {
    fn client(&self) -> SnapshotsClient<tonic::transport::Channel> {
        SnapshotsClient::new(self.containerd.channel.clone())
    }

    /// Adds the snapshot `name` to the client's lease, if it has one. A snapshot that was here before may belong to a
    /// pull that failed a moment ago, and be about to be collected; what exists once this has returned, stays. That it
    /// does not exist is no error.
    pub async fn hold(&self, name: &str) -> Result<(), ContainerdError> {
        let Some(lease) = &self.containerd.lease else {
            return Ok(());
        };
        let request = lease_api::AddResourceRequest {
            id: String::from_utf8_lossy(lease.as_bytes()).into_owned(),
            resource: Some(lease_api::Resource {
                id: name.to_owned(),
                r#type: format!("snapshots/{}", self.name),
            }),
        };
        let channel = self.containerd.channel.clone();
        lease_api::leases_client::LeasesClient::new(channel)
            .add_resource(self.containerd.request(request))
            .await
            .map_err(self.failed(format!("hold snapshot {name}")))?;
        Ok(())
    }

    /// The labels of the committed snapshot `name`, if there is one.
    pub async fn committed(
        &self,
        name: &str,
    ) -> Result<Option<BTreeMap<String, String>>, ContainerdError> {
        let request = self.containerd.request(api::StatSnapshotRequest {
            snapshotter: self.name.clone(),
            key: name.to_owned(),
        });
        let answer = optional(self.client().stat(request).await)
            .map_err(self.failed(format!("look up snapshot {name}")))?;
        let info = answer.and_then(|answer| answer.into_inner().info);
        Ok(info
            .filter(|info| info.kind() == api::Kind::Committed)
            .map(|info| info.labels.into_iter().collect()))
    }

    /// Prepares an active snapshot `key` on `parent` (empty for the lowest layer).
    pub async fn prepare(
        &self,
        key: &str,
        parent: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<PreparedSnapshot, ContainerdError> {
        let request = self.containerd.request(api::PrepareSnapshotRequest {
            snapshotter: self.name.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: labels.into_iter().collect(),
        });
        let answer = self
            .client()
            .prepare(request)
            .await
            .map_err(self.failed(format!("prepare snapshot {key}")));
        match answer {
            Ok(answer) => Ok(PreparedSnapshot::Mounts(answer.into_inner().mounts)),
            Err(error) if error.is_already_exists() => Ok(PreparedSnapshot::Provided),
            Err(error) => Err(error),
        }
    }

    /// Commits the active snapshot `key` as `name`. That `name` exists already is no error.
    pub async fn commit(
        &self,
        name: &str,
        key: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<(), ContainerdError> {
        let request = self.containerd.request(api::CommitSnapshotRequest {
            snapshotter: self.name.clone(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: labels.into_iter().collect(),
            parent: String::new(),
        });
        let answer = self.client().commit(request).await;
        match answer.map_err(self.failed(format!("commit snapshot {name}"))) {
            Err(error) if error.is_already_exists() => self.remove(key).await,
            other => other.map(|_| ()),
        }
    }

    /// Removes a snapshot; one that does not exist is no error.
    pub async fn remove(&self, key: &str) -> Result<(), ContainerdError> {
        let request = self.containerd.request(api::RemoveSnapshotRequest {
            snapshotter: self.name.clone(),
            key: key.to_owned(),
        });
        optional(self.client().remove(request).await)
            .map_err(self.failed(format!("remove snapshot {key}")))?;
        Ok(())
    }

    fn failed(&self, action: String) -> impl FnOnce(tonic::Status) -> ContainerdError {
        self.containerd
            .failed(format!("{action} of snapshotter {}", self.name))
    }
}

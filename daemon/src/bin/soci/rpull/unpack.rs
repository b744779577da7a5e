//! Snapshots of an image's layers, bottom up: the snapshotter is asked first, and only what it does not
//! provide is fetched and unpacked.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use daemon::containerd::{Containerd, PreparedSnapshot, Snapshotter};
use ztoc::Digest;
use ztoc::index::Descriptor;

use super::chain::Chain;
use super::fetch::{Fetch, Fetcher};
use super::labels::LayerLabels;
use crate::progress::{Progress, short};

/// Set by remote snapshotters on layers they load lazily.
const REMOTE: &str = "containerd.io/snapshot/remote";
/// containerd retries as often when a snapshot vanishes between two calls.
const ATTEMPTS: usize = 3;

/// What came of a layer.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The snapshotter loads it lazily.
    Lazy,
    /// The snapshotter has it on disk.
    Provided,
    /// It was fetched (if containerd did not have it) and unpacked.
    Pulled {
        /// Bytes fetched.
        bytes: u64,
    },
}

impl Outcome {
    /// Bytes fetched for the layer by this command.
    pub(super) fn fetched(&self) -> u64 {
        match self {
            Self::Pulled { bytes } => *bytes,
            Self::Lazy | Self::Provided => 0,
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Lazy => "lazy",
            Self::Provided => "local",
            Self::Pulled { .. } => "pulled",
        }
    }
}

pub(super) struct Unpacker<'a> {
    pub(super) containerd: &'a Containerd,
    pub(super) snapshotter: Snapshotter,
    pub(super) layers: &'a [Descriptor],
    pub(super) chain: &'a Chain,
    pub(super) labels: LayerLabels<'a>,
    pub(super) fetcher: Fetcher,
    pub(super) progress: Progress,
}

impl Unpacker<'_> {
    pub(super) async fn run(self) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::with_capacity(self.layers.len());
        let mut ahead = BTreeMap::new();
        for (number, layer) in self.layers.iter().enumerate() {
            let bar = self
                .progress
                .spinner(&format!("layer {}", short(&layer.digest)));
            bar.message("preparing");
            let outcome = self.layer(number, &mut ahead).await;
            bar.done();
            let outcome = outcome.with_context(|| format!("layer {}", layer.digest))?;
            self.progress
                .plain(&format!("layer {} {}", layer.digest, outcome.word()));
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    async fn layer(&self, number: usize, ahead: &mut BTreeMap<usize, Fetch>) -> Result<Outcome> {
        let id = self.chain.id(number).context("the layer has no diff ID")?;
        let labels = self.labels.of(number, &id);
        let parent = self.chain.parent(number);
        self.snapshotter.hold(&id.to_string()).await?;
        for _ in 0..ATTEMPTS {
            let key = extract_key(&id);
            let prepared = self.snapshotter.prepare(&key, &parent, labels.clone());
            match prepared.await.context(
                "cannot prepare its snapshot; is the snapshotter running and known to containerd?",
            )? {
                PreparedSnapshot::Provided => {
                    if let Some(labels) = self.snapshotter.committed(&id.to_string()).await? {
                        let lazy = labels.contains_key(REMOTE);
                        return Ok(if lazy {
                            Outcome::Lazy
                        } else {
                            Outcome::Provided
                        });
                    }
                }
                PreparedSnapshot::Mounts(mounts) => {
                    self.look_ahead(number, ahead);
                    let applied = self.pull(number, ahead, mounts).await;
                    let committed = match applied {
                        Ok(bytes) => self
                            .snapshotter
                            .commit(&id.to_string(), &key, labels.clone())
                            .await
                            .map(|()| bytes)
                            .map_err(anyhow::Error::from),
                        Err(error) => Err(error),
                    };
                    if committed.is_err() {
                        // The first error is the one to tell; the lease bounds what stays.
                        let _ = self.snapshotter.remove(&key).await;
                    }
                    return committed.map(|bytes| Outcome::Pulled { bytes });
                }
            }
        }
        bail!("snapshot {id} is said to exist, but does not")
    }

    /// If not even the lowest layer is provided the image is not lazy: the others are fetched while
    /// this one is.
    fn look_ahead(&self, number: usize, ahead: &mut BTreeMap<usize, Fetch>) {
        if number > 0 {
            return;
        }
        let all = self.layers.iter().enumerate();
        ahead.extend(all.map(|(number, layer)| (number, self.fetcher.start(layer))));
    }

    /// Fetches and unpacks a layer; the bytes fetched.
    async fn pull(
        &self,
        number: usize,
        ahead: &mut BTreeMap<usize, Fetch>,
        mounts: Vec<proto::containerd::types::Mount>,
    ) -> Result<u64> {
        let layer = self.layers.get(number).context("no such layer")?;
        let fetch = ahead.remove(&number);
        let bytes = fetch.unwrap_or_else(|| self.fetcher.start(layer)).await??;
        let applied = self.containerd.apply(layer, mounts).await?;
        let expected = self.chain.diff(number);
        ensure!(
            expected == Some(applied),
            "unpacked it hashes to {applied}, not to the {} its config names",
            expected.map_or_else(String::new, |digest| digest.to_string())
        );
        Ok(bytes)
    }
}

/// The name containerd's own clients give: garbage collectors and people know it.
fn extract_key(chain_id: &Digest) -> String {
    let nanos = time::OffsetDateTime::now_utc().unix_timestamp_nanos();
    format!("extract-{}-{nanos} {chain_id}", std::process::id())
}

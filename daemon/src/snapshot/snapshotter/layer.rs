//! `Prepare` of an image layer.

use std::time::{Instant, SystemTime};

use tracing::Instrument as _;
use ztoc::Digest;

use super::{NewRequest, Snapshotter};
use crate::control::journal;
use crate::error::SnapshotError;
use crate::metrics::{Counted, Timed};
use crate::snapshot::decision::{Outcome, Verdict};
use crate::snapshot::directory::Claim;
use crate::snapshot::images::{LayerRequest, LazyLayer, NotLazy};
use crate::snapshot::labels::{self, Mark};
use crate::snapshot::lowers::LowerDirs;
use crate::snapshot::mounts::Mount;
use crate::snapshot::record::{Kind, Source, Usage};
use crate::snapshot::store::NewSnapshot;
use crate::traces::{self, step};

impl Snapshotter {
    /// Provides the layer that is to be committed as `target`: lazily, or unpacked by us, and then
    /// the answer is the error `AlreadyExists`; else mounts for containerd to unpack it.
    pub(super) async fn prepare_layer(
        &self,
        request: NewRequest,
        target: String,
        layer: Result<Box<LayerRequest>, NotLazy>,
    ) -> Result<Vec<Mount>, SnapshotError> {
        let flight = (target.clone(), request.parent.clone());
        let _alone = self.flights.enter(flight).await;
        let (key, parent, wanted) = (request.key.clone(), request.parent.clone(), target.clone());
        let (known, chain) = self
            .blocking(move |local| {
                local.store.check_free(&key)?;
                let known = local.store.find_layer(&wanted, parent.as_deref())?;
                Ok((known, local.store.chain(parent.as_deref())?))
            })
            .await?;
        if known.is_some() {
            self.metrics.prepared(Outcome::Known, "");
            traces::here().record("outcome", Outcome::Known.label());
            return Err(SnapshotError::AlreadyExists { key: target });
        }
        let lowers = self.lower_dirs(&chain, None)?;
        let claim = self.local.claim();
        let layer = match layer {
            Ok(layer) => layer,
            Err(reason) => {
                self.note(&target, None, &Verdict::Defer { reason });
                return self.finish(Kind::Active, request, lowers, claim).await;
            }
        };
        let _announced = self.announce(layer.layer).await;
        let (claim, verdict) = self.try_layer(&layer, claim, &lowers).await?;
        self.note(&target, Some(&layer), &verdict);
        match verdict {
            Verdict::Commit { mark, .. } => {
                let committed = self.commit_layer(request, *layer, mark, claim);
                committed.instrument(step!("commit")).await?;
                Err(SnapshotError::AlreadyExists { key: target })
            }
            Verdict::Defer { .. } => self.finish(Kind::Active, request, lowers, claim).await,
        }
    }

    /// Keeps a layer from being collected while it has no record yet.
    async fn announce(&self, layer: Digest) -> super::flights::Announced {
        let _not_collecting = self.collecting.read().await;
        self.preparing.announce(layer)
    }

    async fn try_layer(
        &self,
        layer: &LayerRequest,
        claim: Claim,
        lowers: &LowerDirs,
    ) -> Result<(Claim, Verdict), SnapshotError> {
        let claim = self
            .blocking(move |_| claim.create(Kind::View, None).map(|()| claim))
            .await?;
        let begun = Instant::now();
        let prepared = self.images.prepare(layer, &claim.files(), lowers).await;
        self.metrics
            .took(Timed::Mount, Some(&layer.layer), begun.elapsed());
        Ok((claim, Verdict::on(prepared)))
    }

    async fn commit_layer(
        &self,
        request: NewRequest,
        layer: LayerRequest,
        mark: Mark,
        claim: Claim,
    ) -> Result<(), SnapshotError> {
        let target = request.labels.get(labels::REF).cloned().unwrap_or_default();
        self.blocking(move |local| {
            let (source, usage) = match mark {
                Mark::Unpacked { .. } => (Source::Directory, local.measure(claim.id())?),
                Mark::Lazy => {
                    let layer = LazyLayer {
                        digest: layer.layer,
                        image: layer.image,
                    };
                    (Source::lazy(&layer), Usage::default())
                }
            };
            let name = local.store.insert_layer(&NewSnapshot {
                id: claim.id(),
                key: target,
                kind: Kind::Committed,
                parent: request.parent,
                labels: labels::committed(&request.labels, mark, &request.namespace),
                source,
                usage: Some(usage),
            })?;
            tracing::debug!(name, "layer committed");
            match mark {
                Mark::Lazy => claim.discard(),
                Mark::Unpacked { .. } => Ok(()),
            }
        })
        .await
    }

    /// Tells operators and dashboards how a layer came out.
    fn note(&self, target: &str, layer: Option<&LayerRequest>, verdict: &Verdict) {
        let reason = verdict.reason();
        self.metrics
            .prepared(verdict.outcome(), reason.map_or("", NotLazy::label));
        if matches!(reason, Some(NotLazy::Artifact { .. })) {
            self.metrics.count(Counted::FuseMountFailure, None);
        }
        let image = layer.map(|layer| layer.image.to_string());
        let image = image.unwrap_or_default();
        let digest = layer.map(|layer| layer.layer.to_string());
        let digest = digest.unwrap_or_default();
        let reason = reason.map(ToString::to_string).unwrap_or_default();
        let trace = traces::here();
        trace.record("container.image.name", &*image);
        trace.record("layer", &*digest);
        trace.record("outcome", verdict.outcome().label());
        trace.record("reason", &*reason);
        self.metrics.journal().note(journal::Entry {
            at: SystemTime::now(),
            chain_id: target.to_owned(),
            layer: digest.clone(),
            image: image.clone(),
            outcome: verdict.outcome().label(),
            reason: reason.clone(),
        });
        match verdict.outcome() {
            Outcome::Lazy | Outcome::Known => tracing::info!(
                "remote-snapshot-prepared" = "true",
                image,
                layer = digest,
                chain_id = target,
                "layer is served lazily"
            ),
            Outcome::Unpacked => tracing::info!(
                "remote-snapshot-prepared" = "false",
                "local-snapshot-prepared" = "true",
                image,
                layer = digest,
                chain_id = target,
                reason,
                "layer was pulled and unpacked"
            ),
            Outcome::Deferred => tracing::info!(
                "remote-snapshot-prepared" = "false",
                "local-snapshot-prepared" = "false",
                "defer-snapshot-runtime" = "true",
                image,
                layer = digest,
                chain_id = target,
                reason,
                "layer is left to containerd"
            ),
        }
    }
}

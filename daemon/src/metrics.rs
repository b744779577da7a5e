//! Prometheus metrics, under the names of the original: namespace `soci`, subsystem `fs`.

mod layers;
mod process;
mod server;
mod views;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use ztoc::Digest;

use self::layers::Layers;
use self::views::ViewSeries;
use crate::control::journal::Journal;
use crate::layer::LayerStore;
use crate::snapshot::decision::Outcome;
use crate::view::Views;

pub use self::server::{MetricsServer, ServeError};

/// Values of the label `operation_type` of [`Metrics::took`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Timed {
    /// A layer was made available, whole `Prepare`.
    Mount,
    /// One ranged request of a layer.
    RegistryGet,
    /// A zTOC was decoded and checked.
    ZtocUnmarshal,
    /// A view was mounted.
    FuseMount,
    /// A SOCI index was found and fetched.
    IndexFetch,
    /// A zTOC was fetched.
    ZtocFetch,
    /// A span was fetched in the background.
    BackgroundFetch,
}

/// Values of the label `operation_type` of [`Metrics::count`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Counted {
    /// A read of a file in a view.
    Read,
    /// A read that had to wait for the registry.
    RegistryFetch,
    /// A read that failed.
    ReadFailure,
    /// A layer could not be provided lazily because its SOCI artifacts were unusable.
    FuseMountFailure,
    /// A layer could not be provided by unpacking it.
    LocalMountFailure,
    /// A span was fetched in the background.
    BackgroundSpan,
    /// A span could not be fetched in the background.
    BackgroundSpanFailure,
}

impl Timed {
    const ALL: [Self; 7] = [
        Self::Mount,
        Self::RegistryGet,
        Self::ZtocUnmarshal,
        Self::FuseMount,
        Self::IndexFetch,
        Self::ZtocFetch,
        Self::BackgroundFetch,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Mount => "mount",
            Self::RegistryGet => "remote_registry_get",
            Self::ZtocUnmarshal => "ztoc_unmarshal",
            Self::FuseMount => "fuse_mount",
            Self::IndexFetch => "soci_index_fetch",
            Self::ZtocFetch => "ztoc_fetch",
            Self::BackgroundFetch => "background_fetch",
        }
    }
}

impl Counted {
    const ALL: [Self; 7] = [
        Self::Read,
        Self::RegistryFetch,
        Self::ReadFailure,
        Self::FuseMountFailure,
        Self::LocalMountFailure,
        Self::BackgroundSpan,
        Self::BackgroundSpanFailure,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Read => "synchronous_read_count",
            Self::RegistryFetch => "synchronous_read_remote_registry_fetch_count",
            Self::ReadFailure => "fuse_file_read_failure_count",
            Self::FuseMountFailure => "fuse_mount_failure_count",
            Self::LocalMountFailure => "local_mount_failure_count",
            Self::BackgroundSpan => "background_span_fetch_count",
            Self::BackgroundSpanFailure => "background_span_fetch_failure_count",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLayer {
    operation_type: &'static str,
    layer: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOutcome {
    outcome: &'static str,
    reason: &'static str,
}

/// A counter under exactly its name: the original's have no `_total` behind.
#[derive(Debug, Default, Clone)]
struct NamedCounter(Counter<u64, AtomicU64>);

impl EncodeMetric for NamedCounter {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.encode_gauge(&self.0.get())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

impl prometheus_client::metrics::TypedMetric for NamedCounter {
    const TYPE: MetricType = MetricType::Counter;
}

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    milliseconds: Family<OfLayer, Histogram, fn() -> Histogram>,
    operations: Family<OfLayer, NamedCounter>,
    prepared: Family<OfOutcome, NamedCounter>,
    layers: Layers,
    views: ViewSeries,
    journal: Journal,
}

impl Metrics {
    /// Metrics with nothing counted yet.
    pub fn new() -> Self {
        let milliseconds = Family::new_with_constructor(
            (|| Histogram::new(exponential_buckets(1.0, 2.0, 15))) as _,
        );
        let operations = Family::default();
        let prepared = Family::default();
        let layers = Layers::default();
        let mut registry = Registry::default();
        // Those of the process have the names that every Prometheus client gives them.
        registry.register_collector(Box::new(process::Process));
        let own = registry.sub_registry_with_prefix("soci_fs");
        own.register(
            "operation_duration_milliseconds",
            "Latency in milliseconds of operations",
            Family::clone(&milliseconds),
        );
        own.register(
            "operation_count",
            "The count of operations",
            Family::clone(&operations),
        );
        own.register(
            "layer_prepare_count",
            "Layers by the way they were provided, and why not lazily",
            Family::clone(&prepared),
        );
        layers.register(own);
        let views = ViewSeries::default();
        views.register(own);
        Self {
            layers,
            views,
            journal: Journal::default(),
            registry,
            milliseconds,
            operations,
            prepared,
        }
    }

    /// Has the numbers of these layers shown from now on.
    pub fn watch(&self, layers: LayerStore) {
        self.layers.watch(layers);
    }

    /// Has the numbers of these views, of these layers, shown from now on.
    pub fn watch_views(&self, views: Views, layers: LayerStore) {
        self.views.watch(views, layers);
    }

    /// Notes how long something took.
    pub fn took(&self, what: Timed, layer: Option<&Digest>, time: Duration) {
        self.layers.note(layer);
        self.milliseconds
            .get_or_create(&OfLayer {
                operation_type: what.name(),
                layer: layer.map(ToString::to_string).unwrap_or_default(),
            })
            .observe(time.as_secs_f64() * 1000.0);
    }

    /// Counts something.
    pub fn count(&self, what: Counted, layer: Option<&Digest>) {
        self.layers.note(layer);
        self.operations
            .get_or_create(&OfLayer {
                operation_type: what.name(),
                layer: layer.map(ToString::to_string).unwrap_or_default(),
            })
            .0
            .inc();
    }

    /// How the last layers were provided, one by one.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Counts a layer by how it was provided; `reason` is empty for a lazy one.
    pub fn prepared(&self, outcome: Outcome, reason: &'static str) {
        let outcome = outcome.label();
        self.prepared
            .get_or_create(&OfOutcome { outcome, reason })
            .0
            .inc();
    }

    /// Sets a number that is counted elsewhere.
    fn set(&self, what: Counted, layer: &Digest, value: u64) {
        self.operations
            .get_or_create(&OfLayer {
                operation_type: what.name(),
                layer: layer.to_string(),
            })
            .0
            .inner()
            .store(value, Ordering::Relaxed);
    }

    /// Forgets the series of a layer that is no longer on the node.
    fn forget(&self, layer: &Digest) {
        let layer = layer.to_string();
        let series = |operation_type| OfLayer {
            operation_type,
            layer: layer.clone(),
        };
        for what in Timed::ALL {
            self.milliseconds.remove(&series(what.name()));
        }
        for what in Counted::ALL {
            self.operations.remove(&series(what.name()));
        }
    }

    /// All metrics as Prometheus text (version 0.0.4).
    pub fn text(&self) -> String {
        self.layers.refresh(self);
        self.views.refresh();
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing to a string cannot fail; half an answer would be taken for a whole one.
            Err(std::fmt::Error) => String::new(),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_have_the_names_that_dashboards_know() {
        let metrics = Metrics::new();
        let layer = Digest::of(b"layer");
        metrics.count(Counted::FuseMountFailure, None);
        metrics.took(Timed::Mount, Some(&layer), Duration::from_millis(3));
        metrics.prepared(Outcome::Deferred, "no_index");
        let text = metrics.text();
        for line in [
            "soci_fs_operation_count{operation_type=\"fuse_mount_failure_count\",layer=\"\"} 1",
            &format!(
                "soci_fs_operation_duration_milliseconds_bucket\
                 {{le=\"4.0\",operation_type=\"mount\",layer=\"{layer}\"}} 1"
            ),
            "soci_fs_layer_prepare_count{outcome=\"deferred\",reason=\"no_index\"} 1",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line}\nin\n{text}"
            );
        }
        assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
    }

    #[test]
    fn a_layer_that_is_gone_leaves_no_series() {
        let metrics = Metrics::new();
        let (gone, stays) = (Digest::of(b"gone"), Digest::of(b"stays"));
        for layer in [&gone, &stays] {
            metrics.took(Timed::Mount, Some(layer), Duration::ZERO);
            metrics.count(Counted::Read, Some(layer));
        }
        metrics.forget(&gone);
        let text = metrics.text();
        assert!(!text.contains(&gone.to_string()));
        assert!(text.contains(&stays.to_string()));
    }
}

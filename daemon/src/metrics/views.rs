//! The numbers of mounted views, read from the views when someone asks. Series are per image, and end with
//! its last view.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use fuse::Operation;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::layer::LayerStore;
use crate::view::Views;

type Numbers<L> = Family<L, Gauge<u64, AtomicU64>>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfOperation {
    operation_type: &'static str,
    image: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfImage {
    image: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfQuantile {
    image: String,
    quantile: &'static str,
}

/// Series of views.
#[derive(Debug, Default)]
pub(super) struct ViewSeries {
    watched: OnceLock<(Views, LayerStore)>,
    mounted: Gauge<u64, AtomicU64>,
    shifted: Gauge<u64, AtomicU64>,
    operations: Numbers<OfOperation>,
    failures: Numbers<OfOperation>,
    waits: Numbers<OfImage>,
    wait: Numbers<OfQuantile>,
}

/// Sums over the views of one image.
#[derive(Debug, Default)]
struct Sum {
    requests: [u64; Operation::ALL.len()],
    failures: [u64; Operation::ALL.len()],
    waits: u64,
    /// The slowest view's, in microseconds.
    wait: [u64; QUANTILES.len()],
}

const QUANTILES: [(&str, f64); 2] = [("0.5", 0.5), ("0.99", 0.99)];

impl ViewSeries {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "FUSE requests of an image's mounted views";
        registry.register(
            "image_operation_count_key",
            help,
            Family::clone(&self.operations),
        );
        let help = "FUSE requests of an image's mounted views that failed";
        registry.register(
            "image_operation_failures",
            help,
            Family::clone(&self.failures),
        );
        let help = "Reads of an image's mounted views that had to wait for bytes";
        registry.register("image_read_waits", help, Family::clone(&self.waits));
        let help =
            "How long reads waited that had to, in microseconds, rounded up to a power of two";
        registry.register(
            "image_read_wait_microseconds",
            help,
            Family::clone(&self.wait),
        );
        registry.register("mounted_views", "Mounted views", self.mounted.clone());
        let help =
            "Mounted views that show mapped ids by themselves, for containers in user namespaces";
        registry.register("shifted_views", help, self.shifted.clone());
    }

    pub(super) fn watch(&self, views: Views, layers: LayerStore) {
        // There are one of each for the life of the process.
        let _ = self.watched.set((views, layers));
    }

    /// Brings the series up to date.
    pub(super) fn refresh(&self) {
        let Some((views, layers)) = self.watched.get() else {
            return;
        };
        let open: BTreeMap<_, _> = layers
            .open_layers()
            .into_iter()
            .map(|layer| (layer.digest(), layer))
            .collect();
        let (mut sums, mut mounted, mut shifted) = (BTreeMap::<String, Sum>::new(), 0, 0);
        for view in views.open() {
            mounted += 1;
            shifted += u64::from(view.ids.is_some());
            let top = view.layers.last().and_then(|top| open.get(top));
            let image = top.and_then(|layer| layer.images().pop());
            let sum = sums.entry(image.unwrap_or_default()).or_default();
            for operation in Operation::ALL {
                sum.requests[operation as usize] += view.inside.counters.requests(operation);
                sum.failures[operation as usize] += view.inside.counters.failures(operation);
            }
            sum.waits += view.inside.accesses.waited();
            for (slot, (_, quantile)) in sum.wait.iter_mut().zip(QUANTILES) {
                let wait = view.inside.accesses.wait(quantile).unwrap_or_default();
                *slot = (*slot).max(u64::try_from(wait.as_micros()).unwrap_or(u64::MAX));
            }
        }
        self.mounted.set(mounted);
        self.shifted.set(shifted);
        self.operations.clear();
        self.failures.clear();
        self.waits.clear();
        self.wait.clear();
        sums.into_iter()
            .for_each(|(image, sum)| self.set(&image, &sum));
    }

    fn set(&self, image: &str, sum: &Sum) {
        for operation in Operation::ALL {
            let of = OfOperation {
                operation_type: operation.name(),
                image: image.to_owned(),
            };
            let number = operation as usize;
            self.operations.get_or_create(&of).set(sum.requests[number]);
            self.failures.get_or_create(&of).set(sum.failures[number]);
        }
        let image = image.to_owned();
        for (wait, (quantile, _)) in sum.wait.iter().zip(QUANTILES) {
            let of = OfQuantile {
                image: image.clone(),
                quantile,
            };
            self.wait.get_or_create(&of).set(*wait);
        }
        self.waits.get_or_create(&OfImage { image }).set(sum.waits);
    }
}

//! The numbers of the layers on this node, read from the layers when someone asks.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use ztoc::Digest;

use super::{Counted, Metrics, NamedCounter};
use crate::layer::LayerStore;

/// Gauges of what a reader or a registry moved.
type Bytes = Family<Served, Gauge<u64, AtomicU64>>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Served {
    operation_type: &'static str,
    layer: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDigest {
    digest: String,
}

/// Series of layers, and which layers have any.
#[derive(Debug, Default)]
pub(super) struct Layers {
    store: OnceLock<LayerStore>,
    served: Bytes,
    fetched: Family<OfDigest, NamedCounter>,
    size: Family<OfDigest, NamedCounter>,
    decoded: Family<OfDigest, NamedCounter>,
    copied: Family<OfDigest, NamedCounter>,
    cached: Gauge<u64, AtomicU64>,
    filling: Gauge<u64, AtomicU64>,
    turned_away: Gauge<u64, AtomicU64>,
    /// Layers that have series anywhere.
    named: Mutex<BTreeSet<Digest>>,
}

impl Layers {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "bytes_served",
            "The number of bytes given to readers",
            Family::clone(&self.served),
        );
        registry.register(
            "layer_fetched_size_bytes",
            "Compressed bytes of a layer fetched since it was opened",
            Family::clone(&self.fetched),
        );
        registry.register(
            "layer_size_bytes",
            "Compressed size of a layer",
            Family::clone(&self.size),
        );
        registry.register(
            "layer_decoded_size_bytes",
            "Plain bytes of a layer decoded since it was opened",
            Family::clone(&self.decoded),
        );
        registry.register(
            "layer_copied_size_bytes",
            "Bytes of a layer copied once more after they were decoded since it was opened",
            Family::clone(&self.copied),
        );
        self.register_store(registry);
    }

    fn register_store(&self, registry: &mut Registry) {
        registry.register(
            "layer_cache_bytes",
            "Plain bytes of layers on disk",
            self.cached.clone(),
        );
        registry.register(
            "background_fetch_waiting_layers",
            "Layers that wait to be filled or are being filled",
            self.filling.clone(),
        );
        registry.register(
            "background_fetch_evicted_layers",
            "Layers not filled as too many waited",
            self.turned_away.clone(),
        );
    }

    pub(super) fn watch(&self, store: LayerStore) {
        // There is one store for the life of the process.
        let _ = self.store.set(store);
    }

    /// Remembers that a layer has series.
    pub(super) fn note(&self, layer: Option<&Digest>) {
        if let Some(layer) = layer {
            self.named.lock().insert(*layer);
        }
    }

    /// Brings the series up to date, and ends those of layers that are gone from the node.
    pub(super) fn refresh(&self, metrics: &Metrics) {
        let Some(store) = self.store.get() else {
            return;
        };
        let (waiting, turned_away) = store.filling();
        self.filling.set(waiting as u64);
        self.turned_away.set(turned_away);
        self.cached.set(store.bytes_cached());
        self.served.clear();
        self.fetched.clear();
        self.size.clear();
        self.decoded.clear();
        self.copied.clear();
        for layer in store.open_layers() {
            let (digest, numbers) = (layer.digest(), layer.counters());
            self.note(Some(&digest));
            metrics.set(Counted::Read, &digest, numbers.hits + numbers.misses);
            metrics.set(Counted::RegistryFetch, &digest, numbers.requests);
            metrics.set(Counted::ReadFailure, &digest, numbers.failed_reads);
            metrics.set(Counted::BackgroundSpan, &digest, numbers.spans_filled);
            metrics.set(
                Counted::BackgroundSpanFailure,
                &digest,
                numbers.failed_fills,
            );
            let served = Served {
                operation_type: "synchronous_bytes_served",
                layer: digest.to_string(),
            };
            self.served.get_or_create(&served).set(numbers.bytes_served);
            let of = OfDigest {
                digest: digest.to_string(),
            };
            let fetched = self.fetched.get_or_create(&of);
            fetched.0.inc_by(numbers.bytes_fetched);
            drop(fetched);
            for (family, bytes) in [
                (&self.size, layer.spans().compressed_size()),
                (&self.decoded, numbers.bytes_decoded),
                (&self.copied, numbers.bytes_copied),
            ] {
                family.get_or_create(&of).0.inc_by(bytes);
            }
        }
        let named = self.named.lock().clone();
        for layer in named.iter().filter(|layer| store.stored(layer).is_none()) {
            metrics.forget(layer);
            self.named.lock().remove(layer);
        }
    }
}

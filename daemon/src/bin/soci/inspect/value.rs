//! What is shown, as JSON.

use proto::spanshot::control::v1 as api;
use serde_json::{Value, json};

use crate::control_client::images;
use crate::paint::printable;

pub(super) fn list(views: &[api::View], prepared: &[api::Prepared]) -> Value {
    json!({
        "views": views.iter().map(view).collect::<Vec<_>>(),
        "prepared": prepared.iter().map(prepared_layer).collect::<Vec<_>>(),
    })
}

pub(crate) fn prepared_layer(layer: &api::Prepared) -> Value {
    json!({
        "at_us": layer.at_micros, "chain_id": layer.chain_id, "layer": layer.layer, "image": layer.image,
        "outcome": layer.outcome, "reason": layer.reason,
    })
}

fn view(view: &api::View) -> Value {
    let totals = Totals::of(view);
    json!({
        "id": view.id,
        "images": images(view),
        "mountpoint": view.mountpoint,
        "below": view.below,
        "ids": view.ids.as_ref().map(|ids| json!({"users": ids.users, "groups": ids.groups})),
        "containers": view.containers.iter().map(container).collect::<Vec<_>>(),
        "age_us": view.age_micros,
        "bytes": totals.bytes,
        "spans": totals.spans,
        "spans_local": totals.present,
        "bytes_compressed": totals.compressed,
        "bytes_fetched": totals.fetched,
        "bytes_read": view.bytes_read,
        "registry_requests": totals.requests,
        "failed_requests": totals.failed_requests,
        "hits": totals.hits,
        "misses": totals.misses,
        "failed_reads": totals.failed_reads,
        "fuse_requests": fuse_requests(view),
        "spans_decoded": totals.decoded,
        "bytes_decoded": totals.bytes_decoded,
        "decoded_over_read": over(totals.bytes_decoded, view.bytes_read),
        "bytes_copied": totals.copied,
        "bytes_on_disk": totals.on_disk,
        "waits": view.waits,
        "wait_p50_us": view.wait_p50_micros,
        "wait_p99_us": view.wait_p99_micros,
        "operations": view.operations.iter().map(|it| {
            (it.name.clone(), json!({"requests": it.requests, "failures": it.failures}))
        }).collect::<serde_json::Map<_, _>>(),
        "layers": view.layers.iter().map(layer).collect::<Vec<_>>(),
    })
}

/// All that the kernel has asked for.
pub(super) fn fuse_requests(view: &api::View) -> u64 {
    view.operations.iter().map(|it| it.requests).sum()
}

/// How many times as much the one is; none if the other is nothing.
#[expect(clippy::cast_precision_loss, reason = "shown with two decimals")]
pub(super) fn over(bytes: u64, of: u64) -> Option<f64> {
    (of > 0).then(|| (bytes as f64 / of as f64 * 100.0).round() / 100.0)
}

fn container(container: &api::Container) -> Value {
    json!({
        "id": container.id, "namespace": container.namespace, "rootfs": container.rootfs,
        "upper": container.upper, "lower": container.lower,
    })
}

fn layer(layer: &api::Layer) -> Value {
    json!({
        "digest": layer.digest, "images": layer.images,
        "compressed_size": layer.compressed_size, "uncompressed_size": layer.uncompressed_size,
        "spans": layer.spans, "spans_local": layer.spans_present,
        "hits": layer.hits, "misses": layer.misses, "failed_reads": layer.failed_reads,
        "bytes_served": layer.bytes_served, "registry_requests": layer.requests,
        "failed_requests": layer.failed_requests, "bytes_fetched": layer.bytes_fetched,
        "bad_spans": layer.bad_spans, "spans_decoded": layer.spans_decoded, "bytes_decoded": layer.bytes_decoded,
        "spans_filled": layer.spans_filled, "spans_evicted": layer.spans_evicted, "stragglers": layer.stragglers,
        "cold_hits": layer.cold_hits, "bytes_copied": layer.bytes_copied, "bytes_on_disk": layer.bytes_on_disk,
        "ztoc": if layer.compact { "compact" } else { "zTOC" },
    })
}

/// With the state of each span as a letter: `.` absent, `>` in flight, `?` here and unchecked, `#` here.
pub(super) fn view_with_spans(shown: &api::View, spans: &[api::LayerSpans]) -> Value {
    let mut value = view(shown);
    if let Some(layers) = value["layers"].as_array_mut() {
        for (layer, spans) in layers.iter_mut().zip(spans) {
            let letters = spans.states.iter().map(|state| match state {
                0 => '.',
                1 => '>',
                2 => '?',
                _ => '#',
            });
            layer["span_states"] = letters.collect::<String>().into();
        }
    }
    value
}

pub(crate) fn read(read: &api::Read) -> Value {
    json!({
        "at_us": read.at_micros, "path": printable(&read.path), "offset": read.offset,
        "length": read.length, "waited_us": read.waited_micros, "failed": read.failed, "layer": read.layer,
    })
}

/// Sums over a view's layers.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) bytes: u64,
    pub(super) compressed: u64,
    pub(super) spans: u64,
    pub(super) present: u64,
    pub(super) fetched: u64,
    pub(super) requests: u64,
    pub(super) failed_requests: u64,
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) failed_reads: u64,
    pub(super) decoded: u64,
    pub(super) bytes_decoded: u64,
    pub(super) copied: u64,
    pub(super) on_disk: u64,
}

impl Totals {
    pub(super) fn of(view: &api::View) -> Self {
        let mut sum = Self::default();
        for layer in &view.layers {
            sum.bytes += layer.uncompressed_size;
            sum.compressed += layer.compressed_size;
            sum.spans += u64::from(layer.spans);
            sum.present += u64::from(layer.spans_present);
            sum.fetched += layer.bytes_fetched;
            sum.requests += layer.requests;
            sum.failed_requests += layer.failed_requests;
            sum.hits += layer.hits;
            sum.misses += layer.misses;
            sum.failed_reads += layer.failed_reads;
            sum.decoded += layer.spans_decoded;
            sum.bytes_decoded += layer.bytes_decoded;
            sum.copied += layer.bytes_copied;
            sum.on_disk += layer.bytes_on_disk;
        }
        sum
    }
}

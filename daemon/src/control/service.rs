//! The control API on top of views and layers. With `stream` the only file that knows its messages.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use proto::spanshot::control::v1 as api;
use proto::spanshot::control::v1::control_server::Control;
use tonic::{Request, Response, Status};
use ztoc::{SpanId, UncompressedOffset};

use super::overlay::Overlay;
use super::{API, Inside, stream};
use crate::layer::{Lane, Layer};
use crate::view::OpenView;

/// The service.
#[derive(Debug)]
pub(super) struct Service {
    inside: Inside,
}

/// Longest path that is looked for, in bytes: the kernel's own limit.
const MAX_PATH: usize = 4096;

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    pub(super) fn new(inside: Inside) -> Self {
        Self { inside }
    }

    /// The view of that number and its layers, bottom first.
    fn view(&self, id: u64) -> Result<Open, Status> {
        let mut views = self.inside.views.open().into_iter();
        let view = views.find(|view| view.id == id);
        let view = view.ok_or_else(|| Status::not_found(format!("no view {id} is mounted")))?;
        Ok(Open {
            layers: layers_of(&self.inside, &view),
            view,
        })
    }
}

/// A view with its layers.
pub(super) struct Open {
    pub(super) view: OpenView,
    pub(super) layers: Vec<Arc<Layer>>,
}

/// The layers of a view, bottom first; all are open as long as it is mounted.
pub(super) fn layers_of(inside: &Inside, view: &OpenView) -> Vec<Arc<Layer>> {
    let open: HashMap<_, _> = inside
        .layers
        .open_layers()
        .into_iter()
        .map(|layer| (layer.digest(), layer))
        .collect();
    let layers = view.layers.iter().filter_map(|digest| open.get(digest));
    layers.cloned().collect()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|panic| Status::internal(panic.to_string()))
}

#[tonic::async_trait]
impl Control for Service {
    type EventsStream = BoxStream<'static, Result<api::Event, Status>>;

    async fn version(&self, _: Request<()>) -> Answer<api::VersionResponse> {
        Ok(Response::new(api::VersionResponse {
            version: crate::VERSION.to_owned(),
            revision: crate::REVISION.to_owned(),
            api: API,
        }))
    }

    async fn views(&self, _: Request<()>) -> Answer<api::ViewsResponse> {
        let overlays = blocking(Overlay::all).await?;
        let mut open = self.inside.views.open();
        open.sort_by_key(|view| view.id);
        let views = open.iter().map(|view| {
            let layers = layers_of(&self.inside, view);
            view_message(view, &layers, &overlays)
        });
        Ok(Response::new(api::ViewsResponse {
            views: views.collect(),
        }))
    }

    async fn spans(&self, request: Request<api::ViewRequest>) -> Answer<api::SpansResponse> {
        let open = self.view(request.into_inner().view)?;
        let layers = open.layers.iter().map(|layer| api::LayerSpans {
            digest: layer.digest().to_string(),
            states: layer.span_states(),
        });
        Ok(Response::new(api::SpansResponse {
            layers: layers.collect(),
        }))
    }

    async fn reads(&self, request: Request<api::ViewRequest>) -> Answer<api::ReadsResponse> {
        let open = self.view(request.into_inner().view)?;
        let answer = blocking(move || {
            let record = open.view.inside.accesses.record();
            let mut images: Vec<String> = open.layers.iter().flat_map(|it| it.images()).collect();
            images.sort();
            images.dedup();
            api::ReadsResponse {
                reads: stream::read_messages(&open.view.inside.view, &open.layers, &record.reads),
                left_out: record.left_out,
                images,
            }
        });
        Ok(Response::new(answer.await?))
    }

    async fn restart_record(&self, request: Request<api::ViewRequest>) -> Answer<()> {
        let open = self.view(request.into_inner().view)?;
        open.view.inside.accesses.restart();
        Ok(Response::new(()))
    }

    async fn explain(&self, request: Request<api::ExplainRequest>) -> Answer<api::ExplainResponse> {
        let request = request.into_inner();
        let open = self.view(request.view)?;
        blocking(move || explain(&open, &request.path))
            .await?
            .map(Response::new)
    }

    async fn prepared(&self, _: Request<()>) -> Answer<api::PreparedResponse> {
        let (entries, _) = self.inside.metrics.journal().since(0);
        Ok(Response::new(api::PreparedResponse {
            layers: entries.into_iter().map(stream::prepared_message).collect(),
        }))
    }

    async fn events(&self, _: Request<()>) -> Answer<Self::EventsStream> {
        Ok(Response::new(stream::events(self.inside.clone())))
    }

    async fn fetch(&self, request: Request<api::FetchRequest>) -> Answer<api::FetchResponse> {
        let request = request.into_inner();
        let open = self.view(request.view)?;
        let answer = blocking(move || fetch(&open, &request.paths));
        Ok(Response::new(answer.await?))
    }

    async fn verify(&self, request: Request<api::ViewRequest>) -> Answer<api::VerifyResponse> {
        let open = self.view(request.into_inner().view)?;
        let answer = blocking(move || {
            let mut answer = api::VerifyResponse::default();
            for layer in &open.layers {
                for span in layer.spans().ids() {
                    let Some(right) = layer.verify_cached(span) else {
                        continue;
                    };
                    let range = layer.spans().uncompressed(span);
                    answer.checked += 1;
                    answer.bytes += range.end.0 - range.start.0;
                    answer.wrong += u64::from(!right);
                }
            }
            answer
        });
        Ok(Response::new(answer.await?))
    }
}

fn view_message(view: &OpenView, layers: &[Arc<Layer>], overlays: &[Overlay]) -> api::View {
    let (counters, accesses) = (&view.inside.counters, &view.inside.accesses);
    let using = overlays.iter().filter(|overlay| overlay.shows(&view.path));
    api::View {
        id: view.id,
        mountpoint: text(&view.path),
        layers: layers.iter().map(|layer| layer_message(layer)).collect(),
        below: view.below.iter().map(|path| text(path)).collect(),
        containers: using.map(container_message).collect(),
        age_micros: micros(accesses.age()),
        bytes_read: counters.read_bytes(),
        waits: accesses.waited(),
        wait_p50_micros: accesses.wait(0.5).map(micros),
        wait_p99_micros: accesses.wait(0.99).map(micros),
        operations: fuse::Operation::ALL
            .into_iter()
            .map(|operation| api::Operation {
                name: operation.name().to_owned(),
                requests: counters.requests(operation),
                failures: counters.failures(operation),
            })
            .collect(),
        ids: view.ids.as_ref().map(|ids| api::IdMapping {
            users: ids.users.to_string(),
            groups: ids.groups.to_string(),
        }),
    }
}

fn layer_message(layer: &Layer) -> api::Layer {
    let (spans, numbers) = (layer.spans(), layer.counters());
    api::Layer {
        digest: layer.digest().to_string(),
        images: layer.images(),
        compressed_size: spans.compressed_size(),
        uncompressed_size: spans.uncompressed_size(),
        spans: spans.count(),
        spans_present: u32::try_from(layer.spans_present()).unwrap_or(u32::MAX),
        hits: numbers.hits,
        misses: numbers.misses,
        failed_reads: numbers.failed_reads,
        bytes_served: numbers.bytes_served,
        requests: numbers.requests,
        failed_requests: numbers.failed_requests,
        bytes_fetched: numbers.bytes_fetched,
        bad_spans: numbers.bad_spans,
        spans_decoded: numbers.spans_decoded,
        bytes_decoded: numbers.bytes_decoded,
        spans_filled: numbers.spans_filled,
        spans_evicted: numbers.spans_evicted,
        stragglers: numbers.stragglers,
        cold_hits: numbers.cold_hits,
        bytes_copied: numbers.bytes_copied,
        bytes_on_disk: layer.held(),
        compact: layer.compact_ztoc().is_some(),
    }
}

fn container_message(overlay: &Overlay) -> api::Container {
    let (namespace, id) = overlay.container().unwrap_or_default();
    api::Container {
        id: id.to_owned(),
        namespace: namespace.to_owned(),
        rootfs: text(&overlay.mountpoint),
        upper: overlay.upper.as_deref().map(text).unwrap_or_default(),
        lower: overlay.lower.iter().map(|path| text(path)).collect(),
    }
}

fn explain(open: &Open, path: &[u8]) -> Result<api::ExplainResponse, Status> {
    let found = find(&open.view.inside.view, path);
    let (path, origin) = found.ok_or_else(|| {
        let path = path[..path.len().min(MAX_PATH)].escape_ascii();
        Status::not_found(format!("{path}: no lazy layer of the view has this"))
    })?;
    let layer = open.layers.get(origin.layer);
    let spans = layer.map_or_else(Vec::new, |layer| {
        let states = layer.span_states();
        let covering = covering(layer, origin.data.start.0, origin.data.end.0);
        covering
            .map(|span| span_message(layer, span, &states))
            .collect()
    });
    Ok(api::ExplainResponse {
        path,
        kind: origin.kind.to_owned(),
        size: origin.size,
        layer: layer
            .map(|layer| layer.digest().to_string())
            .unwrap_or_default(),
        layer_number: u32::try_from(origin.layer).unwrap_or(u32::MAX),
        layer_start: origin.data.start.0,
        layer_end: origin.data.end.0,
        spans,
    })
}

/// What is at `path` of a view.
fn find(view: &fuse::View, path: &[u8]) -> Option<(Vec<u8>, fuse::Origin)> {
    if path.len() > MAX_PATH {
        return None;
    }
    view.explain(path)
}

/// For [`crate::hostile`]: some request about a view.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(view: &fuse::View, bytes: &[u8]) {
    use prost::Message as _;

    let explain = api::ExplainRequest::decode(bytes).map(|call| vec![call.path]);
    let fetch = api::FetchRequest::decode(bytes).map(|call| call.paths);
    for path in explain.into_iter().chain(fetch).flatten() {
        if let Some((path, origin)) = find(view, &path) {
            // What a path leads to is found under the path that is told.
            let again = view.explain(&path);
            assert_eq!(again.map(|(_, origin)| origin), Some(origin));
        }
    }
    let _ = api::ViewRequest::decode(bytes);
}

/// The spans of a range, of which the layer may have less.
fn covering(layer: &Layer, start: u64, end: u64) -> impl Iterator<Item = SpanId> + use<> {
    let spans = layer.spans();
    let end = end.min(spans.uncompressed_size());
    let range = UncompressedOffset(start.min(end))..UncompressedOffset(end);
    let covering = spans.covering(range);
    (covering.start.0..covering.end.0).map(SpanId)
}

fn span_message(layer: &Layer, span: SpanId, states: &[u8]) -> api::Span {
    let table = layer.spans();
    let (compressed, plain) = (table.compressed(span), table.uncompressed(span));
    api::Span {
        id: span.0,
        state: states
            .get(span.0 as usize)
            .copied()
            .unwrap_or_default()
            .into(),
        compressed_start: compressed.start.0,
        compressed_end: compressed.end.0,
        uncompressed_start: plain.start.0,
        uncompressed_end: plain.end.0,
        checkpoint_bits: table.checkpoint(span).bits.into(),
        digest: table.digest(span).to_string(),
    }
}

fn fetch(open: &Open, paths: &[Vec<u8>]) -> api::FetchResponse {
    let mut answer = api::FetchResponse::default();
    let mut wanted: Vec<(&Arc<Layer>, Vec<SpanId>)> = Vec::new();
    if paths.is_empty() {
        wanted.extend(
            open.layers
                .iter()
                .map(|layer| (layer, layer.spans().ids().collect())),
        );
    }
    for path in paths {
        let found = find(&open.view.inside.view, path);
        let found = found.and_then(|(_, origin)| Some((open.layers.get(origin.layer)?, origin)));
        match found {
            Some((layer, origin)) => {
                let spans = covering(layer, origin.data.start.0, origin.data.end.0);
                wanted.push((layer, spans.collect()));
            }
            None => answer.unknown_paths.push(path.clone()),
        }
    }
    for (layer, spans) in wanted {
        let states = layer.span_states();
        let here = |span: &&SpanId| states.get(span.0 as usize).is_some_and(|state| *state >= 2);
        answer.missing += spans.iter().filter(|span| !here(span)).count() as u64;
        if let (Some(first), Some(last)) = (spans.first(), spans.last()) {
            layer.request(*first..SpanId(last.0 + 1), Lane::Readahead);
        }
    }
    answer
}

fn text(path: &Path) -> String {
    String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned()
}

pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

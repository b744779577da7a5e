//! Traces: of what a page fault and a `Prepare` consist, for an OpenTelemetry collector (OTLP over HTTP).
//!
//! Without `[traces] endpoint` no span is made: what is left is a look at a constant. With it, spans go through a
//! bounded queue to a thread of their own. If the collector does not keep up or is away they are dropped; nothing waits
//! for it.

mod collector;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanProcessor,
};
use tokio::runtime::Handle;
use tracing::{Level, Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use self::collector::Collector;
use crate::config::TracesConfig;

/// Whether there is anybody to make spans for.
static ON: AtomicBool = AtomicBool::new(false);

/// Spans that wait to be sent; more are dropped.
const QUEUE: usize = 8192;
/// Longest time a span waits for others to be sent with.
const DELAY: Duration = Duration::from_secs(1);
/// How long the end of the process waits for the last spans to be sent.
const FAREWELL: Duration = Duration::from_millis(500);

/// A span of one step of the work that this thread or task is at, if that is traced.
macro_rules! step {
    ($name:literal $(, $($fields:tt)+)?) => {{
        let work = $crate::traces::here();
        if work.is_disabled() {
            work
        } else {
            tracing::info_span!(target: fuse::TRACE, parent: &work, $name $(, $($fields)+)?)
        }
    }};
}
pub(crate) use step;

/// What sends spans. Made once in a process.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

/// Why there are no traces.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TracesError {
    /// The address of the collector.
    #[error("{0}")]
    Endpoint(String),
    /// The HTTP client: this machine's certificates, or its proxies.
    #[error("no traces can be sent: {0}")]
    Client(String),
    /// What turns spans into requests: the `OTEL_` variables of the environment.
    #[error("no traces can be made: {0}")]
    Exporter(String),
}

impl Traces {
    /// Gets ready to send spans from `runtime`, if the configuration wants that. Asks the collector nothing yet.
    ///
    /// # Errors
    /// The address of the collector or the certificates of this machine are unusable.
    pub fn start(config: &TracesConfig, runtime: &Handle) -> Result<Option<Self>, TracesError> {
        let Some(url) = config.url().map_err(TracesError::Endpoint)? else {
            return Ok(None);
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::new(runtime.clone()).map_err(TracesError::Client)?)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url)
            .build();
        let exporter = exporter.map_err(|error| TracesError::Exporter(error.to_string()))?;
        let batch = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_scheduled_delay(DELAY)
            .build();
        let sender = BatchSpanProcessor::builder(exporter).with_batch_config(batch);
        let share = f64::from(config.sample_percent) / 100.0;
        let provider = SdkTracerProvider::builder()
            .with_span_processor(Waits(sender.build()))
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                share,
            ))))
            .with_resource(this_process())
            .build();
        ON.store(true, Ordering::Relaxed);
        Ok(Some(Self { provider }))
    }

    /// What makes spans of the process's own, for the subscriber.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("spanshot"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(is_of_a_trace))
    }

    /// Sends what is left, for half a second at most.
    pub fn stop(self) {
        ON.store(false, Ordering::Relaxed);
        if let Err(error) = self.provider.shutdown_with_timeout(FAREWELL) {
            tracing::info!("the last traces are not sent: {error}");
        }
    }
}

/// Spans of a trace, and the warnings of ours that fall into one.
fn is_of_a_trace(what: &Metadata<'_>) -> bool {
    let warning = what.is_event() && *what.level() <= Level::WARN;
    what.target() == fuse::TRACE || (warning && what.target().starts_with("daemon"))
}

fn this_process() -> Resource {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Resource::builder_empty()
        .with_service_name("soci-snapshotter-grpc")
        .with_attributes([
            KeyValue::new("service.version", crate::VERSION),
            KeyValue::new("host.name", name.trim().to_owned()),
        ])
        .build()
}

/// The span that this thread or task is in; none if nothing is traced.
pub(crate) fn here() -> Span {
    match ON.load(Ordering::Relaxed) {
        true => Span::current(),
        false => Span::none(),
    }
}

/// The span of a `Prepare`, in the caller's trace if the caller has one.
pub(crate) fn prepare(headers: &http::HeaderMap, key: &str) -> Span {
    use tracing::field::Empty;

    if !ON.load(Ordering::Relaxed) {
        return Span::none();
    }
    let span = tracing::info_span!(
        target: fuse::TRACE, parent: None, "Prepare",
        otel.kind = "server", snapshot.key = key, container.image.name = Empty, layer = Empty, outcome = Empty,
        reason = Empty,
    );
    let caller = opentelemetry::propagation::TextMapPropagator::extract(
        &TraceContextPropagator::new(),
        &HeaderExtractor(headers),
    );
    if caller.span().span_context().is_valid() {
        // Only a span that has begun already has its parent for good.
        let _ = span.set_parent(caller);
    }
    span
}

/// Lets everything through but reads that were answered at once: they are many, and nobody waited for them.
#[derive(Debug)]
struct Waits(BatchSpanProcessor);

impl SpanProcessor for Waits {
    fn on_start(&self, span: &mut opentelemetry_sdk::trace::Span, cx: &opentelemetry::Context) {
        self.0.on_start(span, cx);
    }

    fn on_end(&self, span: SpanData) {
        let mut attributes = span.attributes.iter();
        let waited = attributes.any(|it| it.key.as_str() == fuse::READ_PATH);
        if span.name != fuse::READ || waited {
            self.0.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.0.set_resource(resource);
    }
}

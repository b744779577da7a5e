//! A collector of traces: OTLP over HTTP, as far as it takes to see what the daemon sends.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use parking_lot::Mutex;
use prost::Message as _;

use crate::command::until;

/// Listens on loopback until the process ends, and keeps what it is sent.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
}

/// A span that was collected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Its name.
    pub name: String,
    /// The trace it is of.
    pub trace: Vec<u8>,
    /// Its id.
    pub id: Vec<u8>,
    /// The id of the span it is a part of; empty for the first of a trace.
    pub parent: Vec<u8>,
    /// When it began and ended, in nanoseconds since 1970.
    pub time: (u64, u64),
    /// Its attributes, as text.
    pub attributes: BTreeMap<String, String>,
    /// Those of what sent it.
    pub resource: BTreeMap<String, String>,
}

impl Collector {
    /// Starts to listen.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let spans = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&spans);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let kept = Arc::clone(&kept);
                std::thread::spawn(move || {
                    if let Err(error) = serve(stream, &kept) {
                        eprintln!("collector: {error:#}");
                    }
                });
            }
        });
        Ok(Self { address, spans })
    }

    /// The lines of the daemon's configuration that send traces here.
    pub fn config(&self) -> String {
        format!("[traces]\nendpoint = \"http://{}\"\n", self.address)
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().clone()
    }

    /// Waits until a span has come that is `wanted`.
    pub fn wait(&self, what: &str, wanted: impl Fn(&Span) -> bool) -> Result<Span> {
        until(what, Duration::from_secs(30), || {
            Ok(self.spans.lock().iter().find(|span| wanted(span)).cloned())
        })
        .with_context(|| format!("{:#?}", self.spans()))
    }

    /// The parts of `span`, in the order of their beginnings.
    pub fn parts(&self, span: &Span) -> Vec<Span> {
        let mut parts = self.spans();
        parts.retain(|it| it.trace == span.trace && it.parent == span.id);
        parts.sort_by_key(|it| it.time);
        parts
    }
}

impl Span {
    /// An attribute; empty if there is none.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

/// One connection, to its end.
fn serve(stream: TcpStream, kept: &Mutex<Vec<Span>>) -> Result<()> {
    let mut answers = stream.try_clone()?;
    let mut requests = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if requests.read_line(&mut line)? == 0 {
                return Ok(());
            }
            match line.trim_end() {
                "" => break,
                line => head.push(line.to_ascii_lowercase()),
            }
        }
        ensure!(head[0] == "post /v1/traces http/1.1", "{head:?}");
        let protobuf = String::from("content-type: application/x-protobuf");
        ensure!(head.contains(&protobuf), "{head:?}");
        let length = head
            .iter()
            .find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.context("no length")?.parse()?];
        requests.read_exact(&mut body)?;
        kept.lock().extend(spans(&body)?);
        answers.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
    }
}

fn spans(body: &[u8]) -> Result<Vec<Span>> {
    let mut spans = Vec::new();
    for sent in ExportTraceServiceRequest::decode(body)?.resource_spans {
        let resource = texts(sent.resource.unwrap_or_default().attributes);
        for span in sent.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.push(Span {
                name: span.name,
                trace: span.trace_id,
                id: span.span_id,
                parent: span.parent_span_id,
                time: (span.start_time_unix_nano, span.end_time_unix_nano),
                attributes: texts(span.attributes),
                resource: resource.clone(),
            });
        }
    }
    Ok(spans)
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |attribute: KeyValue| {
        let value = attribute.value.and_then(|value| value.value);
        let value = match value {
            Some(any_value::Value::StringValue(text)) => text,
            Some(any_value::Value::IntValue(number)) => number.to_string(),
            Some(any_value::Value::BoolValue(truth)) => truth.to_string(),
            other => format!("{other:?}"),
        };
        (attribute.key, value)
    };
    attributes.into_iter().map(text).collect()
}

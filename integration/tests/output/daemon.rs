//! A daemon that says the same every time.

use std::path::Path;
use std::pin::Pin;

use anyhow::Result;
use proto::spanshot::control::v1 as api;
use proto::spanshot::control::v1::control_server::{Control, ControlServer};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, iter};
use tonic::{Request, Response, Status};

const MIB: u64 = 1 << 20;
const IMAGE: &str = "registry.example/app:1";

fn digest(letter: char) -> String {
    format!("sha256:{}", letter.to_string().repeat(64))
}

/// Serves on `socket` until it is dropped.
pub(crate) fn start(socket: &Path) -> Result<Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let listener = runtime.block_on(async { UnixListener::bind(socket) })?;
    runtime.spawn(async {
        let server = tonic::transport::Server::builder().add_service(ControlServer::new(Said));
        server
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await
    });
    Ok(runtime)
}

struct Said;

fn layer(letter: char, spans: u32, present: u32, compact: bool) -> api::Layer {
    api::Layer {
        digest: digest(letter),
        images: vec![IMAGE.into()],
        compressed_size: u64::from(spans) * 3 * MIB / 2,
        uncompressed_size: u64::from(spans) * 4 * MIB,
        spans,
        spans_present: present,
        hits: 90,
        misses: u64::from(present),
        bytes_served: 7 * MIB,
        requests: u64::from(present),
        failed_requests: 1,
        bytes_fetched: u64::from(present) * 3 * MIB / 2,
        spans_decoded: u64::from(present),
        bytes_decoded: u64::from(present) * 4 * MIB,
        bytes_copied: MIB,
        bytes_on_disk: u64::from(present) * 4 * MIB,
        compact,
        ..api::Layer::default()
    }
}

fn view() -> api::View {
    let operation = |name: &str, requests| api::Operation {
        name: name.into(),
        requests,
        failures: 0,
    };
    api::View {
        id: 7,
        mountpoint: "/var/lib/soci-snapshotter-grpc/views/7".into(),
        layers: vec![layer('a', 100, 3, false), layer('b', 4, 4, true)],
        below: vec!["/var/lib/soci-snapshotter-grpc/snapshotter/snapshots/1/fs".into()],
        containers: vec![api::Container {
            id: "web".into(),
            namespace: "k8s.io".into(),
            rootfs: "/run/web/rootfs".into(),
            upper: "/nonexistent/upper".into(),
            lower: vec!["/var/lib/soci-snapshotter-grpc/views/7".into()],
        }],
        age_micros: 95_000_000,
        bytes_read: 12 * MIB,
        waits: 9,
        wait_p50_micros: Some(4096),
        wait_p99_micros: Some(131_072),
        operations: vec![operation("node.Lookup", 210), operation("file.Read", 190)],
        ids: Some(api::IdMapping {
            users: "0:100000:65536".into(),
            groups: "0:200000:65536".into(),
        }),
    }
}

fn read(at: u64, path: &str, waited: Option<u64>, failed: bool) -> api::Read {
    api::Read {
        at_micros: at,
        path: path.into(),
        offset: 4096,
        length: 131_072,
        waited_micros: waited,
        failed,
        layer: digest('a'),
        layer_start: 5 * MIB,
        layer_end: 5 * MIB + 131_072,
    }
}

fn prepared(letter: char, outcome: &str, reason: &str) -> api::Prepared {
    api::Prepared {
        at_micros: 1_700_000_000_000_000,
        chain_id: digest('e'),
        layer: digest(letter),
        image: IMAGE.into(),
        outcome: outcome.into(),
        reason: reason.into(),
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Control for Said {
    async fn version(&self, _: Request<()>) -> Answer<api::VersionResponse> {
        Ok(Response::new(api::VersionResponse::default()))
    }

    async fn views(&self, _: Request<()>) -> Answer<api::ViewsResponse> {
        Ok(Response::new(api::ViewsResponse {
            views: vec![view()],
        }))
    }

    async fn spans(&self, _: Request<api::ViewRequest>) -> Answer<api::SpansResponse> {
        let mut states = vec![0; 100];
        states[..5].copy_from_slice(&[3, 2, 1, 0, 3]);
        let spans = |letter, states| api::LayerSpans {
            digest: digest(letter),
            states,
        };
        Ok(Response::new(api::SpansResponse {
            layers: vec![spans('a', states), spans('b', vec![3; 4])],
        }))
    }

    async fn reads(&self, _: Request<api::ViewRequest>) -> Answer<api::ReadsResponse> {
        Ok(Response::new(api::ReadsResponse {
            reads: vec![
                read(1200, "/usr/bin/app", Some(35_000), false),
                read(40_000, "/usr/bin/app", None, false),
                read(90_000, "/etc/odd\x1bname", Some(900), true),
            ],
            left_out: 2,
            images: vec![IMAGE.into()],
        }))
    }

    async fn restart_record(&self, _: Request<api::ViewRequest>) -> Answer<()> {
        Ok(Response::new(()))
    }

    async fn explain(&self, asked: Request<api::ExplainRequest>) -> Answer<api::ExplainResponse> {
        let path = asked.into_inner().path;
        if path != b"/usr/bin/app" {
            return Err(Status::not_found("no such path"));
        }
        let span = |id: u32, state, bits| api::Span {
            id,
            state,
            compressed_start: u64::from(id) * 3 * MIB / 2,
            compressed_end: u64::from(id + 1) * 3 * MIB / 2,
            uncompressed_start: u64::from(id) * 4 * MIB,
            uncompressed_end: u64::from(id + 1) * 4 * MIB,
            checkpoint_bits: bits,
            digest: digest('d'),
        };
        Ok(Response::new(api::ExplainResponse {
            path,
            kind: "reg".into(),
            size: 5 * MIB,
            layer: digest('a'),
            layer_number: 0,
            layer_start: 4 * MIB,
            layer_end: 9 * MIB,
            spans: vec![span(1, 3, 5), span(2, 0, 0)],
        }))
    }

    async fn prepared(&self, _: Request<()>) -> Answer<api::PreparedResponse> {
        Ok(Response::new(api::PreparedResponse {
            layers: vec![
                prepared('a', "lazy", ""),
                prepared('b', "lazy", ""),
                prepared('c', "unpacked", "the index has no zTOC for it"),
                prepared('d', "deferred", "the image has no SOCI index"),
            ],
        }))
    }

    type EventsStream = Pin<Box<dyn Stream<Item = Result<api::Event, Status>> + Send>>;

    async fn events(&self, _: Request<()>) -> Answer<Self::EventsStream> {
        let fault = |read| {
            let fault = api::Fault {
                view: 7,
                read: Some(read),
            };
            Ok(api::Event {
                event: Some(api::event::Event::Fault(fault)),
            })
        };
        let layer = |prepared| {
            Ok(api::Event {
                event: Some(api::event::Event::Prepared(prepared)),
            })
        };
        Ok(Response::new(Box::pin(iter([
            layer(prepared('a', "lazy", "")),
            layer(prepared('c', "unpacked", "the index has no zTOC for it")),
            fault(read(1200, "/usr/bin/app", Some(35_000), false)),
            fault(read(90_000, "/etc/odd\x1bname", Some(900), true)),
        ]))))
    }

    async fn fetch(&self, asked: Request<api::FetchRequest>) -> Answer<api::FetchResponse> {
        let mut unknown = asked.into_inner().paths;
        unknown.retain(|path| path != b"/usr/bin/app");
        Ok(Response::new(api::FetchResponse {
            missing: 1,
            unknown_paths: unknown,
        }))
    }

    async fn verify(&self, _: Request<api::ViewRequest>) -> Answer<api::VerifyResponse> {
        Ok(Response::new(api::VerifyResponse {
            checked: 7,
            bytes: 28 * MIB,
            wrong: 1,
        }))
    }
}

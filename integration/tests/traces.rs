//! Traces, as a collector gets them from a daemon that real containers read through.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::time::{Duration, Instant};

use integration::busybox::noise;
use integration::collector::{Collector, Span};
use integration::command::until;
use integration::ctr::Run;
use integration::host::{Host, IMPATIENT, ON_DEMAND, Published};
use nix::sys::signal::Signal;
use proto::containerd::services::snapshots::v1 as api;
use proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;

/// An image with a small file in a layer of its own, pulled lazily.
fn pulled(host: &Host) -> Published {
    let large = noise(3 << 20);
    let files: [(&str, &[u8]); 2] = [("large", &large), ("greeting", b"hello\n")];
    let published = host.publish_files("app", &files).unwrap();
    host.soci().unwrap().rpull(&published.reference).unwrap();
    published
}

/// The parts of `span` that are called `name`, of which there is one at least.
fn parts(collector: &Collector, span: &Span, name: &str) -> Vec<Span> {
    let mut parts = collector.parts(span);
    let all: Vec<_> = parts.iter().map(|it| it.name.clone()).collect();
    parts.retain(|it| it.name == name);
    assert!(!parts.is_empty(), "{} has {all:?}", span.name);
    parts
}

fn part(collector: &Collector, span: &Span, name: &str) -> Span {
    parts(collector, span, name).remove(0)
}

fn assert_within(inner: &Span, outer: &Span) {
    let within = inner.time.0 >= outer.time.0 && inner.time.1 <= outer.time.1;
    assert!(within, "{inner:#?}\nis not within\n{outer:#?}");
}

#[test]
fn a_page_fault_is_a_trace_of_its_request_its_verification_and_its_answer() {
    let collector = Collector::start().unwrap();
    let config = format!("{ON_DEMAND}{}", collector.config());
    let host = Host::start(&config).unwrap();
    let published = pulled(&host);
    let greeting = Run::shell(&published.reference, "reader", "cat /greeting");
    assert_eq!(host.ctr().run(greeting).unwrap(), "hello\n");

    let of_greeting =
        |span: &Span| span.name == "read" && span.attribute("file.path") == "/greeting";
    let read = collector.wait("the fault", of_greeting).unwrap();
    assert_eq!(read.parent, Vec::<u8>::new());
    assert_eq!(read.attribute("file.offset"), "0");
    assert_eq!(read.resource["service.name"], "soci-snapshotter-grpc");

    let layer = &published.image.layers[2];
    let fetch = part(&collector, &read, "fetch");
    assert_eq!(fetch.attribute("layer"), layer.digest);
    // The layer is one span: all of its bytes, less the frame around the deflate stream.
    assert_eq!(
        (fetch.attribute("first_span"), fetch.attribute("end_span")),
        ("0", "1")
    );
    let bytes: u64 = fetch.attribute("bytes").parse().unwrap();
    assert!(
        bytes > 0 && bytes <= layer.size,
        "{bytes} of {}",
        layer.size
    );
    let request = part(&collector, &fetch, "HTTP");
    assert_eq!(request.attribute("http.request.method"), "GET");
    assert_eq!(request.attribute("http.response.status_code"), "206");
    let url = request.attribute("url.full");
    assert!(url.contains(&layer.digest), "{url}");
    let verify = part(&collector, &fetch, "verify");
    assert_eq!(verify.attribute("bytes"), fetch.attribute("bytes"));
    let inflate = part(&collector, &fetch, "inflate");
    let reply = part(&collector, &read, "reply");
    // Said in this order, because it is done in this order.
    let ends = [&request, &verify, &inflate].map(|span| span.time.1);
    assert!(ends.is_sorted(), "{ends:?}");
    assert!(request.time.1 <= verify.time.0 && verify.time.1 <= inflate.time.0);
    assert_within(&request, &fetch);
    assert_within(&reply, &read);
    assert!(
        reply.time.0 >= inflate.time.0,
        "it is answered while it is inflated, or after"
    );

    // What was answered at once is in no trace.
    let pathless = |span: &Span| span.name == "read" && span.attribute("file.path").is_empty();
    assert!(!collector.spans().iter().any(pathless));
    host.finish().unwrap();
}

#[test]
fn a_prepare_is_a_trace_of_what_it_asked_the_registry_and_of_how_it_came_out() {
    let collector = Collector::start().unwrap();
    let config = format!("{ON_DEMAND}{}", collector.config());
    let host = Host::start(&config).unwrap();
    let published = pulled(&host);
    for layer in &published.image.layers {
        let is_of = |span: &Span| span.name == "Prepare" && span.attribute("layer") == layer.digest;
        let prepare = collector.wait("a Prepare", is_of).unwrap();
        assert_eq!(prepare.parent, Vec::<u8>::new());
        assert_eq!(prepare.attribute("outcome"), "lazy");
        assert_eq!(
            prepare.attribute("container.image.name"),
            published.reference
        );
        for step in ["find index", "zTOC", "commit"] {
            assert_within(&part(&collector, &prepare, step), &prepare);
        }
    }
    let bottom = &published.image.layers[0].digest;
    let is_first = |span: &Span| span.name == "Prepare" && span.attribute("layer") == bottom;
    let first = collector.wait("the first", is_first).unwrap();
    // With the first layer the index is asked for, once.
    let asked = parts(&collector, &part(&collector, &first, "find index"), "HTTP");
    for request in &asked {
        assert_eq!(request.attribute("http.response.status_code"), "200");
        assert!(
            request.attribute("url.full").contains("/v2/app/"),
            "{request:?}"
        );
    }
    host.finish().unwrap();
}

#[test]
fn a_caller_that_is_traced_finds_the_prepare_in_its_trace() {
    let collector = Collector::start().unwrap();
    let host = Host::start(&collector.config()).unwrap();
    let socket = host.containerd.snapshotter_socket();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(socket).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        let channel = tonic::transport::Endpoint::from_static("http://snapshotter");
        let channel = channel.connect_with_connector(connector).await.unwrap();
        let prepare = api::PrepareSnapshotRequest {
            key: "traced".into(),
            ..api::PrepareSnapshotRequest::default()
        };
        let mut request = tonic::Request::new(prepare);
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        request
            .metadata_mut()
            .insert("traceparent", parent.parse().unwrap());
        SnapshotsClient::new(channel)
            .prepare(request)
            .await
            .unwrap();
    });
    let is_ours = |span: &Span| span.attribute("snapshot.key") == "traced";
    let prepare = collector.wait("the Prepare", is_ours).unwrap();
    assert_eq!(prepare.trace[..4], [0x0a, 0xf7, 0x65, 0x19]);
    assert_eq!(prepare.parent[..4], [0xb7, 0xad, 0x6b, 0x71]);
    host.finish().unwrap();
}

/// One that takes connections and never answers, and one that is not there.
#[test]
fn a_collector_that_is_away_or_silent_is_in_nobodys_way() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
    for address in [silent.local_addr().unwrap(), gone.unwrap()] {
        let config = format!("{IMPATIENT}[traces]\nendpoint = \"http://{address}\"\n");
        let mut host = Host::start(&config).unwrap();
        let published = pulled(&host);
        let script = "cat /large >/dev/null; cat /greeting";
        let greeting = Run::shell(&published.reference, "reader", script);
        assert_eq!(host.ctr().run(greeting).unwrap(), "hello\n");
        until("it is logged", Duration::from_secs(30), || {
            let log = host.snapshotter.log();
            Ok(log
                .contains("the collector of traces does not take them")
                .then_some(()))
        })
        .unwrap();
        let begun = Instant::now();
        host.snapshotter.stop(Signal::SIGTERM).unwrap();
        // Half a second is what the end waits for it; the rest is for a busy machine.
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "{:?}",
            begun.elapsed()
        );
    }
}

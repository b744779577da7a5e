//! The operator's eyes: what `soci inspect` and its kin say of a running daemon, against what is known of
//! it from elsewhere.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use integration::busybox::noise;
use integration::command::{fail, until};
use integration::ctr::Run;
use integration::host::{Host, ON_DEMAND, Published};
use integration::{Scratch, Soci};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

/// A container that runs until it is dropped.
struct Running<'a> {
    host: &'a Host,
    id: &'static str,
    child: Child,
}

impl<'a> Running<'a> {
    /// Runs `script`, and after it waits.
    fn start(host: &'a Host, image: &str, id: &'static str, script: &str) -> Self {
        let script = format!("{script}; echo ready; exec sleep 1000");
        let mut command = host.ctr().run_command(Run::shell(image, id, &script));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(
            lines.any(|line| line.unwrap() == "ready"),
            "the container did not start"
        );
        Self { host, id, child }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self
            .host
            .ctr()
            .call(&["tasks", "kill", "--signal", "KILL", self.id]);
        let _ = self.child.wait();
    }
}

/// An image of busybox, a small file and a large one, each in a layer of its own, pulled.
fn pulled(host: &Host) -> Published {
    let large = noise(3 << 20);
    let published = host
        .publish_files("app", &[("greeting", b"hello\n"), ("large", &large)])
        .unwrap();
    host.soci().unwrap().rpull(&published.reference).unwrap();
    published
}

fn json(soci: &Soci, arguments: &[&str]) -> Value {
    let text = soci.call(&[arguments, &["--json"]].concat()).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn a_running_container_is_seen_with_its_image_its_layers_and_what_is_local() {
    let host = Host::start(ON_DEMAND).unwrap();
    let soci = host.soci().unwrap();
    let published = pulled(&host);
    let empty = soci.call(&["inspect"]).unwrap();
    assert!(empty.starts_with("No view is mounted"), "{empty}");
    let before = host.registry.traffic().unwrap();
    let running = Running::start(
        &host,
        &published.reference,
        "eyes",
        "cat /greeting; head -c 1 /large >/dev/null",
    );

    let all = json(&soci, &["inspect"]);
    let view = &all["views"][0];
    assert_eq!(all["views"].as_array().unwrap().len(), 1);
    assert_eq!(view["images"], serde_json::json!([published.reference]));
    assert_eq!(view["containers"][0]["id"], "eyes");
    assert_eq!(view["containers"][0]["namespace"], host.ctr().namespace());
    let mounts = host.snapshotter.fuse_mounts().unwrap();
    assert_eq!(Path::new(view["mountpoint"].as_str().unwrap()), mounts[0]);
    let digests: Vec<_> = view["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["digest"])
        .collect();
    let expected: Vec<_> = published.image.layers.iter().map(|it| &it.digest).collect();
    assert_eq!(digests, expected);
    // What the registry says it gave is what the daemon says it fetched.
    let traffic = host.registry.traffic().unwrap().since(before);
    assert_eq!(number(&view["bytes_fetched"]), traffic.blob_bytes);
    assert!(
        number(&view["spans_local"]) < number(&view["spans"]),
        "{view}"
    );
    assert!(
        number(&view["waits"]) > 0 && number(&view["wait_p99_us"]) > 0,
        "{view}"
    );

    // By each of its names, the same view.
    let id = view["id"].to_string();
    for name in [
        &id,
        "eyes",
        published.reference.as_str(),
        mounts[0].to_str().unwrap(),
    ] {
        let shown = json(&soci, &["inspect", name]);
        assert_eq!(shown["id"], view["id"], "{name}");
        let top = &shown["layers"][2];
        let states = top["span_states"].as_str().unwrap();
        assert_eq!(states.len() as u64, number(&top["spans"]));
        let here = states.matches(['#', '?']).count() as u64;
        assert_eq!(here, number(&top["spans_local"]));
        assert!(here > 0 && states.contains('.'), "{states}");
    }
    let text = soci.call(&["inspect", "eyes"]).unwrap();
    for part in [
        "container:   eyes (namespace ",
        "█",
        "·",
        &published.image.layers[2].digest,
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(
        !text.contains('\x1b'),
        "colours where there is no terminal: {text}"
    );
    let table = soci.call(&["inspect"]).unwrap();
    assert!(
        table.starts_with("VIEW") && table.contains(&published.reference),
        "{table}"
    );
    let error = fail(soci.command().unwrap().args(["inspect", "nobody"])).unwrap();
    assert!(error.contains("soci inspect lists them"), "{error}");
    drop(running);
    host.finish().unwrap();
}

#[test]
fn files_that_were_read_are_listed_and_a_path_is_explained_wherever_it_comes_from() {
    let host = Host::start(ON_DEMAND).unwrap();
    let soci = host.soci().unwrap();
    let published = pulled(&host);
    let script = "cat /greeting; head -c 1 /large >/dev/null; echo mine >/tmp-file; rm /greeting";
    let running = Running::start(&host, &published.reference, "eyes", script);

    let files = json(&soci, &["inspect", "eyes", "--files"]);
    let files = files["files"].as_array().unwrap();
    let position = |path: &str| files.iter().position(|file| file["path"] == path);
    let (greeting, large) = (position("/greeting").unwrap(), position("/large").unwrap());
    assert!(greeting < large, "{files:?}");
    assert_eq!(files[greeting]["bytes"], 6);
    assert_eq!(
        files[greeting]["layer"],
        published.image.layers[1].digest.as_str()
    );
    assert!(number(&files[greeting]["waited_us"]) > 0);
    assert_eq!(position("/tmp-file"), None);

    let explain = |path: &str| json(&soci, &["inspect", "eyes", "--explain", path]);
    let large = explain("/large");
    assert_eq!(large["layer"], published.image.layers[2].digest.as_str());
    assert_eq!(
        (number(&large["size"]), &large["provider"]),
        (3 << 20, &Value::from("lazy"))
    );
    let spans = large["spans"].as_array().unwrap();
    assert_eq!(spans[0]["state"], "here");
    assert_eq!(spans.last().unwrap()["state"], "absent");
    // The spans cover the file, one after another.
    let range = &large["layer_range"];
    assert!(number(&spans[0]["uncompressed"][0]) <= number(&range[0]));
    assert!(number(&spans.last().unwrap()["uncompressed"][1]) >= number(&range[1]));
    for pair in spans.windows(2) {
        assert_eq!(pair[0]["uncompressed"][1], pair[1]["uncompressed"][0]);
    }
    assert_eq!(explain("/tmp-file")["provider"], "container");
    assert_eq!(explain("/greeting")["provider"], "deleted");
    assert_eq!(explain("/bin")["kind"], "dir");
    let nothing = fail(
        soci.command()
            .unwrap()
            .args(["inspect", "eyes", "--explain", "/none"]),
    )
    .unwrap();
    assert!(nothing.contains("/none"), "{nothing}");
    let text = soci
        .call(&["inspect", "eyes", "--explain", "/large"])
        .unwrap();
    assert!(
        text.contains("checkpoint at bit") && text.contains("absent"),
        "{text}"
    );
    drop(running);
    host.finish().unwrap();
}

#[test]
fn a_view_is_fetched_whole_verified_and_then_needs_no_registry() {
    let host = Host::start(ON_DEMAND).unwrap();
    let soci = host.soci().unwrap();
    let published = pulled(&host);
    let running = Running::start(&host, &published.reference, "eyes", "true");
    soci.call(&["fetch", "eyes", "/greeting"]).unwrap();
    let here = |path: &str| {
        let found = json(&soci, &["inspect", "eyes", "--explain", path]);
        let spans = found["spans"].as_array().unwrap().clone();
        spans.iter().all(|span| span["state"] == "here")
    };
    until("the file is local", PATIENCE, || {
        Ok(here("/greeting").then_some(()))
    })
    .unwrap();
    assert!(!here("/large"));
    let mut unknown = soci.command().unwrap();
    let error = fail(unknown.args(["fetch", "eyes", "/none"])).unwrap();
    assert!(error.contains("/none"), "{error}");

    let drained = soci.call(&["drain", "eyes"]).unwrap();
    assert!(drained.contains("complete"), "{drained}");
    let view = json(&soci, &["inspect", "eyes"]);
    assert_eq!(view["spans_local"], view["spans"]);
    let before = host.registry.traffic().unwrap();
    let read = [
        "tasks",
        "exec",
        "--exec-id",
        "reader",
        "eyes",
        "sha256sum",
        "/large",
    ];
    let sum = host.ctr().call(&read).unwrap();
    assert!(
        sum.starts_with(&integration::host::sha256_hex(&noise(3 << 20))),
        "{sum}"
    );
    assert_eq!(host.registry.traffic().unwrap().since(before).requests, 0);

    let right = json(&soci, &["verify", "eyes"]);
    assert_eq!(
        (number(&right["wrong"]), &right["spans"]),
        (0, &view["spans"])
    );
    let layer = published.image.layers[2]
        .digest
        .trim_start_matches("sha256:");
    let data = host
        .snapshotter
        .root()
        .join("layers")
        .join(layer)
        .join("data");
    let data = std::fs::File::options()
        .read(true)
        .write(true)
        .open(data)
        .unwrap();
    let mut byte = [0];
    data.read_exact_at(&mut byte, 1 << 20).unwrap();
    data.write_all_at(&[!byte[0]], 1 << 20).unwrap();
    let mut verify = soci.command().unwrap();
    let error = fail(verify.args(["verify", "eyes"])).unwrap();
    assert!(
        error.starts_with("soci: 1 cached spans were wrong"),
        "{error}"
    );
    drop(running);
    host.finish().unwrap();
}

#[test]
fn events_tell_of_layers_prepared_and_of_reads_that_waited_as_they_happen() {
    let host = Host::start(ON_DEMAND).unwrap();
    let soci = host.soci().unwrap();
    let published = host
        .publish_files("app", &[("greeting", b"hello\n")])
        .unwrap();
    let mut command: Command = soci.command().unwrap();
    let mut events = command
        .args(["events", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    // Nothing is told of what was before.
    assert_eq!(lines.next().unwrap().unwrap(), r#"{"event":"listening"}"#);
    soci.rpull(&published.reference).unwrap();
    let running = Running::start(&host, &published.reference, "eyes", "cat /greeting");
    let mut prepared = 0;
    for line in lines {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        if event["event"] == "prepared" {
            assert_eq!(event["layer"]["outcome"], "lazy", "{event}");
            prepared += 1;
        } else if event["read"]["path"] == "/greeting" {
            assert_eq!(event["event"], "fault");
            assert!(number(&event["read"]["waited_us"]) > 0, "{event}");
            break;
        }
    }
    assert_eq!(prepared, published.image.layers.len());
    events.kill().unwrap();
    events.wait().unwrap();
    drop(running);
    host.finish().unwrap();
}

#[test]
fn an_image_that_is_not_lazy_says_why() {
    let host = Host::start(ON_DEMAND).unwrap();
    let soci = host.soci().unwrap();
    let layout = host.layout("plain").unwrap();
    let layers = integration::host::small_layers(&layout, &[("file", b"x")]).unwrap();
    let published = host
        .publish_layers("plain", &layout, &layers, None)
        .unwrap();
    soci.rpull(&published.reference).unwrap();
    let all = json(&soci, &["inspect"]);
    let prepared = all["prepared"].as_array().unwrap();
    let of_image: Vec<_> = prepared
        .iter()
        .filter(|it| it["image"] == *published.reference)
        .collect();
    assert_eq!(of_image.len(), layers.len());
    for layer in of_image {
        assert_eq!(
            (&layer["outcome"], &layer["reason"]),
            (&"deferred".into(), &"the image has no SOCI index".into())
        );
    }
    let text = soci.call(&["inspect"]).unwrap();
    assert!(
        text.contains("Not lazy:") && text.contains("the image has no SOCI index"),
        "{text}"
    );
    soci.call(&["gc"]).unwrap();
    host.finish().unwrap();
}

#[test]
fn a_recorded_start_up_is_made_into_an_index_that_lists_what_was_read() {
    let host = Host::start(ON_DEMAND).unwrap();
    let soci = host.soci().unwrap();
    let published = pulled(&host);
    let script = "dd if=/large bs=4096 skip=500 count=1 of=/dev/null; cat /greeting";
    let running = Running::start(&host, &published.reference, "eyes", script);
    let trace = host.scratch.path().join("trace.json");
    let trace = trace.to_str().unwrap();
    soci.call(&["trace", "eyes", "-o", trace]).unwrap();
    let recorded: Value = serde_json::from_slice(&std::fs::read(trace).unwrap()).unwrap();
    let reads = recorded["reads"].as_array().unwrap();
    let position = |path: &str| reads.iter().position(|read| read["path"] == path);
    assert!(
        position("/large").unwrap() < position("/greeting").unwrap(),
        "{reads:?}"
    );
    drop(running);

    host.ctr().pull("overlayfs", &published.reference).unwrap();
    let sizes = ["--span-size", "65536", "--min-layer-size", "0"];
    let create = [
        &["create", "--prefetch-from", trace],
        &sizes[..],
        &[&published.reference],
    ]
    .concat();
    let printed = soci.call(&create).unwrap();
    let made = printed.matches("Created prefetch artifact").count();
    let layers: std::collections::BTreeSet<_> =
        reads.iter().map(|read| read["layer"].to_string()).collect();
    assert_eq!(made, layers.len(), "{printed}");
    host.finish().unwrap();
}

#[test]
fn without_a_daemon_the_error_says_what_to_do() {
    let scratch = Scratch::new().unwrap();
    let soci = Soci::alone(&scratch).unwrap();
    for command in ["inspect", "events", "drain", "verify", "gc"] {
        let error = fail(soci.command().unwrap().arg(command)).unwrap();
        assert!(
            error.starts_with("soci: ") && error.contains("/nonexistent/soci"),
            "{error}"
        );
    }
}

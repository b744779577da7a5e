//! Prefetch artifacts and the records of artifacts: made, shown, lost and found again.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use integration::busybox::noise;
use integration::command::{command, fail, run, until};
use integration::ctr::Run;
use integration::host::{Host, ON_DEMAND, SMALL_SPANS, sha256_hex, small_layers};
use integration::push::push;
use integration::{Containerd, DockerRegistry, Image, Layout, Scratch, Soci};
use serde_json::{Value, json};

const PREFETCH: &str = "application/vnd.amazon.soci.prefetch.v1+json";

/// Parts drop from the last to the first: the directory goes last.
struct Site {
    containerd: Containerd,
    registry: DockerRegistry,
    scratch: Scratch,
}

impl Site {
    fn start() -> Self {
        let scratch = Scratch::new().unwrap();
        Self {
            registry: DockerRegistry::start(&scratch).unwrap(),
            containerd: Containerd::start(&scratch).unwrap(),
            scratch,
        }
    }

    fn soci(&self) -> Soci {
        Soci::with(&self.scratch, &self.containerd).unwrap()
    }

    /// An image with a small file, and a large one on top, in containerd.
    fn pulled(&self, name: &str) -> (String, Image) {
        let layout = Layout::create(&self.scratch.path().join(name)).unwrap();
        let large = noise(1_000_000);
        let layers = small_layers(&layout, &[("greeting", b"hello\n"), ("large", &large)]).unwrap();
        let image = layout.add_image(&layers, &["sh"], "latest").unwrap();
        let reference = self.registry.reference(&format!("{name}:latest"));
        push(&layout, &reference).unwrap();
        self.containerd.ctr().pull("overlayfs", &reference).unwrap();
        (reference, image)
    }

    fn blob(&self, digest: &str) -> Vec<u8> {
        let blobs = self.containerd.content().join("blobs");
        fs::read(blobs.join(digest.replace(':', "/"))).unwrap()
    }
}

fn create(soci: &Soci, reference: &str, more: &[&str]) -> String {
    let arguments = [&["create"], &SMALL_SPANS[..], more, &[reference]].concat();
    soci.call(&arguments).unwrap()
}

fn json_of(soci: &Soci, arguments: &[&str]) -> Value {
    let text = soci.call(arguments).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn write_json(dir: &Path, name: &str, value: &Value) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, value.to_string()).unwrap();
    path
}

#[test]
fn files_to_be_prefetched_become_spans_of_the_topmost_layer_that_has_them() {
    let site = Site::start();
    let soci = site.soci();
    let (reference, image) = site.pulled("app");
    let list = write_json(site.scratch.path(), "files.json", &json!(["/greeting"]));
    let more = [
        "--prefetch-file",
        "/x/../large",
        "--prefetch-file",
        "/no/such/file",
        "--prefetch-files-json",
        list.to_str().unwrap(),
    ];
    let printed = create(&soci, &reference, &more);
    let made: Vec<&str> = printed
        .lines()
        .filter(|line| line.starts_with("Created prefetch artifact for layer "))
        .collect();
    assert_eq!(made.len(), 2, "{printed}");

    let rows = json_of(&soci, &["prefetch", "list", "--json"]);
    let of_layer = |layer: &str| {
        let rows = rows.as_array().unwrap();
        rows.iter().find(|row| row["LayerDigest"] == layer).unwrap()
    };
    let large = &image.layers.last().unwrap().digest;
    let digest = of_layer(large)["Digest"].as_str().unwrap();
    assert!(printed.contains(&format!("{large}: {digest}")), "{printed}");

    // The zTOC says where the file lies: an independent source of the spans.
    let ztocs = json_of(&soci, &["ztoc", "list", "--json"]);
    let ztocs = ztocs.as_array().unwrap();
    let ztoc = ztocs
        .iter()
        .find(|row| row["layer_digest"] == **large)
        .unwrap();
    let info = json_of(&soci, &["ztoc", "info", ztoc["digest"].as_str().unwrap()]);
    let files = info["files"].as_array().unwrap();
    let file = files
        .iter()
        .find(|file| file["filename"] == "large")
        .unwrap();
    let artifact: Value = serde_json::from_slice(&site.blob(digest)).unwrap();
    let expected = json!({"version": "1.0", "prefetch_spans": [
        {"start_span": file["start_span"], "end_span": file["end_span"]},
    ]});
    assert_eq!(artifact, expected);
    let total = file["end_span"].as_u64().unwrap() - file["start_span"].as_u64().unwrap() + 1;
    assert!(total > 10, "{file}");
    assert_eq!(of_layer(large)["TotalSpans"], total);

    let shown = soci.call(&["prefetch", "info", digest]).unwrap();
    for line in [format!("Digest: {digest}"), format!("Total Spans: {total}")] {
        assert!(shown.lines().any(|found| found == line), "{shown}");
    }
    let table = soci.call(&["prefetch", "ls"]).unwrap();
    let head: Vec<_> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["DIGEST", "LAYER", "DIGEST", "SPANS", "CREATED"]);
    assert_eq!(table.lines().count(), 3, "{table}");

    // The index lists them behind the zTOCs, in the order of the layers.
    let index = soci.call(&["index", "list", "-q"]).unwrap();
    let index = json_of(&soci, &["index", "info", index.trim_end()]);
    let listed = index["layers"].as_array().unwrap();
    let types: Vec<_> = listed
        .iter()
        .map(|it| it["mediaType"].as_str().unwrap())
        .collect();
    assert_eq!(types[3..], [PREFETCH, PREFETCH]);
    assert_eq!(
        listed[4]["annotations"],
        json!({"com.amazon.soci.image-layer-digest": large})
    );
}

#[test]
fn a_recorded_start_up_becomes_spans_in_the_order_of_their_first_use() {
    let site = Site::start();
    let soci = site.soci();
    let (reference, image) = site.pulled("app");
    let layer = &image.layers.last().unwrap().digest;
    let read = |start: u64, end: u64| json!({"at_us": 1, "layer": layer, "start": start, "end": end, "path": "/large"});
    let trace = json!({
        "version": 1, "images": [reference], "complete": true,
        "reads": [read(800_000, 800_001), read(512, 1000), read(800_001, 800_100), read(400_000, 400_001)],
    });
    let path = write_json(site.scratch.path(), "trace.json", &trace);
    create(
        &soci,
        &reference,
        &["--prefetch-from", path.to_str().unwrap()],
    );
    let rows = json_of(&soci, &["prefetch", "list", "--json"]);
    let digest = rows[0]["Digest"].as_str().unwrap();
    let info = json_of(&soci, &["prefetch", "info", "--json", digest]);
    let spans: Vec<_> = info["prefetch_spans"].as_array().unwrap().clone();
    let starts: Vec<_> = spans
        .iter()
        .map(|it| it["start_span"].as_u64().unwrap())
        .collect();
    let priorities: Vec<_> = spans
        .iter()
        .map(|it| it["priority"].as_u64().unwrap())
        .collect();
    assert_eq!(starts.len(), 3, "{info}");
    assert!(starts[0] > starts[2] && starts[2] > starts[1], "{info}");
    assert_eq!(priorities, [0, 1, 3]);

    let wrong = write_json(site.scratch.path(), "wrong.json", &json!({"version": 9}));
    let mut refused = soci.command().unwrap();
    refused
        .args(["create", &reference, "--prefetch-from"])
        .arg(wrong);
    let error = fail(&mut refused).unwrap();
    assert!(
        error.starts_with("soci: ") && error.contains("soci trace"),
        "{error}"
    );
}

#[test]
fn the_daemon_fetches_what_the_index_wants_first_before_anybody_reads_it() {
    let config = format!("{ON_DEMAND}[prefetch]\nenable = true\n");
    let host = Host::start(&config).unwrap();
    let soci = host.soci().unwrap();
    let source = host.layout("source").unwrap();
    let large = noise(3 << 20);
    let layers = small_layers(&source, &[("large", &large), ("other", &large)]).unwrap();
    source.add_image(&layers, &["sh"], "latest").unwrap();
    let indexed = host.scratch.path().join("indexed");
    let mut convert = soci.command().unwrap();
    convert.args(["convert", "--standalone", "--format", "oci-dir"]);
    convert
        .args(SMALL_SPANS)
        .args(["--prefetch-file", "/large"]);
    run(convert.arg(source.path()).arg(&indexed)).unwrap();
    let reference = host.registry.reference("app:latest");
    push(&Layout::open(&indexed), &reference).unwrap();

    let before = host.registry.traffic().unwrap();
    soci.rpull(&reference).unwrap();
    let fetched = || host.registry.traffic().unwrap().since(before).blob_bytes;
    until("the file is fetched", Duration::from_secs(30), || {
        Ok((fetched() > 3 << 20).then_some(()))
    })
    .unwrap();
    assert!(
        host.snapshotter
            .log()
            .contains("Successfully loaded prefetch artifact")
    );
    let script = "sha256sum /large";
    let before = host.registry.traffic().unwrap();
    let sum = host
        .ctr()
        .run(Run::shell(&reference, "reader", script))
        .unwrap();
    assert!(sum.starts_with(&sha256_hex(&large)), "{sum}");
    // busybox itself had to be fetched, and nothing else.
    let traffic = host.registry.traffic().unwrap().since(before);
    assert!(traffic.blob_bytes < 3 << 20, "{traffic:?}");
    host.finish().unwrap();
}

#[test]
fn records_that_were_lost_are_found_again_in_either_store() {
    for store in ["containerd", "soci"] {
        let site = Site::start();
        let soci = site.soci();
        let (reference, _) = site.pulled("app");
        let converted = site.registry.reference("app:converted");
        let with_store = |arguments: &[&str]| {
            let arguments = [arguments, &["--content-store", store]].concat();
            soci.call(&arguments).unwrap()
        };
        let create = [
            &["create"],
            &SMALL_SPANS[..],
            &["--prefetch-file", "large", &reference],
        ]
        .concat();
        with_store(&create);
        with_store(&[&["convert"], &SMALL_SPANS[..], &[&reference, &converted]].concat());
        let lists = [["index", "list"], ["ztoc", "list"], ["prefetch", "list"]];
        let listed = |list: &[&str; 2]| {
            let text = soci.call(&[list[0], list[1], "--json"]).unwrap();
            let mut rows: Vec<Value> = serde_json::from_str(&text).unwrap();
            for row in &mut rows {
                let row = row.as_object_mut().unwrap();
                row.retain(|key, _| !key.to_lowercase().starts_with("created"));
            }
            rows.sort_by_key(ToString::to_string);
            rows
        };
        let before: Vec<_> = lists.iter().map(&listed).collect();
        assert_eq!(
            before.iter().map(Vec::len).collect::<Vec<_>>(),
            [2, 3, 1],
            "{before:?}"
        );

        let records = site.scratch.path().join("soci-cli/artifacts");
        fs::remove_dir_all(&records).unwrap();
        assert!(listed(&lists[0]).is_empty());
        with_store(&["rebuild-db"]);
        assert_eq!(lists.iter().map(&listed).collect::<Vec<_>>(), before);

        // What has been deleted behind our back is forgotten.
        let index = before[0][0]["digest"].as_str().unwrap();
        if store == "containerd" {
            site.containerd
                .ctr()
                .call(&["content", "rm", index])
                .unwrap();
        } else {
            let blob = site.scratch.path().join("soci-cli/content/blobs");
            fs::remove_file(blob.join(index.replace(':', "/"))).unwrap();
        }
        with_store(&["rebuild-db"]);
        assert_eq!(listed(&lists[0]), before[0][1..]);
    }
}

#[test]
fn results_for_machines_are_json_on_every_line() {
    let site = Site::start();
    let soci = site.soci();
    let (reference, image) = site.pulled("app");
    let printed = create(&soci, &reference, &["--json", "--prefetch-file", "large"]);
    let events: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let kinds: Vec<_> = events
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["ztoc", "ztoc", "ztoc", "prefetch", "index"]);
    assert_eq!(events[0]["layer"], image.layers[0].digest.as_str());
    let pushed = soci
        .call(&["push", "--json", "--plain-http", &reference])
        .unwrap();
    for line in pushed.lines() {
        assert!(
            serde_json::from_str::<Value>(line).unwrap()["event"].is_string(),
            "{line}"
        );
    }
    let rows = json_of(&soci, &["index", "list", "--json"]);
    assert_eq!(rows[0]["digest"], events[4]["digest"]);
    assert_eq!(rows[0]["image_ref"], reference.as_str());
}

#[test]
fn every_command_has_a_manual_page_and_shells_are_told_of_all() {
    let scratch = Scratch::new().unwrap();
    let soci = Soci::alone(&scratch).unwrap();
    let pages = scratch.path().join("man/man1");
    run(soci.command().unwrap().arg("man").arg(&pages)).unwrap();
    let commands = [
        "create",
        "convert",
        "push",
        "rebuild-db",
        "index",
        "ztoc",
        "prefetch",
    ];
    for name in commands {
        let page = fs::read_to_string(pages.join(format!("soci-{name}.1"))).unwrap();
        assert!(
            page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"),
            "{name}"
        );
    }
    let script = soci.call(&["completion", "bash"]).unwrap();
    for name in commands {
        assert!(script.contains(name), "{name}");
    }
    let path = scratch.path().join("soci.bash");
    fs::write(&path, script).unwrap();
    run(command("bash").arg("-n").arg(path)).unwrap();
}

#[test]
fn a_command_can_be_run_in_an_image_to_record_what_it_reads() {
    let site = Site::start();
    let (reference, image) = site.pulled("traced");
    let record = site.scratch.path().join("trace.json");
    let record = record.to_str().unwrap();
    let command = [
        "sh",
        "-c",
        "read word </greeting; echo $word $$; touch /new; false",
    ];
    let trace = [
        "--json",
        "trace",
        &reference,
        "--plain-http",
        "-o",
        record,
        "--",
    ];
    let printed = site.soci().call(&[&trace[..], &command].concat()).unwrap();
    // Its own process ids, its own root, and what it writes goes nowhere.
    assert!(printed.starts_with("hello 1\n"), "{printed}");
    assert!(printed.contains(r#""event":"recorded""#), "{printed}");
    let trace: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    assert_eq!(trace["images"], json!([reference]));
    assert_eq!(trace["complete"], true);
    let reads = trace["reads"].as_array().unwrap();
    let read = |path: &str| reads.iter().find(|it| it["path"] == path);
    assert!(
        read("/greeting").is_some() && read("/large").is_none(),
        "{trace}"
    );
    let busybox = read("/bin/busybox").unwrap();
    assert_eq!(busybox["layer"], image.layers[0].digest);
    // It serves to make a prefetch artifact.
    let created = create(&site.soci(), &reference, &["--prefetch-from", record]);
    assert!(!created.is_empty());
}

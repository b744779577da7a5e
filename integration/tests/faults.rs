//! Bad input of every kind: a clear error or a fallback, neighbours unharmed, nothing left behind.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use integration::busybox::noise;
use integration::command::{command, fail};
use integration::ctr::Run;
use integration::host::{Host, IMPATIENT, Indexing, sha256_hex, small_layers};
use integration::push::{push, put};
use integration::registry::{Fault, Match, ScriptedRegistry};
use integration::{Layout, busybox, tamper};

/// No error may take longer than this to come.
const PATIENCE: Duration = Duration::from_secs(60);

const MIB: usize = 1 << 20;

/// A container that reads its file when asked to: what else goes wrong must not reach it.
struct Neighbour {
    digest: String,
}

impl Neighbour {
    fn start(host: &Host) -> Self {
        let content = noise(MIB + 12345);
        let published = host
            .publish_files("neighbour", &[("file", &content)])
            .unwrap();
        host.soci().unwrap().rpull(&published.reference).unwrap();
        let image = published.reference.as_str();
        let start = [
            "run",
            "--detach",
            "--snapshotter",
            "soci",
            image,
            "neighbour",
            "sleep",
            "1000",
        ];
        host.ctr().call(&start).unwrap();
        Self {
            digest: sha256_hex(&content),
        }
    }

    #[track_caller]
    fn assert_unharmed(&self, host: &mut Host) {
        assert!(host.snapshotter.is_running());
        let exec = [
            "tasks",
            "exec",
            "--exec-id",
            "look",
            "neighbour",
            "sha256sum",
            "/file",
        ];
        assert_eq!(
            host.ctr().call(&exec).unwrap(),
            format!("{}  /file\n", self.digest)
        );
    }
}

/// Changes all zTOCs of an index.
type Tampering = fn(Vec<Vec<u8>>) -> Vec<Vec<u8>>;

#[test]
fn an_image_whose_ztocs_are_not_what_they_should_be_runs_all_the_same() {
    let cases: [(&str, Tampering); 5] = [
        ("random", |all| {
            all.iter().map(|ztoc| noise(ztoc.len())).collect()
        }),
        ("empty", |all| all.iter().map(|_| Vec::new()).collect()),
        ("cut", |all| {
            all.into_iter()
                .map(|ztoc| ztoc[..ztoc.len() / 2].to_vec())
                .collect()
        }),
        ("of-other-layers", |mut all| {
            all.rotate_left(1);
            all
        }),
        ("flipped", |all| {
            all.into_iter().map(flip_every_100th).collect()
        }),
    ];
    let mut host = Host::start(IMPATIENT).unwrap();
    let neighbour = Neighbour::start(&host);
    let files: [(&str, &[u8]); 2] = [("one", &noise(MIB)), ("two", b"second\n")];
    let layout = host.layout("good").unwrap();
    let layers = small_layers(&layout, &files).unwrap();
    layout.add_image(&layers, &["sh"], "latest").unwrap();
    let indexed = host
        .index(&layout, "good-indexed", Indexing::default())
        .unwrap();
    for (name, change) in cases {
        let bad = tamper::ztocs(&indexed, &host.scratch.path().join(name), change).unwrap();
        let reference = host.registry.reference(&format!("{name}:latest"));
        push(&bad, &reference).unwrap();
        host.soci()
            .unwrap()
            .rpull(&reference)
            .unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let output = host
            .ctr()
            .run(Run::shell(&reference, name, "cat /two; sha256sum /one"));
        let expected = format!("second\n{}  /one\n", sha256_hex(files[0].1));
        assert_eq!(output.unwrap(), expected, "{name}");
        neighbour.assert_unharmed(&mut host);
        host.ctr().remove_image(&reference).unwrap();
    }
    let log = host.snapshotter.log();
    assert!(
        log.contains(&layers[0].digest),
        "the log says which layer:\n{log}"
    );
    host.finish().unwrap();
}

#[test]
fn a_ztoc_that_lies_about_its_files_gives_errors_and_no_wrong_bytes() {
    let mut host = Host::start(IMPATIENT).unwrap();
    let neighbour = Neighbour::start(&host);
    let tars = [("first-one", "1\n"), ("other-one", "2\n")]
        .map(|(name, content)| busybox::file_layer(name, content.as_bytes()).unwrap());
    // Two zero blocks end a tar; without them the next one goes on.
    let tar = [&tars[0][..tars[0].len() - 1024], &tars[1]].concat();
    let layout = host.layout("honest").unwrap();
    let mut layers = small_layers(&layout, &[]).unwrap();
    layers.push(layout.add_gzip_layer(&tar).unwrap());
    layout.add_image(&layers, &["sh"], "latest").unwrap();
    let indexed = host
        .index(&layout, "honest-indexed", Indexing::default())
        .unwrap();
    // Each file has the place of the other one.
    let swap = |all: Vec<Vec<u8>>| {
        let swapped = all.into_iter().map(|mut ztoc| {
            for at in 0..ztoc.len().saturating_sub(9) {
                match &ztoc[at..at + 9] {
                    b"first-one" => ztoc[at..at + 9].copy_from_slice(b"other-one"),
                    b"other-one" => ztoc[at..at + 9].copy_from_slice(b"first-one"),
                    _ => {}
                }
            }
            ztoc
        });
        swapped.collect()
    };
    let lying = tamper::ztocs(&indexed, &host.scratch.path().join("lying"), swap).unwrap();
    let reference = host.registry.reference("lying:latest");
    push(&lying, &reference).unwrap();
    host.soci().unwrap().rpull(&reference).unwrap();
    let script = "cat /first-one; cat /other-one; echo still here";
    let container = Run::shell(&reference, "lying", script);
    let output = host.ctr().run_command(container).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "still here\n");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Input/output error"), "{said}");
    let log = host.snapshotter.log();
    assert!(log.contains("NOT WHAT ITS ZTOC SAYS"), "{log}");
    assert!(log.contains(&layers[1].digest), "{log}");
    neighbour.assert_unharmed(&mut host);
    host.finish().unwrap();
}

fn flip_every_100th(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.iter_mut().step_by(100).for_each(|byte| *byte ^= 0x55);
    bytes
}

#[test]
fn with_an_index_digest_that_is_wrong_the_image_runs_without_it() {
    let mut host = Host::start(IMPATIENT).unwrap();
    let neighbour = Neighbour::start(&host);
    let published = host
        .publish_files("wrong", &[("file", b"content\n")])
        .unwrap();
    // One that is nowhere, and one that is something else: the image's own manifest.
    let wrong = [
        format!("sha256:{}", "0".repeat(64)),
        published.image.manifest.clone(),
    ];
    for (number, digest) in wrong.iter().enumerate() {
        let reference = &published.reference;
        let rpull = [
            "rpull",
            "--plain-http",
            "--soci-index-digest",
            digest,
            reference,
        ];
        host.soci().unwrap().call(&rpull).unwrap();
        let id = format!("wrong-{number}");
        assert_eq!(
            host.ctr()
                .run(Run::shell(reference, &id, "cat /file"))
                .unwrap(),
            "content\n"
        );
        assert!(
            host.snapshotter.log().contains(digest),
            "the log names the digest"
        );
        host.ctr().remove_image(reference).unwrap();
    }
    neighbour.assert_unharmed(&mut host);
    host.finish().unwrap();
}

#[test]
fn an_image_whose_ztocs_cannot_be_fetched_runs_all_the_same() {
    let faults = [
        Fault::status(404),
        Fault::status(401),
        Fault::status(500),
        Fault::Short(100),
        Fault::Corrupt,
        Fault::Reset,
    ];
    let mut host = Host::start(IMPATIENT).unwrap();
    let neighbour = Neighbour::start(&host);
    let (_runtime, registry) = ScriptedRegistry::start_apart().unwrap();
    for (number, fault) in faults.into_iter().enumerate() {
        let name = format!("fault-{number}");
        let layout = indexed(
            &host,
            &name,
            &[("file", format!("content {number}\n").as_bytes())],
        );
        let reference = put(&layout, &registry, &name).unwrap();
        for ztoc in ztocs_of(&layout) {
            registry.script(Match::path(&format!("/{name}/blobs/{ztoc}")), fault.clone());
        }
        let start = Instant::now();
        host.soci()
            .unwrap()
            .rpull(&reference)
            .unwrap_or_else(|error| panic!("{fault:?}: {error:#}"));
        let output = host
            .ctr()
            .run(Run::shell(&reference, &name, "cat /file"))
            .unwrap();
        assert_eq!(output, format!("content {number}\n"), "{fault:?}");
        assert!(
            start.elapsed() < PATIENCE,
            "{fault:?}: {:?}",
            start.elapsed()
        );
    }
    neighbour.assert_unharmed(&mut host);
    host.finish().unwrap();
}

#[test]
fn a_failure_of_the_registry_that_passes_is_not_noticed_by_a_reader() {
    let faults = [
        Fault::status(500),
        Fault::status(503),
        Fault::retry_after(429, "1"),
        Fault::Short(1000),
        Fault::Corrupt,
        Fault::Reset,
        Fault::Stall,
        Fault::StallBody(1000),
        Fault::Multipart,
        Fault::ContentRange("bytes 5-10/11".to_owned()),
    ];
    let host = Host::start(IMPATIENT).unwrap();
    let (_runtime, registry) = ScriptedRegistry::start_apart().unwrap();
    let content = noise(MIB);
    for (number, fault) in faults.into_iter().enumerate() {
        let layer =
            &small_image_with_fault(&host, &registry, number, &content, fault.clone(), true);
        let id = format!("reader-{number}");
        let output = host.ctr().run(Run::shell(layer, &id, "sha256sum /file"));
        let output = output.unwrap_or_else(|error| panic!("{fault:?}: {error:#}"));
        assert_eq!(
            output,
            format!("{}  /file\n", sha256_hex(&content)),
            "{fault:?}"
        );
    }
    host.finish().unwrap();
}

#[test]
fn a_registry_that_answers_whole_blobs_to_ranges_is_good_enough() {
    let host = Host::start(IMPATIENT).unwrap();
    let (_runtime, registry) = ScriptedRegistry::start_apart().unwrap();
    let content = noise(MIB);
    let image = small_image_with_fault(&host, &registry, 0, &content, Fault::Whole, false);
    let output = host
        .ctr()
        .run(Run::shell(&image, "reader", "sha256sum /file"))
        .unwrap();
    assert_eq!(output, format!("{}  /file\n", sha256_hex(&content)));
    host.finish().unwrap();
}

#[test]
fn a_failure_of_the_registry_that_stays_fails_that_read_and_no_other() {
    let faults = [
        Fault::status(404),
        Fault::status(401),
        Fault::status(500),
        Fault::Short(1000),
        Fault::Corrupt,
        Fault::Reset,
    ];
    let mut host = Host::start(IMPATIENT).unwrap();
    let neighbour = Neighbour::start(&host);
    let (_runtime, registry) = ScriptedRegistry::start_apart().unwrap();
    let content = noise(MIB);
    for (number, fault) in faults.into_iter().enumerate() {
        let image =
            small_image_with_fault(&host, &registry, number, &content, fault.clone(), false);
        let start = Instant::now();
        let id = format!("reader-{number}");
        let script = "sha256sum /file && echo read it; echo still here";
        let container = Run::shell(&image, &id, script);
        let output = host.ctr().run_command(container).output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "still here\n",
            "{fault:?}"
        );
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("Input/output error"), "{fault:?}: {said}");
        assert!(
            start.elapsed() < PATIENCE,
            "{fault:?}: {:?}",
            start.elapsed()
        );
        neighbour.assert_unharmed(&mut host);
    }
    let log = host.snapshotter.log();
    assert!(
        log.contains(&registry.host()),
        "the log names the host:\n{log}"
    );
    host.finish().unwrap();
}

#[test]
fn a_pull_that_cannot_succeed_says_why_and_leaves_nothing() {
    let faults = [
        Fault::status(404),
        Fault::status(401),
        Fault::Corrupt,
        Fault::Short(10),
    ];
    let host = Host::start(IMPATIENT).unwrap();
    let (_runtime, registry) = ScriptedRegistry::start_apart().unwrap();
    for (number, fault) in faults.into_iter().enumerate() {
        let name = format!("refused-{number}");
        let layout = indexed(&host, &name, &[("file", b"content\n")]);
        let reference = put(&layout, &registry, &name).unwrap();
        registry.script(Match::path(&format!("/{name}/manifests/")), fault.clone());
        let soci = host.soci().unwrap();
        let mut rpull = soci.command().unwrap();
        let error = fail(rpull.args(["rpull", "--plain-http", &reference])).unwrap();
        assert!(error.contains("soci: "), "{fault:?}: {error}");
        assert!(
            error.contains(&registry.host()) && error.contains(&name),
            "{fault:?}: {error}"
        );
        assert!(host.ctr().images().unwrap().is_empty());
        assert!(host.ctr().snapshots("soci").unwrap().is_empty());
    }
    let nowhere = format!(
        "127.0.0.1:{}/nowhere:latest",
        integration::distribution::free_port().unwrap()
    );
    let mut rpull = host.soci().unwrap().command().unwrap();
    let start = Instant::now();
    let error = fail(rpull.args(["rpull", "--plain-http", &nowhere])).unwrap();
    assert!(
        error.contains(nowhere.split('/').next().unwrap()),
        "{error}"
    );
    assert!(start.elapsed() < PATIENCE);
    host.finish().unwrap();
}

#[test]
fn a_full_disk_fails_nobody_who_needs_no_space_and_ends_when_there_is_space() {
    let (mut host, small) = Host::start_on_small_disk(IMPATIENT, 16).unwrap();
    let neighbour = Neighbour::start(&host);
    neighbour.assert_unharmed(&mut host);

    let content = noise(4 * MIB);
    let published = host.publish_files("large", &[("file", &content)]).unwrap();
    host.soci().unwrap().rpull(&published.reference).unwrap();
    let filler = small.join("filler");
    fill(&filler);
    let digest = format!("{}  /file\n", sha256_hex(&content));
    let read = |id: &str| {
        let script = "sha256sum /file; true";
        host.ctr()
            .run_command(Run::shell(&published.reference, id, script))
            .output()
    };
    // Starting a container needs a few bytes for its snapshot; reading may go on without a cache.
    let output = read("full").unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let is_clear =
        err.contains("No space left") || err.contains("no space left") || err.contains("I/O error");
    assert!(out == digest || is_clear, "{out}{err}");
    neighbour.assert_unharmed(&mut host);

    fs::remove_file(&filler).unwrap();
    let read = Run::shell(&published.reference, "again", "sha256sum /file");
    assert_eq!(host.ctr().run(read).unwrap(), digest);
    neighbour.assert_unharmed(&mut host);
    host.snapshotter
        .stop(nix::sys::signal::Signal::SIGINT)
        .unwrap();
    nix::mount::umount2(&small, nix::mount::MntFlags::MNT_DETACH).unwrap();
    host.finish().unwrap();
}

/// Writes until there is no space left.
fn fill(file: &Path) {
    let mut dd = command("dd");
    dd.args(["if=/dev/zero", "bs=4k"])
        .arg(format!("of={}", file.display()));
    fail(&mut dd).unwrap();
}

/// The layout of a small image with an index.
fn indexed(host: &Host, name: &str, files: &[(&str, &[u8])]) -> Layout {
    let layout = host.layout(name).unwrap();
    let layers = small_layers(&layout, files).unwrap();
    layout.add_image(&layers, &["sh"], "latest").unwrap();
    host.index(&layout, &format!("{name}-indexed"), Indexing::default())
        .unwrap()
}

fn ztocs_of(layout: &Layout) -> Vec<String> {
    let index = layout.json(&tamper::index_digest(layout).unwrap()).unwrap();
    let ztocs = index["layers"].as_array().unwrap().iter();
    ztocs
        .map(|ztoc| ztoc["digest"].as_str().unwrap().to_owned())
        .collect()
}

/// Pulls an image with `content` in `/file`, then lets `fault` strike reads of the layer that has
/// it: the first only, or all.
fn small_image_with_fault(
    host: &Host,
    registry: &ScriptedRegistry,
    number: usize,
    content: &[u8],
    fault: Fault,
    once: bool,
) -> String {
    let name = format!("image-{number}");
    // Its own bytes: a layer that was read before would be there already.
    let file = busybox::file_layer("file", content).unwrap();
    let stamp = busybox::file_layer(&name, b"").unwrap();
    // Two zero blocks end a tar; without them the next one goes on.
    let tar = [&file[..file.len() - 1024], &stamp].concat();
    let layout = host.layout(&name).unwrap();
    let mut layers = small_layers(&layout, &[]).unwrap();
    layers.push(layout.add_gzip_layer(&tar).unwrap());
    layout.add_image(&layers, &["sh"], "latest").unwrap();
    let layout = host
        .index(&layout, &format!("{name}-indexed"), Indexing::default())
        .unwrap();
    let reference = put(&layout, registry, &name).unwrap();
    host.soci().unwrap().rpull(&reference).unwrap();
    let chosen = Match::path(&format!("/{name}/blobs/{}", layers[1].digest)).method("GET");
    registry.script(if once { chosen.once() } else { chosen }, fault);
    reference
}

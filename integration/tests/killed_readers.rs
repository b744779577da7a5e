//! Who reads is killed while the registry keeps it waiting.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use integration::busybox::noise;
use integration::command::{command, until};
use integration::ctr::Run;
use integration::host::{Host, Indexing, small_layers};
use integration::push::put;
use integration::registry::{Fault, Match, ScriptedRegistry};

/// How long the kernel and the daemon may take to let go. The registry is waited for far longer.
const SOON: Duration = Duration::from_secs(30);

/// A daemon that gives a silent registry ten minutes.
const PATIENT: &str = "[background_fetch]
disable = true
[http]
ResponseHeaderTimeoutMsec = 600000
[blob]
fetching_timeout_sec = 600
";

const SIZE: usize = 3 << 20;

/// An image whose uppermost layer does not come, and the requests that were made for it.
struct Scene {
    host: Host,
    _runtime: tokio::runtime::Runtime,
    registry: ScriptedRegistry,
    reference: String,
    chain: String,
    layer: String,
    content: Vec<u8>,
}

impl Scene {
    fn start() -> Self {
        let host = Host::start(PATIENT).unwrap();
        let (runtime, registry) = ScriptedRegistry::start_apart().unwrap();
        let content = noise(SIZE);
        let layout = host.layout("image").unwrap();
        let layers = small_layers(&layout, &[("file", &content)]).unwrap();
        let image = layout.add_image(&layers, &["sh"], "latest").unwrap();
        let layout = host.index(&layout, "indexed", Indexing::default()).unwrap();
        let reference = put(&layout, &registry, "image").unwrap();
        host.soci().unwrap().rpull(&reference).unwrap();
        let layer = layers.last().unwrap().digest.clone();
        let scene = Self {
            chain: image.chain_id(),
            host,
            _runtime: runtime,
            registry,
            reference,
            layer,
            content,
        };
        let blob = Match::path(&format!("blobs/{}", scene.layer)).method("GET");
        scene.registry.script(blob, Fault::Stall);
        scene
    }

    fn requests(&self) -> usize {
        let all = self.registry.requests();
        all.iter()
            .filter(|request| request.method == "GET" && request.path.contains(&self.layer))
            .count()
    }

    /// Waits until the layer was asked for again since there were `before` requests.
    fn until_asked(&self, before: usize) {
        until("the registry is asked", SOON, || {
            Ok((self.requests() > before).then_some(()))
        })
        .unwrap();
    }
}

fn read(file: &Path, how: &[&str]) -> Child {
    command("dd")
        .arg(format!("if={}", file.display()))
        .args(["of=/dev/null", "bs=4096", "count=1"])
        .args(how)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_killed_reader_ends_and_what_it_asked_for_is_not_waited_for_by_the_next() {
    let scene = Scene::start();
    let mounts = scene
        .host
        .ctr()
        .prepare("soci", "kept", &scene.chain)
        .unwrap();
    let mounted = mounts.mount(&scene.host.scratch, "kept").unwrap();
    let file = mounted.path().join("file");
    // By the page cache with read-ahead; and around it, which the kernel cannot interrupt once it has asked.
    for (number, how) in [&[][..], &["iflag=direct", "skip=300"]]
        .into_iter()
        .enumerate()
    {
        let before = scene.requests();
        let mut reader = read(&file, how);
        scene.until_asked(before);
        reader.kill().unwrap();
        until("the killed reader has ended", SOON, || {
            Ok(reader.try_wait()?.map(|_| ()))
        })
        .unwrap_or_else(|error| panic!("reader {number}: {error}"));
    }
    scene.registry.clear_script();
    assert_eq!(fs::read(&file).unwrap(), scene.content);
    drop(mounted);
    scene.host.ctr().remove_snapshot("soci", "kept").unwrap();
    scene.host.finish().unwrap();
}

#[test]
fn a_container_that_is_killed_while_it_waits_for_a_span_is_gone_and_another_reads() {
    let scene = Scene::start();
    let before = scene.requests();
    let script = "dd if=/file of=/dev/null bs=4096 count=1; sleep 1000";
    let container = Run::shell(&scene.reference, "stuck", script);
    let mut run = scene.host.ctr().run_command(container);
    let mut run = run
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    scene.until_asked(before);
    scene
        .host
        .ctr()
        .call(&["tasks", "kill", "--signal", "SIGKILL", "--all", "stuck"])
        .unwrap();
    until("the container is gone", SOON, || {
        Ok(run.try_wait()?.map(|_| ()))
    })
    .unwrap();
    scene.registry.clear_script();
    let other = Run::shell(&scene.reference, "other", "wc -c < /file");
    let output = scene.host.ctr().run(other).unwrap();
    assert_eq!(output.trim(), SIZE.to_string());
    scene.host.finish().unwrap();
}

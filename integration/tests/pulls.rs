//! Whole pulls that end early: nothing half made is seen, nothing is left, and the next one is whole.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use integration::busybox::noise;
use integration::command::fail;
use integration::ctr::Run;
use integration::host::{Host, sha256_hex, small_layers};
use integration::push::put;
use integration::registry::{Fault, Match, ScriptedRegistry};
use nix::sys::signal::Signal;

/// Every image is pulled whole, in small requests.
const WHOLE: &str = "[pull_modes.parallel_pull_unpack]
enable = true
concurrent_download_chunk_size = \"256kb\"
";

/// An image of two layers above busybox, in a registry whose answers can be held back.
struct Scene {
    _runtime: tokio::runtime::Runtime,
    registry: ScriptedRegistry,
    reference: String,
    /// Digest of the uppermost layer.
    upper: String,
    content: Vec<u8>,
}

impl Scene {
    fn new(host: &Host) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let registry = runtime.block_on(ScriptedRegistry::start()).unwrap();
        let content = noise(8 << 20);
        let layout = host.layout("image").unwrap();
        let files: [(&str, &[u8]); 2] = [("below", b"below\n"), ("file", &content)];
        let layers = small_layers(&layout, &files).unwrap();
        layout.add_image(&layers, &["sh"], "latest").unwrap();
        let reference = put(&layout, &registry, "image").unwrap();
        Self {
            _runtime: runtime,
            registry,
            reference,
            upper: layers[2].digest.clone(),
            content,
        }
    }

    /// The rest of the uppermost layer does not come.
    fn hold_back(&self) {
        let late = Match::path(&format!("blobs/{}", self.upper));
        let late = late.method("GET").turns(2..1000);
        self.registry.script(late, Fault::StallBody(1000));
    }

    /// A pull that has got as far as half of the uppermost layer.
    fn half_a_pull(&self, host: &Host) -> Child {
        let mut rpull = host.soci().unwrap().command().unwrap();
        rpull.args(["rpull", "--plain-http", &self.reference]);
        let rpull = rpull.stdout(Stdio::null()).stderr(Stdio::null());
        let rpull = rpull.spawn().unwrap();
        wait_until(
            "both lower layers are there and half of the upper one",
            || {
                let asked = self.registry.count("GET", &self.upper) > 2;
                asked && committed(host) == 2 && half_unpacked(host).len() == 1
            },
        );
        rpull
    }

    fn assert_whole(&self, host: &Host) {
        host.soci().unwrap().rpull(&self.reference).unwrap();
        let read = Run::shell(&self.reference, "read", "cat /below; sha256sum /file");
        let expected = format!("below\n{}  /file\n", sha256_hex(&self.content));
        assert_eq!(host.ctr().run(read).unwrap(), expected);
        wait_until("nothing is left of the pull", || {
            half_unpacked(host).is_empty()
        });
    }
}

fn half_unpacked(host: &Host) -> Vec<String> {
    let entries = fs::read_dir(host.snapshotter.root().join("unpack")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

fn committed(host: &Host) -> usize {
    let log = host.snapshotter.log();
    log.matches("layer was pulled and unpacked").count()
}

#[track_caller]
fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(60), "not yet: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_daemon_that_is_killed_in_the_middle_of_a_pull_shows_nothing_half_made() {
    let mut host = Host::start(WHOLE).unwrap();
    let scene = Scene::new(&host);
    scene.hold_back();
    let mut rpull = scene.half_a_pull(&host);
    host.snapshotter = host.snapshotter.restart(Signal::SIGKILL).unwrap();
    rpull.kill().unwrap();
    rpull.wait().unwrap();
    wait_until("the half of a layer is gone", || {
        half_unpacked(&host).is_empty()
    });
    assert!(host.ctr().images().unwrap().is_empty());
    scene.registry.clear_script();
    wait_until("containerd has redialled", || host.ctr().reaches("soci"));
    scene.assert_whole(&host);
    host.finish().unwrap();
}

#[test]
fn a_pull_ends_with_whoever_wanted_it() {
    let host = Host::start(WHOLE).unwrap();
    let scene = Scene::new(&host);
    scene.hold_back();
    let mut rpull = scene.half_a_pull(&host);
    rpull.kill().unwrap();
    rpull.wait().unwrap();
    wait_until("the half of a layer is gone", || {
        half_unpacked(&host).is_empty()
    });
    let asked = scene.registry.requests().len();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(
        scene.registry.requests().len(),
        asked,
        "nobody asks any more"
    );
    scene.registry.clear_script();
    scene.assert_whole(&host);
    host.finish().unwrap();
}

#[test]
fn a_full_disk_ends_a_pull_and_the_next_works_once_there_is_space() {
    let (mut host, small) = Host::start_on_small_disk(WHOLE, 24).unwrap();
    let scene = Scene::new(&host);
    let filler = small.join("filler");
    // Busybox takes about two, the uppermost layer eight.
    fs::write(&filler, vec![0; 17 << 20]).unwrap();
    let mut rpull = host.soci().unwrap().command().unwrap();
    let error = fail(rpull.args(["rpull", "--plain-http", &scene.reference])).unwrap();
    assert!(error.to_lowercase().contains("no space left"), "{error}");
    assert!(host.snapshotter.log().contains("No space left"));
    assert!(host.ctr().images().unwrap().is_empty());
    assert!(host.snapshotter.is_running());
    wait_until("nothing is left of the pull", || {
        half_unpacked(&host).is_empty()
    });

    fs::remove_file(&filler).unwrap();
    scene.assert_whole(&host);
    host.snapshotter.stop(Signal::SIGINT).unwrap();
    nix::mount::umount2(&small, nix::mount::MntFlags::MNT_DETACH).unwrap();
    host.finish().unwrap();
}

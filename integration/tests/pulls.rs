//! Whole pulls that end early: nothing half made is seen, nothing is left, and the next one is whole.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use integration::busybox::noise;
use integration::command::fail;
use integration::ctr::Run;
use integration::host::{Host, sha256_hex, small_layers};
use integration::push::put;
use integration::registry::{Fault, Match, ScriptedRegistry};
use integration::snapshotter::CONTAINERD;
use integration::{Containerd, DockerRegistry, Scratch, Snapshotter};
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
    /// Digest of the layer between busybox and the uppermost one.
    middle: String,
    /// Digest of the uppermost layer.
    upper: String,
    content: Vec<u8>,
}

impl Scene {
    fn new(host: &Host) -> Self {
        let (runtime, registry) = ScriptedRegistry::start_apart().unwrap();
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
            middle: layers[1].digest.clone(),
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

    fn begin(&self, host: &Host) -> Child {
        let mut rpull = host.soci().unwrap().command().unwrap();
        rpull.args(["rpull", "--plain-http", &self.reference]);
        let rpull = rpull.stdout(Stdio::null()).stderr(Stdio::null());
        rpull.spawn().unwrap()
    }

    /// A pull that has got as far as half of the uppermost layer.
    fn half_a_pull(&self, host: &Host) -> Child {
        let rpull = self.begin(host);
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

fn finished(host: &Host) -> usize {
    let dir = host.snapshotter.root().join("unpack");
    let is_finished = |name: &&String| dir.join(name).join("record.json").exists();
    half_unpacked(host).iter().filter(is_finished).count()
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
fn layers_that_were_finished_when_the_daemon_was_killed_are_not_pulled_again() {
    let mut host = Host::start(WHOLE).unwrap();
    let scene = Scene::new(&host);
    let middle = Match::path(&format!("blobs/{}", scene.middle));
    scene
        .registry
        .script(middle.method("GET"), Fault::StallBody(10));
    let mut rpull = scene.begin(&host);
    wait_until("the uppermost layer waits for the one below", || {
        committed(&host) == 1 && finished(&host) == 1 && half_unpacked(&host).len() == 2
    });
    host.snapshotter = host.snapshotter.restart(Signal::SIGKILL).unwrap();
    rpull.kill().unwrap();
    rpull.wait().unwrap();
    wait_until("the half of a layer is gone, the whole one is not", || {
        finished(&host) == 1 && half_unpacked(&host).len() == 1
    });
    scene.registry.clear_script();
    wait_until("containerd has redialled", || host.ctr().reaches("soci"));
    let asked = scene.registry.count("GET", &scene.upper);
    scene.assert_whole(&host);
    assert_eq!(scene.registry.count("GET", &scene.upper), asked);
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
fn a_whole_image_comes_through_a_pull_through_cache() {
    let scratch = Scratch::new().unwrap();
    let registry = DockerRegistry::start(&scratch).unwrap();
    let cache = DockerRegistry::start_cache(&scratch, &registry).unwrap();
    let mirror = format!(
        "{WHOLE}[[resolver.host.\"{}\".mirrors]]\nhost = \"{}\"\ninsecure = true\n",
        registry.host(),
        cache.host()
    );
    let containerd = Containerd::start(&scratch).unwrap();
    let snapshotter = Snapshotter::start(&scratch, &containerd, &mirror).unwrap();
    let host = Host {
        containerd,
        snapshotter,
        registry,
        scratch,
    };
    let content = noise(4 << 20);
    let layout = host.layout("image").unwrap();
    let layers = small_layers(&layout, &[("file", &content)]).unwrap();
    let image = host
        .publish_layers("image", &layout, &layers, None)
        .unwrap();
    let size: u64 = layers.iter().map(|layer| layer.size).sum();
    for round in 0..2 {
        let before = host.registry.traffic().unwrap();
        host.soci().unwrap().rpull(&image.reference).unwrap();
        assert_eq!(committed(&host), 2 * (round + 1));
        let read = Run::shell(&image.reference, "read", "sha256sum /file");
        let expected = format!("{}  /file\n", sha256_hex(&content));
        assert_eq!(host.ctr().run(read).unwrap(), expected);
        host.ctr().remove_image(&image.reference).unwrap();
        // The cache fetches what it does not have twice: for its client, and for itself. The command asks the
        // origin for the configuration.
        let origin = host.registry.traffic().unwrap().since(before).blob_bytes;
        let allowed = if round == 0 {
            2 * size + 100_000
        } else {
            100_000
        };
        assert!(origin < allowed, "round {round}: {origin} of {size} bytes");
    }
    assert!(cache.traffic().unwrap().blob_bytes >= 2 * size);
    drop(cache);
    host.finish().unwrap();
}

#[test]
fn layers_go_into_containerds_content_store_too_if_they_are_to_be_kept() {
    for (discard, kept) in [(false, true), (true, false)] {
        let config = format!(
            "{WHOLE}discard_unpacked_layers = {discard}
[content_store]
type = \"containerd\"
containerd_address = \"{CONTAINERD}\"
"
        );
        let host = Host::start(&config).unwrap();
        let scene = Scene::new(&host);
        scene.assert_whole(&host);
        let blobs = host.ctr().call(&["content", "list", "--quiet"]).unwrap();
        assert_eq!(blobs.contains(&scene.upper), kept, "{blobs}");
        if kept {
            // By which the image can leave the node again.
            let archive = host.scratch.path().join("image.tar");
            let path = archive.to_str().unwrap();
            let export = ["images", "export", path, &scene.reference];
            host.ctr().call(&export).unwrap();
            let mut archive = tar::Archive::new(fs::File::open(&archive).unwrap());
            let name = scene.upper.replace("sha256:", "blobs/sha256/");
            let mut entries = archive.entries().unwrap().map(Result::unwrap);
            let mut layer = entries
                .find(|entry| entry.path().unwrap() == Path::new(&name))
                .unwrap();
            let mut bytes = Vec::new();
            layer.read_to_end(&mut bytes).unwrap();
            assert_eq!(format!("sha256:{}", sha256_hex(&bytes)), scene.upper);
        }
        host.finish().unwrap();
    }
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

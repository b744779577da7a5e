//! containerd drives the snapshots service by hand and by running containers, all without lazy
//! layers: what any snapshotter must do.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use integration::command::{fail, run, until};
use integration::ctr::Run;
use integration::host::small_layers;
use integration::{Containerd, Ctr, Image, Layout, Scratch, Snapshotter};
use nix::sys::signal::Signal;

const IMAGE: &str = "localhost/small:1";
/// How long garbage may stay.
const COLLECTED: Duration = Duration::from_secs(15);
/// How long containerd may take to find a daemon that was started again.
const REDIALLED: Duration = Duration::from_secs(15);

/// containerd and the daemon, without a registry.
struct Ground {
    containerd: Containerd,
    snapshotter: Snapshotter,
    scratch: Scratch,
}

impl Ground {
    fn start() -> Self {
        // Built first: containerd gives up on a socket that does not come within seconds.
        integration::binaries::directory().unwrap();
        let scratch = Scratch::new().unwrap();
        let containerd = Containerd::start(&scratch).unwrap();
        let snapshotter = Snapshotter::start(&scratch, &containerd, "").unwrap();
        Self {
            containerd,
            snapshotter,
            scratch,
        }
    }

    /// `ctr snapshots --snapshotter soci` with `arguments`.
    fn snapshots(&self, arguments: &[&str]) -> String {
        run(self.snapshots_command(arguments).as_mut()).unwrap()
    }

    fn snapshots_command(&self, arguments: &[&str]) -> Box<std::process::Command> {
        let mut ctr = self.ctr().command();
        ctr.args(["snapshots", "--snapshotter", "soci"])
            .args(arguments);
        Box::new(ctr)
    }

    fn ctr(&self) -> Ctr {
        self.containerd.ctr()
    }

    /// Imports an image and unpacks it through us.
    fn import(&self, files: &[(&str, &[u8])]) -> Image {
        let layout = Layout::create(&self.scratch.dir("layouts").unwrap().join("small")).unwrap();
        let layers = small_layers(&layout, files).unwrap();
        let image = layout.add_image(&layers, &["/bin/sh"], IMAGE).unwrap();
        let archive = self.scratch.path().join("small.tar");
        let mut tar = tar::Builder::new(fs::File::create(&archive).unwrap());
        tar.append_dir_all(".", layout.path()).unwrap();
        tar.into_inner().unwrap();
        let archive = archive.to_str().unwrap();
        let import = ["images", "import", "--snapshotter", "soci", archive];
        self.ctr().call(&import).unwrap();
        image
    }

    fn directories(&self) -> Vec<String> {
        let snapshots = self.snapshotter.root().join("snapshotter/snapshots");
        let entries = fs::read_dir(snapshots).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    fn finish(self) {
        let Self {
            containerd,
            mut snapshotter,
            scratch,
        } = self;
        drop(containerd);
        snapshotter.stop(Signal::SIGINT).unwrap();
        drop(snapshotter);
        scratch.assert_clean().unwrap();
    }
}

#[test]
fn an_image_that_containerd_unpacks_runs_and_is_removed_without_a_trace() {
    let ground = Ground::start();
    let image = ground.import(&[("one", b"1\n"), ("two", b"2\n")]);
    let script = "cat /one /two; echo written >/new; cat /new; ls -d /";
    let output = ground.ctr().run(Run::shell(IMAGE, "c", script)).unwrap();
    assert_eq!(output, "1\n2\nwritten\n/\n");
    let chain = ground.snapshots(&["list"]);
    assert!(chain.contains(&image.chain_id()), "{chain}");
    assert_eq!(chain.matches("Committed").count(), 3, "{chain}");
    ground.ctr().remove_image(IMAGE).unwrap();
    until("the directories are gone", COLLECTED, || {
        Ok(ground.directories().is_empty().then_some(()))
    })
    .unwrap();
    assert_eq!(ground.ctr().snapshots("soci").unwrap(), [""; 0]);
    ground.finish();
}

#[test]
fn every_snapshot_command_of_ctr_works() {
    let ground = Ground::start();
    let image = ground.import(&[("file", b"below\n")]);
    let top = image.chain_id();
    let active = ground.ctr().prepare("soci", "active", &top).unwrap();
    assert_eq!(active.kind, "overlay");
    let mounted = active.mount(&ground.scratch, "active").unwrap();
    fs::write(mounted.path().join("added"), vec![7; 50_000]).unwrap();
    fs::remove_file(mounted.path().join("file")).unwrap();
    drop(mounted);
    let usage = ground.snapshots(&["usage", "-b", "active"]);
    let line = usage.lines().nth(1).unwrap();
    let numbers: Vec<&str> = line.split_whitespace().collect();
    assert!(numbers[1].parse::<u64>().unwrap() >= 50_000, "{usage}");
    // The root, the new file and the whiteout.
    assert_eq!(numbers[2], "3", "{usage}");

    ground.snapshots(&["commit", "committed", "active"]);
    ground.snapshots(&["label", "committed", "color=blue"]);
    let info = ground.snapshots(&["info", "committed"]);
    for part in ["\"Committed\"", "\"color\": \"blue\"", top.as_str()] {
        assert!(info.contains(part), "{info}");
    }
    let view = ground.ctr().view("soci", "view", "committed").unwrap();
    let mounted = view.mount(&ground.scratch, "view").unwrap();
    assert!(!mounted.path().join("file").exists());
    assert_eq!(
        fs::metadata(mounted.path().join("added")).unwrap().len(),
        50_000
    );
    assert!(fs::write(mounted.path().join("x"), "").is_err());
    drop(mounted);

    ground.ctr().prepare("soci", "child", "committed").unwrap();
    let tree = ground.snapshots(&["tree"]);
    assert!(
        tree.contains("committed") && tree.contains("child"),
        "{tree}"
    );
    let refused = fail(ground.snapshots_command(&["rm", "committed"]).as_mut()).unwrap();
    assert!(refused.contains("cannot remove"), "{refused}");
    let taken = ["prepare", "child", &top];
    let refused = fail(ground.snapshots_command(&taken).as_mut()).unwrap();
    assert!(refused.contains("already exists"), "{refused}");
    ground.snapshots(&["rm", "child"]);
    ground.finish();
}

#[test]
fn a_view_of_a_single_layer_is_a_read_only_bind_of_it() {
    let ground = Ground::start();
    let image = ground.import(&[]);
    let view = ground.ctr().view("soci", "v", &image.chain_id()).unwrap();
    assert_eq!(view.kind, "bind");
    assert_eq!(view.options, ["ro", "rbind"]);
    let root = fs::metadata(&view.source).unwrap();
    assert_eq!(root.mode() & 0o7777, 0o755);
    ground.finish();
}

#[test]
fn snapshots_and_running_containers_outlive_a_restart_of_the_daemon() {
    let mut ground = Ground::start();
    let image = ground.import(&[("file", b"below\n")]);
    let detached = ["run", "--detach", "--snapshotter", "soci", IMAGE, "c"];
    run(ground.ctr().command().args(detached).args([
        "/bin/sh",
        "-c",
        "echo up >/state; sleep 1000",
    ]))
    .unwrap();
    let before = ground.ctr().snapshots("soci").unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        ground.snapshotter = ground.snapshotter.restart(signal).unwrap();
        // containerd's client waits a moment before it dials again.
        let listed = until("containerd has redialled", REDIALLED, || {
            Ok(ground.ctr().snapshots("soci").ok())
        });
        // Views of ctr's are containerd's garbage from the start, and may be gone or not.
        let kept = |key: &String| !key.starts_with("SIG");
        assert!(listed.unwrap().iter().filter(|key| kept(key)).eq(&before));
        let exec = ["tasks", "exec", "--exec-id", "e", "c", "cat", "/file"];
        assert_eq!(ground.ctr().call(&exec).unwrap(), "below\n");
        let again = ground
            .ctr()
            .view("soci", signal.as_str(), &image.chain_id());
        assert_eq!(again.unwrap().kind, "overlay");
    }
    ground.finish();
}

#[test]
fn the_same_image_in_two_namespaces_shares_nothing_that_matters() {
    let ground = Ground::start();
    let image = ground.import(&[("file", b"below\n")]);
    let archive = ground.scratch.path().join("small.tar");
    let other = Ctr::new(&ground.containerd.socket(), "other-namespace");
    let archive = archive.to_str().unwrap();
    let import = ["images", "import", "--snapshotter", "soci", archive];
    other.call(&import).unwrap();
    assert!(other.snapshots("soci").unwrap().contains(&image.chain_id()));
    ground.ctr().remove_image(IMAGE).unwrap();
    let view = other.view("soci", "v", &image.chain_id()).unwrap();
    let mounted = view.mount(&ground.scratch, "v").unwrap();
    assert_eq!(fs::read(mounted.path().join("file")).unwrap(), b"below\n");
    drop(mounted);
    other.remove_image(IMAGE).unwrap();
    ground.finish();
}

#[test]
fn a_second_daemon_on_the_same_root_or_socket_is_refused_and_harms_nothing() {
    let ground = Ground::start();
    let binary = integration::binaries::binary("soci-snapshotter-grpc").unwrap();
    let root = ground.snapshotter.root();
    let socket = ground.containerd.snapshotter_socket();
    let elsewhere = ground.scratch.path().join("elsewhere");
    let other_socket = ground.scratch.path().join("other.sock");
    for (root, socket, hint) in [
        (&root, &other_socket, "uses the root directory"),
        (&elsewhere, &socket, "another process is listening"),
    ] {
        let mut second = integration::command::command(&binary);
        second.arg("--root").arg(root).arg("--address").arg(socket);
        let refused = fail(&mut second).unwrap();
        assert!(refused.contains(hint), "{refused}");
    }
    ground.snapshots(&["list"]);
    ground.finish();
}

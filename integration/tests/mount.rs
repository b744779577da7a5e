//! Images used without containerd and without the daemon, and the doctor.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use integration::busybox::noise;
use integration::command::{command, fail, run, until};
use integration::host::{Host, Indexing, ON_DEMAND, convert, small_layers};
use integration::push::push;
use integration::{DockerRegistry, Layout, Scratch, Soci};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

/// `soci mount`, mounted.
struct Mount {
    soci: Child,
    at: PathBuf,
}

impl Mount {
    fn start(soci: &Soci, image: &str, at: &Path, more: &[&str]) -> Self {
        let mut command = soci.command().unwrap();
        command
            .args(["mount", "--plain-http", image])
            .arg(at)
            .args(more);
        let mut soci = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(soci.stdout.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        assert!(line.contains("is mounted at"), "{line}");
        // The pipe must not be full, nor broken, when it says good-bye.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            soci,
            at: at.to_owned(),
        }
    }

    /// Ctrl-C.
    fn end(mut self) {
        let pid = Pid::from_raw(self.soci.id().try_into().unwrap());
        kill(pid, Signal::SIGINT).unwrap();
        self.assert_ended();
    }

    fn assert_ended(&mut self) {
        let ended = until("soci mount ends", PATIENCE, || Ok(self.soci.try_wait()?)).unwrap();
        assert!(ended.success(), "{ended}");
        assert_eq!(fs::read_dir(&self.at).unwrap().count(), 0, "still mounted");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.soci.kill();
        let _ = self.soci.wait();
        let _ = command("umount").arg("-l").arg(&self.at).output();
    }
}

/// A registry with an indexed image of a small file and a large one.
struct Site {
    registry: DockerRegistry,
    soci: Soci,
    reference: String,
    layout: Layout,
    large: Vec<u8>,
    scratch: Scratch,
}

impl Site {
    fn start() -> Self {
        let scratch = Scratch::new().unwrap();
        let registry = DockerRegistry::start(&scratch).unwrap();
        let soci = Soci::alone(&scratch).unwrap();
        let large = noise(4 << 20);
        let source = Layout::create(&scratch.path().join("plain")).unwrap();
        let layers = small_layers(&source, &[("large", &large), ("greeting", b"hello\n")]).unwrap();
        source.add_image(&layers, &["sh"], "latest").unwrap();
        let indexed = scratch.path().join("indexed");
        convert(&soci, source.path(), &indexed, Indexing::default()).unwrap();
        let layout = Layout::open(&indexed);
        let reference = registry.reference("app:latest");
        push(&layout, &reference).unwrap();
        Self {
            registry,
            soci,
            reference,
            layout,
            large,
            scratch,
        }
    }

    fn cat(&self, image: &str, path: &str) -> Vec<u8> {
        let mut cat = self.soci.command().unwrap();
        let output = cat
            .args(["cat", "--plain-http", image, path])
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        output.stdout
    }
}

#[test]
fn an_image_is_mounted_lazily_from_a_registry_and_unmounted_by_ctrl_c() {
    let site = Site::start();
    let at = site.scratch.dir("at").unwrap();
    let before = site.registry.traffic().unwrap();
    let mount = Mount::start(&site.soci, &site.reference, &at, &[]);
    assert_eq!(fs::read(at.join("greeting")).unwrap(), b"hello\n");
    let traffic = site.registry.traffic().unwrap().since(before);
    assert!(traffic.blob_bytes < 2 << 20, "{traffic:?}");
    assert_eq!(fs::read(at.join("large")).unwrap(), site.large);
    assert!(fs::write(at.join("new"), b"x").is_err(), "it is read-only");
    mount.end();
}

#[test]
fn a_writable_mount_keeps_what_was_written_in_its_state_and_ends_when_it_is_unmounted() {
    let site = Site::start();
    let (at, state) = (
        site.scratch.dir("at").unwrap(),
        site.scratch.dir("state").unwrap(),
    );
    let more = ["--rw", "--state", state.to_str().unwrap()];
    let mount = Mount::start(&site.soci, &site.reference, &at, &more);
    fs::write(at.join("new"), b"mine").unwrap();
    fs::remove_file(at.join("greeting")).unwrap();
    assert_eq!(fs::read(at.join("large")).unwrap(), site.large);
    mount.end();

    let before = site.registry.traffic().unwrap();
    let mut mount = Mount::start(&site.soci, &site.reference, &at, &more);
    assert_eq!(fs::read(at.join("new")).unwrap(), b"mine");
    assert!(!at.join("greeting").exists());
    assert_eq!(fs::read(at.join("large")).unwrap(), site.large);
    let traffic = site.registry.traffic().unwrap().since(before);
    assert!(traffic.blob_bytes < 1 << 20, "fetched again: {traffic:?}");
    run(command("umount").arg(&at)).unwrap();
    mount.assert_ended();
}

#[test]
fn layouts_and_images_without_an_index_are_mounted_too() {
    let site = Site::start();
    let at = site.scratch.dir("at").unwrap();
    let plain = site.scratch.path().join("plain");
    for image in [site.layout.path(), &plain] {
        let mount = Mount::start(&site.soci, image.to_str().unwrap(), &at, &[]);
        assert_eq!(fs::read(at.join("large")).unwrap(), site.large);
        mount.end();
    }
    let archive = site.scratch.path().join("plain.tar");
    run(command("tar")
        .arg("-cf")
        .arg(&archive)
        .arg("-C")
        .arg(&plain)
        .arg("."))
    .unwrap();
    assert_eq!(site.cat(archive.to_str().unwrap(), "greeting"), b"hello\n");
    let mut full = site.soci.command().unwrap();
    full.args(["mount", "--plain-http", &site.reference])
        .arg(&plain);
    let error = fail(&mut full).unwrap();
    assert!(error.contains("not empty"), "{error}");
}

#[test]
fn one_file_is_read_from_a_remote_image_with_few_bytes() {
    let site = Site::start();
    let before = site.registry.traffic().unwrap();
    assert_eq!(site.cat(&site.reference, "/greeting"), b"hello\n");
    let traffic = site.registry.traffic().unwrap().since(before);
    // The top layer has it: neither the others nor their zTOCs are asked for.
    assert!(traffic.blob_bytes < 64 << 10, "{traffic:?}");
    assert_eq!(site.cat(&site.reference, "large"), site.large);
    for (path, why) in [("/none", "no layer of"), ("/", "no regular file")] {
        let mut cat = site.soci.command().unwrap();
        let error = fail(cat.args(["cat", "--plain-http", &site.reference, path])).unwrap();
        assert!(
            error.starts_with("soci: ") && error.contains(why),
            "{error}"
        );
    }
}

#[test]
fn a_ztoc_is_verified_against_its_layer() {
    let scratch = Scratch::new().unwrap();
    let soci = Soci::alone(&scratch).unwrap();
    let layout = Layout::create(&scratch.path().join("layout")).unwrap();
    let layers = small_layers(&layout, &[("a", &noise(300_000)), ("b", &noise(300_001))]).unwrap();
    let blob = |number: usize| layout.blob(&layers[number].digest);
    let ztoc = scratch.path().join("ztoc");
    let mut build = soci.command().unwrap();
    run(build
        .args(["ztoc", "build", "--span-size", "65536", "-o"])
        .arg(&ztoc)
        .arg(blob(1)))
    .unwrap();
    let verify = |layer: &Path, ztoc: &Path| {
        let mut verify = soci.command().unwrap();
        verify
            .args(["ztoc", "verify"])
            .arg(ztoc)
            .arg("--layer")
            .arg(layer);
        verify
    };
    let said = run(&mut verify(&blob(1), &ztoc)).unwrap();
    assert!(said.contains("are those of the layer"), "{said}");
    let error = fail(&mut verify(&blob(2), &ztoc)).unwrap();
    assert!(error.contains("does not belong to the zTOC"), "{error}");
    // An index that lies about a name, its spans untouched: the file `a` is called `z`.
    let mut bytes = fs::read(&ztoc).unwrap();
    let name = bytes
        .windows(6)
        .position(|it| it == b"\x01\0\0\0a\0")
        .unwrap();
    bytes[name + 4] = b'z';
    let forged = scratch.path().join("forged");
    fs::write(&forged, bytes).unwrap();
    let error = fail(&mut verify(&blob(1), &forged)).unwrap();
    assert!(
        error.contains("the entry of z is not what the layer says"),
        "{error}"
    );
}

#[test]
fn the_doctor_finds_a_healthy_node_healthy_and_says_what_to_do_about_another() {
    let host = Host::start(ON_DEMAND).unwrap();
    let soci = host.soci().unwrap();
    let indexed = host
        .publish_files("app", &[("greeting", &noise(100_000))])
        .unwrap();
    let layout = host.layout("plain").unwrap();
    let layers = small_layers(&layout, &[("file", b"x")]).unwrap();
    let plain = host
        .publish_layers("plain", &layout, &layers, None)
        .unwrap();
    let config = host.scratch.path().join("containerd/config.toml");
    let doctor = |image: &str, config: &Path| {
        let mut doctor = soci.command().unwrap();
        doctor.args([
            "doctor",
            "--json",
            "--plain-http",
            image,
            "--containerd-config",
        ]);
        let output = doctor.arg(config).output().unwrap();
        let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), findings)
    };
    let verdict = |findings: &[Value], check: &str| {
        let found = findings.iter().find(|it| it["check"] == check);
        found.unwrap_or_else(|| panic!("{check}: {findings:?}"))["verdict"].clone()
    };
    let (code, findings) = doctor(&indexed.reference, &config);
    for check in [
        "/dev/fuse",
        "snapshotter",
        "containerd",
        "plugin in containerd",
        "proxy_plugins",
        "registry",
        "ranged requests",
        "SOCI index",
    ] {
        assert_eq!(verdict(&findings, check), "ok", "{check}: {findings:#?}");
    }
    let failed = findings
        .iter()
        .filter(|it| it["verdict"] == "failure")
        .count();
    assert_eq!(code, Some(i32::from(failed > 0)), "{findings:#?}");

    let (code, findings) = doctor(&plain.reference, &config);
    assert_eq!(
        (code, verdict(&findings, "SOCI index")),
        (Some(1), "failure".into())
    );
    let wrong = host.scratch.path().join("wrong.toml");
    fs::write(
        &wrong,
        "[proxy_plugins.soci]\ntype = \"snapshot\"\naddress = \"/elsewhere\"\n",
    )
    .unwrap();
    let (code, findings) = doctor(&indexed.reference, &wrong);
    assert_eq!(
        (code, verdict(&findings, "proxy_plugins")),
        (Some(1), "failure".into())
    );
    for finding in &findings {
        let advised = finding["advice"].as_str().unwrap().is_empty();
        assert_eq!(
            advised,
            matches!(finding["verdict"].as_str(), Some("ok" | "skipped")),
            "{finding}"
        );
    }

    let alone = Soci::alone(&host.scratch).unwrap();
    let mut without = alone.command().unwrap();
    let output = without.arg("doctor").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("FAILED  containerd") && text.contains("-> "),
        "{text}"
    );
    host.finish().unwrap();
}

//! The life of images and containers: pulled, run, written to, committed, removed.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use integration::busybox;
use integration::command::{run, until};
use integration::ctr::Run;
use integration::host::{Host, Indexing, ON_DEMAND, Published};
use integration::image::{Layer, Layout};
use integration::walk::{assert_same, walk};
use nix::sys::signal::Signal;

/// How long garbage may stay.
const COLLECTED: Duration = Duration::from_secs(15);

#[test]
fn a_container_reads_and_writes_and_only_what_it_reads_is_fetched() {
    let host = Host::start(ON_DEMAND).unwrap();
    let ballast = incompressible(64 << 20);
    let published = small_image(
        &host,
        "lazy",
        &[("ballast", &ballast), ("greeting", b"hello\n")],
    );
    let before = host.registry.traffic().unwrap();
    host.soci().unwrap().rpull(&published.reference).unwrap();
    let script = "cat /greeting; echo written >/new; cat /new; tail -c 5 /ballast | md5sum";
    let script = script.replace(
        "tail -c 5 /ballast | md5sum",
        "rm /greeting; ls /greeting /new || true",
    );
    let output = host
        .ctr()
        .run(shell(&published, "reader", &script))
        .unwrap();
    assert_eq!(output, "hello\nwritten\n/new\n");
    let fetched = host.registry.traffic().unwrap().since(before);
    assert!(
        fetched.blob_bytes * 10 < published.image.size(),
        "{fetched:?} of {} bytes",
        published.image.size()
    );
    assert!(host.snapshotter.metrics().unwrap().contains("soci_fs_"));
    host.finish().unwrap();
}

#[test]
fn everything_read_through_a_container_is_what_was_packed() {
    let host = Host::start("").unwrap();
    let ballast = incompressible(20 << 20);
    let published = small_image(&host, "whole", &[("ballast", &ballast)]);
    host.soci().unwrap().rpull(&published.reference).unwrap();
    let output = host
        .ctr()
        .run(shell(&published, "reader", "sha256sum /ballast"))
        .unwrap();
    let digest = integration::image::sha256(&ballast).replace("sha256:", "");
    assert_eq!(output, format!("{digest}  /ballast\n"));
    host.finish().unwrap();
}

#[test]
fn what_a_container_wrote_is_committed_and_seen_by_containers_on_top() {
    let host = Host::start(ON_DEMAND).unwrap();
    let published = small_image(&host, "base", &[("kept", b"kept\n"), ("gone", b"gone\n")]);
    host.soci().unwrap().rpull(&published.reference).unwrap();
    let ctr = host.ctr();
    let image = published.reference.as_str();
    let writer = [
        "/bin/sh",
        "-c",
        "echo new >/new; rm /gone; mkdir /bin/sub; sleep 1000",
    ];
    run(ctr
        .command()
        .args(["run", "--detach", "--snapshotter", "soci", image, "writer"])
        .args(writer))
    .unwrap();
    let mounts = ctr.call(&[
        "tasks",
        "exec",
        "--exec-id",
        "look",
        "writer",
        "cat",
        "/proc/mounts",
    ]);
    assert!(mounts.unwrap().starts_with("overlay / overlay"));
    until("the container has written", COLLECTED, || {
        let look = [
            "tasks",
            "exec",
            "--exec-id",
            "look",
            "writer",
            "ls",
            "-d",
            "/new",
            "/bin/sub",
        ];
        Ok(ctr.call(&look).ok())
    })
    .unwrap();
    ctr.call(&["tasks", "kill", "--signal", "KILL", "writer"])
        .unwrap();
    until("the task is gone", COLLECTED, || {
        Ok(ctr.call(&["tasks", "delete", "writer"]).ok())
    })
    .unwrap();

    ctr.call(&[
        "snapshots",
        "--snapshotter",
        "soci",
        "commit",
        "written",
        "writer",
    ])
    .unwrap();
    let usage = ctr
        .call(&["snapshots", "--snapshotter", "soci", "usage", "written"])
        .unwrap();
    assert!(usage.contains("written"), "{usage}");
    let above = ctr.view("soci", "above", "written").unwrap();
    let mounted = above.mount(&host.scratch, "above").unwrap();
    assert_eq!(fs::read(mounted.path().join("new")).unwrap(), b"new\n");
    assert_eq!(fs::read(mounted.path().join("kept")).unwrap(), b"kept\n");
    assert!(!mounted.path().join("gone").exists());
    assert!(
        mounted.path().join("bin/sub").is_dir() && mounted.path().join("bin/busybox").is_file()
    );
    drop(mounted);
    ctr.remove_snapshot("soci", "above").unwrap();
    ctr.call(&["containers", "delete", "writer"]).unwrap();
    ctr.remove_snapshot("soci", "written").unwrap();
    host.finish().unwrap();
}

#[test]
fn a_removed_image_leaves_no_mount_no_snapshot_and_no_layer() {
    let host = Host::start(ON_DEMAND).unwrap();
    let published = small_image(&host, "gone", &[("file", &incompressible(3 << 20))]);
    host.soci().unwrap().rpull(&published.reference).unwrap();
    let script = "cat /file >/dev/null";
    host.ctr().run(shell(&published, "reader", script)).unwrap();
    assert_eq!(
        host.snapshotter.layers().unwrap().len(),
        published.image.layers.len()
    );

    let ctr = host.ctr();
    ctr.remove_image(&published.reference).unwrap();
    until("everything is collected", COLLECTED, || {
        let is_gone = ctr.snapshots("soci")?.is_empty()
            && host.snapshotter.fuse_mounts()?.is_empty()
            && host.snapshotter.layers()?.is_empty();
        Ok(is_gone.then_some(()))
    })
    .unwrap();
    assert!(
        ctr.call(&["content", "list", "--quiet"])
            .unwrap()
            .is_empty()
    );
    let again = host.soci().unwrap().rpull(&published.reference);
    again.unwrap();
    host.ctr().run(shell(&published, "again", script)).unwrap();
    host.finish().unwrap();
}

#[test]
fn images_that_share_layers_and_containers_that_share_an_image_live_on_when_one_goes() {
    let host = Host::start(ON_DEMAND).unwrap();
    let file = incompressible(3 << 20);
    let one = small_image(&host, "one", &[("file", &file), ("name", b"one\n")]);
    let two = small_image(&host, "two", &[("file", &file), ("name", b"two\n")]);
    for image in [&one, &two] {
        host.soci().unwrap().rpull(&image.reference).unwrap();
    }
    let ctr = host.ctr();
    for id in ["first", "second"] {
        let detached = [
            "run",
            "--detach",
            "--snapshotter",
            "soci",
            &two.reference,
            id,
            "sleep",
            "1000",
        ];
        ctr.call(&detached).unwrap();
    }
    assert_eq!(
        host.snapshotter.fuse_mounts().unwrap().len(),
        1,
        "one view of one chain"
    );
    assert_eq!(ctr.run(shell(&one, "other", "cat /name")).unwrap(), "one\n");
    ctr.remove_image(&one.reference).unwrap();
    ctr.call(&["tasks", "delete", "--force", "first"]).unwrap();
    ctr.call(&["containers", "delete", "first"]).unwrap();

    let exec = [
        "tasks",
        "exec",
        "--exec-id",
        "look",
        "second",
        "sha256sum",
        "/file",
    ];
    let digest = integration::image::sha256(&file).replace("sha256:", "");
    assert_eq!(ctr.call(&exec).unwrap(), format!("{digest}  /file\n"));
    let shared = 2;
    until(
        "the layer only the removed image had is collected",
        COLLECTED,
        || Ok((host.snapshotter.layers()?.len() == shared + 1).then_some(())),
    )
    .unwrap();
    host.finish().unwrap();
}

#[test]
fn after_a_restart_images_run_again_and_the_tree_is_the_same() {
    let mut host = Host::start(ON_DEMAND).unwrap();
    let published = small_image(&host, "kept", &[("file", &incompressible(2 << 20))]);
    host.soci().unwrap().rpull(&published.reference).unwrap();
    let before = host.walk("soci", &published).unwrap();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let Host {
            containerd,
            snapshotter,
            registry,
            scratch,
        } = host;
        let snapshotter = snapshotter.restart(signal).unwrap();
        host = Host {
            containerd,
            snapshotter,
            registry,
            scratch,
        };
        assert_same(&before, &host.walk("soci", &published).unwrap());
        assert_eq!(
            host.ctr()
                .run(shell(&published, "again", "echo back"))
                .unwrap(),
            "back\n"
        );
    }
    host.finish().unwrap();
}

#[test]
fn a_user_who_is_not_root_reads_the_image() {
    let host = Host::start(ON_DEMAND).unwrap();
    let published = small_image(&host, "user", &[("file", b"readable\n")]);
    host.soci().unwrap().rpull(&published.reference).unwrap();
    let mounts = host
        .ctr()
        .prepare("soci", "user", &published.image.chain_id())
        .unwrap();
    let mounted = mounts.mount(&host.scratch, "user").unwrap();
    let mut chroot = integration::command::command("chroot");
    chroot
        .args(["--userspec=65534:65534"])
        .arg(mounted.path())
        .args(["/bin/ls", "/"]);
    // The scratch directory itself is closed to others; chroot enters it as root.
    let names = run(&mut chroot).unwrap();
    assert!(names.lines().any(|name| name == "file"), "{names}");
    let seen = walk(mounted.path()).unwrap();
    assert!(seen.contains_key("file".as_ref()));
    drop(mounted);
    host.finish().unwrap();
}

/// An image of busybox and one layer for each file.
fn small_image(host: &Host, name: &str, files: &[(&str, &[u8])]) -> Published {
    let layout = host.layout(name).unwrap();
    let mut layers = vec![layout.add_gzip_layer(&busybox::layer().unwrap()).unwrap()];
    layers.extend(
        files
            .iter()
            .map(|(path, content)| file_layer(&layout, path, content)),
    );
    host.publish_layers(name, &layout, &layers, Some(Indexing::default()))
        .unwrap()
}

fn file_layer(layout: &Layout, path: &str, content: &[u8]) -> Layer {
    layout
        .add_gzip_layer(&busybox::file_layer(path, content).unwrap())
        .unwrap()
}

fn shell<'a>(published: &'a Published, id: &'a str, script: &'a str) -> Run<'a> {
    // Leaked: a test has few of them, and an array of borrowed arguments needs an owner.
    let arguments = Vec::leak(vec!["/bin/sh", "-c", script]);
    Run {
        snapshotter: "soci",
        image: &published.reference,
        id,
        arguments,
    }
}

/// Bytes that no compressor makes smaller, the same every time.
fn incompressible(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..size.div_ceil(8))
        .flat_map(|_| next())
        .take(size)
        .collect()
}

//! The life of images and containers: pulled, run, written to, committed, removed.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use integration::busybox::noise;
use integration::command::{run, until};
use integration::containerd;
use integration::ctr::Run;
use integration::host::{Host, Indexing, ON_DEMAND};
use integration::walk::{assert_same, walk};
use nix::sys::signal::Signal;

/// How long garbage may stay.
const COLLECTED: Duration = Duration::from_secs(15);

#[test]
fn a_container_reads_and_writes_and_only_what_it_reads_is_fetched() {
    let host = Host::start(ON_DEMAND).unwrap();
    let ballast = noise(64 << 20);
    let files: [(&str, &[u8]); 2] = [("ballast", &ballast), ("greeting", b"hello\n")];
    let usual = Indexing {
        span_size: 4 << 20,
        ..Indexing::default()
    };
    let published = host.publish_files_indexed("lazy", &files, usual).unwrap();
    let before = host.registry.traffic().unwrap();
    host.soci().unwrap().rpull(&published.reference).unwrap();
    let script = "cat /greeting; rm /greeting; echo written >/new; cat /new; ls /greeting || true";
    let output = host
        .ctr()
        .run(Run::shell(&published.reference, "reader", script))
        .unwrap();
    assert_eq!(output, "hello\nwritten\n");
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
    let ballast = noise(20 << 20);
    let published = host
        .publish_files("whole", &[("ballast", &ballast)])
        .unwrap();
    host.soci().unwrap().rpull(&published.reference).unwrap();
    let output = host
        .ctr()
        .run(Run::shell(
            &published.reference,
            "reader",
            "sha256sum /ballast",
        ))
        .unwrap();
    let digest = integration::image::sha256(&ballast).replace("sha256:", "");
    assert_eq!(output, format!("{digest}  /ballast\n"));
    host.finish().unwrap();
}

#[test]
fn what_a_container_wrote_is_committed_and_seen_by_containers_on_top() {
    let host = Host::start(ON_DEMAND).unwrap();
    let published = host
        .publish_files("base", &[("kept", b"kept\n"), ("gone", b"gone\n")])
        .unwrap();
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
    let published = host
        .publish_files("gone", &[("file", &noise(3 << 20))])
        .unwrap();
    host.soci().unwrap().rpull(&published.reference).unwrap();
    let script = "cat /file >/dev/null";
    host.ctr()
        .run(Run::shell(&published.reference, "reader", script))
        .unwrap();
    assert_eq!(
        host.snapshotter.layers().unwrap().len(),
        published.image.layers.len()
    );

    let ctr = host.ctr();
    ctr.remove_image(&published.reference).unwrap();
    let left = || {
        let snapshots = ctr.snapshots("soci").unwrap();
        let mounts = host.snapshotter.fuse_mounts().unwrap();
        let mounts = mounts.iter().map(|mount| mount.display().to_string());
        let layers = host.snapshotter.layers().unwrap();
        [snapshots, mounts.collect(), layers].concat()
    };
    let collected = until("everything is collected", COLLECTED, || {
        Ok(left().is_empty().then_some(()))
    });
    assert!(collected.is_ok(), "left: {:?}", left());
    assert!(
        ctr.call(&["content", "list", "--quiet"])
            .unwrap()
            .is_empty()
    );
    host.soci().unwrap().rpull(&published.reference).unwrap();
    host.ctr()
        .run(Run::shell(&published.reference, "again", script))
        .unwrap();
    host.finish().unwrap();
}

#[test]
fn images_that_share_layers_and_containers_that_share_an_image_live_on_when_one_goes() {
    let host = Host::start(ON_DEMAND).unwrap();
    let file = noise(3 << 20);
    let one = host
        .publish_files("one", &[("file", &file), ("name", b"one\n")])
        .unwrap();
    let two = host
        .publish_files("two", &[("file", &file), ("name", b"two\n")])
        .unwrap();
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
    assert_eq!(
        ctr.run(Run::shell(&one.reference, "other", "cat /name"))
            .unwrap(),
        "one\n"
    );
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
    until(
        "the layer only the removed image had is collected",
        COLLECTED,
        || Ok((host.snapshotter.layers()?.len() == two.image.layers.len()).then_some(())),
    )
    .unwrap();
    host.finish().unwrap();
}

#[test]
fn after_a_restart_images_run_again_and_the_tree_is_the_same() {
    let mut host = Host::start(ON_DEMAND).unwrap();
    let published = host
        .publish_files("kept", &[("file", &noise(2 << 20))])
        .unwrap();
    host.soci().unwrap().rpull(&published.reference).unwrap();
    // Without the root: its times are those of the upper directory, which is new each time.
    let below_root = |host: &Host| {
        let mut tree = host.walk("soci", &published).unwrap();
        assert!(tree.remove(Path::new("")).is_some());
        tree
    };
    let before = below_root(&host);
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        host = host.restart_snapshotter(signal).unwrap();
        assert_same(&before, &below_root(&host));
        assert_eq!(
            host.ctr()
                .run(Run::shell(&published.reference, "again", "echo back"))
                .unwrap(),
            "back\n"
        );
    }
    host.finish().unwrap();
}

#[test]
fn a_user_who_is_not_root_reads_the_image() {
    let host = Host::start(ON_DEMAND).unwrap();
    let published = host
        .publish_files("user", &[("file", b"readable\n")])
        .unwrap();
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
    assert!(seen.contains_key(Path::new("file")));
    drop(mounted);
    host.finish().unwrap();
}

#[test]
fn ctr_pulls_lazily_where_containerd_tells_a_snapshotter_what_it_pulls() {
    let host = Host::start(ON_DEMAND).unwrap();
    let published = host
        .publish_files("transfer", &[("greeting", b"hello\n")])
        .unwrap();
    host.ctr().pull("soci", &published.reference).unwrap();
    let lazy = host
        .snapshotter
        .log()
        .matches("layer is served lazily")
        .count();
    // An older one pulls the layers and has us keep them.
    let expected = if containerd::version().unwrap() >= containerd::TELLS {
        2
    } else {
        0
    };
    assert_eq!(lazy, expected, "{}", host.snapshotter.log());
    let read = Run::shell(&published.reference, "reader", "cat /greeting");
    assert_eq!(host.ctr().run(read).unwrap(), "hello\n");
    host.finish().unwrap();
}

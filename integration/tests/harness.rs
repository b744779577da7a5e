//! The parts that the other tests stand on, shown with containerd's own snapshotter.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use integration::command::{command, run, until};
use integration::ctr::Run;
use integration::push::push;
use integration::scratch::{is_running, mounts_below};
use integration::walk::{differences, walk};
use integration::{Containerd, DockerRegistry, Layout, Scratch, busybox, debian};

#[test]
fn an_image_we_made_runs_from_our_registry_and_the_registry_counted_its_bytes() {
    let scratch = Scratch::new().unwrap();
    let registry = DockerRegistry::start(&scratch).unwrap();
    let containerd = Containerd::start(&scratch).unwrap();
    let layout = Layout::create(&scratch.dir("layout").unwrap()).unwrap();
    let bottom = layout.add_gzip_layer(&busybox::layer().unwrap()).unwrap();
    let top = layout
        .add_gzip_layer(&busybox::file_layer("greeting", b"hello\n").unwrap())
        .unwrap();
    let image = layout
        .add_image(&[bottom, top], &["cat", "/greeting"], "latest")
        .unwrap();
    let reference = registry.reference("small:latest");
    push(&layout, &reference).unwrap();

    let before = registry.traffic().unwrap();
    let ctr = containerd.ctr();
    ctr.pull("overlayfs", &reference).unwrap();
    let fetched = registry.traffic().unwrap().since(before);
    let config = layout.json(&image.manifest).unwrap()["config"]["size"]
        .as_u64()
        .unwrap();
    assert_eq!(fetched.blob_bytes, image.size() + config);

    let run = Run {
        snapshotter: "overlayfs",
        image: &reference,
        id: "greeter",
        arguments: vec![],
    };
    assert_eq!(ctr.run(run).unwrap(), "hello\n");

    let mount = ctr.view("overlayfs", "eyes", &image.chain_id()).unwrap();
    let mounted = mount.mount(&scratch, "eyes").unwrap();
    assert_eq!(
        fs::read(mounted.path().join("greeting")).unwrap(),
        b"hello\n"
    );
    drop(mounted);
    drop(containerd);
    drop(registry);
    scratch.assert_clean().unwrap();
}

#[test]
fn the_walk_sees_every_kind_of_difference() {
    let scratch = Scratch::new().unwrap();
    let (one, two) = (scratch.dir("one").unwrap(), scratch.dir("two").unwrap());
    for dir in [&one, &two] {
        for name in ["content", "mode", "owner", "mtime", "xattr", "linked"] {
            fs::write(dir.join(name), "same").unwrap();
        }
        fs::hard_link(dir.join("linked"), dir.join("link")).unwrap();
        symlink("same", dir.join("symlink")).unwrap();
        let touch = ["-h", "-d", "2020-02-02 02:02:02.5"];
        let names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        run(command("touch").args(touch).args(names).arg(dir)).unwrap();
    }
    let expected = walk(&one).unwrap();
    assert_eq!(differences(&expected, &walk(&two).unwrap()), [""; 0]);

    let changes = "printf SAME >content; chmod 4644 mode; chown 7:7 owner; touch -d '2020-02-02 02:02:02.4' mtime
        rm link; cp -a linked link; ln -sfn other symlink; mkdir new; touch -d '2020-02-02 02:02:02.5' .";
    run(command("sh").current_dir(&two).args(["-euc", changes])).unwrap();
    xattr::set(two.join("xattr"), "user.a", b"b").unwrap();
    let touch = [
        "-h",
        "-d",
        "2020-02-02 02:02:02.5",
        "content",
        "symlink",
        ".",
    ];
    run(command("touch").current_dir(&two).args(touch)).unwrap();
    let mut found: Vec<_> = differences(&expected, &walk(&two).unwrap())
        .iter()
        .map(|line| line.split(':').next().unwrap().to_owned())
        .collect();
    found.sort();
    let names = [
        "content", "link", "linked", "mode", "mtime", "new", "owner", "symlink", "xattr",
    ];
    assert_eq!(found, names.map(|name| format!("/{name}")));
}

#[test]
fn what_a_test_forgot_is_swept_away_with_its_directory() {
    let scratch = Scratch::new().unwrap();
    let dir = scratch.dir("mounted").unwrap();
    run(command("mount").args(["-t", "tmpfs", "none"]).arg(&dir)).unwrap();
    let script = format!("sleep 1000 & wait # {}", dir.display());
    let mut forgotten = command("sh").args(["-c", &script]).spawn().unwrap();
    let complaint = until(
        "the shell has started its sleep",
        Duration::from_secs(5),
        || {
            let children =
                run(command("ps").args(["--ppid", &forgotten.id().to_string(), "-o", "pid="]));
            Ok(children
                .ok()
                .map(|child| (child, scratch.assert_clean().unwrap_err().to_string())))
        },
    );
    let (child, complaint) = complaint.unwrap();
    assert!(
        complaint.contains("sleep 1000") && complaint.contains("/mounted"),
        "{complaint}"
    );

    let path = scratch.path().to_owned();
    let runc = Path::new("/run/containerd/runc").join(scratch.name());
    fs::create_dir_all(&runc).unwrap();
    drop(scratch);
    assert!(!path.exists() && !runc.exists());
    assert!(!forgotten.wait().unwrap().success());
    assert!(!is_running(child.trim().parse().unwrap()));
    assert!(mounts_below(&path).unwrap().is_empty());
}

#[test]
fn a_debian_image_has_layers_with_whiteouts_and_runs() {
    let scratch = Scratch::new().unwrap();
    let registry = DockerRegistry::start(&scratch).unwrap();
    let containerd = Containerd::start(&scratch).unwrap();
    let layout = Layout::create(&scratch.dir("layout").unwrap()).unwrap();
    let steps = [debian::Step {
        name: "slim",
        script: "rm -r /usr/share/doc; rm /etc/motd; rm -r /media; mkdir /media; echo new >/media/file",
        compressor: "gzip -1",
    }];
    let files = debian::layers("slim", &steps).unwrap();
    let layers: Vec<_> = files
        .iter()
        .map(|file| layout.add_layer_file(file).unwrap())
        .collect();
    let listing = run(command("tar").arg("-tf").arg(&files[1])).unwrap();
    for whiteout in [
        "./etc/.wh.motd",
        "./usr/share/.wh.doc",
        "./media/.wh..wh..opq",
    ] {
        assert!(
            listing.lines().any(|line| line == whiteout),
            "{whiteout} in {listing}"
        );
    }

    let reference = registry.reference("debian/slim:latest");
    layout
        .add_image(&layers, &["ls", "/media", "/usr/share/doc"], "latest")
        .unwrap();
    push(&layout, &reference).unwrap();
    let ctr = containerd.ctr();
    ctr.pull("overlayfs", &reference).unwrap();
    let script = "cat /media/file; test ! -e /usr/share/doc; test ! -e /etc/motd";
    let arguments = vec!["/bin/sh", "-euc", script];
    let run = Run {
        snapshotter: "overlayfs",
        image: &reference,
        id: "slim",
        arguments,
    };
    assert_eq!(ctr.run(run).unwrap(), "new\n");
}

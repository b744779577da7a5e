//! Containers in user namespaces: the snapshotter maps ids (`remap-ids`), copies nothing and changes no layer.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use integration::busybox::{self, noise};
use integration::command::{command, run, until};
use integration::host::{Host, Indexing, ON_DEMAND, Published, sha256_hex};
use nix::sys::signal::Signal;
use tar::{Builder, EntryType, Header};

/// The container's root is this user and this group of the node.
const USER: u32 = 100_000;
const GROUP: u32 = 200_000;
/// How many ids a container has.
const LENGTH: u32 = 65_536;
/// What an id is shown as that the container does not have.
const NOBODY: &str = "65534:65534";
/// How long things may take that take a moment.
const PATIENCE: Duration = Duration::from_secs(30);

/// Large files are read by the kernel itself.
const PASSTHROUGH: &str = "[fuse]
passthrough_min_file_size = \"1mb\"
";

/// Views show mapped ids by themselves, as on kernels that cannot map them.
const SHIFTED: &str = "[background_fetch]
disable = true
[snapshotter]
map_ids = \"views\"
";

/// A node whose directories let other users through to their containers.
fn node() -> Host {
    configured(ON_DEMAND)
}

fn configured(config: &str) -> Host {
    let host = Host::start(config).unwrap();
    let all = fs::Permissions::from_mode(0o711);
    fs::set_permissions(host.scratch.path(), all).unwrap();
    host
}

/// A tar of files of several owners.
fn owned_files() -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (path, mode, (user, group)) in [
        ("owned", 0o640, (1000, 2000)),
        ("beyond", 0o600, (70_000, 70_000)),
        ("setuid", 0o4755, (33, 0)),
    ] {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(mode);
        header.set_size(path.len() as u64);
        header.set_uid(user);
        header.set_gid(group);
        header.set_mtime(1_700_000_000);
        tar.append_data(&mut header, path, path.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

/// An image with layers of a program, of owned files, and of 3 MiB; those below `min_layer_size` are not lazy,
/// and without that none is.
fn publish(host: &Host, name: &str, min_layer_size: Option<u64>) -> Published {
    let layout = host.layout(name).unwrap();
    let large = busybox::file_layer("large", &noise(3 << 20)).unwrap();
    let layers = [busybox::layer().unwrap(), owned_files(), large];
    let layers = layers.map(|layer| layout.add_gzip_layer(&layer).unwrap());
    let how = min_layer_size.map(|min_layer_size| Indexing {
        min_layer_size,
        ..Indexing::default()
    });
    host.publish_layers(name, &layout, &layers, how).unwrap()
}

/// `ctr run`, with ids mapped by the snapshotter.
fn mapped(host: &Host, options: &[&str], image: &str, id: &str, script: &str) -> Command {
    let mut ctr = host.ctr().command();
    ctr.args(["run", "--snapshotter", "soci", "--remap-labels"]);
    ctr.args(["--uidmap", &format!("0:{USER}:{LENGTH}")]);
    ctr.args(["--gidmap", &format!("0:{GROUP}:{LENGTH}")]);
    ctr.args(options).args([image, id, "/bin/sh", "-c", script]);
    ctr
}

/// Starts the container `app`, which sleeps.
fn sleeping(host: &Host, image: &str) {
    run(&mut mapped(host, &["--detach"], image, "app", "sleep 1000")).unwrap();
}

/// All files of unpacked layers and of containers.
fn on_disk(host: &Host, name: &str) -> Vec<PathBuf> {
    let snapshots = host.snapshotter.root().join("snapshotter/snapshots");
    let snapshots = fs::read_dir(snapshots).unwrap();
    let files = snapshots.map(|snapshot| snapshot.unwrap().path().join("fs").join(name));
    files.filter(|file| file.exists()).collect()
}

fn owner(file: &Path) -> (u32, u32) {
    let file = fs::symlink_metadata(file).unwrap();
    (file.uid(), file.gid())
}

/// Mounts with mapped ids, and their mount points.
fn mapped_directories(host: &Host) -> Vec<PathBuf> {
    let root = host.snapshotter.root().join("snapshotter/mapped");
    let containers = fs::read_dir(root).into_iter().flatten();
    containers
        .flat_map(|container| fs::read_dir(container.unwrap().path()).unwrap())
        .map(|mount| mount.unwrap().path())
        .collect()
}

#[test]
fn a_container_with_mapped_ids_sees_the_owners_of_the_image_writes_as_its_own_and_changes_no_layer()
{
    let host = node();
    // Each view is mounted once more with mapped ids.
    sees_its_files(&host, 2);
    host.finish().unwrap();
}

#[test]
fn where_views_show_mapped_ids_by_themselves_a_container_sees_and_does_the_same() {
    let host = configured(SHIFTED);
    sees_its_files(&host, 1);
    host.finish().unwrap();
}

/// `mounts` are those of a view and a container with mapped ids.
fn sees_its_files(host: &Host, mounts: usize) {
    // Lazy layers only; unpacked layers below a lazy one; unpacked layers only.
    for (name, min_layer_size, views) in [
        ("lazy", Some(0), 1),
        ("mixed", Some(2 << 20), 1),
        ("whole", None, 0),
    ] {
        let published = publish(host, name, min_layer_size);
        let image = published.reference.as_str();
        host.soci().unwrap().rpull(image).unwrap();
        let script = "stat -c %u:%g:%a /owned /beyond /setuid /bin / && cat /owned && echo && sha256sum /large
            echo new >/new && stat -c %u:%g /new && echo more >>/owned && busybox chown 7:8 /owned && stat -c %u:%g /owned
            cat /beyond 2>/dev/null || echo refused; rm /setuid && ls / | busybox grep -c setuid; busybox cat /proc/self/uid_map; sleep 1000";
        let script = script.replace("busybox", "/bin/busybox");
        let log = host.scratch.path().join(name);
        let options = [
            "--detach",
            "--log-uri",
            &format!("file://{}", log.display()),
        ];
        run(&mut mapped(host, &options, image, name, &script)).unwrap();
        let said = until("the container has said all", PATIENCE, || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            Ok(said.contains("65536").then_some(said))
        })
        .unwrap();
        let map: Vec<&str> = said.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(map, ["0", &USER.to_string(), &LENGTH.to_string()]);
        let large = sha256_hex(&noise(3 << 20));
        let lines: Vec<&str> = said.lines().collect();
        let expected = [
            "1000:2000:640",
            &format!("{NOBODY}:600"),
            "33:0:4755",
            "0:0:755",
            "0:0:755",
            "owned",
            &format!("{large}  /large"),
            "0:0",
            "7:8",
        ];
        assert_eq!(lines[..expected.len()], expected, "{name}: {said}");
        assert!(said.contains("\nrefused\n0\n"), "{name}: {said}");

        // What it wrote is its own, on this node's terms; the layers below are as they were.
        let written = on_disk(host, "new");
        assert_eq!(written.len(), 1, "{written:?}");
        assert_eq!(owner(&written[0]), (USER, GROUP));
        let mut owners: Vec<_> = on_disk(host, "owned")
            .iter()
            .map(|file| owner(file))
            .collect();
        owners.sort_unstable();
        let layer = (min_layer_size != Some(0)).then_some((1000, 2000));
        let copied = Some((USER + 7, GROUP + 8));
        assert_eq!(owners, layer.into_iter().chain(copied).collect::<Vec<_>>());
        assert_eq!(
            host.snapshotter.fuse_mounts().unwrap().len(),
            mounts * views
        );
        // A container without a mapping sees the image's.
        let plain = integration::ctr::Run::shell(image, "plain", "stat -c %u:%g /owned /beyond");
        assert_eq!(host.ctr().run(plain).unwrap(), "1000:2000\n70000:70000\n");

        host.ctr()
            .call(&["tasks", "delete", "--force", name])
            .unwrap();
        host.ctr().call(&["containers", "delete", name]).unwrap();
        host.ctr().remove_image(image).unwrap();
        assert_eq!(mapped_directories(host).len(), 0);
        until("all is unmounted", PATIENCE, || {
            Ok(host.snapshotter.fuse_mounts()?.is_empty().then_some(()))
        })
        .unwrap();
    }
}

#[test]
fn mapped_directories_outlive_the_daemon_and_come_back_when_they_are_gone() {
    let mut host = node();
    let published = publish(&host, "app", Some(2 << 20));
    let image = published.reference.as_str();
    host.soci().unwrap().rpull(image).unwrap();
    sleeping(&host, image);
    let before = mapped_directories(&host);
    assert_eq!(
        before.len(),
        2,
        "one of the view, one of the layers below it"
    );

    let mut inspect = host.soci().unwrap().command().unwrap();
    let seen = run(inspect.args(["inspect", "--json"])).unwrap();
    let seen: serde_json::Value = serde_json::from_str(&seen).unwrap();
    assert_eq!(seen["views"][0]["containers"][0]["id"], "app", "{seen}");

    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        host = host.restart_snapshotter(signal).unwrap();
        let ctr = host.ctr();
        let read = [
            "tasks",
            "exec",
            "--exec-id",
            "read",
            "app",
            "/bin/sha256sum",
            "/large",
        ];
        let expected = format!("{}  /large\n", sha256_hex(&noise(3 << 20)));
        assert_eq!(ctr.call(&read).unwrap(), expected);
        assert_eq!(mapped_directories(&host), before);
    }
    host.ctr()
        .call(&["tasks", "delete", "--force", "app"])
        .unwrap();
    // As after a reboot.
    for directory in &before {
        run(command("umount").arg(directory)).unwrap();
    }
    let ctr = host.ctr();
    ctr.call(&["tasks", "start", "--detach", "app"]).unwrap();
    let look = [
        "tasks",
        "exec",
        "--exec-id",
        "look",
        "app",
        "/bin/stat",
        "-c",
        "%u:%g",
        "/owned",
    ];
    assert_eq!(ctr.call(&look).unwrap(), "1000:2000\n");
    assert_eq!(mapped_directories(&host), before);
    ctr.call(&["tasks", "delete", "--force", "app"]).unwrap();
    ctr.call(&["containers", "delete", "app"]).unwrap();
    ctr.remove_image(image).unwrap();
    host.finish().unwrap();
}

/// Runs a script in the container `app`.
fn in_app(host: &Host, id: &str, script: &str) -> String {
    let exec = ["tasks", "exec", "--exec-id", id, "app", "/bin/sh", "-c"];
    host.ctr().call(&[&exec[..], &[script]].concat()).unwrap()
}

/// What `soci inspect` says: of each view the users it shows, and the containers on it.
fn inspected(host: &Host) -> Vec<(Option<String>, Vec<String>)> {
    let mut inspect = host.soci().unwrap().command().unwrap();
    let seen = run(inspect.args(["inspect", "--json"])).unwrap();
    let seen: serde_json::Value = serde_json::from_str(&seen).unwrap();
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let views = seen["views"].as_array().unwrap().iter();
    let views = views.map(|view| {
        let containers = view["containers"].as_array().unwrap().iter();
        let containers = containers.filter_map(|container| text(&container["id"]));
        (text(&view["ids"]["users"]), containers.collect())
    });
    views.collect()
}

/// Removes containers and waits until so many views are left, after the last one none.
fn views_go_with(host: &Host, containers: &[(&str, usize)]) {
    let ctr = host.ctr();
    for &(container, left) in containers {
        ctr.call(&["tasks", "delete", "--force", container])
            .unwrap();
        ctr.call(&["containers", "delete", container]).unwrap();
        ctr.collect().unwrap();
        until(
            "its view is gone, unless another needs it",
            PATIENCE,
            || {
                let mounted = host.snapshotter.fuse_mounts()?.len();
                assert!(mounted >= left, "{mounted} views after {container}");
                Ok((mounted == left).then_some(()))
            },
        )
        .unwrap();
    }
    until("no record is left of them", PATIENCE, || {
        let records = fs::read_dir(host.snapshotter.root().join("views"))?;
        Ok((records.count() == 0).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_view_that_shows_mapped_ids_serves_its_mapping_through_kills_and_goes_with_its_snapshots() {
    let mut host = configured(SHIFTED);
    let published = publish(&host, "app", Some(2 << 20));
    let image = published.reference.as_str();
    host.soci().unwrap().rpull(image).unwrap();
    sleeping(&host, image);
    // The same mapping shares the view, another one has its own, and none has the image's.
    run(&mut mapped(
        &host,
        &["--detach"],
        image,
        "same",
        "sleep 1000",
    ))
    .unwrap();
    let mut other = host.ctr().command();
    other.args(["run", "--detach", "--snapshotter", "soci", "--remap-labels"]);
    other.args(["--uidmap", "0:400000:65536", "--gidmap", "0:400000:65536"]);
    other.args([image, "other", "/bin/sh", "-c", "sleep 1000"]);
    run(&mut other).unwrap();
    let users = |first: u32| Some(format!("0:{first}:{LENGTH}"));
    let views = vec![
        (users(USER), vec!["app".to_owned(), "same".to_owned()]),
        (users(400_000), vec!["other".to_owned()]),
    ];
    let sorted = |host: &Host| {
        let mut views = inspected(host);
        views
            .iter_mut()
            .for_each(|(_, containers)| containers.sort());
        views
    };
    assert_eq!(sorted(&host), views);
    let mounts = host.snapshotter.fuse_mounts().unwrap();
    assert_eq!(mounts.len(), 2);

    let large = sha256_hex(&noise(3 << 20));
    let look = "/bin/stat -c %u:%g /large /owned /beyond; /bin/sha256sum /large";
    let expected = format!("0:0\n1000:2000\n{NOBODY}\n{large}  /large\n");
    // Who maps ids from now on does not matter to who is there.
    for (number, (config, signal)) in [
        (SHIFTED, Signal::SIGKILL),
        (SHIFTED, Signal::SIGTERM),
        (ON_DEMAND, Signal::SIGKILL),
        (ON_DEMAND, Signal::SIGKILL),
        (SHIFTED, Signal::SIGKILL),
    ]
    .into_iter()
    .enumerate()
    {
        host.snapshotter
            .configure_anew(&host.containerd, config)
            .unwrap();
        host = host.restart_snapshotter(signal).unwrap();
        assert_eq!(in_app(&host, &format!("look-{number}"), look), expected);
        assert_eq!(host.snapshotter.fuse_mounts().unwrap(), mounts);
        assert_eq!(sorted(&host), views);
    }
    in_app(&host, "write", "echo more >>/owned; echo new >/new");
    assert_eq!(owner(&on_disk(&host, "new")[0]), (USER, GROUP));
    let mut owners: Vec<_> = on_disk(&host, "owned")
        .iter()
        .map(|file| owner(file))
        .collect();
    owners.sort_unstable();
    assert_eq!(owners, [(1000, 2000), (USER + 1000, GROUP + 2000)]);

    views_go_with(&host, &[("app", 2), ("same", 1), ("other", 0)]);
    host.ctr().remove_image(image).unwrap();
    host.finish().unwrap();
}

/// A tar of a directory with an owner, and of 3 MiB in it.
fn home(with_directory: bool, name: &str) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_mtime(1_700_000_000);
    header.set_uid(1000);
    header.set_gid(70_000);
    if with_directory {
        header.set_entry_type(EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        tar.append_data(&mut header, "home/", &b""[..]).unwrap();
    }
    let data = noise(3 << 20);
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    let path = format!("home/{name}");
    tar.append_data(&mut header, path, &*data).unwrap();
    tar.into_inner().unwrap()
}

#[test]
fn views_above_unpacked_layers_and_other_views_show_the_owners_of_what_is_below_them() {
    for config in [ON_DEMAND, SHIFTED] {
        let host = configured(config);
        let layout = host.layout("stacked").unwrap();
        let layers = [
            busybox::layer().unwrap(),
            home(true, "below"),
            owned_files(),
            home(false, "above"),
        ];
        let layers = layers.map(|layer| layout.add_gzip_layer(&layer).unwrap());
        let how = Indexing {
            min_layer_size: 2 << 20,
            ..Indexing::default()
        };
        let published = host.publish_layers("stacked", &layout, &layers, Some(how));
        let image = published.unwrap().reference;
        host.soci().unwrap().rpull(&image).unwrap();
        sleeping(&host, &image);
        let shifted = config == SHIFTED;
        let ids = shifted.then(|| format!("0:{USER}:{LENGTH}"));
        let views = inspected(&host);
        assert_eq!(views.len(), 2, "{views:?}");
        assert!(views.iter().all(|(users, _)| *users == ids), "{views:?}");
        // The directory of the upper view has no entry in its layer: it is as in the lower one.
        let script = "/bin/stat -c %u:%g:%a /home /home/below /home/above /owned";
        let expected = "1000:65534:755\n1000:65534:644\n1000:65534:644\n1000:2000:640\n";
        assert_eq!(in_app(&host, "look", script), expected, "{config}");
        let host = host.restart_snapshotter(Signal::SIGKILL).unwrap();
        assert_eq!(in_app(&host, "again", script), expected, "{config}");
        let ctr = host.ctr();
        ctr.call(&["tasks", "delete", "--force", "app"]).unwrap();
        ctr.call(&["containers", "delete", "app"]).unwrap();
        ctr.remove_image(&image).unwrap();
        host.finish().unwrap();
    }
}

/// Whether the daemon made a file of `size` bytes for the kernel to read.
fn has_own_file(host: &Host, size: u64) -> bool {
    let layers = fs::read_dir(host.snapshotter.root().join("layers")).unwrap();
    let mut files = layers
        .filter_map(|layer| fs::read_dir(layer.unwrap().path().join("files")).ok())
        .flatten()
        .map(|file| file.unwrap());
    files.any(|file| {
        let finished = !file.file_name().to_string_lossy().starts_with('.');
        finished && file.metadata().is_ok_and(|it| it.len() == size)
    })
}

/// How many opens of large files the kernel serves by itself now: the second of three numbers per file, in what the
/// daemon keeps beside the view's record.
fn passed_through(host: &Host) -> u32 {
    let views = fs::read_dir(host.snapshotter.root().join("views")).unwrap();
    let counts = views.filter_map(|entry| fs::read(entry.unwrap().path()).ok());
    counts
        .filter_map(|counts| Some(counts.strip_prefix(b"opens 1\n")?.to_vec()))
        .flat_map(|counts| {
            let files = counts.chunks_exact(12);
            files
                .map(|file| u32::from_le_bytes(file[4..8].try_into().unwrap()))
                .collect::<Vec<_>>()
        })
        .sum()
}

/// Whether the record of a view says that the kernel may be given files.
fn is_passing_through(host: &Host) -> bool {
    let views = fs::read_dir(host.snapshotter.root().join("views")).unwrap();
    let mut records = views
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|it| it == "json"));
    records.any(|path| fs::read_to_string(path).unwrap().contains("passthrough"))
}

#[test]
fn a_large_file_that_the_kernel_reads_itself_has_its_mapped_owner_also_after_the_daemon_was_killed()
{
    has_its_owner(PASSTHROUGH);
}

#[test]
fn so_it_has_in_a_view_that_shows_mapped_ids_by_itself() {
    has_its_owner(&format!(
        "{PASSTHROUGH}[snapshotter]\nmap_ids = \"views\"\n"
    ));
}

fn has_its_owner(config: &str) {
    let mut host = configured(config);
    let published = publish(&host, "app", Some(0));
    let image = published.reference.as_str();
    host.soci().unwrap().rpull(image).unwrap();
    sleeping(&host, image);
    if !is_passing_through(&host) {
        eprintln!("this kernel has no passthrough");
        return;
    }
    host.soci().unwrap().call(&["drain", "app"]).unwrap();
    let script = "/bin/stat -c %u:%g /large /owned /beyond; /bin/sha256sum /large";
    let large = sha256_hex(&noise(3 << 20));
    let expected = format!("0:0\n1000:2000\n{NOBODY}\n{large}  /large\n");
    let read = |host: &Host, id: &str| {
        let exec = [
            "tasks",
            "exec",
            "--exec-id",
            id,
            "app",
            "/bin/sh",
            "-c",
            script,
        ];
        assert_eq!(host.ctr().call(&exec).unwrap(), expected, "{id}");
    };
    // An open has the file made once the layer is proven.
    let mut opens = 0;
    until("the file is made", PATIENCE, || {
        opens += 1;
        read(&host, &format!("open-{opens}"));
        Ok(has_own_file(&host, 3 << 20).then_some(()))
    })
    .unwrap();
    // The program in the container is a large file too, but was opened before there was a file of its own, and is
    // open still. An inode that is read in both ways at once gives an error.
    let hold = "exec 3</large; sleep 1000";
    let exec = [
        "tasks",
        "exec",
        "--detach",
        "--exec-id",
        "hold",
        "app",
        "/bin/sh",
        "-c",
        hold,
    ];
    host.ctr().call(&exec).unwrap();
    until("the kernel reads it", PATIENCE, || {
        Ok((passed_through(&host) == 1).then_some(()))
    })
    .unwrap();
    read(&host, "given");
    host = host.restart_snapshotter(Signal::SIGKILL).unwrap();
    assert_eq!(passed_through(&host), 1);
    read(&host, "adopted");
    let ctr = host.ctr();
    ctr.call(&["tasks", "delete", "--force", "app"]).unwrap();
    ctr.call(&["containers", "delete", "app"]).unwrap();
    ctr.remove_image(image).unwrap();
    host.finish().unwrap();
}

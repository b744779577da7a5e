//! As a kubelet drives it: pods and images through containerd's CRI plugin, and credentials through our image service.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::Duration;

use integration::busybox::{self, noise};
use integration::command::until;
use integration::cri::Kubelet;
use integration::host::{Host, Indexing, ON_DEMAND, convert, sha256_hex, small_layers};
use integration::push::{push, put};
use integration::registry::{Auth, ScriptedRegistry};
use integration::snapshotter::CONTAINERD;
use integration::{Containerd, DockerRegistry, Layout, Scratch, Snapshotter};
use nix::sys::signal::Signal;

/// How long garbage may stay.
const COLLECTED: Duration = Duration::from_secs(30);
const SLEEP: [&str; 2] = ["/bin/sleep", "1000"];
/// More than have room in the labels that tell of the layers above: containerd cuts them off at 4096 bytes.
const LAYERS: usize = 40;

/// A node of Kubernetes without a kubelet.
fn node(config: &str) -> Host {
    let scratch = Scratch::new().unwrap();
    let registry = DockerRegistry::start(&scratch).unwrap();
    let pause = registry.reference("pause:1");
    let layout = Layout::create(&scratch.dir("layouts").unwrap().join("pause")).unwrap();
    let layer = layout.add_gzip_layer(&busybox::layer().unwrap()).unwrap();
    layout.add_image(&[layer], &SLEEP, "latest").unwrap();
    push(&layout, &pause).unwrap();
    let containerd = Containerd::start_for_pods(&scratch, &pause).unwrap();
    let snapshotter = Snapshotter::start(&scratch, &containerd, config).unwrap();
    Host {
        containerd,
        snapshotter,
        registry,
        scratch,
    }
}

fn lazy_layers(host: &Host) -> usize {
    host.snapshotter
        .log()
        .matches("layer is served lazily")
        .count()
}

#[test]
fn a_pod_lives_and_dies_by_cri_on_a_lazy_image_of_many_layers() {
    let host = node(ON_DEMAND);
    let names: Vec<String> = (1..LAYERS).map(|number| format!("f{number}")).collect();
    let content = noise(2 << 20);
    let files: Vec<(&str, &[u8])> = names
        .iter()
        .map(|name| (name.as_str(), name.as_bytes()))
        .chain([("large", &content[..])])
        .collect();
    let image = host.publish_files("app", &files).unwrap();
    let socket = host.containerd.socket();
    let mut kubelet = Kubelet::new(&socket, &socket).unwrap();
    assert!(kubelet.version().unwrap().starts_with("containerd"));

    let pod = kubelet.run_pod("pod").unwrap();
    let id = kubelet.pull(&image.reference, None).unwrap();
    // The lowest is that of the pause image, which was unpacked.
    assert_eq!(lazy_layers(&host), LAYERS, "{}", host.snapshotter.log());
    let known = kubelet.image(&image.reference).unwrap().unwrap();
    assert_eq!(known.id, id);
    let container = kubelet.start(&pod, &id, &SLEEP).unwrap();
    let script = "cat /f1 /f39; sha256sum /large";
    let read = kubelet.output(&container, &["/bin/sh", "-c", script]);
    let expected = format!("f1f39{}  /large\n", sha256_hex(&content));
    assert_eq!(read.unwrap(), expected);
    let failed = kubelet.exec(&container, &["/bin/sh", "-c", "exit 7"]);
    assert_eq!(failed.unwrap().exit_code, 7);

    // The pause image is unpacked, and its program takes a megabyte.
    let used = until("the image file system is in use", COLLECTED, || {
        let first = kubelet.image_file_systems()?.into_iter().next();
        Ok(first.filter(|one| one.used_bytes.is_some_and(|used| used.value > 1 << 20)))
    });
    let mountpoint = used.unwrap().fs_id.unwrap().mountpoint;
    // Where the kubelet looks for the space that is left: on our disk, if containerd knows of `exports.root`.
    let names = if integration::containerd::version().unwrap() >= (1, 7) {
        vec![host.snapshotter.root()]
    } else {
        // From 1.6.32 on it does.
        let of_containerd = "containerd/root/io.containerd.snapshotter.v1.soci";
        vec![
            host.snapshotter.root(),
            host.scratch.path().join(of_containerd),
        ]
    };
    assert!(names.contains(&mountpoint.clone().into()), "{mountpoint}");

    kubelet.remove(&container).unwrap();
    kubelet.remove_pod(pod).unwrap();
    assert!(!host.snapshotter.layers().unwrap().is_empty());
    kubelet.remove_image(&id).unwrap();
    assert!(kubelet.image(&image.reference).unwrap().is_none());
    until("the image's spans are freed", COLLECTED, || {
        // A collection spares what was prepared in the last seconds; the next, which this brings about, does not.
        let asked = host.ctr().reaches("soci");
        Ok((asked && host.snapshotter.layers()?.is_empty()).then_some(()))
    })
    .unwrap();
    drop(kubelet);
    host.finish().unwrap();
}

#[test]
fn credentials_of_a_pull_serve_lazy_reads_also_of_the_next_daemon_and_go_with_the_image() {
    let config = format!(
        "{ON_DEMAND}[cri_keychain]\nenable_keychain = true\nimage_service_path = \"{CONTAINERD}\"\n"
    );
    let mut host = node(&config);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let private = runtime.block_on(ScriptedRegistry::start()).unwrap();
    let content = noise(4 << 20);
    let plain = host.layout("plain").unwrap();
    let layers = small_layers(&plain, &[("file", &content)]).unwrap();
    plain.add_image(&layers, &["sh"], "latest").unwrap();
    let indexed = host.scratch.path().join("layouts/indexed");
    let how = Indexing::default();
    convert(&host.soci().unwrap(), plain.path(), &indexed, how).unwrap();
    let image = put(&Layout::open(&indexed), &private, "team/app").unwrap();
    private.set_auth(Auth::Basic {
        user: String::from("user"),
        password: String::from("secret-pass"),
    });

    let ours = host.containerd.snapshotter_socket();
    let kept = ours.with_extension("credentials");
    let mut kubelet = Kubelet::new(&host.containerd.socket(), &ours).unwrap();
    kubelet.pull(&image, Some(("user", "wrong"))).unwrap_err();
    assert_eq!((lazy_layers(&host), kept.exists()), (0, false));
    let id = kubelet.pull(&image, Some(("user", "secret-pass"))).unwrap();
    assert_eq!(lazy_layers(&host), 2, "{}", host.snapshotter.log());
    let pod = kubelet.run_pod("pod").unwrap();
    let container = kubelet.start(&pod, &id, &SLEEP).unwrap();

    host.snapshotter = host.snapshotter.restart(Signal::SIGKILL).unwrap();
    let read = kubelet.output(&container, &["/bin/sh", "-c", "sha256sum /file"]);
    assert_eq!(read.unwrap(), format!("{}  /file\n", sha256_hex(&content)));
    assert!(!host.snapshotter.log().contains("secret-pass"));

    until("containerd has redialled", COLLECTED, || {
        Ok(host.ctr().reaches("soci").then_some(()))
    })
    .unwrap();
    kubelet.remove(&container).unwrap();
    kubelet.remove_pod(pod).unwrap();
    assert!(kept.exists());
    kubelet.remove_image(&id).unwrap();
    assert!(!kept.exists());
    drop(kubelet);
    host.finish().unwrap();
}

#[test]
fn a_pod_with_a_user_namespace_runs_on_lazy_layers_as_the_owner_of_their_files() {
    if integration::containerd::version().unwrap() < (2, 0) {
        eprintln!(
            "left out: pods have user namespaces with containerd 2.0 and newer (scripts/matrix sid)"
        );
        return;
    }
    const FIRST: u32 = 131_072;
    let host = node(ON_DEMAND);
    // Its containers have to get through.
    let through = std::fs::Permissions::from_mode(0o711);
    std::fs::set_permissions(host.scratch.path(), through).unwrap();
    let content = noise(2 << 20);
    let image = host.publish_files("app", &[("large", &content)]).unwrap();
    let socket = host.containerd.socket();
    let mut kubelet = Kubelet::new(&socket, &socket).unwrap();
    let pod = kubelet.run_pod_of_users("pod", FIRST).unwrap();
    let id = kubelet.pull(&image.reference, None).unwrap();
    let container = kubelet.start(&pod, &id, &SLEEP).unwrap();
    let script = "/bin/busybox head -n 1 /proc/self/uid_map; stat -c %u:%g /large; sha256sum /large; echo new >/new";
    let read = kubelet
        .output(&container, &["/bin/sh", "-c", script])
        .unwrap();
    let mut lines = read.lines();
    let map: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(map, ["0", "131072", "65536"]);
    assert_eq!(lines.next(), Some("0:0"));
    assert_eq!(
        lines.next(),
        Some(format!("{}  /large", sha256_hex(&content)).as_str())
    );
    let snapshots = host.snapshotter.root().join("snapshotter/snapshots");
    let written = std::fs::read_dir(snapshots).unwrap();
    let mut written =
        written.filter_map(|it| std::fs::metadata(it.unwrap().path().join("fs/new")).ok());
    assert_eq!(written.next().map(|new| new.uid()), Some(FIRST));
    // Nothing was copied to change its owner: what is local of the image is what was read.
    assert_eq!(host.snapshotter.fuse_mounts().unwrap().len(), 2);
    kubelet.remove(&container).unwrap();
    kubelet.remove_pod(pod).unwrap();
    kubelet.remove_image(&id).unwrap();
    drop(kubelet);
    host.finish().unwrap();
}

//! Layers from a registry to a mounted view or an unpacked directory, with real zTOCs and a real FUSE mount.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use daemon::content::{ContentStore, OciLayoutStore};
use daemon::discovery::{Discovery, Modes};
use daemon::images::{ImageLayers, ImageOptions, PullOptions, Sources, WholeImages};
use daemon::layer::{LayerOptions, LayerStore};
use daemon::registry::{HttpConfig, Reference, Registry, RegistryConfig};
use daemon::snapshot::images::{
    Images, LayerRequest, LazyLayer, LazyRun, MountedView, NotLazy, Prepared,
};
use daemon::snapshot::lowers::LowerDirs;
use daemon::view::Views;
use fuse::{MountOptions, Operation};
use integration::registry::{Fault, Match, Recorded, ScriptedRegistry};
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Handle;
use ztoc::builder::{BuildOptions, build};
use ztoc::{Compression, Digest, SpanSize};

const REPOSITORY: &str = "team/image";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// One layer as bytes.
struct Packed {
    tar: Vec<u8>,
    blob: Vec<u8>,
    ztoc: Vec<u8>,
    digest: Digest,
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn pack(files: &[(&str, Vec<u8>)]) -> Packed {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_000_000_000);
        tar.append_data(&mut header, name, &**content).unwrap();
    }
    let tar = tar.into_inner().unwrap();
    let blob = gzip(&tar);
    let options = BuildOptions {
        span_size: SpanSize::new(128 << 10).unwrap(),
        build_tool: String::from("test"),
    };
    let built = build(Compression::Gzip, &*blob, &options).unwrap();
    Packed {
        tar,
        ztoc: built.ztoc.encode(),
        digest: built.layer_digest,
        blob,
    }
}

fn text(lines: u64) -> Vec<u8> {
    (0..lines)
        .flat_map(|line| format!("{} {line}\n", line * 7919 % 10_007).into_bytes())
        .collect()
}

/// Two layers, the upper one hiding and adding.
fn two_layers() -> [Packed; 2] {
    [
        pack(&[
            ("etc/old", b"old".to_vec()),
            ("etc/kept", text(100)),
            ("usr/lib/large", text(90_000)),
        ]),
        pack(&[("etc/.wh.old", Vec::new()), ("etc/new", text(50_000))]),
    ]
}

/// A registry with an image in it whose index knows `indexed` layers.
struct Pushed {
    registry: ScriptedRegistry,
    manifest: Digest,
    layers: Vec<Packed>,
}

/// What is wrong with an index.
#[derive(Clone, Copy, PartialEq)]
enum Flaw {
    None,
    NoIndex,
    /// The upper layer has no zTOC.
    Sparse,
    /// The zTOCs of the layers are exchanged.
    Swapped,
    /// The zTOC blobs are no zTOCs.
    Garbage,
    /// The index is none.
    NotAnIndex,
    /// No index, and the upper layer's tar is not what the configuration says.
    WrongDiffId,
}

impl Pushed {
    async fn new(flaw: Flaw) -> Self {
        let registry = ScriptedRegistry::start().await.unwrap();
        let layers = Vec::from(two_layers());
        for layer in &layers {
            registry.put_blob(REPOSITORY, layer.blob.clone());
        }
        let diff_ids: Vec<String> = layers
            .iter()
            .map(|layer| Digest::of(&layer.tar).to_string())
            .collect();
        let diff_ids = match flaw {
            Flaw::WrongDiffId => vec![diff_ids[0].clone(), diff_ids[0].clone()],
            _ => diff_ids,
        };
        let config = json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string();
        let config_digest = registry.put_blob(REPOSITORY, config.clone());
        let index = put_index(&registry, &layers, flaw);
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest, "size": config.len(),
            },
            "layers": layers.iter().map(|layer| json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": layer.digest.to_string(), "size": layer.blob.len(),
            })).collect::<Vec<_>>(),
        });
        if !matches!(flaw, Flaw::NoIndex | Flaw::WrongDiffId) {
            manifest["annotations"] = json!({"com.amazon.soci.index-digest": index});
        }
        let manifest = registry.put_manifest(REPOSITORY, Some("1"), MANIFEST, manifest.to_string());
        Self {
            registry,
            manifest: manifest.parse().unwrap(),
            layers,
        }
    }

    fn image(&self) -> Reference {
        format!("{}/{REPOSITORY}:1", self.registry.host())
            .parse()
            .unwrap()
    }

    fn request(&self, layer: usize) -> LayerRequest {
        LayerRequest {
            image: self.image(),
            manifest: Some(self.manifest),
            layer: self.layers[layer].digest,
            layers_above: self.layers[layer..]
                .iter()
                .map(|layer| layer.digest)
                .collect(),
            size: None,
            index: None,
            namespace: String::from("default"),
        }
    }

    fn run(&self, layers: &[usize], stacked: bool) -> LazyRun {
        let lazy = |&layer: &usize| LazyLayer {
            digest: self.layers[layer].digest,
            image: self.image(),
        };
        LazyRun {
            layers: layers.iter().map(lazy).collect(),
            stacked,
            ids: None,
        }
    }

    /// But for those of one byte, by which it is found out whether a host serves ranges.
    fn blob_requests(&self, layer: usize) -> usize {
        let (requests, blob) = (self.registry.requests(), self.layers[layer].digest.hex());
        let is_it = |request: &&Recorded| {
            let probe = request.range.as_deref() == Some("bytes=0-0");
            request.method == "GET" && request.path.contains(&blob) && !probe
        };
        requests.iter().filter(is_it).count()
    }
}

fn put_index(registry: &ScriptedRegistry, layers: &[Packed], flaw: Flaw) -> String {
    let ztoc = |number: usize| match flaw {
        Flaw::Swapped => layers[1 - number].ztoc.clone(),
        Flaw::Garbage => text(1000 + number as u64),
        _ => layers[number].ztoc.clone(),
    };
    let known = if flaw == Flaw::Sparse {
        1
    } else {
        layers.len()
    };
    let blobs = (0..known).map(|number| {
        let bytes = ztoc(number);
        json!({
            "mediaType": "application/octet-stream",
            "digest": registry.put_blob(REPOSITORY, bytes.clone()), "size": bytes.len(),
            "annotations": {
                "com.amazon.soci.image-layer-digest": layers[number].digest.to_string(),
                "com.amazon.soci.image-layer-mediaType":
                    "application/vnd.oci.image.layer.v1.tar+gzip",
            },
        })
    });
    let blobs: Vec<_> = blobs.collect();
    let empty = registry.put_blob(REPOSITORY, "{}");
    let kind = match flaw {
        Flaw::NotAnIndex => "application/vnd.example.other",
        _ => "application/vnd.amazon.soci.index.v2+json",
    };
    let index = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": kind, "digest": empty, "size": 2},
        "layers": blobs,
    });
    registry.put_manifest(REPOSITORY, None, MANIFEST, index.to_string())
}

/// A daemon's insides over a root directory.
struct Node {
    root: TempDir,
    images: ImageLayers,
}

impl Node {
    fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap(), ImageOptions::default())
    }

    fn at(root: TempDir, options: ImageOptions) -> Self {
        Self::passing_through(root, options, None)
    }

    fn passing_through(root: TempDir, options: ImageOptions, passthrough: Option<u64>) -> Self {
        let path = |name: &str| root.path().join(name);
        let registry = Registry::new(RegistryConfig {
            http: HttpConfig {
                response_header_timeout: Duration::from_millis(500),
                request_timeout: Duration::from_secs(2),
                stall_timeout: Duration::from_millis(500),
                max_retries: 1,
                min_wait: Duration::from_millis(5),
                ..HttpConfig::default()
            },
            ..RegistryConfig::default()
        });
        let registry = registry.unwrap();
        let content: Arc<dyn ContentStore> =
            Arc::new(OciLayoutStore::open_at(&path("content")).unwrap());
        let modes = Modes::default();
        let discovery = Discovery::new(registry.clone(), Arc::clone(&content), modes);
        let sources = Sources {
            registry,
            content,
            discovery,
            containerd: None,
        };
        let runtime = Handle::current();
        let layers =
            LayerStore::start(&path("layers"), LayerOptions::default(), runtime.clone()).unwrap();
        let mounts = MountOptions::new(root.path());
        let views = Views::start(&path("views"), mounts, runtime).unwrap();
        let views = views.passing_through(passthrough);
        let images = ImageLayers::new(sources, layers, views, &path("unpack"), options).unwrap();
        Self { root, images }
    }

    /// The daemon is stopped and started again; nothing is mounted in between.
    async fn restart(self) -> Self {
        self.images.stop().await;
        Self::at(self.root, ImageOptions::default())
    }

    async fn prepare(&self, request: &LayerRequest) -> (Prepared, PathBuf) {
        let dir = self
            .root
            .path()
            .join("snapshots")
            .join(request.layer.hex())
            .join("fs");
        fs::create_dir_all(&dir).unwrap();
        let parents = LowerDirs::plain(vec![self.root.path().to_owned()]);
        (self.images.prepare(request, &dir, &parents).await, dir)
    }

    async fn mount(&self, run: &LazyRun) -> Arc<dyn MountedView> {
        self.images.mount(run, &[]).await.unwrap()
    }

    fn names(&self, dir: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.root.path().join(dir))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

async fn read(path: PathBuf) -> std::io::Result<Vec<u8>> {
    tokio::task::spawn_blocking(move || fs::read(path))
        .await
        .unwrap()
}

async fn names(path: &Path) -> Vec<String> {
    let path = path.to_owned();
    let listed = tokio::task::spawn_blocking(move || {
        let entries = fs::read_dir(path).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    });
    listed.await.unwrap()
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == path.to_str())
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..3000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_indexed_image_is_prepared_without_its_layers_and_read_through_one_mount() {
    let (pushed, node) = (Pushed::new(Flaw::None).await, Node::new());
    for layer in 0..2 {
        let (prepared, dir) = node.prepare(&pushed.request(layer)).await;
        assert!(matches!(prepared, Prepared::Lazy), "{prepared:?}");
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    }
    assert_eq!(pushed.blob_requests(0) + pushed.blob_requests(1), 0);

    let view = node.mount(&pushed.run(&[0, 1], false)).await;
    assert_eq!(names(view.path()).await, ["etc", "usr"]);
    assert_eq!(names(&view.path().join("etc")).await, ["kept", "new"]);
    assert_eq!(read(view.path().join("etc/kept")).await.unwrap(), text(100));
    assert_eq!(
        read(view.path().join("etc/new")).await.unwrap(),
        text(50_000)
    );
    assert_eq!(
        read(view.path().join("usr/lib/large")).await.unwrap(),
        text(90_000)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_of_a_complete_layer_is_read_by_the_kernel_itself_in_a_container() {
    let (pushed, options) = (Pushed::new(Flaw::None).await, ImageOptions::default());
    // On a real file system: the kernel takes no file of an overlay.
    let root = tempfile::tempdir_in("/var/tmp").unwrap();
    let node = Node::passing_through(root, options, Some(500 << 10));
    for layer in 0..2 {
        node.prepare(&pushed.request(layer)).await;
    }
    let view = node.mount(&pushed.run(&[0, 1], false)).await;
    let rootfs = overlay_over(view.path()).await;
    let (small, large) = ("etc/kept", "usr/lib/large");
    let inside = node.images.views().open()[0].inside.clone();
    if !is_passing_through(&node) {
        eprintln!("this kernel has no passthrough");
        return;
    }
    // The first open is served as ever; it has the file made once its layer is here and proven.
    assert_eq!(read(rootfs.path().join(large)).await.unwrap(), text(90_000));
    assert_eq!(inside.counters.opens_passed_through(), 0);
    let own = node
        .root
        .path()
        .join("layers")
        .join(pushed.layers[0].digest.hex());
    eventually("the file is made", || {
        let files = fs::read_dir(own.join("files")).into_iter().flatten();
        files
            .flatten()
            .any(|file| !file.file_name().to_string_lossy().starts_with('.'))
    })
    .await;
    let reads = || inside.counters.requests(Operation::Read);
    eventually("the first open is closed", || {
        fs::File::open(rootfs.path().join(large)).unwrap();
        inside.counters.opens_passed_through() > 0
    })
    .await;
    let before = reads();
    assert_eq!(read(rootfs.path().join(large)).await.unwrap(), text(90_000));
    assert_eq!(reads(), before, "not a single request");
    let passed = inside.counters.opens_passed_through();
    assert_eq!(read(rootfs.path().join(small)).await.unwrap(), text(100));
    assert_eq!(inside.counters.opens_passed_through(), passed);
    assert!(reads() > before, "a small file is read from us");
    drop(rootfs);
    drop(view);
    eventually("nothing is left of the view", || {
        node.names("views").is_empty()
    })
    .await;
}

/// Whether the record of the only view says so.
fn is_passing_through(node: &Node) -> bool {
    let names = node.names("views");
    let record = names.iter().find(|name| name.ends_with(".json")).unwrap();
    let record = fs::read_to_string(node.root.path().join("views").join(record)).unwrap();
    record.contains("passthrough")
}

/// A container's root over `lower`.
struct Rootfs(TempDir);

impl Rootfs {
    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Rootfs {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

async fn overlay_over(lower: &Path) -> Rootfs {
    let at = Rootfs(tempfile::tempdir().unwrap());
    let empty = tempfile::tempdir().unwrap();
    let options = format!("lowerdir={}:{}", lower.display(), empty.path().display());
    let path = at.path().to_owned();
    let mounted = tokio::task::spawn_blocking(move || {
        let (kind, flags) = (Some("overlay"), nix::mount::MsFlags::MS_RDONLY);
        nix::mount::mount(kind, &path, kind, flags, Some(&*options))
    });
    mounted.await.unwrap().unwrap();
    at
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_is_shared_by_those_who_name_it_and_unmounted_after_the_last() {
    let (pushed, node) = (Pushed::new(Flaw::None).await, Node::new());
    for layer in 0..2 {
        node.prepare(&pushed.request(layer)).await;
    }
    let run = pushed.run(&[0, 1], false);
    let views = futures::future::join_all((0..8).map(|_| node.mount(&run))).await;
    let path = views[0].path().to_owned();
    assert!(views.iter().all(|view| view.path() == path));
    // Beside each mount point lies its record.
    let names = node.names("views");
    let points = names.iter().filter(|name| name.parse::<u64>().is_ok());
    assert_eq!(points.count(), 1, "{names:?}");
    let other = node.mount(&pushed.run(&[0], true)).await;
    assert_ne!(other.path(), path);

    assert!(is_mounted(&path));
    drop(views);
    eventually("the view is unmounted", || {
        !is_mounted(&path) && !path.exists()
    })
    .await;
    assert_eq!(read(other.path().join("etc/old")).await.unwrap(), b"old");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_in_use_by_an_overlay_is_served_after_its_last_handle_is_gone() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let (pushed, node) = (Pushed::new(Flaw::None).await, Node::new());
    for layer in 0..2 {
        node.prepare(&pushed.request(layer)).await;
    }
    let view = node.mount(&pushed.run(&[0, 1], false)).await;
    let rootfs = tempfile::tempdir().unwrap();
    let empty = tempfile::tempdir().unwrap();
    let options = format!(
        "lowerdir={}:{}",
        view.path().display(),
        empty.path().display()
    );
    let at = rootfs.path().to_owned();
    let mounted = tokio::task::spawn_blocking(move || {
        mount(
            Some("overlay"),
            &at,
            Some("overlay"),
            MsFlags::MS_RDONLY,
            Some(&*options),
        )
    });
    mounted.await.unwrap().unwrap();
    let path = view.path().to_owned();
    drop(view);
    eventually("the view is detached", || !is_mounted(&path)).await;
    let content = read(rootfs.path().join("usr/lib/large")).await;
    assert_eq!(content.unwrap(), text(90_000));
    let at = rootfs.path().to_owned();
    tokio::task::spawn_blocking(move || umount2(&at, MntFlags::empty()))
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_needs_no_registry_for_what_was_read_before() {
    let (pushed, node) = (Pushed::new(Flaw::None).await, Node::new());
    for layer in 0..2 {
        node.prepare(&pushed.request(layer)).await;
    }
    let run = pushed.run(&[0, 1], false);
    let view = node.mount(&run).await;
    assert_eq!(
        read(view.path().join("usr/lib/large")).await.unwrap(),
        text(90_000)
    );
    // A span is handed out before it is written.
    let is_written = || {
        let layers = node.images.layers().open_layers();
        let mut states = layers.iter().flat_map(|layer| layer.span_states());
        states.all(|state| state != 1)
    };
    eventually("what was read is written", is_written).await;
    drop(view);
    eventually("all is unmounted", || node.names("views").is_empty()).await;

    let node = node.restart().await;
    let asked = pushed.registry.requests().len();
    let view = node.mount(&run).await;
    assert_eq!(
        read(view.path().join("usr/lib/large")).await.unwrap(),
        text(90_000)
    );
    assert_eq!(pushed.registry.requests().len(), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_of_a_dead_daemon_are_swept() {
    let (pushed, node) = (Pushed::new(Flaw::None).await, Node::new());
    node.prepare(&pushed.request(0)).await;
    let view = node.mount(&pushed.run(&[0], false)).await;
    let path = view.path().to_owned();
    node.images.views().leave_mounted();
    drop(view);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(is_mounted(&path), "it was left");
    let node = node.restart().await;
    assert!(!is_mounted(&path));
    assert_eq!(node.names("views"), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ztoc_that_is_gone_from_disk_is_found_again_when_its_view_is_mounted() {
    let (pushed, node) = (Pushed::new(Flaw::None).await, Node::new());
    node.prepare(&pushed.request(0)).await;
    let node = node.restart().await;
    fs::remove_dir_all(
        node.root
            .path()
            .join("layers")
            .join(pushed.layers[0].digest.hex()),
    )
    .unwrap();
    let view = node.mount(&pushed.run(&[0], false)).await;
    assert_eq!(read(view.path().join("etc/old")).await.unwrap(), b"old");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_a_usable_index_is_unpacked_unless_it_is_to_be_left_to_containerd() {
    for (flaw, label) in [(Flaw::NoIndex, "no_index"), (Flaw::NotAnIndex, "artifact")] {
        let (pushed, node) = (Pushed::new(flaw).await, Node::new());
        for (layer, name, content) in [
            (0, "etc/old", b"old".to_vec()),
            (1, "etc/new", text(50_000)),
        ] {
            let (prepared, dir) = node.prepare(&pushed.request(layer)).await;
            let Prepared::Unpacked { reason } = prepared else {
                panic!("{prepared:?}");
            };
            assert_eq!(reason.label(), label, "{reason}");
            assert_eq!(fs::read(dir.join(name)).unwrap(), content);
            assert_eq!(pushed.blob_requests(layer), 1);
        }
        eventually("nothing is left of the pull", || {
            node.names("unpack").is_empty()
        })
        .await;

        let options = ImageOptions {
            whole: WholeImages::Never,
            ..ImageOptions::default()
        };
        let node = Node::at(tempfile::tempdir().unwrap(), options);
        let (prepared, dir) = node.prepare(&pushed.request(0)).await;
        let Prepared::Deferred { reason } = prepared else {
            panic!("{prepared:?}");
        };
        assert_eq!(reason.label(), label, "{reason}");
        assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_without_a_usable_ztoc_is_unpacked_and_the_reason_is_told() {
    for (flaw, layer, label) in [
        (Flaw::Sparse, 1, "no_ztoc"),
        (Flaw::Swapped, 0, "artifact"),
        (Flaw::Garbage, 1, "artifact"),
    ] {
        let (pushed, node) = (Pushed::new(flaw).await, Node::new());
        let (prepared, dir) = node.prepare(&pushed.request(layer)).await;
        let Prepared::Unpacked { reason } = prepared else {
            panic!("{prepared:?}");
        };
        assert_eq!(reason.label(), label, "{reason}");
        let (name, content) = match layer {
            0 => ("usr/lib/large", text(90_000)),
            _ => ("etc/new", text(50_000)),
        };
        assert_eq!(fs::read(dir.join(name)).unwrap(), content);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_below_the_minimum_is_unpacked_even_if_its_size_comes_from_the_manifest() {
    let pushed = Pushed::new(Flaw::None).await;
    let large = pushed.layers[0].blob.len() as u64;
    let options = ImageOptions {
        min_layer_size: large,
        ..ImageOptions::default()
    };
    let node = Node::at(tempfile::tempdir().unwrap(), options);
    let (prepared, _) = node.prepare(&pushed.request(0)).await;
    assert!(matches!(prepared, Prepared::Lazy), "{prepared:?}");
    let (prepared, dir) = node.prepare(&pushed.request(1)).await;
    let small = matches!(
        prepared,
        Prepared::Unpacked {
            reason: NotLazy::TooSmall
        }
    );
    assert!(small, "{prepared:?}");
    assert_eq!(fs::read(dir.join("etc/new")).unwrap(), text(50_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_cannot_be_pulled_either_is_left_to_containerd_and_its_directory_is_empty() {
    let (pushed, node) = (Pushed::new(Flaw::Sparse).await, Node::new());
    let blob = pushed.layers[1].digest.hex();
    pushed
        .registry
        .script(Match::path(&blob).method("GET"), Fault::status(404));
    let (prepared, dir) = node.prepare(&pushed.request(1)).await;
    let deferred = matches!(
        prepared,
        Prepared::Deferred {
            reason: NotLazy::NoZtoc
        }
    );
    assert!(deferred, "{prepared:?}");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    assert_eq!(fs::read_dir(dir.parent().unwrap()).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_without_a_registry_fails_with_eio_and_the_next_succeeds() {
    let (pushed, node) = (Pushed::new(Flaw::None).await, Node::new());
    node.prepare(&pushed.request(0)).await;
    let blob = pushed.layers[0].digest.hex();
    // From before the mount on, with which the background fetch begins.
    pushed
        .registry
        .script(Match::path(&blob), Fault::status(500));
    let view = node.mount(&pushed.run(&[0], false)).await;
    let file = view.path().join("etc/old");
    let failed = read(file.clone()).await.unwrap_err();
    assert_eq!(failed.raw_os_error(), Some(nix::libc::EIO));
    pushed.registry.clear_script();
    // A failed read-ahead of the kernel's may still be under way.
    for _ in 0..4 {
        if read(file.clone()).await.is_ok() {
            break;
        }
    }
    assert_eq!(read(file).await.unwrap(), b"old");
}

#[tokio::test(flavor = "multi_thread")]
async fn collecting_deletes_what_no_snapshot_names_and_never_what_is_mounted() {
    let (pushed, node) = (Pushed::new(Flaw::None).await, Node::new());
    for layer in 0..2 {
        node.prepare(&pushed.request(layer)).await;
    }
    let view = node.mount(&pushed.run(&[0, 1], false)).await;
    node.images.collect(&BTreeSet::new()).await;
    assert_eq!(node.names("layers").len(), 2);
    assert_eq!(read(view.path().join("etc/kept")).await.unwrap(), text(100));
    let path = view.path().to_owned();
    drop(view);
    eventually("the view is gone", || !path.exists()).await;
    // What served it may end a little later, and a layer that is open stays.
    let is_closed = || node.images.layers().open_layers().is_empty();
    eventually("its layers are closed", is_closed).await;
    node.images
        .collect(&BTreeSet::from([pushed.layers[1].digest]))
        .await;
    assert_eq!(node.names("layers"), [pushed.layers[1].digest.hex()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_layer_brings_the_ztocs_of_all() {
    let (pushed, node) = (Pushed::new(Flaw::None).await, Node::new());
    node.prepare(&pushed.request(0)).await;
    let upper = pushed.layers[1].digest.hex();
    let stored = node.root.path().join("layers").join(upper).join("ztoc");
    eventually("the upper layer's zTOC is stored", || stored.exists()).await;
}

fn whole(pull: PullOptions) -> ImageOptions {
    ImageOptions {
        whole: WholeImages::All,
        pull,
        ..ImageOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_first_layer_all_are_pulled_in_ranges_and_an_index_does_not_matter() {
    let pushed = Pushed::new(Flaw::None).await;
    let pull = PullOptions {
        chunk: Some(50_000),
        ..PullOptions::default()
    };
    let node = Node::at(tempfile::tempdir().unwrap(), whole(pull));
    let (prepared, dir) = node.prepare(&pushed.request(0)).await;
    assert!(
        matches!(prepared, Prepared::Unpacked { .. }),
        "{prepared:?}"
    );
    assert_eq!(fs::read(dir.join("usr/lib/large")).unwrap(), text(90_000));
    // The upper one comes without being asked for.
    let ranges = |layer: usize| pushed.layers[layer].blob.len().div_ceil(50_000);
    assert!(ranges(0) > 3 && ranges(1) > 1);
    eventually("the upper layer is there", || {
        pushed.blob_requests(1) == ranges(1) && node.names("unpack").len() == 1
    })
    .await;
    pushed.registry.script(Match::path("/"), Fault::status(404));
    let (prepared, dir) = node.prepare(&pushed.request(1)).await;
    assert!(
        matches!(prepared, Prepared::Unpacked { .. }),
        "{prepared:?}"
    );
    assert_eq!(fs::read(dir.join("etc/new")).unwrap(), text(50_000));
    assert_eq!(
        (pushed.blob_requests(0), pushed.blob_requests(1)),
        (ranges(0), ranges(1))
    );
    eventually("nothing is left of the pull", || {
        node.names("unpack").is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_nobody_waits_for_ends_and_what_was_finished_serves_the_next() {
    let pushed = Pushed::new(Flaw::NoIndex).await;
    let node = Node::new();
    let upper = pushed.layers[1].digest.hex();
    pushed
        .registry
        .script(Match::path(&upper), Fault::StallBody(100));
    node.prepare(&pushed.request(0)).await;
    let request = pushed.request(1);
    let waiting = node.prepare(&request);
    let given_up = tokio::time::timeout(Duration::from_millis(100), waiting).await;
    assert!(given_up.is_err());
    eventually("the half of the upper layer is gone", || {
        node.names("unpack").is_empty()
    })
    .await;
    pushed.registry.clear_script();
    let (prepared, dir) = node.prepare(&request).await;
    assert!(
        matches!(prepared, Prepared::Unpacked { .. }),
        "{prepared:?}"
    );
    assert_eq!(fs::read(dir.join("etc/new")).unwrap(), text(50_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_nobody_asks_for_are_deleted_after_a_while() {
    let pushed = Pushed::new(Flaw::NoIndex).await;
    let pull = PullOptions {
        keep: Duration::from_millis(200),
        ..PullOptions::default()
    };
    let node = Node::at(tempfile::tempdir().unwrap(), whole(pull));
    node.prepare(&pushed.request(0)).await;
    eventually("the upper layer is asked for", || {
        pushed.blob_requests(1) == 1
    })
    .await;
    eventually("it is deleted", || node.names("unpack").is_empty()).await;
}

/// A pull of which the upper layer is unpacked and nobody has asked for it.
async fn with_the_upper_layer_ahead(pushed: &Pushed, node: &Node) {
    node.prepare(&pushed.request(0)).await;
    eventually("the upper layer is there", || {
        let one = node.names("unpack").first().cloned();
        one.is_some_and(|one| node.names(&format!("unpack/{one}")) == ["fs", "record.json"])
    })
    .await;
    // The record is written; the pull, which gives up what it does not know to be finished, learns of it a moment later.
    tokio::time::sleep(Duration::from_millis(300)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_was_finished_before_a_restart_is_not_pulled_again() {
    let pushed = Pushed::new(Flaw::NoIndex).await;
    let node = Node::at(tempfile::tempdir().unwrap(), whole(PullOptions::default()));
    with_the_upper_layer_ahead(&pushed, &node).await;
    let node = node.restart().await;
    assert_eq!(node.names("unpack").len(), 1);
    let (prepared, dir) = node.prepare(&pushed.request(1)).await;
    assert!(
        matches!(prepared, Prepared::Unpacked { .. }),
        "{prepared:?}"
    );
    assert_eq!(fs::read(dir.join("etc/new")).unwrap(), text(50_000));
    assert_eq!(pushed.blob_requests(1), 1);
    eventually("nothing is left of the pull", || {
        node.names("unpack").is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_daemon_finished_and_nobody_asks_for_is_deleted_after_a_while() {
    let pushed = Pushed::new(Flaw::NoIndex).await;
    let node = Node::at(tempfile::tempdir().unwrap(), whole(PullOptions::default()));
    with_the_upper_layer_ahead(&pushed, &node).await;
    node.images.stop().await;
    let pull = PullOptions {
        keep: Duration::from_millis(100),
        ..PullOptions::default()
    };
    let node = Node::at(node.root, whole(pull));
    eventually("it is deleted", || node.names("unpack").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_whose_client_went_away_between_two_layers_ends_soon_and_not_while_one_is_prepared()
{
    let pushed = Pushed::new(Flaw::NoIndex).await;
    let upper = pushed.layers[1].digest.hex();
    pushed
        .registry
        .script(Match::path(&upper).once(), Fault::StallBody(100));
    let pull = PullOptions {
        idle: Duration::from_millis(200),
        ..PullOptions::default()
    };
    let node = Node::at(tempfile::tempdir().unwrap(), whole(pull));
    node.prepare(&pushed.request(0)).await;
    eventually("the upper layer is begun", || {
        node.names("unpack").len() == 1
    })
    .await;
    eventually("it is given up", || node.names("unpack").is_empty()).await;
    let (prepared, dir) = node.prepare(&pushed.request(1)).await;
    assert!(
        matches!(prepared, Prepared::Unpacked { .. }),
        "{prepared:?}"
    );
    assert_eq!(fs::read(dir.join("etc/new")).unwrap(), text(50_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_comes_corrupt_is_pulled_again_and_never_seen() {
    let pushed = Pushed::new(Flaw::NoIndex).await;
    let lower = pushed.layers[0].digest.hex();
    pushed
        .registry
        .script(Match::path(&lower).turns(0..1), Fault::Corrupt);
    let node = Node::new();
    let (prepared, dir) = node.prepare(&pushed.request(0)).await;
    assert!(
        matches!(prepared, Prepared::Unpacked { .. }),
        "{prepared:?}"
    );
    assert_eq!(fs::read(dir.join("usr/lib/large")).unwrap(), text(90_000));

    let pushed = Pushed::new(Flaw::NoIndex).await;
    pushed.registry.script(Match::path(&lower), Fault::Corrupt);
    let node = Node::new();
    let (prepared, dir) = node.prepare(&pushed.request(0)).await;
    assert!(
        matches!(prepared, Prepared::Deferred { .. }),
        "{prepared:?}"
    );
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    // containerd fetches those above now: we do not do that too, but give what is there already.
    node.prepare(&pushed.request(1)).await;
    assert!(pushed.blob_requests(1) <= 1);
    node.images.stop().await;
    eventually("nothing is left of the pull", || {
        node.names("unpack").is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_daemon_left_half_unpacked_is_removed() {
    let root = tempfile::tempdir().unwrap();
    let left = root.path().join("unpack/.unpack-old/usr");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("file"), "half").unwrap();
    let node = Node::at(root, ImageOptions::default());
    eventually("it is removed", || node.names("unpack").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_with_another_diff_id_than_the_configuration_says_is_never_seen() {
    let (pushed, node) = (Pushed::new(Flaw::WrongDiffId).await, Node::new());
    let (prepared, _) = node.prepare(&pushed.request(0)).await;
    assert!(
        matches!(prepared, Prepared::Unpacked { .. }),
        "{prepared:?}"
    );
    let (prepared, dir) = node.prepare(&pushed.request(1)).await;
    assert!(
        matches!(prepared, Prepared::Deferred { .. }),
        "{prepared:?}"
    );
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    node.images.stop().await;
    eventually("nothing is left of the pull", || {
        node.names("unpack").is_empty()
    })
    .await;
}

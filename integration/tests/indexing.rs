//! The `soci` command against a real containerd and a real registry; no snapshotter of ours.
#![allow(clippy::unwrap_used)]

use integration::busybox::noise;
use integration::command::{fail, run};
use integration::ctr::Run;
use integration::host::{SMALL_SPANS, small_layers};
use integration::image::{INDEX, MANIFEST, architecture, other_architecture};
use integration::push::push;
use integration::{Containerd, Ctr, DockerRegistry, Image, Layout, Scratch, Soci};
use serde_json::Value;

const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";

/// Parts drop from the last to the first: the directory goes last.
struct Site {
    containerd: Containerd,
    registry: DockerRegistry,
    scratch: Scratch,
}

impl Site {
    fn start() -> Self {
        let scratch = Scratch::new().unwrap();
        let registry = DockerRegistry::start(&scratch).unwrap();
        let containerd = Containerd::start(&scratch).unwrap();
        Self {
            containerd,
            registry,
            scratch,
        }
    }

    fn soci(&self) -> Soci {
        Soci::with(&self.scratch, &self.containerd).unwrap()
    }

    fn ctr(&self) -> Ctr {
        self.containerd.ctr()
    }

    /// Pushes an image of busybox and one file.
    fn publish(&self, name: &str) -> (String, Image) {
        let layout = Layout::create(&self.scratch.path().join(name)).unwrap();
        let content = noise(200_000);
        let layers = small_layers(&layout, &[("greeting", b"hello\n"), (name, &content)]).unwrap();
        let image = layout.add_image(&layers, &["sh"], "latest").unwrap();
        let reference = self.registry.reference(&format!("{name}:latest"));
        push(&layout, &reference).unwrap();
        (reference, image)
    }

    fn pulled(&self, name: &str) -> (String, Image) {
        let (reference, image) = self.publish(name);
        self.ctr().pull("overlayfs", &reference).unwrap();
        (reference, image)
    }

    /// An image of two platforms, both pulled.
    fn two_platforms(&self, name: &str) -> String {
        let layout = Layout::create(&self.scratch.path().join(name)).unwrap();
        let platforms = [architecture(), other_architecture()].map(|platform| {
            let content = [platform.as_bytes(), &noise(100_000)].concat();
            (
                platform,
                small_layers(&layout, &[("file", &content)]).unwrap(),
            )
        });
        layout.add_platforms(&platforms).unwrap();
        let reference = self.registry.reference(&format!("{name}:latest"));
        push(&layout, &reference).unwrap();
        let fetch = [
            "content",
            "fetch",
            "--plain-http",
            "--all-platforms",
            &reference,
        ];
        self.ctr().call(&fetch).unwrap();
        reference
    }

    fn content(&self, digest: &str) -> Option<Value> {
        let path = self
            .containerd
            .content()
            .join("blobs")
            .join(digest.replace(':', "/"));
        std::fs::read(path)
            .ok()
            .map(|bytes| serde_json::from_slice(&bytes).unwrap())
    }

    fn target(&self, reference: &str) -> String {
        let table = self.ctr().call(&["images", "list"]).unwrap();
        let line = table
            .lines()
            .find(|line| line.starts_with(&format!("{reference} ")))
            .unwrap();
        line.split_whitespace().nth(2).unwrap().to_owned()
    }

    fn collect_garbage(&self) {
        let (victim, _) = self.pulled("victim");
        self.ctr().remove_image(&victim).unwrap();
    }

    fn get(&self, path: &str, accept: &str) -> Value {
        let url = format!("http://{}/v2/{path}", self.registry.host());
        let mut curl = integration::command::command("curl");
        let body = run(curl.args(["-sf", "-H", &format!("Accept: {accept}"), &url])).unwrap();
        serde_json::from_str(&body).unwrap()
    }
}

fn call(soci: &Soci, command: &str, arguments: &[&str]) -> String {
    soci.call(&[&[command], arguments].concat()).unwrap()
}

fn refused(soci: &Soci, arguments: &[&str]) -> String {
    let error = fail(soci.command().unwrap().args(arguments)).unwrap();
    assert!(error.starts_with("soci: "), "{error}");
    error
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn an_image_no_snapshotter_provides_is_pulled_whole_once_and_runs() {
    let site = Site::start();
    let (reference, image) = site.publish("app");
    let soci = site.soci();
    let pull = ["--plain-http", "--snapshotter", "overlayfs", &reference];
    let printed = call(&soci, "rpull", &pull);
    let expected = format!(
        "3 layers, 0 lazy, 0 local, 3 pulled ({} bytes)",
        image.size()
    );
    assert!(printed.contains(&expected), "{printed}");
    let mut container = Run::shell(&reference, "c", "cat /greeting");
    container.snapshotter = "overlayfs";
    assert_eq!(site.ctr().run(container).unwrap(), "hello\n");

    let before = site.registry.traffic().unwrap();
    let printed = call(&soci, "rpull", &pull);
    assert!(
        printed.contains("3 layers, 0 lazy, 3 local, 0 pulled (0 bytes)"),
        "{printed}"
    );
    assert_eq!(site.registry.traffic().unwrap().since(before).blob_bytes, 0);

    // Nothing hangs on the lease any more, and nothing but the image holds what was pulled.
    assert_eq!(
        lines(&site.ctr().call(&["leases", "list"]).unwrap()).len(),
        1
    );
    site.collect_garbage();
    let mut container = Run::shell(&reference, "d", "cat /greeting");
    container.snapshotter = "overlayfs";
    assert_eq!(site.ctr().run(container).unwrap(), "hello\n");
    site.ctr().remove_image(&reference).unwrap();
    assert_eq!(
        site.ctr().snapshots("overlayfs").unwrap(),
        Vec::<String>::new()
    );
    assert_eq!(site.content(&image.manifest), None);
}

#[test]
fn a_pull_that_fails_leaves_no_image_and_says_why() {
    let site = Site::start();
    let soci = site.soci();
    let missing = site.registry.reference("missing:latest");
    let error = refused(&soci, &["rpull", "--plain-http", &missing]);
    assert!(
        error.contains(&missing) && error.contains("not found"),
        "{error}"
    );
    let (reference, _) = site.publish("app");
    let error = refused(
        &soci,
        &[
            "rpull",
            "--plain-http",
            "--snapshotter",
            "nosuch",
            &reference,
        ],
    );
    assert!(
        error.contains("snapshotter") && error.contains("nosuch"),
        "{error}"
    );
    let error = refused(
        &soci,
        &[
            "rpull",
            "--plain-http",
            "--platform",
            "plan9/mips",
            &reference,
        ],
    );
    assert!(
        error.contains("snapshotter") || error.contains("no such platform"),
        "{error}"
    );
    assert_eq!(site.ctr().images().unwrap(), Vec::<String>::new());
    assert_eq!(
        lines(&site.ctr().call(&["leases", "list"]).unwrap()).len(),
        1
    );
}

#[test]
fn an_index_is_made_reused_listed_shown_and_removed() {
    let site = Site::start();
    let soci = site.soci();
    let (reference, image) = site.pulled("app");
    let printed = call(&soci, "create", &[&SMALL_SPANS[..], &[&reference]].concat());
    let made = lines(&printed);
    assert_eq!(made.len(), 3);
    for (line, layer) in made.iter().zip(&image.layers) {
        assert!(
            line.starts_with(&format!("layer {} -> ztoc sha256:", layer.digest)),
            "{line}"
        );
    }
    let again = call(&soci, "create", &[&SMALL_SPANS[..], &[&reference]].concat());
    let reused: Vec<_> = made
        .iter()
        .map(|line| format!("{line} (already exists)"))
        .collect();
    assert_eq!(lines(&again), reused);
    let forced = call(
        &soci,
        "create",
        &[&SMALL_SPANS[..], &["--force", &reference]].concat(),
    );
    assert_eq!(lines(&forced), made);

    let digest = call(&soci, "index", &["list", "--quiet"]);
    let digest = digest.trim_end();
    let info: Value = serde_json::from_str(&call(&soci, "index", &["info", digest])).unwrap();
    assert_eq!(info["subject"]["digest"], image.manifest.as_str());
    assert_eq!(
        info["config"]["mediaType"],
        "application/vnd.amazon.soci.index.v1+json"
    );
    let table = call(&soci, "index", &["ls", "--ref", &reference]);
    let row: Vec<_> = lines(&table)[1].split_whitespace().collect();
    assert_eq!([row[0], row[2], row[5]], [digest, &reference, "v1"]);
    assert_eq!(row[3], format!("linux/{}", architecture()));
    assert_eq!(
        call(&soci, "index", &["ls", "-q", "--platform", "plan9/mips"]),
        ""
    );
    let ztocs = call(
        &soci,
        "ztoc",
        &["list", "--quiet", "--image-ref", &reference],
    );
    assert_eq!(lines(&ztocs).len(), 3);
    let ztoc = lines(&ztocs)[0];
    let info: Value = serde_json::from_str(&call(&soci, "ztoc", &["info", ztoc])).unwrap();
    assert_eq!(info["version"], "0.9");

    let greeting = made[1].rsplit(' ').next().unwrap();
    assert_eq!(
        call(&soci, "ztoc", &["get-file", greeting, "greeting"]),
        "hello\n"
    );

    refused(&soci, &["index", "rm", digest, "--ref", &reference]);
    refused(&soci, &["index", "rm"]);
    call(&soci, "index", &["rm", digest]);
    assert_eq!(call(&soci, "index", &["list", "--quiet"]), "");
    let error = refused(&soci, &["index", "info", digest]);
    assert!(error.contains("not found"), "{error}");
    refused(&soci, &["index", "rm", digest]);
}

#[test]
fn the_indexes_of_all_platforms_live_as_long_as_their_image() {
    let site = Site::start();
    let soci = site.soci();
    let reference = site.two_platforms("multi");
    call(
        &soci,
        "create",
        &[&SMALL_SPANS[..], &["--all-platforms", &reference]].concat(),
    );
    let listed = call(&soci, "index", &["list", "--quiet"]);
    let digests = lines(&listed);
    assert_eq!(digests.len(), 2);
    site.collect_garbage();
    for digest in &digests {
        let index = site.content(digest).unwrap();
        let ztocs = index["layers"].as_array().unwrap();
        let present = |ztoc: &Value| {
            let digest = ztoc["digest"].as_str().unwrap().replace(':', "/");
            site.containerd
                .content()
                .join("blobs")
                .join(digest)
                .exists()
        };
        assert!(!ztocs.is_empty() && ztocs.iter().all(present));
    }
    site.ctr().remove_image(&reference).unwrap();
    assert!(digests.iter().all(|digest| site.content(digest).is_none()));
}

#[test]
fn bad_arguments_to_create_and_convert_are_refused() {
    let site = Site::start();
    let soci = site.soci();
    let (reference, _) = site.pulled("app");
    let tag = site.registry.reference("app:soci");
    for (arguments, reason) in [
        (&["create", "nosuch:latest"][..], "not found"),
        (&["create", "--span-size", "-1", &reference], "not negative"),
        (
            &["create", "--min-layer-size", "-1", &reference],
            "not negative",
        ),
        (
            &["create", "--min-layer-size", "1000000000", &reference],
            "empty index",
        ),
        (
            &["create", "--platform", "plan9/mips", &reference],
            "no such platform",
        ),
        (&["convert", "nosuch:latest", &tag], "not found"),
        (&["convert", &reference, "app"], "tag"),
        (
            &["convert", &reference, "UPPER:case"],
            "not an image reference",
        ),
        (&["convert", &reference], "required"),
        (&["push", &reference], "no v1 index"),
        (&["push", "nosuch:latest"], "not found"),
    ] {
        let error = refused(&soci, arguments);
        assert!(error.contains(reason), "{reason}: {error}");
    }
    let digest = site.target(&reference);
    let with_digest = format!("{tag}@{digest}");
    assert!(refused(&soci, &["convert", &reference, &with_digest]).contains("digest"));
    assert_eq!(call(&soci, "index", &["list", "--quiet"]), "");
    let nowhere =
        run(soci
            .command()
            .unwrap()
            .args(["--address", "/nonexistent.sock", "create", "x"]));
    assert!(format!("{:#}", nowhere.unwrap_err()).contains("/nonexistent.sock"));
}

#[test]
fn a_converted_image_is_the_same_each_time_and_can_replace_its_source() {
    let site = Site::start();
    let soci = site.soci();
    let (reference, image) = site.pulled("app");
    let [first, second] = ["one", "two"].map(|tag| site.registry.reference(&format!("app:{tag}")));
    call(
        &soci,
        "convert",
        &[&SMALL_SPANS[..], &[&reference, &first]].concat(),
    );
    call(
        &soci,
        "convert",
        &[&SMALL_SPANS[..], &[&first, &second]].concat(),
    );
    let target = site.target(&first);
    assert_ne!(target, image.manifest);
    assert_eq!(site.target(&second), target);
    call(
        &soci,
        "convert",
        &[&SMALL_SPANS[..], &["--force", &reference, &reference]].concat(),
    );
    assert_eq!(site.target(&reference), target);
    site.ctr().remove_image(&second).unwrap();
    site.ctr().remove_image(&first).unwrap();

    let index = site.content(&target).unwrap();
    let manifest = site
        .content(index["manifests"][0]["digest"].as_str().unwrap())
        .unwrap();
    let soci_index = index["manifests"][1]["digest"].as_str().unwrap();
    assert_eq!(manifest["annotations"][INDEX_DIGEST], soci_index);
    assert!(site.content(soci_index).is_some());
    let table = call(&soci, "index", &["ls", "--ref", &reference]);
    assert!(lines(&table)[1].contains(" v2 "), "{table}");
    // containerd's own client finds everything the image consists of.
    site.ctr()
        .call(&["images", "push", "--plain-http", &reference])
        .unwrap();
    let pushed = site.get(&format!("app/manifests/{soci_index}"), MANIFEST);
    assert_eq!(
        pushed["config"]["mediaType"],
        "application/vnd.amazon.soci.index.v2+json"
    );
    let error = refused(&soci, &["push", "--plain-http", &reference]);
    assert!(
        error.contains("no v1 index") && error.contains("v2"),
        "{error}"
    );
}

#[test]
fn all_platforms_are_converted_only_if_all_are_there() {
    let site = Site::start();
    let soci = site.soci();
    let reference = site.two_platforms("multi");
    let tag = site.registry.reference("multi:soci");
    call(
        &soci,
        "convert",
        &[&SMALL_SPANS[..], &["--all-platforms", &reference, &tag]].concat(),
    );
    let index = site.content(&site.target(&tag)).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 4);

    let elsewhere = Containerd::start_as(&site.scratch, "elsewhere").unwrap();
    elsewhere.ctr().pull("overlayfs", &reference).unwrap();
    let soci = Soci::with(&site.scratch, &elsewhere).unwrap();
    let error = refused(
        &soci,
        &[
            &["convert", "--all-platforms"],
            &SMALL_SPANS[..],
            &[&reference, &tag],
        ]
        .concat(),
    );
    assert!(error.contains("not found"), "{error}");
    call(
        &soci,
        "convert",
        &[&SMALL_SPANS[..], &[&reference, &tag]].concat(),
    );
}

#[test]
fn an_index_is_pushed_once_with_its_ztocs_and_found_by_its_image() {
    let site = Site::start();
    let soci = site.soci();
    let (reference, image) = site.pulled("app");
    call(
        &soci,
        "create",
        &[
            "--span-size",
            "131072",
            "--min-layer-size",
            "0",
            "--compact",
            "no",
            &reference,
        ],
    );
    call(&soci, "create", &[&SMALL_SPANS[..], &[&reference]].concat());
    let listed = call(&soci, "index", &["list", "--quiet"]);
    let newest = lines(&listed)[0];

    let printed = call(&soci, "push", &["--plain-http", &reference]);
    let said = lines(&printed);
    assert_eq!(
        said[0],
        "checking if a soci index already exists in remote repository..."
    );
    assert_eq!(said[1], format!("pushing soci index with digest: {newest}"));
    let ztocs = call(&soci, "ztoc", &["list", "--quiet"]);
    let pushed = |digest: &&&str| {
        said.contains(&&*format!(
            "successfully pushed artifact with digest: {digest}"
        ))
    };
    assert_eq!(lines(&ztocs).iter().filter(pushed).count(), 3);

    let tag = image.manifest.replace(':', "-");
    let referrers = site.get(&format!("app/manifests/{tag}"), INDEX);
    assert_eq!(referrers["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(referrers["manifests"][0]["digest"], newest);
    let index = site.get(&format!("app/manifests/{newest}"), MANIFEST);
    assert_eq!(index["subject"]["digest"], image.manifest.as_str());

    let skipped = call(
        &soci,
        "push",
        &["--plain-http", "--existing-index", "skip", &reference],
    );
    assert!(
        skipped.contains(newest) && !skipped.contains("pushing"),
        "{skipped}"
    );
    let quiet = call(
        &soci,
        "push",
        &[
            "--plain-http",
            "--quiet",
            "--existing-index",
            "allow",
            &reference,
        ],
    );
    assert_eq!(quiet, format!("{newest}\n"));
    let warned = run(soci
        .command()
        .unwrap()
        .args(["push", "--plain-http", &reference]))
    .unwrap();
    assert!(warned.contains("skipped artifact with digest:"), "{warned}");
    let referrers = site.get(&format!("app/manifests/{tag}"), INDEX);
    assert_eq!(referrers["manifests"].as_array().unwrap().len(), 1);
}

#[test]
fn artifacts_of_the_soci_store_are_not_in_containerd_and_can_be_pushed() {
    let site = Site::start();
    let soci = site.soci();
    let (reference, _) = site.pulled("app");
    let store = ["--content-store", "soci"];
    soci.call(&[&store[..], &["create"], &SMALL_SPANS, &[&reference]].concat())
        .unwrap();
    let digest = soci
        .call(&[&store[..], &["index", "ls", "-q"]].concat())
        .unwrap();
    let digest = digest.trim_end();
    assert_eq!(site.content(digest), None);
    refused(&soci, &["index", "info", digest]);
    soci.call(&[&store[..], &["index", "info", digest]].concat())
        .unwrap();
    soci.call(&[&store[..], &["push", "--plain-http", &reference]].concat())
        .unwrap();
    site.get(&format!("app/manifests/{digest}"), MANIFEST);
}

#[test]
fn an_index_named_by_the_user_is_passed_on_to_the_snapshotter() {
    let site = Site::start();
    let soci = site.soci();
    let (reference, _) = site.publish("app");
    let index = format!("sha256:{}", "a".repeat(64));
    let pull = ["--plain-http", "--snapshotter", "overlayfs"];
    call(
        &soci,
        "rpull",
        &[&pull[..], &["--soci-index-digest", &index, &reference]].concat(),
    );
    let keys = site.ctr().snapshots("overlayfs").unwrap();
    let snapshot = |key: &String| {
        let info = ["snapshots", "--snapshotter", "overlayfs", "info", key];
        serde_json::from_str::<Value>(&site.ctr().call(&info).unwrap()).unwrap()
    };
    for info in keys.iter().map(snapshot) {
        let labels = &info["Labels"];
        assert_eq!(
            labels["containerd.io/snapshot/remote/soci.index.digest"],
            index.as_str()
        );
        assert_eq!(
            labels["containerd.io/snapshot/cri.image-ref"],
            reference.as_str()
        );
    }
    let error = refused(
        &soci,
        &["rpull", "--soci-index-digest", "sha256:12", &reference],
    );
    assert!(error.contains("not a sha256 digest"), "{error}");
    let error = refused(&soci, &["rpull", "--user", ":nobody", &reference]);
    assert!(error.contains("USER:PASSWORD"), "{error}");
}

//! Tests that the original has and no other of our files tells: which image is lazy in which mode, indexes of many platforms in
//! either store, pushes to registries old and new, and what the metrics say of failures.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;

use integration::busybox::noise;
use integration::command::{command, fail, run};
use integration::ctr::Run;
use integration::host::{Host, IMPATIENT, ON_DEMAND, SMALL_SPANS, small_layers};
use integration::image::{MANIFEST, architecture, other_architecture};
use integration::push::push;
use integration::registry::{Auth, ScriptedRegistry};
use integration::{Containerd, DockerRegistry, Layer, Layout, Scratch, Soci, tamper};
use serde_json::Value;

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

/// Layers for two platforms that say which they are for.
fn two_platforms(layout: &Layout) -> [(&'static str, Vec<Layer>); 2] {
    [architecture(), other_architecture()].map(|platform| {
        let content = [platform.as_bytes(), b"\n", &noise(100_000)].concat();
        let files: [(&str, &[u8]); 2] = [("file", &content), ("tiny", platform.as_bytes())];
        (platform, small_layers(layout, &files).unwrap())
    })
}

/// The names in a layer, as tar reads them.
fn names_in(layer: &std::path::Path) -> BTreeSet<String> {
    let listing = run(command("tar").arg("-tzf").arg(layer)).unwrap();
    listing.lines().map(str::to_owned).collect()
}

#[test]
fn indexes_of_every_platform_in_either_store_are_true_of_every_file_of_the_layers_they_have() {
    let scratch = Scratch::new().unwrap();
    let registry = DockerRegistry::start(&scratch).unwrap();
    let containerd = Containerd::start(&scratch).unwrap();
    let layout = Layout::create(&scratch.path().join("multi")).unwrap();
    let platforms = two_platforms(&layout);
    let images = layout.add_platforms(&platforms).unwrap();
    let reference = registry.reference("multi:latest");
    push(&layout, &reference).unwrap();
    let fetch = ["content", "fetch", "--plain-http", "--all-platforms"];
    let fetch = [&fetch[..], &[&reference]].concat();
    containerd.ctr().call(&fetch).unwrap();
    let other = format!("linux/{}", other_architecture());
    for store in ["containerd", "soci"] {
        for (flags, chosen) in [
            (&[][..], &images[..1]),
            (&["--platform", &other][..], &images[1..]),
            (&["--all-platforms"], &images[..]),
        ] {
            let name = format!("{store}{}", flags.concat().replace('/', "-"));
            let soci = Soci::with_root(&scratch, &containerd, &name).unwrap();
            let call = |arguments: &[&str]| {
                let arguments = [&["--content-store", store], arguments].concat();
                soci.call(&arguments).unwrap()
            };
            // The third layer of each is smaller than this.
            let sizes = ["--span-size", "65536", "--min-layer-size", "1000"];
            call(
                &[
                    &["create", "--compact", "no"],
                    &sizes[..],
                    flags,
                    &[&reference],
                ]
                .concat(),
            );
            let indexes = call(&["index", "list", "--quiet"]);
            assert_eq!(lines(&indexes).len(), chosen.len(), "{name}");
            let subjects: BTreeSet<String> = lines(&indexes)
                .into_iter()
                .map(|digest| {
                    let info: Value =
                        serde_json::from_str(&call(&["index", "info", digest])).unwrap();
                    assert_eq!(info["layers"].as_array().unwrap().len(), 2, "{name}");
                    info["subject"]["digest"].as_str().unwrap().to_owned()
                })
                .collect();
            assert_eq!(
                subjects,
                chosen.iter().map(|it| it.manifest.clone()).collect()
            );

            let ztocs: Value = serde_json::from_str(&call(&["ztoc", "list", "--json"])).unwrap();
            let ztocs = ztocs.as_array().unwrap();
            let layers: BTreeSet<&str> = ztocs
                .iter()
                .map(|it| it["layer_digest"].as_str().unwrap())
                .collect();
            let expected = chosen.iter().flat_map(|image| &image.layers[..2]);
            assert_eq!(
                layers,
                expected.map(|layer| layer.digest.as_str()).collect()
            );
            for ztoc in ztocs {
                let digest = ztoc["digest"].as_str().unwrap();
                let verified = call(&["ztoc", "verify", digest]);
                assert!(verified.contains("are those of the layer"), "{verified}");
                let info: Value = serde_json::from_str(&call(&["ztoc", "info", digest])).unwrap();
                let files = info["files"].as_array().unwrap().iter();
                let names = files.map(|file| file["filename"].as_str().unwrap().to_owned());
                let layer = layout.blob(ztoc["layer_digest"].as_str().unwrap());
                assert_eq!(names.collect::<BTreeSet<_>>(), names_in(&layer));
            }
        }
    }
}

#[test]
fn a_converted_image_of_many_platforms_is_pushed_and_runs_lazily_on_each_that_was_converted() {
    let host = Host::start(ON_DEMAND).unwrap();
    let soci = host.soci().unwrap();
    let layout = host.layout("multi").unwrap();
    layout.add_platforms(&two_platforms(&layout)).unwrap();
    let reference = host.registry.reference("multi:latest");
    push(&layout, &reference).unwrap();
    let fetch = ["content", "fetch", "--plain-http", "--all-platforms"];
    host.ctr()
        .call(&[&fetch[..], &[&reference]].concat())
        .unwrap();
    let [this, other] = [architecture(), other_architecture()].map(|it| format!("linux/{it}"));
    let forms = [
        ("default", &[][..], 3),
        ("this", &["--platform", &this][..], 3),
        ("other", &["--platform", &other], 0),
        ("all", &["--all-platforms"], 3),
    ];
    let converted = |tag: &str| host.registry.reference(&format!("multi:{tag}"));
    for (tag, flags, _) in forms {
        let convert = [&["convert"], &SMALL_SPANS[..], flags].concat();
        soci.call(&[&convert[..], &[&reference, &converted(tag)]].concat())
            .unwrap();
        // containerd pushes all of it, without knowing what a SOCI index is.
        host.ctr()
            .call(&["images", "push", "--plain-http", &converted(tag)])
            .unwrap();
    }
    for image in host.ctr().images().unwrap() {
        host.ctr().remove_image(&image).unwrap();
    }
    for (tag, _, lazy) in forms {
        let pulled = soci.rpull(&converted(tag)).unwrap();
        let expected = format!("3 layers, {lazy} lazy");
        assert!(pulled.contains(&expected), "{tag}: {pulled}");
        let output = host
            .ctr()
            .run(Run::shell(&converted(tag), tag, "cat /tiny"));
        assert_eq!(output.unwrap(), architecture(), "{tag}");
        host.ctr().remove_image(&converted(tag)).unwrap();
    }
    host.finish().unwrap();
}

#[test]
fn the_index_of_one_image_can_go_while_another_shares_its_layers_and_can_be_found_again() {
    let scratch = Scratch::new().unwrap();
    let registry = DockerRegistry::start(&scratch).unwrap();
    let containerd = Containerd::start(&scratch).unwrap();
    let soci = Soci::with(&scratch, &containerd).unwrap();
    let layout = Layout::create(&scratch.path().join("images")).unwrap();
    let shared = small_layers(&layout, &[("shared", &noise(200_000))]).unwrap();
    let mut references = Vec::new();
    for name in ["one", "two"] {
        let own = integration::busybox::file_layer(name, &noise(90_000)).unwrap();
        let layers = [&shared[..], &[layout.add_gzip_layer(&own).unwrap()]].concat();
        layout.add_image(&layers, &["sh"], "latest").unwrap();
        let reference = registry.reference(&format!("{name}:latest"));
        push(&layout, &reference).unwrap();
        containerd.ctr().pull("overlayfs", &reference).unwrap();
        soci.call(&[&["create"], &SMALL_SPANS[..], &[&reference]].concat())
            .unwrap();
        references.push(reference);
    }
    let list = |kind: &str, more: &[&str]| {
        let arguments = [&[kind, "list", "--quiet"], more].concat();
        let listed = soci.call(&arguments).unwrap();
        listed.lines().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let index_of = |image: &str| list("index", &["--ref", image]).pop_first();
    let [one, two] = [&references[0], &references[1]];
    // Two layers are the same, and so are their zTOCs.
    assert_eq!(list("ztoc", &[]).len(), 4);
    assert_eq!(list("ztoc", &["--image-ref", one]).len(), 3);
    let kept = index_of(two).unwrap();
    soci.call(&["index", "rm", "--ref", one]).unwrap();
    assert_eq!(list("index", &[]), BTreeSet::from([kept.clone()]));
    assert_eq!(list("ztoc", &["--image-ref", two]).len(), 3);

    fs::remove_dir_all(scratch.path().join("soci-cli/artifacts")).unwrap();
    soci.call(&["rebuild-db"]).unwrap();
    assert_eq!(list("index", &[]), BTreeSet::from([kept]));
    assert_eq!(list("ztoc", &["--image-ref", two]).len(), 3);
    soci.call(&["push", "--plain-http", two]).unwrap();
    // And what was removed is made again, of what is there.
    let again = soci.call(&[&["create"], &SMALL_SPANS[..], &[one]].concat());
    assert_eq!(again.unwrap().matches("(already exists)").count(), 2);
}

/// An image whose index is pushed under another name.
struct Pushing {
    soci: Soci,
    containerd: Containerd,
    from: String,
    manifest: String,
    index: String,
    _registry: DockerRegistry,
    _scratch: Scratch,
}

impl Pushing {
    fn start() -> Self {
        let scratch = Scratch::new().unwrap();
        let registry = DockerRegistry::start(&scratch).unwrap();
        let containerd = Containerd::start(&scratch).unwrap();
        let soci = Soci::with(&scratch, &containerd).unwrap();
        let layout = Layout::create(&scratch.path().join("app")).unwrap();
        let layers = small_layers(&layout, &[("file", &noise(200_000))]).unwrap();
        let image = layout.add_image(&layers, &["sh"], "latest").unwrap();
        let from = registry.reference("app:latest");
        push(&layout, &from).unwrap();
        containerd.ctr().pull("overlayfs", &from).unwrap();
        soci.call(&[&["create"], &SMALL_SPANS[..], &[&from]].concat())
            .unwrap();
        let index = soci.call(&["index", "list", "--quiet"]).unwrap();
        Self {
            soci,
            containerd,
            from,
            manifest: image.manifest,
            index: index.trim_end().to_owned(),
            _registry: registry,
            _scratch: scratch,
        }
    }

    /// Names the image as one of `registry`.
    fn name_in(&self, registry: &ScriptedRegistry) -> String {
        let name = format!("{}/app:latest", registry.host());
        let tag = ["images", "tag", &self.from, &name];
        self.containerd.ctr().call(&tag).unwrap();
        name
    }

    fn push(&self, more: &[&str], name: &str) -> Result<String, String> {
        let mut command = self.soci.command().unwrap();
        command.args(["push", "--plain-http"]).args(more).arg(name);
        let output = command.output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap()),
            false => Err(String::from_utf8(output.stderr).unwrap()),
        }
    }
}

#[test]
fn who_may_push_is_said_on_the_command_line_and_is_in_no_message() {
    let pushing = Pushing::start();
    let (_runtime, registry) = ScriptedRegistry::start_apart().unwrap();
    let name = pushing.name_in(&registry);
    registry.set_auth(Auth::Basic {
        user: "robot".into(),
        password: "pa:ss-word".into(),
    });
    let refused = pushing.push(&[], &name).unwrap_err();
    assert!(refused.contains("credentials"), "{refused}");
    for wrong in ["robot", "robot:", "robot:pa-wrong"] {
        let refused = pushing.push(&["--user", wrong], &name).unwrap_err();
        assert!(!refused.contains("pa-wrong"), "{refused}");
    }
    assert!(registry.content("app", &pushing.index).is_none());
    let traced = ["--http-trace", "--user", "robot:pa:ss-word"];
    pushing.push(&traced, &name).unwrap();
    assert!(registry.content("app", &pushing.index).is_some());

    // A token instead, which the token server exchanges.
    let (_other_runtime, tokens) = ScriptedRegistry::start_apart().unwrap();
    let name = pushing.name_in(&tokens);
    tokens.set_auth(Auth::Token {
        password: Some(("robot".into(), "refresh-me".into())),
        expires_in: 300,
    });
    pushing
        .push(&["--refresh", "refresh-none"], &name)
        .unwrap_err();
    pushing.push(&["--refresh", "refresh-me"], &name).unwrap();
    assert!(tokens.content("app", &pushing.index).is_some());
}

#[test]
fn what_registries_are_asked_can_be_followed_without_the_secrets() {
    let pushing = Pushing::start();
    let (_runtime, registry) = ScriptedRegistry::start_apart().unwrap();
    let name = pushing.name_in(&registry);
    registry.set_auth(Auth::Basic {
        user: "robot".into(),
        password: "pass-word".into(),
    });
    for flag in ["--http-trace", "--http-dump"] {
        let mut push = pushing.soci.command().unwrap();
        push.args([
            "push",
            "--plain-http",
            flag,
            "--user",
            "robot:pass-word",
            &name,
        ]);
        let output = push.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        assert!(
            said.contains("HEAD") && said.contains("status=401"),
            "{said}"
        );
        assert!(said.contains(&registry.host()), "{said}");
        assert!(!said.contains("pass-word"), "{said}");
        assert!(!said.contains('\x1b'), "it is no terminal: {said}");
    }
    let quiet = pushing.push(&["--user", "robot:pass-word"], &name).unwrap();
    assert!(!quiet.contains("status="), "{quiet}");
}

#[test]
fn an_index_is_found_by_registries_that_keep_referrers_and_by_those_that_do_not() {
    let pushing = Pushing::start();
    for keeps in [true, false] {
        let (_runtime, registry) = ScriptedRegistry::start_apart().unwrap();
        registry.set_referrers(keeps);
        let name = pushing.name_in(&registry);
        pushing.push(&[], &name).unwrap();
        let tag = pushing.manifest.replace(':', "-");
        assert_eq!(registry.tagged("app", &tag).is_some(), !keeps);
        let path = match keeps {
            true => format!("referrers/{}", pushing.manifest),
            false => format!("manifests/{tag}"),
        };
        let url = format!("http://{}/v2/app/{path}", registry.host());
        let listed = run(command("curl").args(["-sf", &url])).unwrap();
        let listed: Value = serde_json::from_str(&listed).unwrap();
        let listed = listed["manifests"].as_array().unwrap();
        let digests: Vec<_> = listed
            .iter()
            .map(|it| it["digest"].as_str().unwrap())
            .collect();
        assert_eq!(digests, [&pushing.index]);
        assert_eq!(listed[0]["mediaType"], MANIFEST);

        // The same again is skipped or said, as the user likes; the registry has it once.
        let skipped = pushing.push(&["--existing-index", "skip"], &name).unwrap();
        assert!(skipped.contains("skipping push"), "{skipped}");
        let silent = pushing.push(&["--existing-index", "allow"], &name).unwrap();
        assert!(!silent.contains("already exists in"), "{silent}");
        assert_eq!(
            registry.count("PUT", &format!("/manifests/{}", pushing.index)),
            2
        );
    }
}

/// Pushes an image in three forms: without an index, with one among its referrers, and converted.
fn publish_forms(host: &Host) -> [String; 3] {
    let soci = host.soci().unwrap();
    let [plain, v1] = ["plain", "v1"].map(|name| {
        let layout = host.layout(name).unwrap();
        let files: [(&str, &[u8]); 2] = [("file", &noise(200_000)), ("form", name.as_bytes())];
        let layers = small_layers(&layout, &files).unwrap();
        let published = host.publish_layers(name, &layout, &layers, None).unwrap();
        host.ctr().pull("overlayfs", &published.reference).unwrap();
        published.reference
    });
    soci.call(&[&["create"], &SMALL_SPANS[..], &[&v1]].concat())
        .unwrap();
    soci.call(&["push", "--plain-http", &v1]).unwrap();
    let v2 = host.registry.reference("v2:latest");
    soci.call(&[&["convert"], &SMALL_SPANS[..], &[&plain, &v2]].concat())
        .unwrap();
    host.ctr()
        .call(&["images", "push", "--plain-http", &v2])
        .unwrap();
    for image in [&plain, &v1, &v2] {
        host.ctr().remove_image(image).unwrap();
    }
    [plain, v1, v2]
}

#[test]
fn an_image_is_lazy_by_the_kind_of_index_that_is_switched_on() {
    let mut host = Host::start(ON_DEMAND).unwrap();
    let forms = publish_forms(&host);
    for (v1, v2) in [(false, true), (true, false), (true, true), (false, false)] {
        let modes = format!(
            "{ON_DEMAND}[pull_modes.soci_v1]\nenable = {v1}\n[pull_modes.soci_v2]\nenable = {v2}\n"
        );
        host = host.configure(&modes).unwrap();
        for (reference, lazy) in forms.iter().zip([false, v1, v2]) {
            let pulled = host.soci().unwrap().rpull(reference).unwrap();
            let expected = match lazy {
                true => "3 layers, 3 lazy, 0 local",
                false => "3 layers, 0 lazy, 3 local",
            };
            assert!(pulled.contains(expected), "v1 {v1}, v2 {v2}: {pulled}");
            let output = host.ctr().run(Run::shell(reference, "reader", "cat /form"));
            let form = if reference.contains("/v1:") {
                "v1"
            } else {
                "plain"
            };
            assert_eq!(output.unwrap(), form);
            let inspected = host.soci().unwrap().call(&["inspect", "--json"]).unwrap();
            let inspected: Value = serde_json::from_str(&inspected).unwrap();
            let mine = inspected["prepared"].as_array().unwrap().iter();
            let outcomes: BTreeSet<_> = mine
                .filter(|it| it["image"] == reference.as_str())
                .map(|it| it["outcome"].as_str().unwrap())
                .collect();
            let expected = if lazy { "lazy" } else { "unpacked" };
            assert_eq!(outcomes, BTreeSet::from([expected]), "v1 {v1}, v2 {v2}");
            host.ctr().remove_image(reference).unwrap();
        }
    }
    host.finish().unwrap();
}

/// The sum of all series of `metric` whose labels contain `label`.
fn sum(host: &Host, metric: &str, label: &str) -> f64 {
    let page = host.snapshotter.metrics().unwrap();
    let series = page
        .lines()
        .filter(|line| line.starts_with(metric) && line.contains(label));
    series
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

#[test]
fn metrics_count_images_that_cannot_be_lazy_and_reads_that_fail() {
    let host = Host::start(IMPATIENT).unwrap();
    let operations = |kind: &str| sum(&host, "soci_fs_operation_count{", kind);
    let content = noise(300_000);
    let good = host.publish_files("good", &[("file", &content)]).unwrap();
    host.soci().unwrap().rpull(&good.reference).unwrap();
    assert_eq!(operations("fuse_mount_failure_count"), 0.0);

    // An image without an index is no failure; one whose zTOCs are nonsense is one for each layer.
    let layout = host.layout("plain").unwrap();
    let layers = small_layers(&layout, &[("other", b"other\n")]).unwrap();
    let plain = host
        .publish_layers("plain", &layout, &layers, None)
        .unwrap();
    host.soci().unwrap().rpull(&plain.reference).unwrap();
    assert_eq!(operations("fuse_mount_failure_count"), 0.0);
    let nonsense = |all: Vec<Vec<u8>>| all.iter().map(|ztoc| noise(ztoc.len())).collect();
    let bad = host.scratch.path().join("bad");
    let third = host
        .publish_files("third", &[("third", b"third\n")])
        .unwrap();
    let bad = tamper::ztocs(&third.layout, &bad, nonsense).unwrap();
    let reference = host.registry.reference("bad:latest");
    push(&bad, &reference).unwrap();
    host.soci().unwrap().rpull(&reference).unwrap();
    // busybox is served by the zTOC of the first image.
    assert_eq!(operations("fuse_mount_failure_count"), 1.0);
    let deferred = sum(
        &host,
        "soci_fs_layer_prepare_count{",
        "outcome=\"deferred\"",
    );
    assert_eq!(deferred, 0.0);

    // The bytes of one layer rot in the registry.
    let layer = &good.image.layers[1].digest["sha256:".len()..];
    let blob = host
        .registry
        .blobs()
        .join(&layer[..2])
        .join(layer)
        .join("data");
    let mut bytes = fs::read(&blob).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
    fs::write(&blob, bytes).unwrap();
    assert_eq!(operations("fuse_file_read_failure_count"), 0.0);
    // A view's series ends with the view, which goes once no snapshot needs it: one more than the container's keeps it.
    let chain = good.image.chain_id();
    host.ctr().prepare("soci", "holder", &chain).unwrap();
    let read = Run::shell(&good.reference, "reader", "cat /file >/dev/null");
    let said = fail(&mut host.ctr().run_command(read)).unwrap();
    assert!(said.contains("Input/output error"), "{said}");
    assert!(operations("fuse_file_read_failure_count") >= 1.0);
    assert!(sum(&host, "soci_fs_image_operation_failures", "file.Read") >= 1.0);
    host.finish().unwrap();
}

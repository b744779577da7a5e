//! The `soci` command on files: no containerd, no network.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use integration::busybox::noise;
use integration::command::{fail, finish, run};
use integration::golden;
use integration::host::SMALL_SPANS;
use integration::image::{INDEX, Layout, MANIFEST, architecture, sha256};
use integration::{Scratch, Soci};
use serde_json::{Value, json};

const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";
const SOCI_V2: &str = "application/vnd.amazon.soci.index.v2+json";

fn start() -> (Scratch, Soci) {
    let scratch = Scratch::new().unwrap();
    let soci = Soci::alone(&scratch).unwrap();
    (scratch, soci)
}

/// A layout with one image of two layers.
fn single(scratch: &Scratch) -> Layout {
    let layout = Layout::create(&scratch.path().join("single")).unwrap();
    let layers = [b"one", b"two"].map(|seed| layer(&layout, seed));
    layout.add_image(&layers, &["sh"], "latest").unwrap();
    layout
}

fn layer(layout: &Layout, seed: &[u8]) -> integration::Layer {
    let content = [seed, &noise(300_000)].concat();
    let tar = integration::busybox::file_layer("file", &content).unwrap();
    layout.add_gzip_layer(&tar).unwrap()
}

/// A layout with an image index: this machine's platform, another one, and an attestation.
fn several(scratch: &Scratch) -> Layout {
    let layout = Layout::create(&scratch.path().join("several")).unwrap();
    let other = if architecture() == "arm64" {
        "amd64"
    } else {
        "arm64"
    };
    let mut manifests = Vec::new();
    for platform in [architecture(), other] {
        let layers = [layer(&layout, platform.as_bytes())];
        layout.add_image(&layers, &["sh"], "x").unwrap();
        let mut entry = layout.roots().unwrap().remove(0);
        entry["annotations"] = json!({"own": platform});
        entry["platform"] = json!({"architecture": platform, "os": "linux"});
        manifests.push(entry);
    }
    let statement = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": blob(&layout, b"{}"), "layers": [blob(&layout, b"statement")],
    }))
    .unwrap();
    let mut attestation = blob(&layout, &statement);
    attestation["mediaType"] = MANIFEST.into();
    attestation["platform"] = json!({"architecture": "unknown", "os": "unknown"});
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    manifests.push(attestation);
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let mut root = blob(&layout, &serde_json::to_vec_pretty(&index).unwrap());
    root["mediaType"] = INDEX.into();
    root["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
    write_index(&layout, &json!({"schemaVersion": 2, "manifests": [root]}));
    layout
}

fn blob(layout: &Layout, bytes: &[u8]) -> Value {
    let digest = layout.add_blob(bytes).unwrap();
    json!({"mediaType": "application/octet-stream", "digest": digest, "size": bytes.len()})
}

fn write_index(layout: &Layout, index: &Value) {
    let bytes = serde_json::to_vec(index).unwrap();
    fs::write(layout.path().join("index.json"), bytes).unwrap();
}

/// Converts to a directory and opens it.
fn convert(soci: &Soci, from: &Path, to: &Path, more: &[&str]) -> Layout {
    run(&mut converting(soci, from, to, more)).unwrap();
    Layout::open(to)
}

fn converting(soci: &Soci, from: &Path, to: &Path, more: &[&str]) -> std::process::Command {
    let mut convert = soci.command().unwrap();
    convert.args(["convert", "--standalone", "--format", "oci-dir"]);
    // Without compact zTOCs: their tests are in `compact.rs`.
    convert.args(["--span-size", "65536", "--min-layer-size", "0"]);
    convert.args(["--compact", "no"]);
    convert.args(more).arg(from).arg(to);
    convert
}

fn manifests(layout: &Layout) -> Vec<Value> {
    let roots = layout.roots().unwrap();
    assert_eq!(roots.len(), 1);
    let index = layout.json(roots[0]["digest"].as_str().unwrap()).unwrap();
    index["manifests"].as_array().unwrap().clone()
}

/// Every blob hashes to its name, and everything that anything refers to is there.
fn assert_whole(layout: &Layout) {
    for file in fs::read_dir(layout.path().join("blobs/sha256")).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(sha256(&bytes), format!("sha256:{name}"));
        let Ok(document) = serde_json::from_slice::<Value>(&bytes) else {
            continue;
        };
        let children = ["manifests", "layers"]
            .iter()
            .filter_map(|key| document[key].as_array());
        let config = document.get("config").filter(|it| it["digest"].is_string());
        for child in children.flatten().chain(config) {
            let size = fs::metadata(layout.blob(child["digest"].as_str().unwrap()))
                .unwrap()
                .len();
            assert_eq!(child["size"], size);
        }
    }
}

#[test]
fn a_directory_and_a_tar_convert_to_the_same_image_in_either_form() {
    let (scratch, soci) = start();
    let source = single(&scratch);
    let archive = scratch.path().join("single.tar");
    run(integration::command::command("tar")
        .arg("-C")
        .arg(source.path())
        .arg("-cf")
        .arg(&archive)
        .arg("."))
    .unwrap();

    let from_dir = convert(&soci, source.path(), &scratch.path().join("a"), &[]);
    let from_tar = convert(&soci, &archive, &scratch.path().join("b"), &[]);
    assert_whole(&from_dir);
    assert_eq!(from_dir.roots().unwrap(), from_tar.roots().unwrap());

    let tar = scratch.path().join("out.tar");
    let to = tar.to_str().unwrap();
    let from = source.path().to_str().unwrap();
    soci.call(&[&["convert", "--standalone"], &SMALL_SPANS[..], &[from, to]].concat())
        .unwrap();
    let unpacked = scratch.dir("unpacked").unwrap();
    run(integration::command::command("tar")
        .arg("-C")
        .arg(&unpacked)
        .arg("-xf")
        .arg(&tar))
    .unwrap();
    let unpacked = Layout::open(&unpacked);
    assert_whole(&unpacked);
    assert_eq!(unpacked.roots().unwrap(), from_dir.roots().unwrap());
}

#[test]
fn a_converted_image_names_its_index_and_keeps_its_layers_and_its_name() {
    let (scratch, soci) = start();
    let source = single(&scratch);
    let before = source.roots().unwrap().remove(0);
    let converted = convert(&soci, source.path(), &scratch.path().join("out"), &[]);
    let root = converted.roots().unwrap().remove(0);
    assert_eq!(root["annotations"], before["annotations"]);
    let [image, index] = &manifests(&converted)[..] else {
        panic!("two manifests")
    };
    assert_eq!(index["artifactType"], SOCI_V2);
    assert_eq!(image["annotations"][INDEX_DIGEST], index["digest"]);
    assert_eq!(
        image["platform"],
        json!({"architecture": architecture(), "os": "linux"})
    );
    let old = source.json(before["digest"].as_str().unwrap()).unwrap();
    let new = converted.json(image["digest"].as_str().unwrap()).unwrap();
    assert_eq!(new["layers"], old["layers"]);
    assert_eq!(new["config"]["digest"], old["config"]["digest"]);
    let ztocs = converted.json(index["digest"].as_str().unwrap()).unwrap();
    let described: Vec<_> = (ztocs["layers"].as_array().unwrap().iter())
        .map(|ztoc| &ztoc["annotations"]["com.amazon.soci.image-layer-digest"])
        .collect();
    let layers: Vec<_> = old["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| &layer["digest"])
        .collect();
    assert_eq!(described, layers);
}

#[test]
fn converting_a_converted_image_changes_nothing() {
    let (scratch, soci) = start();
    for (name, source) in [("s", single(&scratch)), ("m", several(&scratch))] {
        let out = |n: u8| scratch.path().join(format!("{name}{n}"));
        let once = convert(&soci, source.path(), &out(1), &["--all-platforms"]);
        let twice = convert(&soci, once.path(), &out(2), &["--all-platforms"]);
        assert_eq!(once.roots().unwrap(), twice.roots().unwrap());
        let in_place = convert(&soci, twice.path(), twice.path(), &["--all-platforms"]);
        assert_eq!(once.roots().unwrap(), in_place.roots().unwrap());
    }
}

#[test]
fn only_the_chosen_platforms_are_converted_and_all_others_stay_as_they_are() {
    let (scratch, soci) = start();
    let source = several(&scratch);
    let before = manifests(&source);
    let other = before[1]["platform"]["architecture"].as_str().unwrap();
    let choice = format!("linux/{other}");

    let one = convert(
        &soci,
        source.path(),
        &scratch.path().join("one"),
        &["--platform", &choice],
    );
    assert_whole(&one);
    let after = manifests(&one);
    assert_eq!(after.len(), 4);
    assert_eq!([&after[0], &after[2]], [&before[0], &before[2]]);
    assert_eq!(after[1]["annotations"]["own"], other);
    assert_eq!(after[1]["annotations"][INDEX_DIGEST], after[3]["digest"]);

    // The rest of the platforms later: the first one's index is not touched.
    let all = convert(&soci, one.path(), &scratch.path().join("all"), &[]);
    let then = manifests(&all);
    assert_eq!(then.len(), 5);
    assert_eq!(then[1..4], after[1..4]);
    assert_eq!(then[0]["annotations"][INDEX_DIGEST], then[4]["digest"]);
    let at_once = convert(
        &soci,
        source.path(),
        &scratch.path().join("at-once"),
        &["--all-platforms"],
    );
    assert_eq!(manifests(&at_once).len(), 5);
}

#[test]
fn platforms_that_are_not_in_the_layout_are_left_out() {
    let (scratch, soci) = start();
    let source = several(&scratch);
    let other = manifests(&source)[1]["digest"].as_str().unwrap().to_owned();
    fs::remove_file(source.blob(&other)).unwrap();
    let converted = convert(
        &soci,
        source.path(),
        &scratch.path().join("out"),
        &["--all-platforms"],
    );
    assert_whole(&converted);
    let listed = manifests(&converted);
    assert_eq!(listed.len(), 3);
    assert!(listed.iter().all(|entry| entry["digest"] != other.as_str()));
}

#[test]
fn several_manifests_in_index_json_are_the_platforms_of_one_image() {
    let (scratch, soci) = start();
    let source = several(&scratch);
    let entries = manifests(&source);
    write_index(&source, &json!({"schemaVersion": 2, "manifests": entries}));
    let converted = convert(
        &soci,
        source.path(),
        &scratch.path().join("out"),
        &["--all-platforms"],
    );
    assert_whole(&converted);
    assert_eq!(manifests(&converted).len(), 5);
}

#[test]
fn input_that_cannot_be_converted_is_an_error_and_leaves_nothing_behind() {
    let (scratch, soci) = start();
    let source = single(&scratch);
    let out = scratch.dir("out").unwrap();
    let to = out.join("image");
    let docker = scratch.dir("docker").unwrap();
    fs::write(docker.join("manifest.json"), "[]").unwrap();
    let damaged = copy(&source, &scratch.path().join("damaged"));
    let layers = damaged
        .json(damaged.roots().unwrap()[0]["digest"].as_str().unwrap())
        .unwrap();
    let first = damaged.blob(layers["layers"][0]["digest"].as_str().unwrap());
    let bytes = fs::read(&first).unwrap();
    fs::write(&first, &bytes[..bytes.len() / 2]).unwrap();
    let absent = scratch.path().join("absent");

    for (from, more, reason) in [
        (absent.as_path(), &[][..], "No such file"),
        (&docker, &[], "docker-save"),
        (out.as_path(), &[], "no index.json"),
        (source.path(), &["--format", "docker"], "invalid value"),
        (source.path(), &["--span-size", "-1"], "not negative"),
        (source.path(), &["--span-size", "0"], "above zero"),
        (source.path(), &["--min-layer-size", "-1"], "not negative"),
        (
            source.path(),
            &["--min-layer-size", "1000000000"],
            "empty index",
        ),
        (
            source.path(),
            &["--platform", "plan9/mips"],
            "no such platform",
        ),
        (
            source.path(),
            &["--platform", "linux/../x"],
            "not a platform",
        ),
        (damaged.path(), &[], "layer sha256:"),
    ] {
        let mut command = soci.command().unwrap();
        command.args(["convert", "--standalone", "--format=oci-dir"]);
        if !more.contains(&"--min-layer-size") {
            command.args(["--min-layer-size", "0"]);
        }
        // A flag given twice is an error of its own.
        if more.contains(&"--format") {
            command = soci.command().unwrap();
            command.args(["convert", "--standalone"]);
        }
        let error = fail(command.args(more).arg(from).arg(&to)).unwrap();
        assert!(
            error.starts_with("soci: ") && error.contains(reason),
            "{reason}: {error}"
        );
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "{error}");
    }
    for arguments in [
        &["convert"][..],
        &["convert", "--standalone", "x"],
        &["frobnicate"],
    ] {
        let output = finish(soci.command().unwrap().args(arguments)).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(output.stderr.starts_with(b"soci: "), "{arguments:?}");
    }
}

fn copy(layout: &Layout, to: &Path) -> Layout {
    run(integration::command::command("cp")
        .arg("-r")
        .arg(layout.path())
        .arg(to))
    .unwrap();
    Layout::open(to)
}

#[test]
fn an_existing_directory_that_is_no_layout_is_not_overwritten() {
    let (scratch, soci) = start();
    let source = single(&scratch);
    let home = scratch.dir("home").unwrap();
    fs::write(home.join("thesis"), "years of work").unwrap();
    let error = fail(&mut converting(&soci, source.path(), &home, &[])).unwrap();
    assert!(error.contains("not overwritten"), "{error}");
    assert_eq!(fs::read_dir(&home).unwrap().count(), 1);
}

#[test]
fn layers_below_the_minimum_have_no_ztoc() {
    let (scratch, soci) = start();
    let layout = Layout::create(&scratch.path().join("mixed")).unwrap();
    let small = layout
        .add_gzip_layer(&integration::busybox::file_layer("s", b"s").unwrap())
        .unwrap();
    let large = layer(&layout, b"large");
    layout
        .add_image(&[small.clone(), large.clone()], &["sh"], "latest")
        .unwrap();
    let (from, to) = (
        layout.path().to_str().unwrap(),
        scratch.path().join("out.tar"),
    );
    let arguments = [
        "convert",
        "--standalone",
        "--min-layer-size",
        "100000",
        from,
        to.to_str().unwrap(),
    ];
    let printed = soci.call(&arguments).unwrap();
    let lines: Vec<_> = printed.lines().collect();
    assert!(lines[0].starts_with(&format!(
        "ztoc skipped - layer {} ({})",
        small.digest, small.media_type
    )));
    assert!(
        lines[1].starts_with(&format!("layer {} -> ztoc sha256:", large.digest)),
        "{printed}"
    );
}

/// The golden layers and their zTOCs.
fn golden_ztocs() -> Vec<(PathBuf, PathBuf, String)> {
    let dir = golden::directory().unwrap();
    let layers: Vec<_> = fs::read_dir(dir.join("layers"))
        .unwrap()
        .map(|it| it.unwrap().path())
        .collect();
    let mut all = Vec::new();
    for file in fs::read_dir(dir.join("ztocs")).unwrap() {
        let ztoc = file.unwrap().path();
        let stem = ztoc.file_stem().unwrap().to_str().unwrap();
        let (name, span) = stem.rsplit_once('.').unwrap();
        let of_layer = |layer: &&PathBuf| {
            layer
                .file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with(&format!("{name}.tar"))
        };
        let layer = layers.iter().find(of_layer).unwrap().clone();
        all.push((layer, ztoc.clone(), span.to_owned()));
    }
    assert!(all.len() > 10);
    all
}

#[test]
fn ztocs_of_layer_files_are_those_of_the_original() {
    let (scratch, soci) = start();
    let out = scratch.path().join("out.ztoc");
    let out = out.to_str().unwrap();
    for (layer, ztoc, span) in golden_ztocs() {
        let layer = layer.to_str().unwrap();
        let printed = soci
            .call(&["ztoc", "build", layer, "-o", out, "--span-size", &span])
            .unwrap();
        let expected = fs::read(&ztoc).unwrap();
        assert!(fs::read(out).unwrap() == expected, "{}", ztoc.display());
        assert!(
            printed.contains(&format!("-> ztoc {}", sha256(&expected))),
            "{printed}"
        );
        assert!(
            printed.contains(&format!("size {}\n", expected.len())),
            "{printed}"
        );
    }
}

#[test]
fn layers_that_can_have_no_ztoc_are_refused() {
    let (scratch, soci) = start();
    let out = scratch.path().join("out.ztoc");
    let zstd = golden::layer("12-zstd.tar.zst").unwrap();
    let truncated = golden::layer("16f-truncated.tar.gz").unwrap();
    for (layer, reason) in [(zstd, "zstd"), (truncated, "")] {
        let mut build = soci.command().unwrap();
        let error = fail(
            build
                .args(["ztoc", "build"])
                .arg(&layer)
                .arg("-o")
                .arg(&out),
        )
        .unwrap();
        assert!(
            error.starts_with("soci: layer ") && error.contains(reason),
            "{error}"
        );
        assert!(!out.exists());
    }
}

#[test]
fn a_ztoc_file_is_described_as_the_original_describes_it() {
    let (_scratch, soci) = start();
    let ztoc = golden::directory()
        .unwrap()
        .join("ztocs/03-odd-pax-gzip9.262144.ztoc");
    let info: Value = serde_json::from_str(
        &soci
            .call(&["ztoc", "info", ztoc.to_str().unwrap()])
            .unwrap(),
    )
    .unwrap();
    let keys: Vec<_> = info
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let mut expected = [
        "version",
        "build_tool",
        "size",
        "span_size",
        "num_spans",
        "num_files",
        "num_multi_span_files",
        "files",
    ];
    let mut keys = keys;
    keys.sort_unstable();
    expected.sort_unstable();
    assert_eq!(keys, expected);
    assert_eq!(info["version"], "0.9");
    assert_eq!(info["build_tool"], "AWS SOCI CLI v0.2");
    assert_eq!(info["size"], fs::metadata(&ztoc).unwrap().len());
    assert_eq!(info["span_size"], 262_144);
    assert_eq!(info["num_files"], info["files"].as_array().unwrap().len());
}

#[test]
fn a_file_of_a_layer_is_read_through_its_ztoc() {
    let (scratch, soci) = start();
    let content = noise(1 << 20);
    let layout = Layout::create(&scratch.path().join("layout")).unwrap();
    let tar = integration::busybox::file_layer("usr/data", &content).unwrap();
    let layer = layout.blob(&layout.add_gzip_layer(&tar).unwrap().digest);
    let (layer, ztoc) = (layer.to_str().unwrap(), scratch.path().join("z"));
    let ztoc = ztoc.to_str().unwrap();
    soci.call(&["ztoc", "build", layer, "-o", ztoc, "--span-size", "65536"])
        .unwrap();
    let out = scratch.path().join("file");
    for path in ["usr/data", "/usr/data", "./usr/data"] {
        let arguments = [
            "ztoc",
            "get-file",
            ztoc,
            path,
            "--layer",
            layer,
            "-o",
            out.to_str().unwrap(),
        ];
        soci.call(&arguments).unwrap();
        assert!(fs::read(&out).unwrap() == content);
        let mut to_stdout = soci.command().unwrap();
        let output =
            finish(to_stdout.args(["ztoc", "get-file", ztoc, path, "--layer", layer])).unwrap();
        assert!(output.stdout == content);
    }
    let missing = fail(
        soci.command()
            .unwrap()
            .args(["ztoc", "get-file", ztoc, "no", "--layer", layer]),
    )
    .unwrap();
    assert!(missing.contains("no such file"), "{missing}");
    let other = golden::layer("13-tiny.tar.gz").unwrap();
    let wrong = fail(
        soci.command()
            .unwrap()
            .args(["ztoc", "get-file", ztoc, "usr/data", "--layer"])
            .arg(other),
    )
    .unwrap();
    assert!(wrong.starts_with("soci: "), "{wrong}");
}

#[test]
fn files_that_are_no_ztoc_are_refused() {
    let (scratch, soci) = start();
    let file = scratch.path().join("random");
    fs::write(&file, noise(5000)).unwrap();
    for arguments in [&["ztoc", "info"][..], &["ztoc", "get-file"]] {
        let mut command = soci.command().unwrap();
        command.args(arguments).arg(&file);
        if arguments[1] == "get-file" {
            command.args(["x", "--layer", "/dev/null"]);
        }
        let error = fail(&mut command).unwrap();
        assert!(error.starts_with("soci: zTOC "), "{error}");
    }
}

#[test]
fn the_version_is_one_line_with_a_version_that_callers_accept() {
    let (_scratch, soci) = start();
    let version = soci.call(&["--version"]).unwrap();
    let words: Vec<_> = version.trim_end().split(' ').collect();
    assert_eq!(words[..2], ["soci", "version"]);
    let numbers: Vec<u32> = words[2].split('.').map(|it| it.parse().unwrap()).collect();
    assert!(
        numbers[..2] >= [0, 10][..] && numbers.len() == 3 && words.len() == 4,
        "{version}"
    );
}

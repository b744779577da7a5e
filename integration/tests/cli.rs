//! The `soci` command: what people and nerdctl do with it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use integration::busybox::noise;
use integration::command::{command, fail, run};
use integration::ctr::Run;
use integration::host::{Host, ON_DEMAND, Published};
use integration::image::sha256;
use integration::{Layout, Scratch, Soci, golden};
use serde_json::Value;

const BUILD_TOOL: &str = "AWS SOCI CLI v0.2";

#[test]
fn a_ztoc_built_from_a_file_is_the_one_the_original_built_and_reads_its_files() {
    let scratch = Scratch::new().unwrap();
    let soci = Soci::alone(&scratch).unwrap();
    let layer = golden::layer("03-odd-pax-gzip9.tar.gz").unwrap();
    let layer = layer.to_str().unwrap();
    let out = scratch.path().join("layer.ztoc");
    let out = out.to_str().unwrap();
    let build = [
        "ztoc",
        "build",
        layer,
        "-o",
        out,
        "--span-size",
        "262144",
        "--build-tool",
        BUILD_TOOL,
    ];
    soci.call(&build).unwrap();
    let expected = golden::directory()
        .unwrap()
        .join("ztocs/03-odd-pax-gzip9.262144.ztoc");
    assert_eq!(
        sha256(&fs::read(out).unwrap()),
        sha256(&fs::read(expected).unwrap())
    );

    let info: Value = serde_json::from_str(&soci.call(&["ztoc", "info", out]).unwrap()).unwrap();
    assert_eq!(info["build_tool"], BUILD_TOOL);
    assert_eq!(info["span_size"], 262_144);
    let files = info["files"].as_array().unwrap();
    let listing = run(command("tar").args(["-tzf", layer])).unwrap();
    assert_eq!(info["num_files"], files.len());
    assert_eq!(files.len(), listing.lines().count());

    // The largest file: it has several spans.
    let size = |file: &&Value| file["size"].as_u64();
    let largest = files
        .iter()
        .filter(|file| file["type"] == "reg")
        .max_by_key(size)
        .unwrap();
    let name = largest["filename"].as_str().unwrap();
    let copy = scratch.path().join("copy");
    let get = [
        "ztoc",
        "get-file",
        out,
        name,
        "--layer",
        layer,
        "-o",
        copy.to_str().unwrap(),
    ];
    soci.call(&get).unwrap();
    let plain = command("tar")
        .args(["-xzOf", layer, name])
        .output()
        .unwrap();
    assert_eq!(sha256(&fs::read(copy).unwrap()), sha256(&plain.stdout));
}

#[test]
fn a_layer_that_cannot_have_a_ztoc_is_refused_by_name() {
    let scratch = Scratch::new().unwrap();
    let soci = Soci::alone(&scratch).unwrap();
    for name in ["12-zstd.tar.zst", "16f-truncated.tar.gz"] {
        let layer = golden::layer(name).unwrap();
        let out = scratch.path().join("refused.ztoc");
        let mut build = soci.command().unwrap();
        let error = fail(build.args(["ztoc", "build"]).arg(layer).arg("-o").arg(&out)).unwrap();
        assert!(
            error.starts_with("soci: ") && error.contains(name),
            "{error}"
        );
        assert!(!out.exists(), "half a zTOC was left for {name}");
    }
}

#[test]
fn an_index_made_in_containerd_is_listed_pushed_found_and_removed() {
    let host = Host::start(&format!("{ON_DEMAND}[pull_modes.soci_v1]\nenable = true\n")).unwrap();
    let published = plain_image(&host, "v1");
    let reference = published.reference.as_str();
    let soci = host.soci().unwrap();
    host.ctr().pull("overlayfs", reference).unwrap();

    let created = soci
        .call(&["create", "--min-layer-size", "0", reference])
        .unwrap();
    for layer in &published.image.layers {
        assert!(
            created.contains(&format!("layer {} -> ztoc sha256:", layer.digest)),
            "{created}"
        );
    }
    let again = soci
        .call(&["create", "--min-layer-size", "0", reference])
        .unwrap();
    assert_eq!(
        again.matches("(already exists)").count(),
        published.image.layers.len(),
        "{again}"
    );

    let digests = soci
        .call(&["index", "list", "--quiet", "--ref", reference])
        .unwrap();
    let digest = digests.lines().next().unwrap();
    let info: Value =
        serde_json::from_str(&soci.call(&["index", "info", digest]).unwrap()).unwrap();
    assert_eq!(info["subject"]["digest"], published.image.manifest.as_str());
    let table = soci.call(&["index", "list"]).unwrap();
    assert!(
        table.lines().next().unwrap().starts_with("DIGEST"),
        "{table}"
    );
    assert!(table.contains(reference) && table.contains("v1"), "{table}");
    let ztocs = soci.call(&["ztoc", "list", "--quiet"]).unwrap();
    assert_eq!(ztocs.lines().count(), published.image.layers.len());

    let pushed = soci.call(&["push", "--plain-http", reference]).unwrap();
    assert!(pushed.contains(digest), "{pushed}");
    assert_runs_lazily(&host, reference);

    soci.call(&["index", "rm", digest]).unwrap();
    assert_eq!(soci.call(&["index", "list", "--quiet"]).unwrap().trim(), "");
    host.finish().unwrap();
}

#[test]
fn an_image_converted_in_containerd_is_pushed_by_containerd_and_runs_lazily() {
    let host = Host::start(ON_DEMAND).unwrap();
    let published = plain_image(&host, "source");
    let soci = host.soci().unwrap();
    host.ctr().pull("overlayfs", &published.reference).unwrap();
    let converted = host.registry.reference("converted:soci");
    let convert = [
        "convert",
        "--min-layer-size",
        "0",
        &published.reference,
        &converted,
    ];
    soci.call(&convert).unwrap();
    assert!(host.ctr().images().unwrap().contains(&converted));
    host.ctr()
        .call(&["images", "push", "--plain-http", &converted])
        .unwrap();
    assert_runs_lazily(&host, &converted);
    host.finish().unwrap();
}

#[test]
fn conversion_of_files_is_the_same_every_time_and_from_every_form() {
    let scratch = Scratch::new().unwrap();
    let soci = Soci::alone(&scratch).unwrap();
    let source = Layout::create(&scratch.dir("source").unwrap()).unwrap();
    let layers = integration::host::small_layers(&source, &[("file", &noise(100_000))]).unwrap();
    source.add_image(&layers, &["sh"], "latest").unwrap();
    let archive = scratch.path().join("source.tar");
    run(command("tar")
        .arg("-cf")
        .arg(&archive)
        .arg("-C")
        .arg(source.path())
        .arg("."))
    .unwrap();

    let mut roots = Vec::new();
    for (number, from) in [source.path(), &archive].into_iter().enumerate() {
        let dir = scratch.path().join(format!("dir-{number}"));
        let tar = scratch.path().join(format!("tar-{number}"));
        convert(&soci, "oci-dir", from, &dir);
        convert(&soci, "oci-archive", from, &tar);
        let unpacked = scratch.dir(&format!("unpacked-{number}")).unwrap();
        run(command("tar").arg("-xf").arg(&tar).arg("-C").arg(&unpacked)).unwrap();
        let again = scratch.path().join(format!("again-{number}"));
        convert(&soci, "oci-dir", &dir, &again);
        for layout in [dir, unpacked, again] {
            let roots_there = Layout::open(&layout).roots().unwrap();
            roots.push(roots_there[0]["digest"].as_str().unwrap().to_owned());
        }
    }
    roots.dedup();
    assert_eq!(roots.len(), 1, "{roots:?}");
    assert_ne!(roots[0], source.roots().unwrap()[0]["digest"]);
}

#[test]
fn what_is_wrong_with_a_command_line_is_said_in_one_form() {
    let scratch = Scratch::new().unwrap();
    let soci = Soci::alone(&scratch).unwrap();
    let version = soci.call(&["--version"]).unwrap();
    let number = version
        .strip_prefix("soci version ")
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    assert_eq!(number.split('.').count(), 3, "{version}");
    for command in ["create", "convert", "push", "index", "ztoc", "rpull"] {
        let help = soci.call(&[command, "--help"]).unwrap();
        assert!(help.contains("Usage: soci"), "{help}");
    }
    let wrong: [&[&str]; 5] = [
        &["create", "--span-size", "-1", "localhost/a:b"],
        &["create", "no-containerd/here:latest"],
        &["convert", "--standalone", "/nonexistent", "/tmp/out"],
        &["convert", "--standalone", "--format", "docker", "a", "b"],
        &["ztoc", "info", "/nonexistent"],
    ];
    for arguments in wrong {
        let mut soci = soci.command().unwrap();
        let output = soci.args(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        assert!(error.starts_with("soci: "), "{arguments:?}: {error}");
    }
}

fn convert(soci: &Soci, format: &str, from: &Path, to: &Path) {
    let mut convert = soci.command().unwrap();
    convert.args([
        "convert",
        "--standalone",
        "--min-layer-size",
        "0",
        "--format",
        format,
    ]);
    run(convert.arg(from).arg(to)).unwrap();
}

/// An image without an index, in the registry.
fn plain_image(host: &Host, name: &str) -> Published {
    let layout = host.layout(name).unwrap();
    let files: [(&str, &[u8]); 2] = [("ballast", &noise(30 << 20)), ("greeting", b"hello\n")];
    let layers = integration::host::small_layers(&layout, &files).unwrap();
    host.publish_layers(name, &layout, &layers, None).unwrap()
}

/// Pulls and runs an image made of [`plain_image`]'s layers: its ballast is not fetched.
fn assert_runs_lazily(host: &Host, reference: &str) {
    for image in host.ctr().images().unwrap() {
        host.ctr().remove_image(&image).unwrap();
    }
    let before = host.registry.traffic().unwrap();
    host.soci().unwrap().rpull(reference).unwrap();
    let output = host
        .ctr()
        .run(Run::shell(reference, "reader", "cat /greeting"))
        .unwrap();
    assert_eq!(output, "hello\n");
    let traffic = host.registry.traffic().unwrap().since(before);
    assert!(traffic.blob_bytes < 10 << 20, "{traffic:?}");
}

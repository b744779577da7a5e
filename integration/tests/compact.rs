//! Compact zTOCs with a real containerd and a real registry: images with both forms start from the compact one,
//! fall back to the zTOC, and mix both.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use integration::busybox::noise;
use integration::ctr::Run;
use integration::host::{Host, Indexing, ON_DEMAND, Published, sha256_hex, small_layers};
use integration::push::push;
use integration::{Layout, Soci};
use serde_json::Value;

const COMPACT_INDEX: &str = "application/vnd.spanshot.index.v1+json";
const COMPACT_INDEX_DIGEST: &str = "spanshot.compact-index-digest";
const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";
const LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";

fn both() -> Indexing {
    Indexing {
        compact: "yes",
        ..Indexing::default()
    }
}

fn json(soci: &Soci, arguments: &[&str]) -> Value {
    let text = soci.call(&[arguments, &["--json"]].concat()).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Runs a container that reads all of `/large`, and says by which form each layer is served meanwhile.
fn forms_in_use(host: &Host, reference: &str, large: &[u8]) -> Vec<(String, String)> {
    let soci = host.soci().unwrap();
    let mut command = host.ctr().run_command(Run::shell(
        reference,
        "reader",
        "sha256sum </large; cat /greeting; exec sleep 1000",
    ));
    let mut child = command
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let sum = lines.next().unwrap().unwrap();
    assert_eq!(sum.split_whitespace().next().unwrap(), sha256_hex(large));
    assert_eq!(lines.next().unwrap().unwrap(), "hello");
    let views = json(&soci, &["inspect"]);
    let mut forms = Vec::new();
    for view in views["views"].as_array().unwrap() {
        for layer in view["layers"].as_array().unwrap() {
            let text = |key: &str| layer[key].as_str().unwrap().to_owned();
            forms.push((text("digest"), text("ztoc")));
        }
    }
    host.ctr()
        .call(&["tasks", "kill", "--signal", "KILL", "reader"])
        .unwrap();
    child.wait().unwrap();
    forms.sort();
    forms
}

/// The image index of a layout, its image manifest, and the entries behind that.
fn manifests(published: &Published) -> (Value, Vec<Value>) {
    let layout = &published.layout;
    let root = layout.roots().unwrap().remove(0);
    let index = layout.json(root["digest"].as_str().unwrap()).unwrap();
    let mut entries = index["manifests"].as_array().unwrap().clone();
    let image = entries.remove(0);
    (
        layout.json(image["digest"].as_str().unwrap()).unwrap(),
        entries,
    )
}

/// The compact zTOC of a layer, in the registry's files.
fn compact_blob(host: &Host, layout: &Layout, image: &Value, layer: &str) -> PathBuf {
    let index = image["annotations"][COMPACT_INDEX_DIGEST].as_str().unwrap();
    let index = layout.json(index).unwrap();
    let listed = index["layers"].as_array().unwrap();
    let found = listed
        .iter()
        .find(|it| it["annotations"][LAYER_DIGEST] == layer);
    let digest = found.unwrap()["digest"].as_str().unwrap()["sha256:".len()..].to_owned();
    host.registry
        .blobs()
        .join(&digest[..2])
        .join(digest)
        .join("data")
}

#[test]
fn an_image_with_both_forms_starts_from_its_compact_ztocs_on_fewer_bytes() {
    let host = Host::start(ON_DEMAND).unwrap();
    let large = noise(3 << 20);
    let files: [(&str, &[u8]); 2] = [("greeting", b"hello\n"), ("large", &large)];
    let published = host.publish_files_indexed("both", &files, both()).unwrap();
    let before = host.registry.traffic().unwrap();
    host.soci().unwrap().rpull(&published.reference).unwrap();
    let bytes = host.registry.traffic().unwrap().since(before).blob_bytes;
    let forms = forms_in_use(&host, &published.reference, &large);
    assert_eq!(forms.len(), published.image.layers.len());
    assert!(forms.iter().all(|(_, form)| form == "compact"), "{forms:?}");

    // The same image without: the same files, by zTOCs.
    let host = {
        host.finish().unwrap();
        Host::start(ON_DEMAND).unwrap()
    };
    let published = host.publish_files("one", &files).unwrap();
    let before = host.registry.traffic().unwrap();
    host.soci().unwrap().rpull(&published.reference).unwrap();
    let more = host.registry.traffic().unwrap().since(before).blob_bytes;
    assert!(bytes * 10 < more, "{bytes} against {more}");
    let forms = forms_in_use(&host, &published.reference, &large);
    assert!(forms.iter().all(|(_, form)| form == "zTOC"), "{forms:?}");
    host.finish().unwrap();
}

#[test]
fn a_compact_ztoc_that_cannot_be_had_is_replaced_by_the_ztoc_and_both_are_mixed() {
    let host = Host::start(ON_DEMAND).unwrap();
    let large = noise(3 << 20);
    let files: [(&str, &[u8]); 2] = [("greeting", b"hello\n"), ("large", &large)];
    let published = host.publish_files_indexed("mixed", &files, both()).unwrap();
    let (image, _) = manifests(&published);
    let layers = &published.image.layers;
    let [gone, damaged] = [&layers[1].digest, &layers[2].digest];
    fs::remove_file(compact_blob(&host, &published.layout, &image, gone)).unwrap();
    let path = compact_blob(&host, &published.layout, &image, damaged);
    let mut bytes = fs::read(&path).unwrap();
    bytes[300] ^= 1;
    fs::write(path, bytes).unwrap();

    host.soci().unwrap().rpull(&published.reference).unwrap();
    let forms = forms_in_use(&host, &published.reference, &large);
    for (layer, form) in &forms {
        let expected = match layer == gone || layer == damaged {
            true => "zTOC",
            false => "compact",
        };
        assert_eq!(form, expected, "{layer}");
    }
    assert_eq!(forms.len(), 3);
    let log = host.snapshotter.log();
    assert!(log.contains("a zTOC cannot be used"), "{log}");
    host.finish().unwrap();
}

#[test]
fn what_is_fetched_of_a_compact_ztoc_outlives_a_restart_and_its_tree_is_that_of_the_layers() {
    let host = Host::start(ON_DEMAND).unwrap();
    let large = noise(3 << 20);
    let files: [(&str, &[u8]); 2] = [("greeting", b"hello\n"), ("large", &large)];
    let published = host.publish_files_indexed("kept", &files, both()).unwrap();
    host.ctr().pull("overlayfs", &published.reference).unwrap();
    host.soci().unwrap().rpull(&published.reference).unwrap();
    let mut lazy = host.walk("soci", &published).unwrap();
    let mut unpacked = host.walk("overlayfs", &published).unwrap();
    // No layer has an entry for the root: its time is that of the overlay.
    lazy.pop_first();
    unpacked.pop_first();
    assert_eq!(lazy, unpacked);
    let host = host
        .restart_snapshotter(nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    let before = host.registry.traffic().unwrap();
    let forms = forms_in_use(&host, &published.reference, &large);
    assert!(forms.iter().all(|(_, form)| form == "compact"), "{forms:?}");
    let after = host.registry.traffic().unwrap().since(before);
    assert_eq!(after.blob_bytes, 0, "all of it was read before");
    host.finish().unwrap();
}

#[test]
fn a_compact_index_beside_a_v1_index_is_found_by_the_referrers() {
    let config = format!("{ON_DEMAND}[pull_modes.soci_v1]\nenable = true\n");
    let host = Host::start(&config).unwrap();
    let soci = host.soci().unwrap();
    let large = noise(3 << 20);
    let layout = host.layout("v1").unwrap();
    let files: [(&str, &[u8]); 2] = [("greeting", b"hello\n"), ("large", &large)];
    let layers = small_layers(&layout, &files).unwrap();
    layout.add_image(&layers, &["sh"], "latest").unwrap();
    let reference = host.registry.reference("v1:latest");
    push(&layout, &reference).unwrap();
    host.ctr()
        .call(&["content", "fetch", "--plain-http", &reference])
        .unwrap();
    let made = soci
        .call(&["create", "--min-layer-size", "0", &reference])
        .unwrap();
    assert_eq!(made.lines().count(), 3, "as the original says it: {made}");
    let pushed = soci.call(&["push", "--plain-http", &reference]).unwrap();
    assert!(pushed.contains("pushing compact index"), "{pushed}");
    host.ctr().remove_image(&reference).unwrap();
    soci.rpull(&reference).unwrap();
    let forms = forms_in_use(&host, &reference, &large);
    assert!(
        forms.len() == 3 && forms.iter().all(|(_, form)| form == "compact"),
        "{forms:?}"
    );
    host.finish().unwrap();
}

#[test]
fn ztocs_and_soci_indexes_are_the_same_with_and_without_compact_ones_beside_them() {
    let host = Host::start(ON_DEMAND).unwrap();
    let files: [(&str, &[u8]); 1] = [("greeting", b"hello\n")];
    let plain = host.publish_files("plain", &files).unwrap();
    let with = host.publish_files_indexed("with", &files, both()).unwrap();
    let only = Indexing {
        compact: "only",
        ..Indexing::default()
    };
    let only = host.publish_files_indexed("only", &files, only).unwrap();
    let ((image, entries), (with_image, with_entries)) = (manifests(&plain), manifests(&with));
    let named = |image: &Value, key: &str| image["annotations"][key].as_str().map(str::to_owned);
    assert!(named(&image, INDEX_DIGEST).is_some());
    assert_eq!(
        named(&image, INDEX_DIGEST),
        named(&with_image, INDEX_DIGEST)
    );
    assert_eq!((entries.len(), with_entries.len()), (1, 2));
    assert_eq!(entries[0]["digest"], with_entries[0]["digest"]);
    let last = &with_entries[1];
    assert_eq!(last["artifactType"], COMPACT_INDEX);
    assert_eq!(last["platform"], with_entries[0]["platform"]);
    let digest = named(&with_image, COMPACT_INDEX_DIGEST);
    assert_eq!(last["digest"].as_str().map(str::to_owned), digest);
    // All blobs that the compact index lists are in the layout.
    let index = with.layout.json(&digest.unwrap()).unwrap();
    for blob in index["layers"].as_array().unwrap() {
        assert!(with.layout.blob(blob["digest"].as_str().unwrap()).exists());
    }
    let (only_image, only_entries) = manifests(&only);
    assert_eq!(named(&only_image, INDEX_DIGEST), None);
    assert!(named(&only_image, COMPACT_INDEX_DIGEST).is_some());
    assert_eq!(only_entries.len(), 1);
    host.soci().unwrap().rpull(&only.reference).unwrap();
    assert_eq!(
        host.ctr()
            .run(Run::shell(&only.reference, "c", "cat /greeting"))
            .unwrap(),
        "hello\n"
    );
    host.finish().unwrap();
}

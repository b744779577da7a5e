//! What a reader copies out of the documents is taken by the program it is for: every block of TOML, JSON and YAML there, and
//! every command.
#![allow(clippy::unwrap_used)]

mod commands;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use integration::Scratch;
use integration::binaries::{binary, project};
use integration::command::{command, fail, run};
use toml::{Table, Value};

/// Who reads a block of TOML.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reader {
    /// The daemon's configuration.
    Daemon,
    /// containerd's own configuration.
    Containerd,
    /// containerd's `hosts.toml`, which a registry's client reads.
    Hosts,
}

/// A fenced block.
#[derive(Debug)]
struct Block {
    document: PathBuf,
    language: String,
    text: String,
}

impl Block {
    /// Who reads this TOML.
    fn reader(&self) -> Reader {
        let table: Table = self
            .text
            .parse()
            .unwrap_or_else(|error| panic!("{}: {error}\n{}", self.document.display(), self.text));
        if table.contains_key("proxy_plugins") || table.contains_key("plugins") {
            Reader::Containerd
        } else if table.contains_key("server") || table.contains_key("host") {
            Reader::Hosts
        } else {
            Reader::Daemon
        }
    }
}

/// README and everything in `docs`.
fn documents() -> Vec<PathBuf> {
    let entries = fs::read_dir(project().join("docs")).unwrap();
    let mut found: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|it| it == "md"))
        .collect();
    found.push(project().join("README.md"));
    found
}

/// The fenced blocks of `text`, also those of list items, without their indentation.
fn blocks(document: &Path, text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<(usize, Block)> = None;
    for line in text.lines() {
        let fence = line.trim_start().strip_prefix("```");
        match (&mut open, fence) {
            (None, Some(language)) => {
                let block = Block {
                    document: document.to_owned(),
                    language: language.trim().to_owned(),
                    text: String::new(),
                };
                open = Some((line.len() - line.trim_start().len(), block));
            }
            (Some(_), Some(_)) => found.extend(open.take().map(|(_, block)| block)),
            (Some((indentation, block)), None) => {
                block.text += line.get(*indentation..).unwrap_or_default();
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block without end: {open:?}");
    found
}

/// The blocks of `language` in all documents.
fn all(language: &str) -> Vec<Block> {
    let of_all = documents().into_iter().flat_map(|path| {
        let text = fs::read_to_string(&path).unwrap();
        blocks(&path, &text)
    });
    of_all.filter(|block| block.language == language).collect()
}

/// The blocks of TOML that are for `reader`.
fn toml_for(reader: &Reader) -> Vec<Block> {
    let of_all = all("toml").into_iter();
    of_all.filter(|block| block.reader() == *reader).collect()
}

fn check(config: &Path) -> std::process::Command {
    let mut check = command(binary("soci-snapshotter-grpc").unwrap());
    check.args(["config", "check", "--config"]).arg(config);
    check
}

/// `containerd config dump` with `text` as its configuration.
fn dumped(scratch: &Scratch, text: &str) -> Table {
    let config = scratch.path().join("containerd.toml");
    // Debian's file, which a person adds the block to, begins with this; without it, plugins have other names.
    fs::write(&config, format!("version = 2\n{text}")).unwrap();
    let mut dump = command("containerd");
    run(dump.arg("--config").arg(config).args(["config", "dump"]))
        .unwrap()
        .parse()
        .unwrap()
}

/// Asserts that `dump` has what `shown` has, where this version of containerd has the key; how many values it has.
fn assert_taken(shown: &Value, dump: &Value, place: &str) -> usize {
    match (shown, dump) {
        (Value::Table(shown), Value::Table(dump)) => {
            let both = shown
                .iter()
                .filter_map(|(key, value)| Some((key, value, dump.get(key)?)));
            both.map(|(key, value, taken)| assert_taken(value, taken, &format!("{place}.{key}")))
                .sum()
        }
        // Tables in a list get the keys that the document leaves out.
        (Value::Array(shown), Value::Array(dump)) => {
            assert_eq!(shown.len(), dump.len(), "{place}");
            let both = shown.iter().zip(dump);
            both.map(|(value, taken)| assert_taken(value, taken, place))
                .sum()
        }
        _ => {
            assert_eq!(dump, shown, "{place}");
            1
        }
    }
}

#[test]
fn the_daemon_takes_each_setting_that_a_document_shows_for_it() {
    let scratch = Scratch::new().unwrap();
    let shown = toml_for(&Reader::Daemon);
    assert!(shown.len() >= 5, "{shown:?}");
    let config = scratch.path().join("config.toml");
    for block in &shown {
        fs::write(&config, &block.text).unwrap();
        run(&mut check(&config)).unwrap_or_else(|error| panic!("{block:?}: {error}"));
        // That it would notice.
        fs::write(&config, format!("no_such_key = 1\n{}", block.text)).unwrap();
        fail(&mut check(&config)).unwrap();
    }
}

#[test]
fn containerd_takes_what_a_document_shows_for_it() {
    let scratch = Scratch::new().unwrap();
    let shown = toml_for(&Reader::Containerd);
    assert!(shown.len() >= 5, "{shown:?}");
    let mut taken: BTreeMap<PathBuf, usize> = BTreeMap::new();
    let mut snapshotters = 0;
    for block in &shown {
        let dump = dumped(&scratch, &block.text);
        let text: Table = block.text.parse().unwrap();
        let values = assert_taken(&text.into(), &dump.clone().into(), "");
        *taken.entry(block.document.clone()).or_default() += values;
        // Of the names of CRI's plugin in old and new versions, the one that this version has.
        let plugins = &dump["plugins"];
        let images = plugins.get("io.containerd.cri.v1.images");
        let cri = plugins.get("io.containerd.grpc.v1.cri");
        let cri = images.or_else(|| cri?.get("containerd")).unwrap();
        if block.text.contains("disable_snapshot_annotations") {
            assert_eq!(cri["snapshotter"].as_str(), Some("soci"), "{block:?}");
            let without = cri["disable_snapshot_annotations"].as_bool();
            assert_eq!(without, Some(false), "{block:?}");
            snapshotters += 1;
        }
    }
    assert_eq!(snapshotters, 1, "blocks that choose the snapshotter");
    for document in ["README.md", "docs/install.md"] {
        let values = taken.get(&project().join(document));
        assert!(values.is_some_and(|values| *values >= 2), "{taken:?}");
    }
}

#[test]
fn hosts_files_json_and_yaml_in_the_documents_are_well_formed() {
    // `reader` parses each.
    assert!(!toml_for(&Reader::Hosts).is_empty());
    let json = all("json");
    assert!(!json.is_empty());
    for block in json {
        let parsed = serde_json::from_str::<serde_json::Value>(&block.text);
        parsed.unwrap_or_else(|error| panic!("{block:?}: {error}"));
    }
    for block in all("yaml") {
        let parsed = serde_saphyr::from_str::<serde_json::Value>(&block.text);
        parsed.unwrap_or_else(|error| panic!("{block:?}: {error}"));
    }
}

#[test]
fn the_daemonset_mounts_only_volumes_it_has_and_selects_the_pods_it_makes() {
    let text = fs::read_to_string(project().join("docs/daemonset.yaml")).unwrap();
    let set: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(set["apiVersion"], "apps/v1");
    assert_eq!(set["kind"], "DaemonSet");
    let template = &set["spec"]["template"];
    let labels = &template["metadata"]["labels"];
    assert!(labels.is_object());
    assert_eq!(&set["spec"]["selector"]["matchLabels"], labels);

    let pod = &template["spec"];
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let volumes: Vec<_> = list(&pod["volumes"])
        .iter()
        .map(|it| it["name"].clone())
        .collect();
    let mut mounts = 0;
    for container in [list(&pod["initContainers"]), list(&pod["containers"])].concat() {
        assert!(container["image"].is_string(), "{container}");
        for mount in list(&container["volumeMounts"]) {
            assert!(volumes.contains(&mount["name"]), "{mount}");
            mounts += 1;
        }
    }
    assert_eq!(mounts, 1);

    let script = pod["initContainers"][0]["command"][2].as_str().unwrap();
    run(command("sh").args(["-n", "-c", script])).unwrap();
}

#[test]
fn documents_show_no_configuration_in_a_language_that_nothing_here_reads() {
    let mut languages: Vec<String> = documents()
        .into_iter()
        .flat_map(|path| blocks(&path, &fs::read_to_string(&path).unwrap()))
        .map(|block| block.language)
        .collect();
    languages.sort();
    languages.dedup();
    languages.retain(|it| !["", "json", "toml", "yaml"].contains(&it.as_str()));
    assert_eq!(languages, [""; 0]);
}

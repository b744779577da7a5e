//! Every parser of bytes that come from outside, called with whatever there is: for the fuzz targets in
//! `daemon/fuzz`, and for the property tests below, which run everywhere. What is asserted is that nothing
//! panics or goes on for ever, and what a caller relies on in whatever is accepted.

mod answers;
mod calls;

use std::path::Path;

use bytes::Bytes;
use ztoc::Digest;

use crate::app::Address;
use crate::config::Config;
use crate::discovery::SociIndex;
use crate::registry::{Descriptor, Reference, probes};
use crate::snapshot::decision::Wanted;
use crate::snapshot::filter::Filters;
use crate::snapshot::record::{Entry, Kind, Labels, Record, SnapshotId, Source};

pub use answers::{kubelet, layout, manifest, prefetch, pull_secrets, referrers, token};
pub use calls::{control_call, cri_call, snapshots_call, stored_record};

/// A parser, by the name of its fuzz target.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("config", config),
    ("challenge", challenge),
    ("control_call", control_call),
    ("cri_call", cri_call),
    ("docker_config", docker_config),
    ("filter", filter),
    ("hosts_file", hosts_file),
    ("index", index),
    ("kubelet", kubelet),
    ("labels", labels),
    ("layout", layout),
    ("manifest", manifest),
    ("prefetch", prefetch),
    ("pull_secrets", pull_secrets),
    ("range", range),
    ("record", record),
    ("reference", reference),
    ("referrers", referrers),
    ("snapshots_call", snapshots_call),
    ("stored_record", stored_record),
    ("token", token),
];

/// The daemon's configuration file.
pub fn config(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok((config, _)) = Config::parse(&text, Path::new("config.toml")) {
        let again = config.to_toml().map(|text| {
            let parsed = Config::parse(&text, Path::new("config.toml"));
            parsed.map(|(config, unknown)| (config.to_toml().ok(), unknown.len()))
        });
        assert!(
            matches!(&again, Ok(Ok((Some(_), 0)))),
            "what is printed must be readable: {again:?}"
        );
    }
    let _ = text.parse::<Address>();
}

/// `WWW-Authenticate` of a registry.
pub fn challenge(bytes: &[u8]) {
    probes::challenge(&String::from_utf8_lossy(bytes));
}

/// Docker's `config.json`, after a line with the host that is asked for.
pub fn docker_config(bytes: &[u8]) {
    let (host, file) = first_line(bytes);
    probes::docker_config(file, &String::from_utf8_lossy(host));
}

/// A filter of a `List`.
pub fn filter(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    if let Ok(filters) = Filters::parse(&[text]) {
        filters.matches(&entry());
    }
}

/// A `hosts.toml`.
pub fn hosts_file(bytes: &[u8]) {
    probes::hosts_file(&String::from_utf8_lossy(bytes));
}

/// A SOCI index, a compact index, or any other manifest.
pub fn index(bytes: &[u8]) {
    if let Ok(index) = SociIndex::parse(Digest::of(bytes), bytes) {
        for ztoc in &index.layers {
            let found = index.ztoc(&ztoc.layer);
            assert!(found.is_some_and(|found| found.layer == ztoc.layer));
        }
    }
    if let Ok(index) = SociIndex::parse_compact(Digest::of(bytes), bytes) {
        for layer in index.indexed() {
            assert!(index.has(&layer) && !index.forms(&layer).is_empty());
        }
    }
    if let Ok(descriptor) = serde_json::from_slice::<Descriptor>(bytes) {
        let again = serde_json::to_vec(&descriptor).map(|text| serde_json::from_slice(&text).ok());
        assert_eq!(again.ok().flatten(), Some(descriptor));
    }
}

/// The labels of a `Prepare`: `label=value` lines.
pub fn labels(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let lines = text.lines().filter_map(|line| line.split_once('='));
    let labels: Labels = lines
        .map(|(label, value)| (label.to_owned(), value.to_owned()))
        .collect();
    if let Wanted::Layer {
        request: Ok(request),
        ..
    } = Wanted::of(&labels, "default")
    {
        let again = request.image.to_string().parse::<Reference>();
        assert_eq!(again.as_ref(), Ok(&request.image));
        assert!(!request.layers_above.is_empty());
    }
}

/// An answer to a ranged request: a line with its content type, one with its `Content-Range`, then its body.
pub fn range(bytes: &[u8]) {
    let (content_type, rest) = first_line(bytes);
    let (range, body) = first_line(rest);
    let length = body.len() as u64;
    let body = Bytes::copy_from_slice(body);
    let [content_type, range] = [content_type, range].map(String::from_utf8_lossy);
    for wanted in [0..1, 0..length.max(1), length / 3..length / 2 + 1] {
        probes::range(&content_type, &range, &body, wanted);
    }
}

/// The record of a mounted view.
pub fn record(bytes: &[u8]) {
    crate::view::probe(bytes);
}

/// An image reference.
pub fn reference(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for parse in [|text: &str| text.parse::<Reference>(), Reference::qualified] {
        if let Ok(reference) = parse(&text) {
            let again = parse(&reference.to_string());
            assert_eq!(again.as_ref(), Ok(&reference));
            // These become parts of URLs.
            for part in [reference.host(), reference.repository()] {
                let odd = |c: char| c.is_control() || c.is_whitespace() || "?#%\\".contains(c);
                assert!(!part.contains(odd) && !part.contains("//"), "{part:?}");
                assert!(part.split('/').all(|name| name != ".." && name != "."));
            }
        }
    }
}

fn first_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    end.map_or((bytes, &[][..]), |end| (&bytes[..end], &bytes[end + 1..]))
}

fn entry() -> Entry {
    Entry {
        key: "default/3/sha256:abc".to_owned(),
        record: Record {
            id: SnapshotId(3),
            kind: Kind::Committed,
            parent: None,
            labels: Labels::from([("label".to_owned(), "value".to_owned())]),
            created: time::OffsetDateTime::UNIX_EPOCH,
            updated: time::OffsetDateTime::UNIX_EPOCH,
            source: Source::Directory,
            usage: None,
        },
    }
}

#[cfg(test)]
mod tests;

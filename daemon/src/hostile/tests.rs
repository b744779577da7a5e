//! The parsers with bytes of all kinds: noise, and valid files (the fuzzers' seeds) that were cut, spliced,
//! repeated and changed.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use prost::Message as _;
use proto::containerd::services::snapshots::v1::{PrepareSnapshotRequest, UpdateSnapshotRequest};

use super::*;

/// Largest input, in bytes.
const LARGEST: usize = 64 << 10;
/// No input of that size may keep a parser for so long, even on a slow machine with other work.
const PATIENCE: Duration = Duration::from_secs(20);

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let dir = root.join("fuzz/seeds").join(target);
    let entries = fs::read_dir(&dir).unwrap_or_else(|_| panic!("no seeds in {}", dir.display()));
    let seeds: Vec<_> = entries
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .collect();
    assert!(!seeds.is_empty());
    seeds
}

/// One change to an input.
#[derive(Debug, Clone)]
enum Change {
    Set(prop::sample::Index, u8),
    Cut(prop::sample::Index, prop::sample::Index),
    Repeat(prop::sample::Index, prop::sample::Index, u8),
    Insert(prop::sample::Index, String),
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        (index(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (index(), index()).prop_map(|(from, to)| Change::Cut(from, to)),
        (index(), index(), any::<u8>())
            .prop_map(|(from, to, times)| Change::Repeat(from, to, times)),
        (
            index(),
            "\\PC{0,8}|[\"'\\[\\]{}=,:/@\\\\\n.*+-]{1,6}|18446744073709551615|-1|null"
        )
            .prop_map(|(at, text)| Change::Insert(at, text)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    let length = bytes.len();
    let between = |one: &prop::sample::Index, two: &prop::sample::Index| {
        let (one, two) = (one.index(length + 1), two.index(length + 1));
        one.min(two)..one.max(two)
    };
    match change {
        Change::Set(at, byte) if length > 0 => bytes[at.index(length)] = *byte,
        Change::Set(..) => {}
        Change::Cut(from, to) => drop(bytes.drain(between(from, to))),
        Change::Repeat(from, to, times) => {
            let range = between(from, to);
            let part = bytes[range.clone()].repeat(usize::from(*times));
            bytes.splice(range, part);
        }
        Change::Insert(at, text) => {
            let at = at.index(length + 1);
            bytes.splice(at..at, text.bytes());
        }
    }
    bytes.truncate(LARGEST);
}

fn inputs(target: &str) -> impl Strategy<Value = Vec<u8>> + use<> {
    let changed = (
        prop::sample::select(seeds(target)),
        prop::collection::vec(change(), 0..6),
    );
    let changed = changed.prop_map(|(mut bytes, changes)| {
        changes.iter().for_each(|change| apply(&mut bytes, change));
        bytes
    });
    prop_oneof![
        8 => changed,
        1 => prop::collection::vec(any::<u8>(), 0..300),
        1 => "\\PC{0,100}".prop_map(String::into_bytes),
    ]
}

#[test]
fn no_bytes_from_outside_make_a_parser_panic() {
    for (name, target) in TARGETS {
        // PROPTEST_CASES asks for more.
        let mut runner = TestRunner::new(ProptestConfig::default());
        let done = runner.run(&inputs(name), |bytes| {
            target(&bytes);
            Ok(())
        });
        done.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn seeds_are_what_their_targets_accept() {
    // Else the tests above would test little: each of these is read to its end.
    for seed in seeds("config") {
        let text = String::from_utf8(seed).unwrap();
        Config::parse(&text, Path::new("config.toml")).unwrap();
    }
    for seed in seeds("index") {
        let digest = Digest::of(&seed);
        let index = SociIndex::parse(digest, &seed);
        index
            .or_else(|_| SociIndex::parse_compact(digest, &seed))
            .unwrap();
    }
    for seed in seeds("prefetch") {
        ztoc::index::Prefetch::parse(&seed).unwrap();
    }
    for seed in seeds("stored_record") {
        serde_json::from_slice::<Record>(&seed).unwrap();
    }
    for seed in seeds("snapshots_call") {
        PrepareSnapshotRequest::decode(&*seed)
            .map(drop)
            .or_else(|_| UpdateSnapshotRequest::decode(&*seed).map(drop))
            .unwrap();
    }
    for seed in seeds("filter") {
        Filters::parse(&[String::from_utf8(seed).unwrap()]).unwrap();
    }
    for seed in seeds("reference") {
        std::str::from_utf8(&seed)
            .unwrap()
            .parse::<Reference>()
            .unwrap();
    }
}

#[test]
fn depth_and_repetition_cost_no_more_than_their_length() {
    let start = Instant::now();
    for (name, target) in TARGETS {
        for unit in [
            "[", "{\"a\":", "(", "a=[", "\"", "\\", ",", "[[a]]\n", "a.", "a:", "x=\"", "--b",
        ] {
            target(unit.repeat(LARGEST / unit.len()).as_bytes());
        }
        // Limits that hold one by one, and not together.
        let key = format!("{}=", ["a"; 78].join("."));
        for open in ["{", "["] {
            let deep = [open, &key].concat().repeat(70);
            target(format!("a={deep}1{}", "}".repeat(70)).as_bytes());
        }
        for seed in seeds(name) {
            target(&seed.repeat(LARGEST / seed.len().max(1)));
        }
    }
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
}

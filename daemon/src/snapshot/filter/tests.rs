#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use time::OffsetDateTime;

use super::*;
use crate::snapshot::record::{Kind, Record, SnapshotId, Source};

fn entry() -> Entry {
    let labels = [
        ("containerd.io/snapshot.ref", "sha256:abc"),
        ("plain", "yes"),
    ];
    Entry {
        key: "default/3/sha256:abc".to_owned(),
        record: Record {
            id: SnapshotId(3),
            kind: Kind::Committed,
            parent: Some("default/2/a \"quoted\" name".to_owned()),
            labels: labels
                .map(|(label, value)| (label.to_owned(), value.to_owned()))
                .into(),
            created: OffsetDateTime::UNIX_EPOCH,
            updated: OffsetDateTime::UNIX_EPOCH,
            source: Source::Directory,
            usage: None,
        },
    }
}

fn matches(filters: &[&str]) -> bool {
    let filters: Vec<String> = filters.iter().map(|text| (*text).to_owned()).collect();
    Filters::parse(&filters).unwrap().matches(&entry())
}

#[test]
fn conditions_hold_as_containerd_means_them() {
    let cases = [
        ("", true),
        ("name", true),
        ("nosuchfield", false),
        ("kind==committed", true),
        ("kind==active", false),
        ("kind!=active", true),
        ("name==default/3/sha256:abc", true),
        (r#"name=="default/3/sha256:abc""#, true),
        (r#"parent=="default/2/a \"quoted\" name""#, true),
        (r#"parent=="default/2/a \x22quoted\u0022 \156ame""#, true),
        ("labels.plain", true),
        ("labels.plain==yes", true),
        ("labels.other", false),
        ("labels.other!=yes", true),
        (r#"labels."containerd.io/snapshot.ref"==sha256:abc"#, true),
        (
            r#"labels."containerd.io/snapshot.ref"=="sha256:abd""#,
            false,
        ),
        ("name~=^default/[0-9]+/", true),
        ("name~=/sha256:[a-f]+$/", true),
        (r"name~=/default\/3/", true),
        ("name~=|^k8s|", false),
        ("kind==committed,labels.plain==yes", true),
        ("kind==committed, labels.plain==no", false),
        (" kind == committed ", true),
    ];
    for (filter, wanted) in cases {
        assert_eq!(matches(&[filter]), wanted, "{filter}");
    }
}

#[test]
fn the_filter_of_containerds_metadata_store_finds_its_layer() {
    let filter = concat!(
        r#"labels."containerd.io/snapshot.ref"==sha256:abc,"#,
        r#"parent=="default/2/a \"quoted\" name""#
    );
    assert!(matches(&[filter]));
}

#[test]
fn one_of_several_filters_is_enough() {
    assert!(matches(&["kind==view", "kind==committed"]));
    assert!(!matches(&["kind==view", "kind==active"]));
    assert!(matches(&[]));
}

#[test]
fn malformed_filters_are_refused_with_their_position() {
    let cases = [
        (",", 0),
        ("name,", 5),
        ("name=x", 4),
        ("name==", 6),
        ("name===x", 4),
        ("name==\"x", 6),
        (r#"name=="\q""#, 6),
        (r#"name=="\xff""#, 6),
        (r#"name=="\400""#, 6),
        ("name==/x/", 6),
        ("name~=(", 6),
        ("name~=((a{1000}){1000}){1000}", 6),
        ("name x", 5),
        ("labels.", 7),
        ("é", 0),
    ];
    for (filter, position) in cases {
        let error = Filters::parse(&[filter.to_owned()]).unwrap_err();
        assert_eq!(error.position, position, "{filter}: {error}");
    }
}

#[test]
fn the_number_and_length_of_filters_are_bounded() {
    assert!(Filters::parse(&vec![String::new(); MAX_FILTERS + 1]).is_err());
    assert!(Filters::parse(&["a".repeat(MAX_LENGTH + 1)]).is_err());
}

/// Quotes as Go's `%q` does for printable text.
fn go_quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

proptest! {
    #[test]
    fn no_text_brings_the_parser_down(filter in "\\PC{0,60}") {
        let _ = Filters::parse(&[filter]);
    }

    #[test]
    fn no_text_of_the_grammars_characters_brings_the_parser_down(
        filter in r#"[a-c."/|,=!~\\xu0 ]{0,40}"#,
    ) {
        if let Ok(filters) = Filters::parse(&[filter]) {
            filters.matches(&entry());
        }
    }

    #[test]
    fn a_quoted_name_matches_exactly_itself(name in "[ -~äß€]{0,40}", other in "[ -~]{0,40}") {
        let mut entry = entry();
        entry.key = name.clone();
        let filter = |text: &str| Filters::parse(&[format!("name=={}", go_quote(text))]).unwrap();
        prop_assert!(filter(&name).matches(&entry));
        prop_assert_eq!(filter(&other).matches(&entry), name == other);
    }
}

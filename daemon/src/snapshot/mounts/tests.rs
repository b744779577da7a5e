#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use time::OffsetDateTime;
use ztoc::Digest;

use super::*;
use crate::snapshot::record::Source;

fn lazy(number: u64) -> LazyLayer {
    LazyLayer {
        digest: Digest::of(&number.to_le_bytes()),
        image: "registry.example/app:1".parse().unwrap(),
    }
}

/// A chain, nearest first: numbers of snapshots and whether they are lazy.
fn chain(layers: &[(u64, bool)]) -> Vec<Record> {
    let record = |&(id, is_lazy): &(u64, bool)| Record {
        id: SnapshotId(id),
        kind: Kind::Committed,
        parent: None,
        labels: Default::default(),
        created: OffsetDateTime::UNIX_EPOCH,
        updated: OffsetDateTime::UNIX_EPOCH,
        source: if is_lazy {
            Source::lazy(&lazy(id))
        } else {
            Source::Directory
        },
        usage: None,
    };
    layers.iter().map(record).collect()
}

fn files(id: SnapshotId) -> PathBuf {
    format!("/s/{id}/fs").into()
}

fn directory(id: u64) -> Lower {
    Lower::Directory(files(SnapshotId(id)))
}

fn run(layers: &[u64], stacked: bool) -> Lower {
    Lower::View(LazyRun {
        layers: layers.iter().map(|id| lazy(*id)).collect(),
        stacked,
        ids: None,
    })
}

#[test]
fn neighbouring_lazy_layers_become_one_view_with_the_bottom_first() {
    let chain = chain(&[(5, true), (4, true), (3, false), (2, true), (1, true)]);
    assert_eq!(
        lowers(&chain, None, files).unwrap(),
        [run(&[4, 5], true), directory(3), run(&[1, 2], false)]
    );
}

#[test]
fn a_run_on_an_unpacked_layer_is_stacked() {
    let chain = chain(&[(3, false), (2, true), (1, false)]);
    assert_eq!(
        lowers(&chain, None, files).unwrap(),
        [directory(3), run(&[2], true), directory(1)]
    );
}

#[test]
fn a_corrupt_record_is_an_error_and_no_panic() {
    let mut chain = chain(&[(1, true)]);
    chain[0].source = Source::Lazy {
        layer: "md5:00".to_owned(),
        image: "x".to_owned(),
    };
    assert!(matches!(
        lowers(&chain, None, files),
        Err(SnapshotError::Corrupt { .. })
    ));
}

fn mount(kind: Kind, lowers: &[&str]) -> (String, String, Vec<String>) {
    let lowers: Vec<PathBuf> = lowers.iter().map(PathBuf::from).collect();
    let [mount]: [Mount; 1] = mounts(kind, Path::new("/s/7"), &lowers, OverlayOptions::default())
        .try_into()
        .unwrap();
    (mount.kind.to_owned(), mount.source, mount.options)
}

#[test]
fn mounts_are_those_of_an_overlay_snapshotter() {
    let expected = |kind: &str, source: &str, options: &[&str]| {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        (kind.to_owned(), source.to_owned(), options)
    };
    assert_eq!(
        mount(Kind::Active, &[]),
        expected("bind", "/s/7/fs", &["rw", "rbind"])
    );
    assert_eq!(
        mount(Kind::View, &[]),
        expected("bind", "/s/7/fs", &["ro", "rbind"])
    );
    assert_eq!(
        mount(Kind::View, &["/a"]),
        expected("bind", "/a", &["ro", "rbind"])
    );
    assert_eq!(
        mount(Kind::View, &["/b", "/a"]),
        expected("overlay", "overlay", &["lowerdir=/b:/a"])
    );
    assert_eq!(
        mount(Kind::Active, &["/b", "/a"]),
        expected(
            "overlay",
            "overlay",
            &["workdir=/s/7/work", "upperdir=/s/7/fs", "lowerdir=/b:/a"]
        )
    );
}

#[test]
fn what_the_kernel_wants_is_said_in_options() {
    let options = OverlayOptions {
        index_off: true,
        user_xattr: true,
    };
    let mounts = mounts(
        Kind::View,
        Path::new("/s"),
        &["/b".into(), "/a".into()],
        options,
    );
    assert_eq!(
        mounts[0].options,
        ["index=off", "userxattr", "lowerdir=/b:/a"]
    );
}

proptest! {
    #[test]
    fn every_layer_is_in_exactly_one_lower_in_order(
        kinds in proptest::collection::vec(any::<bool>(), 0..40),
    ) {
        let layers: Vec<(u64, bool)> = (0u64..).zip(kinds.iter().copied()).collect();
        let lowers = lowers(&chain(&layers), None, files).unwrap();
        let flat: Vec<Lower> = layers
            .iter()
            .map(|&(id, is_lazy)| if is_lazy { run(&[id], false) } else { directory(id) })
            .collect();
        let mut seen = Vec::new();
        for (at, lower) in lowers.iter().enumerate() {
            match lower {
                Lower::Directory(_) => seen.push(lower.clone()),
                Lower::View(found) => {
                    prop_assert_eq!(found.stacked, at + 1 < lowers.len());
                    prop_assert!(!matches!(lowers.get(at + 1), Some(Lower::View(_))));
                    seen.extend(found.layers.iter().rev().map(|layer| {
                        Lower::View(LazyRun { layers: vec![layer.clone()], stacked: false, ids: None })
                    }));
                }
            }
        }
        prop_assert_eq!(seen, flat);
    }
}

//! Directories as readdir(3) sees them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::thread;

use crate::layer::{Member, archive};
use crate::mounts::{MountedView, Overlay};

const NAMES: usize = 20_000;

fn huge() -> Vec<Vec<u8>> {
    let names = |from: usize, to: usize| {
        let mut members = vec![Member::directory("d/")];
        members.extend((from..to).map(|number| Member::file(format!("d/name-{number}"), "")));
        archive(&members)
    };
    vec![names(0, NAMES / 2), names(NAMES / 4, NAMES)]
}

fn expected() -> BTreeSet<Vec<u8>> {
    (0..NAMES)
        .map(|number| format!("name-{number}").into_bytes())
        .collect()
}

#[test]
fn every_name_of_a_huge_directory_is_listed_once() {
    let view = MountedView::of(&huge());
    let overlay = Overlay::new(&[view.path()]);
    for root in [view.path(), overlay.path()] {
        let names: Vec<_> = fs::read_dir(root.join("d"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().as_bytes().to_vec())
            .collect();
        assert_eq!(names.len(), NAMES);
        assert_eq!(BTreeSet::from_iter(names), expected());
    }
}

#[test]
fn several_readers_of_a_huge_directory_see_all_of_it() {
    let view = MountedView::of(&huge());
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let path = view.path().join("d");
            thread::spawn(move || fs::read_dir(path).unwrap().map(Result::unwrap).count())
        })
        .collect();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), NAMES);
    }
}

#[test]
fn a_position_in_a_directory_can_be_returned_to() {
    let view = MountedView::of(&huge());
    let mut directory = nix::dir::Dir::open(
        &view.path().join("d"),
        nix::fcntl::OFlag::O_RDONLY,
        nix::sys::stat::Mode::empty(),
    )
    .unwrap();
    let all = |directory: &mut nix::dir::Dir| -> Vec<Vec<u8>> {
        let names = directory
            .iter()
            .map(|entry| entry.unwrap().file_name().to_bytes().to_vec());
        names.collect()
    };
    // The iterator rewinds the directory when it is dropped.
    let first = all(&mut directory);
    let partly = directory.iter().take(7000).count();
    assert_eq!((first.len(), partly), (NAMES + 2, 7000));
    assert_eq!(all(&mut directory), first);
    assert_eq!((&first[0][..], &first[1][..]), (&b"."[..], &b".."[..]));
}

#[test]
fn a_listing_gives_the_inode_numbers_that_stat_gives() {
    let tar = archive(&[
        Member::directory("d/"),
        Member::file("d/one", ""),
        Member::hard_link("d/two", "d/one"),
        Member::directory("d/sub/"),
    ]);
    let view = MountedView::of(&[tar]);
    let number = |path: &str| fs::symlink_metadata(view.path().join(path)).unwrap().ino();
    for entry in fs::read_dir(view.path().join("d")).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.ino(), entry.metadata().unwrap().ino());
    }
    assert_eq!(number("d/one"), number("d/two"));
    assert_eq!(number("d/sub/.."), number("d"));
    assert_eq!(number("d/sub/../.."), number(""));
}

//! Views mounted for real, looked at with the kernel's eyes. Needs root and /dev/fuse.
#![allow(clippy::unwrap_used, missing_docs)]

mod layer;
mod mounts;

use std::fs;

use crate::layer::{Member, archive};
use crate::mounts::MountedView;

#[test]
fn a_file_is_read_through_the_mount() {
    let tar = archive(&[Member::directory("a/"), Member::file("a/b", "hello")]);
    let view = MountedView::of(&[tar]);
    assert_eq!(fs::read(view.path().join("a/b")).unwrap(), b"hello");
    let names: Vec<_> = fs::read_dir(view.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["a"]);
}

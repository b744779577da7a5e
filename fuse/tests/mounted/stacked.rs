//! A view with other lowerdirs below it.

use std::path::Path;

use fuse::{Extent, IdMap, IdMapping, LowerDirectory, View};
use tempfile::TempDir;

use crate::containerd::Containerd;
use crate::layer::{Member, archive, extract, layer};
use crate::mounts::{MountedView, Overlay};
use crate::walk::{assert_same, look, walk};

fn bottom() -> Vec<u8> {
    archive(&[
        Member::directory("a/").mtime(11),
        Member::file("a/gone", "1"),
        Member::file("a/kept", "1"),
        Member::directory("opaque/").mtime(12),
        Member::file("opaque/hidden", "1"),
        Member::directory("opaque/sub/").mtime(13),
        Member::file("opaque/sub/hidden", "1"),
        Member::directory("removed/").mtime(14),
        Member::file("removed/x", "1"),
        Member::directory("again/").mtime(15),
        Member::file("again/old", "1"),
        Member::directory("was-file/").mtime(16),
        Member::file("was-file/old", "1"),
        Member::directory("untouched/").mtime(17),
        Member::file("untouched/x", "1"),
    ])
}

fn middle() -> Vec<u8> {
    archive(&[
        Member::directory("a/").mtime(21),
        Member::file("a/.wh.gone", ""),
        Member::directory("opaque/").mtime(22),
        Member::file("opaque/.wh..wh..opq", ""),
        Member::file("opaque/.wh.pointless", ""),
        Member::file("opaque/new", "2"),
        Member::file(".wh.removed", ""),
        Member::file(".wh.again", ""),
        Member::file("was-file", "2"),
    ])
}

fn top() -> Vec<u8> {
    archive(&[
        Member::directory("opaque/").mtime(32),
        Member::directory("opaque/sub/").mtime(33),
        Member::file("opaque/sub/top", "3"),
        Member::directory("again/").mtime(35),
        Member::file("again/new", "3"),
        Member::directory("was-file/").mtime(36),
        Member::file("was-file/new", "3"),
        Member::directory("a/").mtime(37),
        Member::file("a/kept", "3").mode(0o600),
    ])
}

#[test]
fn lower_directories_are_hidden_as_by_the_unpacked_layers() {
    let unpacked_bottom = TempDir::new().unwrap();
    extract(&bottom(), unpacked_bottom.path());
    let view = MountedView::new(vec![layer(&middle()), layer(&top())], true);
    let overlay = Overlay::new(&[view.path(), unpacked_bottom.path()]);
    let containerd = Containerd::start();
    let mut ours = walk(overlay.path());
    let mut theirs = walk(&containerd.unpack(&[bottom(), middle(), top()]));
    for tree in [&mut ours, &mut theirs] {
        let root = tree.get_mut(Path::new("")).unwrap();
        // Time and mode of the directories that the test and containerd made.
        (root.mtime, root.mode) = ((0, 0), 0);
    }
    assert_same(&ours, &theirs);
}

#[test]
fn whiteouts_show_only_where_something_below_can_be_hidden() {
    let view = MountedView::new(vec![layer(&middle()), layer(&top())], true);
    let seen = walk(view.path());
    let removed = &seen[Path::new("removed")];
    assert_eq!((removed.mode, removed.device), (0o020000, 0));
    assert_eq!((removed.size, removed.nlink), (0, 1));
    assert!(!seen.contains_key(Path::new("opaque/pointless")));
    let opaque = |path: &str| xattr::get(view.path().join(path), "trusted.overlay.opaque").unwrap();
    assert_eq!(opaque("opaque"), Some(b"y".to_vec()));
    assert_eq!(
        opaque("again"),
        Some(b"y".to_vec()),
        "it was removed in between"
    );
    assert_eq!(
        opaque("was-file"),
        Some(b"y".to_vec()),
        "it was a file in between"
    );
    assert_eq!(
        opaque("opaque/sub"),
        None,
        "nothing below its parent can be seen anyway"
    );
    assert_eq!(opaque("a"), None);
}

#[test]
fn a_view_on_the_bottom_shows_no_trace_of_whiteouts() {
    let view = MountedView::new(
        vec![layer(&bottom()), layer(&middle()), layer(&top())],
        false,
    );
    let seen = walk(view.path());
    assert!(!seen.contains_key(Path::new("removed")));
    assert!(seen.values().all(|seen| seen.xattrs.is_empty()));
    assert_eq!(look(&view.path().join("opaque")).nlink, 1);
}

#[test]
fn a_directory_that_is_only_implied_has_the_attributes_it_has_below_the_view() {
    let bottom = archive(&[
        Member::directory("tmp/").mode(0o1777),
        Member::directory("home/").mode(0o711).owner(1, 2),
        Member::directory("home/user/")
            .mode(0o700)
            .owner(1000, 1000),
        Member::file("was-file", "1"),
    ]);
    let top = archive(&[
        Member::file("tmp/x", "2"),
        Member::file("home/user/.cache/y", "2"),
        Member::file("new/z", "2"),
    ]);
    let unpacked_bottom = TempDir::new().unwrap();
    extract(&bottom, unpacked_bottom.path());
    std::os::unix::fs::symlink("/", unpacked_bottom.path().join("new")).unwrap();
    let layers = vec![layer(&archive(&[])), layer(&top)];
    let view = View::new(layers, true)
        .with_lower(&[LowerDirectory {
            path: unpacked_bottom.path(),
            ids: None,
        }])
        .unwrap();
    let view = MountedView::serving(view);
    let overlay = Overlay::new(&[view.path(), unpacked_bottom.path()]);
    let attributes = |path: &str| {
        let seen = look(&overlay.path().join(path));
        (seen.mode & 0o7777, seen.owner)
    };
    assert_eq!(attributes("tmp"), (0o1777, (0, 0)));
    assert_eq!(attributes("home"), (0o711, (1, 2)));
    assert_eq!(attributes("home/user"), (0o700, (1000, 1000)));
    assert_eq!(attributes("home/user/.cache"), (0o755, (0, 0)));
    assert_eq!(attributes("new"), (0o755, (0, 0)), "a link is not followed");
}

#[test]
fn a_directory_that_is_only_implied_has_the_mapped_owner_that_it_has_below_a_view_that_maps() {
    let map = |host| {
        let extent = Extent {
            container: 0,
            host,
            length: 65_536,
        };
        IdMap::new(vec![extent]).unwrap()
    };
    let ids = IdMapping {
        users: map(100_000),
        groups: map(200_000),
    };
    let bottom = archive(&[
        Member::directory("home/").mode(0o711).owner(1, 2),
        Member::directory("beyond/").owner(3, 70_000),
    ]);
    let top = archive(&[
        Member::file("home/x", "2").owner(5, 6),
        Member::file("beyond/y", "2"),
        Member::file("new/z", "2"),
    ]);
    // Once unpacked, with the image's owners; once in a view that shows the mapped ones.
    let unpacked = TempDir::new().unwrap();
    extract(&bottom, unpacked.path());
    let view = View::new(vec![layer(&bottom)], false).with_ids(Some(ids.clone()));
    let view = MountedView::serving(view);
    for (path, shown) in [(unpacked.path(), None), (view.path(), Some(&ids))] {
        let below = LowerDirectory { path, ids: shown };
        let above = View::new(vec![layer(&top)], true).with_ids(Some(ids.clone()));
        let above = MountedView::serving(above.with_lower(&[below]).unwrap());
        let attributes = |path: &str| {
            let seen = look(&above.path().join(path));
            (seen.mode & 0o7777, seen.owner)
        };
        assert_eq!(attributes("home"), (0o711, (100_001, 200_002)));
        assert_eq!(attributes("home/x"), (0o644, (100_005, 200_006)));
        assert_eq!(attributes("beyond"), (0o755, (100_003, 65_534)));
        assert_eq!(attributes("new"), (0o755, (100_000, 200_000)));
    }
}

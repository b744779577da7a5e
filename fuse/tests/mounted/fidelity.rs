//! A view below an overlay looks like the same layers unpacked by containerd.

use std::fs;
use std::io::Read;
use std::path::Path;

use tar::EntryType;

use crate::containerd::Containerd;
use crate::layer::{Member, archive};
use crate::mounts::{MountedView, Overlay};
use crate::walk::{Tree, assert_same, walk};

/// Asserts that `layers`, bottom first, look the same lazily and unpacked.
fn assert_as_unpacked(layers: &[Vec<u8>]) {
    assert_as_unpacked_but_for_times_of(&[], layers);
}

/// The same, but for the times of `implied` directories: containerd leaves the time there at which
/// it made them, as it does for the root.
fn assert_as_unpacked_but_for_times_of(implied: &[&str], layers: &[Vec<u8>]) {
    let view = MountedView::of(layers);
    let overlay = Overlay::new(&[view.path()]);
    let containerd = Containerd::start();
    let (mut ours, mut theirs) = (walk(overlay.path()), walk(&containerd.unpack(layers)));
    for tree in [&mut ours, &mut theirs] {
        forget_mtime(tree, "");
        for path in implied {
            forget_mtime(tree, path);
        }
        forget_blocks_of_attributes(tree);
    }
    assert_same(&ours, &theirs);
}

/// ext4 puts extended attributes that are too large for the inode into a block and counts it.
fn forget_blocks_of_attributes(tree: &mut Tree) {
    for seen in tree.values_mut() {
        if seen.xattrs.values().map(Vec::len).sum::<usize>() > 50 {
            seen.blocks = 0;
        }
    }
}

fn forget_mtime(tree: &mut Tree, path: &str) {
    if let Some(seen) = tree.get_mut(Path::new(path)) {
        seen.mtime = (0, 0);
    }
}

#[test]
fn kinds_modes_owners_and_times_are_those_of_the_unpacked_layer() {
    let long = "n".repeat(255);
    assert_as_unpacked(&[archive(&[
        Member::directory("./"),
        Member::directory("./d/").mode(0o1777).owner(5, 6).mtime(7),
        Member::file("d/plain", vec![7; 5000])
            .owner(1000, 1001)
            .mtime(1),
        Member::file("d/empty", ""),
        Member::file("d/setuid", "#!").mode(0o4755).owner(3, 4),
        Member::file("d/setgid", "#!").mode(0o2755),
        Member::file("d/none", "x").mode(0),
        Member::file(format!("d/{long}"), "long"),
        Member::file(b"d/\xff\xfe\x80", "bytes"),
        Member::symlink("d/short", "plain").owner(9, 9),
        Member::symlink("d/dangling", "../../nowhere"),
        Member::symlink("d/59", "t".repeat(59)),
        Member::symlink("d/60", "t".repeat(60)),
        Member::symlink("d/300", format!("a/{}", "t".repeat(298))),
        Member::new("d/null", EntryType::Char, 0o666).device(1, 3),
        Member::new("d/block", EntryType::Block, 0o600)
            .device(259, 1048575)
            .owner(1, 2),
        Member::new("d/pipe", EntryType::Fifo, 0o640),
        Member::directory("d/sub/"),
        Member::directory("d/sub/a/"),
        Member::directory("d/sub/b/"),
        Member::file("d/capable", "x").xattr(
            "security.capability",
            b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ),
        Member::file("d/user", "x")
            .xattr("user.one", "1")
            .xattr("user.two", ""),
        Member::directory("d/sub/x/").xattr("user.dir", "dir"),
    ])]);
}

#[test]
fn hard_links_are_those_of_the_unpacked_layer() {
    assert_as_unpacked(&[archive(&[
        Member::directory("a/"),
        Member::file("a/one", "data")
            .mode(0o640)
            .owner(1, 2)
            .xattr("user.a", "1"),
        Member::hard_link("a/two", "a/one")
            .mode(0o777)
            .owner(3, 4)
            .mtime(12)
            .xattr("user.b", "2"),
        Member::hard_link("three", "./a/two")
            .mode(0o700)
            .owner(5, 6)
            .mtime(13),
        Member::file("set", "data").mode(0o6755).owner(1, 2),
        Member::hard_link("set2", "/set").mode(0o6755).owner(1, 2),
        Member::symlink("sym", "a"),
        Member::hard_link("sym2", "sym"),
        Member::hard_link("through", "sym/one").owner(8, 8),
        Member::new("pipe", EntryType::Fifo, 0o640),
        Member::hard_link("pipe2", "pipe"),
        Member::file("capable", "x").xattr(
            "security.capability",
            b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ),
        Member::hard_link("capable2", "capable"),
    ])]);
}

#[test]
fn names_that_come_again_replace_what_was_there() {
    assert_as_unpacked(&[archive(&[
        Member::directory("d/").mode(0o700).xattr("user.first", "1"),
        Member::file("d/kept", "kept"),
        Member::directory("d/")
            .mode(0o711)
            .owner(4, 4)
            .mtime(44)
            .xattr("user.second", "2"),
        Member::file("f", "old"),
        Member::file("f", "new").mode(0o600),
        Member::directory("gone/"),
        Member::file("gone/child", "x"),
        Member::file("gone", "now a file"),
        Member::file("file", "x"),
        Member::directory("file/").mtime(3),
        Member::symlink("link", "d"),
        Member::directory("link/").mtime(4),
        Member::file("linked", "one"),
        Member::hard_link("linked2", "linked"),
        Member::file("linked", "two"),
    ])]);
}

#[test]
fn names_are_cleaned_and_parents_followed_as_by_containerd() {
    assert_as_unpacked(&[archive(&[
        Member::directory("usr/"),
        Member::directory("usr/lib/").mtime(9),
        Member::directory("deep/").mtime(1),
        Member::directory("deep/er/").mtime(1),
        Member::symlink("lib", "usr/lib"),
        Member::file("lib/through-link", "1"),
        Member::symlink("abs", "/usr/lib"),
        Member::file("abs/through-absolute", "2"),
        Member::symlink("up", "../../../usr"),
        Member::file("up/lib/through-parents", "3"),
        Member::symlink("chain", "up/lib"),
        Member::file("chain/through-chain", "4"),
        Member::file("/absolute", "5"),
        Member::file("../../escaping", "6"),
        Member::file("usr/../dotted", "7"),
        Member::file("deep/../deep/./er//messy", "8"),
        Member::directory("usr/lib/").mtime(9),
    ])]);
}

#[test]
fn whiteouts_and_opaque_directories_hide_what_they_hide_unpacked() {
    let bottom = archive(&[
        Member::directory("a/").mode(0o700).owner(1, 1).mtime(11),
        Member::file("a/gone", "1"),
        Member::file("a/kept", "1"),
        Member::directory("a/sub/").mtime(12),
        Member::file("a/sub/x", "1"),
        Member::directory("opaque/").mtime(13),
        Member::file("opaque/hidden", "1"),
        Member::directory("opaque/sub/").mtime(14),
        Member::file("opaque/sub/hidden", "1"),
        Member::directory("removed/").mtime(15),
        Member::file("removed/x", "1"),
        Member::directory("again/").mtime(16),
        Member::file("again/old", "1"),
        Member::directory("file-then-dir/"),
        Member::file("file-then-dir/old", "1"),
        Member::file("dir-then", "1"),
        Member::file("back", "1"),
        Member::file("linked", "1"),
        Member::hard_link("linked2", "linked"),
        Member::file("zero", "1"),
        Member::directory("only/").mtime(3),
        Member::directory("only/one/").mtime(3),
    ]);
    let middle = archive(&[
        Member::directory("a/").mode(0o750).owner(2, 2).mtime(21),
        Member::file("a/.wh.gone", ""),
        Member::directory("a/sub/").mtime(22),
        Member::file("a/sub/y", "2"),
        Member::directory("opaque/").mtime(23),
        Member::file("opaque/.wh..wh..opq", ""),
        Member::file("opaque/new", "2"),
        Member::file(".wh.removed", ""),
        Member::file(".wh.again", ""),
        Member::file("file-then-dir", "2"),
        Member::directory("dir-then/").mtime(24),
        Member::file("dir-then/x", "2"),
        Member::file(".wh.back", ""),
        Member::file(".wh.linked", ""),
        Member::new("zero", EntryType::Char, 0).device(0, 0),
        Member::file(".wh.never-there", ""),
        Member::file(".wh.real", ""),
        Member::file("real", "2"),
        Member::file(".wh.realdir", ""),
        Member::directory("realdir/").mtime(25),
    ]);
    let top = archive(&[
        Member::directory("opaque/").mtime(33),
        Member::directory("opaque/sub/").mtime(34),
        Member::file("opaque/sub/top", "3"),
        Member::directory("again/").mtime(36),
        Member::file("again/new", "3"),
        Member::directory("file-then-dir/").mtime(37),
        Member::file("file-then-dir/new", "3"),
        Member::file("back", "3"),
        Member::file("a/sub/.wh.x", ""),
        Member::directory("a/").mode(0o755).mtime(38),
        Member::directory("a/sub/").mtime(39),
    ]);
    assert_as_unpacked(&[bottom, middle, top]);
}

#[test]
fn an_opaque_root_hides_as_little_as_overlayfs_lets_it() {
    let bottom = archive(&[Member::file("below", "1"), Member::file("both", "1")]);
    let top = archive(&[
        Member::file(".wh..wh..opq", ""),
        Member::file("above", "2"),
        Member::file("both", "2"),
    ]);
    assert_as_unpacked(&[bottom, top]);
}

#[test]
fn aufs_bookkeeping_is_shown_as_containerd_unpacks_it() {
    assert_as_unpacked_but_for_times_of(
        &[".wh..wh.plnk"],
        &[archive(&[
            Member::file(".wh..wh.aufs", ""),
            Member::directory(".wh..wh.plnk/"),
            Member::file(".wh..wh.plnk/12.34", "linked data")
                .owner(7, 7)
                .mode(0o640),
            Member::directory(".wh..wh.orph/"),
            Member::directory("d/").mtime(3),
            Member::file("d/.wh..wh.aufs", ""),
            Member::file("plain", "x"),
            Member::hard_link("one", ".wh..wh.plnk/12.34"),
            Member::hard_link("two", ".wh..wh.plnk/12.34"),
        ])],
    );
}

#[test]
fn a_directory_that_is_only_implied_has_the_attributes_it_has_below() {
    let bottom = archive(&[
        Member::directory("a/").mode(0o700).owner(1, 2),
        Member::directory("a/b/")
            .mode(0o1777)
            .owner(3, 4)
            .xattr("user.b", "b"),
    ]);
    let middle = archive(&[
        Member::file("a/b/c/d", "2"),
        Member::directory("e/").mode(0o500),
    ]);
    let top = archive(&[Member::file("a/b/c/e", "3"), Member::file("e/f/g", "3")]);
    let implied = ["a", "a/b", "a/b/c", "e", "e/f"];
    assert_as_unpacked_but_for_times_of(&implied, &[bottom, middle, top]);
}

/// A golden layer, uncompressed.
fn golden(name: &str) -> Vec<u8> {
    let layers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ztoc/tests/golden/layers");
    let compressed = fs::File::open(layers.join(name)).unwrap();
    let mut tar = Vec::new();
    flate2::read::MultiGzDecoder::new(compressed)
        .read_to_end(&mut tar)
        .unwrap();
    tar
}

#[test]
fn odd_entries_and_whiteouts_above_them_are_as_unpacked() {
    let layers = [
        golden("03-odd-pax-gzip9.tar.gz"),
        golden("03u-whiteouts.tar.gz"),
    ];
    let mut implied: Vec<String> = ["missing", "missing/parent", "missing/parent/dirs", "names"]
        .map(String::from)
        .into();
    for depth in 1..=5 {
        implied.push(format!(
            "names{}",
            format!("/{}", "p".repeat(60)).repeat(depth)
        ));
    }
    let implied: Vec<&str> = implied.iter().map(String::as_str).collect();
    assert_as_unpacked_but_for_times_of(&implied, &layers);
}

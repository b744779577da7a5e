#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::sample::{directory, entry, file, hard_link, owned, symlink, tree};
use super::*;

/// The paths of a tree with the uid behind each.
fn paths(tree: &LayerTree) -> Vec<(String, u32)> {
    let mut paths = Vec::new();
    let mut pending = vec![(String::new(), InodeIndex::ROOT)];
    while let Some((path, index)) = pending.pop() {
        let found = tree.directory(index).unwrap();
        let dirents = tree.dirent_numbers(found).map(|number| tree.dirent(number));
        for dirent in dirents {
            let name = String::from_utf8_lossy(tree.name(dirent));
            let path = format!("{path}/{name}");
            assert_eq!(tree.child(found, tree.name(dirent)), Some(dirent.inode));
            if tree.directory(dirent.inode).is_some() {
                assert_eq!(format!("/{}", path_of(tree, dirent.inode)), path);
                pending.push((path.clone(), dirent.inode));
            }
            paths.push((path, tree.inode(dirent.inode).metadata.uid));
        }
    }
    paths.sort();
    paths
}

fn path_of(tree: &LayerTree, index: InodeIndex) -> String {
    let names: Vec<_> = tree
        .path(index)
        .into_iter()
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    names.join("/")
}

fn names(entries: &[Entry]) -> Vec<String> {
    paths(&tree(entries))
        .into_iter()
        .map(|(path, _)| path)
        .collect()
}

/// A tar of so many files.
fn tar_of(files: usize) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for number in 0..files {
        let mut header = tar::Header::new_gnu();
        header.set_size(number as u64 % 3);
        let name = format!("{:02}/file{number:05}", number % 20);
        let data = &b"ab"[..number % 3];
        archive.append_data(&mut header, name, data).unwrap();
    }
    archive.into_inner().unwrap()
}

#[test]
fn a_tree_is_the_same_read_from_an_encoded_table_in_whatever_order() {
    for files in [9, 12_000] {
        let tar = tar_of(files);
        let options = ztoc::builder::BuildOptions {
            span_size: ztoc::SpanSize::DEFAULT,
            build_tool: String::new(),
        };
        let (compression, spans) = (ztoc::Compression::Uncompressed, ztoc::SpanSize::DEFAULT);
        let built = ztoc::builder::build_both(compression, &*tar, &options, spans).unwrap();
        let mut bytes = built.ztoc.encode();
        let whole = paths(&LayerTree::new(built.ztoc.toc()));
        assert_eq!(whole.len(), files + 20.min(files));
        let read = |bytes: &[u8]| {
            let (toc, _) =
                ztoc::Ztoc::decode_lean(bytes, Arc::new(ztoc::compact::InMemory::new(Vec::new())))?;
            LayerTree::read(toc)
        };
        assert_eq!(paths(&read(&bytes).unwrap()), whole);
        let compact = built.encode_compact().unwrap().unwrap();
        let compact = ztoc::compact::decode_lean(
            &compact,
            Arc::new(ztoc::compact::InMemory::new(Vec::new())),
        )
        .unwrap();
        assert_eq!(
            paths(&LayerTree::read_columns(&compact.toc).unwrap()),
            whole
        );
        // Positions of the first entry and of the fourth, which are as long.
        let place = |entry: usize| {
            let offset = built.ztoc.toc().entries()[entry].offset.0.to_le_bytes();
            let mut found = bytes.windows(8).enumerate();
            let at = found.find(|(at, window)| at % 4 == 0 && *window == offset);
            (at.unwrap().0, offset)
        };
        let ((first, first_offset), (other, other_offset)) = (place(0), place(3));
        bytes[first..first + 8].copy_from_slice(&other_offset);
        bytes[other..other + 8].copy_from_slice(&first_offset);
        assert_eq!(paths(&read(&bytes).unwrap()), whole);
        // Beyond the layer.
        bytes[first..first + 8].copy_from_slice(&(1_u64 << 40).to_le_bytes());
        assert!(matches!(
            read(&bytes).err(),
            Some(DecodeError::Entry { .. })
        ));
    }
}

#[test]
fn what_no_file_system_holds_is_left_out() {
    let long = "x".repeat(256);
    let entries = [
        file(""),
        file("."),
        file("/"),
        file(".."),
        file("a\0b"),
        file(&long),
        file(format!("{long}/child")),
        file("a/".repeat(2048) + "deep"),
        file("file"),
        file("file/child"),
        directory("file/child/grandchild"),
        symlink("empty", ""),
        symlink("longest", "x".repeat(4095)),
        symlink("too-long", "x".repeat(4096)),
        symlink("zero", "a\0b"),
        file(".wh."),
        file(".wh..."),
        hard_link("to-root", "/"),
        hard_link("to-itself", "to-itself"),
        Entry {
            size: 1 << 63,
            ..file("huge")
        },
        Entry {
            size: u64::MAX,
            ..file("larger")
        },
        file("last"),
    ];
    let names = names(&entries);
    // A link to nothing stays in the tree, as a lower layer may have its target.
    assert_eq!(names, ["/file", "/last", "/longest", "/to-root"]);
}

#[test]
fn symlinks_in_a_circle_end() {
    let names = names(&[
        symlink("a", "b"),
        symlink("b", "a"),
        symlink("self", "self/self/self"),
        file("a/x"),
        file("self/x"),
        hard_link("y", "a/x"),
    ]);
    assert_eq!(names, ["/a", "/b", "/self", "/y"]);
}

#[test]
fn symlinks_that_multiply_cost_little() {
    // Each link leads through the one before it twice.
    let mut entries: Vec<_> = (1..60)
        .map(|number| symlink(format!("l{number}"), format!("l{0}/../l{0}", number - 1)))
        .collect();
    entries.push(directory("l0"));
    entries.extend((0..2000).map(|number| file(format!("l59/{number}"))));
    assert!(names(&entries).len() < 2061);
}

#[test]
fn long_names_cannot_make_a_huge_tree() {
    let name = |number: usize| file(format!("{number}/{}", "d/".repeat(2000)));
    let entries: Vec<_> = (0..1000).map(name).collect();
    assert!(tree(&entries).len() < 100_000);
}

#[test]
fn symlinks_never_lead_out_of_the_layer() {
    let names = names(&[
        symlink("up", "../../../../etc"),
        file("up/passwd"),
        symlink("root", "/"),
        file("root/top"),
    ]);
    assert_eq!(names, ["/etc", "/etc/passwd", "/root", "/top", "/up"]);
}

#[test]
fn times_that_containerd_cannot_express_are_the_epoch() {
    let at = |seconds, nanos| {
        let mtime = Some(Timestamp { seconds, nanos });
        let metadata = Metadata::of(&Entry { mtime, ..file("f") });
        (metadata.mtime_seconds, metadata.mtime_nanos)
    };
    assert_eq!(at(5, 6), (5, 6));
    assert_eq!(at(-1, 999_999_999), (0, 0));
    assert_eq!(at(i64::MIN, 0), (0, 0));
    assert_eq!(at(9_223_372_036, 854_775_807), (9_223_372_036, 854_775_807));
    assert_eq!(at(9_223_372_036, 854_775_808), (0, 0));
    assert_eq!(at(i64::MAX, 0), (0, 0));
    let none = Metadata::of(&Entry {
        mtime: None,
        ..file("f")
    });
    assert_eq!((none.mtime_seconds, none.mtime_nanos), (0, 0));
}

#[test]
fn modes_and_device_numbers_are_cut_to_what_the_kernel_takes() {
    let metadata = Metadata::of(&Entry {
        mode: -1,
        ..file("f")
    });
    assert_eq!(metadata.permissions, 0o7777);
    let device = |dev_major, dev_minor| {
        let kind = ztoc::EntryKind::BlockDevice;
        device_number(&Entry {
            dev_major,
            dev_minor,
            ..entry("d", kind)
        })
    };
    assert_eq!(device(8, 1), 0x801);
    assert_eq!(device(259, 0x12345), 0x1231_0345);
    assert_eq!(device(-1, -1), u32::MAX);
    assert_eq!(device(i64::MIN, 0), 0);
}

#[test]
fn a_path_is_found_for_the_log() {
    let tree = tree(&[
        directory("a"),
        file("a/b"),
        file("c"),
        hard_link("d", "c"),
        file("e/f/g"),
    ]);
    let found = |path: &[&[u8]]| tree.search_path(tree.locate(path).unwrap());
    for path in [
        &[&b"a"[..]][..],
        &[b"a", b"b"],
        &[b"c"],
        &[b"e", b"f", b"g"],
    ] {
        assert_eq!(found(path), path);
    }
    assert_eq!(found(&[b"d"]), [b"c"]);
    assert!(tree.search_path(InodeIndex::ROOT).is_empty());
}

#[test]
fn an_inode_stays_small() {
    assert!(size_of::<Inode>() <= 64, "{}", size_of::<Inode>());
    assert!(size_of::<Dirent>() <= 12);
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let part = prop::sample::select(vec![
        "a",
        "b",
        "..",
        ".",
        "",
        "/",
        ".wh.a",
        ".wh..wh..opq",
        ".wh.",
        "a\0",
        ".wh..wh.plnk",
    ]);
    let path = prop::collection::vec(part, 0..6).prop_map(|parts| parts.join("/"));
    let kind = prop::sample::select(vec![
        ztoc::EntryKind::HardLink,
        ztoc::EntryKind::SymLink,
        ztoc::EntryKind::Directory,
        ztoc::EntryKind::Regular,
        ztoc::EntryKind::CharDevice,
        ztoc::EntryKind::Fifo,
    ]);
    (path.clone(), path, kind, any::<u64>()).prop_map(|(name, link, kind, size)| {
        let link = link.into_bytes();
        Entry {
            link,
            size,
            ..owned(1, entry(name, kind))
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn any_members_make_a_tree_whose_names_are_sound(
        entries in prop::collection::vec(any_entry(), 0..40),
    ) {
        let tree = tree(&entries);
        for (path, _) in paths(&tree) {
            let names: Vec<_> = path.split('/').skip(1).collect();
            prop_assert!(names.iter().all(|name| name::is_valid(name.as_bytes())), "{path}");
        }
        let counted: u32 = tree.inodes.iter().map(|inode| match inode.body {
            Body::Directory(_) => 1,
            _ => inode.nlink,
        }).sum();
        prop_assert_eq!(counted as usize, tree.dirents.len() + 1);
    }
}

#[test]
fn a_file_takes_no_more_memory_than_the_target_says() {
    let name = |number: u32| {
        format!(
            "usr/lib/python3/part-{:03}/module_{number:06}.cpython.pyc",
            number / 50
        )
    };
    let entries: Vec<_> = (0..20_000).map(|number| file(name(number))).collect();
    let tree = tree(&entries);
    let each = tree.memory() / 20_000;
    // A name, an entry of its directory and an inode cannot be less.
    assert!((60..=150).contains(&each), "{each} bytes a file");
}

#[test]
fn a_name_that_comes_to_stand_for_something_else_changes_what_is_below_it() {
    let entries = [
        file("a/x"),
        symlink("b", "a"),
        file("b/y"),
        directory("c"),
        // Through the symlink, then no more.
        file("b/z"),
        directory("b"),
        file("b/w"),
        file("c/v"),
        symlink("c", "a"),
        file("c/u"),
    ];
    let found = names(&entries);
    for name in ["/a/x", "/a/y", "/a/z", "/b/w", "/a/u"] {
        assert!(found.contains(&name.to_owned()), "{name} of {found:?}");
    }
    for name in ["/b/y", "/b/z", "/a/w", "/a/v"] {
        assert!(!found.contains(&name.to_owned()), "{name} of {found:?}");
    }
}

#![allow(clippy::unwrap_used)]

mod links;
mod model;

use std::collections::BTreeMap;

use super::*;
use crate::tree::sample::{directory, file, owned, tree};

/// What a test sees of a name: kind and the uid that tells which member it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    File(u32),
    Directory { uid: u32, opaque: bool },
    Whiteout,
}

type Walk = BTreeMap<String, (Seen, INodeNo)>;

fn view(layers: &[Arc<LayerTree>], stacked: bool) -> View {
    let layer = |tree: &Arc<LayerTree>| Layer {
        tree: Arc::clone(tree),
        content: Arc::new(NoContent),
    };
    View::new(layers.iter().map(layer).collect(), stacked)
}

/// All names of a view, by listing; each is looked up by name as well.
fn walk(view: &View) -> Walk {
    let mut walk = Walk::new();
    let mut pending = vec![(String::new(), INodeNo::ROOT)];
    while let Some((path, id)) = pending.pop() {
        let merged = view.directory(view.node(id).unwrap()).unwrap();
        for listed in view.listing(&merged).from(0) {
            let name = listed.name_in(view);
            let (seen, id) = seen(view, view.listed_child(&merged, listed)).unwrap();
            assert_eq!(
                self::seen(view, view.child(&merged, name)),
                Some((seen, id))
            );
            let path = format!("{path}/{}", String::from_utf8_lossy(name));
            if let Seen::Directory { .. } = seen {
                pending.push((path.clone(), id));
            }
            assert_eq!(walk.insert(path, (seen, id)), None, "a name is listed once");
        }
    }
    walk
}

fn seen(view: &View, child: Child) -> Option<(Seen, INodeNo)> {
    let (seen, attr) = match child {
        Child::Absent => return None,
        Child::Whiteout(node) => (Seen::Whiteout, view.file_attr(node)),
        Child::File(node) => {
            let attr = view.file_attr(node);
            (Seen::File(attr.uid), attr)
        }
        Child::Directory(directory) => {
            let attr = view.directory_attr(&directory);
            let opaque = directory.opaque;
            (
                Seen::Directory {
                    uid: attr.uid,
                    opaque,
                },
                attr,
            )
        }
    };
    Some((seen, attr.ino))
}

#[test]
fn node_ids_mean_the_same_to_another_process() {
    let layers = || {
        [
            tree(&[directory("a"), owned(1, file("a/x")), file("b")]),
            tree(&[directory("a"), owned(2, file("a/y")), file("a/.wh.x")]),
            tree(&[owned(3, file("a/b/c/d"))]),
        ]
    };
    let (first, second) = (view(&layers(), false), view(&layers(), false));
    for (path, (seen, id)) in walk(&first) {
        // The second view has not been walked: it knows nothing but the number.
        let attr = second.attr(second.node(id).unwrap()).unwrap();
        assert_eq!(attr.ino, id, "{path}");
        if let Seen::File(uid) = seen {
            assert_eq!(attr.uid, uid, "{path}");
        }
    }
}

#[test]
fn node_ids_are_dense() {
    let layers = [tree(&[file("a"), file("b")]), tree(&[file("c")])];
    let view = view(&layers, false);
    let total: u64 = layers.iter().map(|tree| tree.len()).sum();
    for (_, id) in walk(&view).into_values() {
        assert!(id.0 > 1 && id.0 <= total + 1);
    }
}

#[test]
fn numbers_that_nothing_goes_by_are_stale() {
    let lower = tree(&[directory("hidden"), file("hidden/x")]);
    let layers = [lower, tree(&[file(".wh.hidden")])];
    let view = view(&layers, false);
    for id in [0, 2, 100, u64::MAX] {
        let outcome = view.node(INodeNo(id)).and_then(|node| view.attr(node));
        assert_eq!(outcome, Err(Error::Stale), "{id}");
    }
    // The hidden directory has a number, and the kernel cannot have been told of it.
    let hidden = view.node(INodeNo(3)).unwrap();
    assert_eq!(view.attr(hidden), Err(Error::Stale));
}

#[test]
fn a_directory_of_several_layers_has_one_link_and_others_count_subdirectories() {
    let layers = [
        tree(&[
            directory("both"),
            directory("both/x"),
            directory("one"),
            directory("one/x"),
        ]),
        tree(&[directory("both"), directory("both/y")]),
    ];
    let view = view(&layers, false);
    let root = view.directory(view.node(INodeNo::ROOT).unwrap()).unwrap();
    let nlink = |name: &[u8]| match view.child(&root, name) {
        Child::Directory(directory) => view.directory_attr(&directory).nlink,
        other => panic!("{other:?}"),
    };
    assert_eq!((nlink(b"both"), nlink(b"one")), (1, 3));
}

#[test]
fn a_listing_is_the_same_after_it_was_dropped() {
    let names = |count: usize, prefix: char| -> Vec<_> {
        (0..count)
            .map(|number| file(format!("d/{prefix}{number}")))
            .collect()
    };
    let mut lower = names(40_000, 'a');
    lower.push(directory("e"));
    lower.extend((0..40_000).map(|number| file(format!("e/{number}"))));
    let layers = [tree(&lower), tree(&names(40_000, 'b'))];
    let view = view(&layers, false);
    let root = view.directory(view.node(INodeNo::ROOT).unwrap()).unwrap();
    let listing = |name: &[u8]| match view.child(&root, name) {
        Child::Directory(directory) => view.listing(&directory),
        other => panic!("{other:?}"),
    };
    let first = listing(b"d");
    let other = listing(b"e");
    assert_eq!((first.len(), other.len()), (80_000, 40_000));
    let again = listing(b"d");
    assert!(
        !Arc::ptr_eq(&first, &again),
        "both do not fit into the cache"
    );
    let names = |listing: &Listing| -> Vec<_> {
        listing
            .from(0)
            .iter()
            .map(|listed| listed.name_in(&view).to_vec())
            .collect()
    };
    assert_eq!(names(&first), names(&again));
    assert!(names(&first).is_sorted());
}

#[test]
fn of_members_with_one_name_the_last_is_there() {
    let layer = tree(&[
        owned(1, file("a")),
        owned(2, file("./a")),
        owned(3, directory("d")),
        file("d/x"),
        owned(4, file("d")),
        owned(5, file("e")),
        owned(6, directory("e/")),
    ]);
    let seen: BTreeMap<_, _> = walk(&view(&[layer], false))
        .into_iter()
        .map(|(path, (seen, _))| (path, seen))
        .collect();
    let expected = [
        ("/a".to_owned(), Seen::File(2)),
        ("/d".to_owned(), Seen::File(4)),
        (
            "/e".to_owned(),
            Seen::Directory {
                uid: 6,
                opaque: false,
            },
        ),
    ];
    assert_eq!(seen, BTreeMap::from(expected));
}

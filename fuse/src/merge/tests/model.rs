//! Merging against a model that applies layers one after another to a map of paths.

use proptest::prelude::*;
use ztoc::Entry;

use super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
    Whiteout,
    Opaque,
}

/// A member: where and what; its uid tells it from all others.
type Step = (Vec<u8>, Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Modelled {
    File(u32),
    /// With a uid if a member says which.
    Directory(Option<u32>),
    Whiteout,
}

type Model = BTreeMap<String, Modelled>;

fn path_of(step: &[u8]) -> String {
    step.iter()
        .map(|&name| format!("/{}", char::from(b'a' + name)))
        .collect()
}

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').skip(1).map(|(at, _)| &path[..at])
}

fn remove_below(model: &mut Model, path: &str) {
    let prefix = format!("{path}/");
    model.retain(|known, _| !known.starts_with(&prefix));
}

fn replace(model: &mut Model, path: String, with: Modelled) {
    remove_below(model, &path);
    model.insert(path, with);
}

/// One layer's own names, and its opaque directories.
fn unpack(steps: &[Step], layer: u32) -> (Model, Vec<String>) {
    let (mut model, mut opaque) = (Model::new(), Vec::new());
    for ((step, kind), number) in steps.iter().zip(0u32..) {
        let (path, uid) = (path_of(step), layer * 1000 + number + 1);
        let within = format!("{path}/.");
        let directories = if *kind == Kind::Opaque {
            &within
        } else {
            &path
        };
        if parents(directories).any(|parent| matches!(model.get(parent), Some(Modelled::File(_)))) {
            continue;
        }
        for parent in parents(directories) {
            match model.get(parent) {
                Some(Modelled::Directory(_)) => {}
                _ => drop(model.insert(parent.to_owned(), Modelled::Directory(None))),
            }
        }
        match (kind, model.get(&path)) {
            (Kind::File, _) => {
                opaque
                    .retain(|known: &String| !format!("{known}/").starts_with(&format!("{path}/")));
                replace(&mut model, path, Modelled::File(uid));
            }
            (Kind::Directory, _) => drop(model.insert(path, Modelled::Directory(Some(uid)))),
            (Kind::Whiteout, None) => drop(model.insert(path, Modelled::Whiteout)),
            (Kind::Whiteout, Some(_)) => {}
            (Kind::Opaque, _) => opaque.push(path),
        }
    }
    (model, opaque)
}

/// What all layers together show.
fn apply(layers: &[Vec<Step>]) -> Model {
    let mut merged = Model::new();
    for (steps, layer) in layers.iter().zip(0u32..) {
        let (own, opaque) = unpack(steps, layer);
        for path in &opaque {
            remove_below(&mut merged, path);
        }
        for (path, modelled) in own {
            match (modelled, merged.get(&path).copied()) {
                (Modelled::Whiteout, _) => {
                    remove_below(&mut merged, &path);
                    merged.remove(&path);
                }
                (Modelled::Directory(None), Some(Modelled::Directory(_))) => {}
                (Modelled::Directory(uid), Some(Modelled::Directory(_))) => {
                    merged.insert(path, Modelled::Directory(uid));
                }
                (modelled, _) => replace(&mut merged, path, modelled),
            }
        }
    }
    merged
}

fn members(steps: &[Step], layer: u32) -> Vec<Entry> {
    let member = |((step, kind), number): (&Step, u32)| {
        let path = path_of(step);
        let (parent, base) = path.rsplit_once('/').unwrap();
        let entry = match kind {
            Kind::File => file(&path),
            Kind::Directory => directory(&path),
            Kind::Whiteout => file(format!("{parent}/.wh.{base}")),
            Kind::Opaque => file(format!("{path}/.wh..wh..opq")),
        };
        owned(layer * 1000 + number + 1, entry)
    };
    steps.iter().zip(0u32..).map(member).collect()
}

fn trees(layers: &[Vec<Step>]) -> Vec<Arc<LayerTree>> {
    let numbered = layers.iter().zip(0u32..);
    numbered
        .map(|(steps, layer)| tree(&members(steps, layer)))
        .collect()
}

/// What overlayfs shows of `upper` with `lower` below it.
fn overlay(upper: &Walk, lower: &Walk) -> BTreeMap<String, Seen> {
    let hidden = |path: &str| {
        let above = parents(path).map(|parent| upper.get(parent));
        let shadowed = above
            .flatten()
            .any(|(seen, _)| !matches!(seen, Seen::Directory { opaque: false, .. }));
        shadowed || matches!(upper.get(path), Some((Seen::Whiteout, _)))
    };
    let mut merged: BTreeMap<_, _> = lower
        .iter()
        .filter(|(path, _)| !hidden(path))
        .map(|(path, (seen, _))| (path.clone(), *seen))
        .collect();
    for (path, (seen, _)) in upper {
        if *seen != Seen::Whiteout {
            merged.insert(path.clone(), *seen);
        }
    }
    merged
}

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let kind = prop_oneof![
        3 => Just(Kind::File),
        4 => Just(Kind::Directory),
        2 => Just(Kind::Whiteout),
        1 => Just(Kind::Opaque),
    ];
    let step = (prop::collection::vec(0u8..3, 1..4), kind);
    prop::collection::vec(prop::collection::vec(step, 0..14), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn a_view_shows_what_applying_the_layers_leaves(layers in steps()) {
        let walk = walk(&view(&trees(&layers), false));
        let model = apply(&layers);
        prop_assert!(walk.keys().eq(model.keys()), "{walk:?}\n{model:?}");
        for (path, modelled) in model {
            match (modelled, walk[&path].0) {
                (Modelled::File(uid), Seen::File(shown)) => prop_assert_eq!(uid, shown),
                (Modelled::Directory(None), Seen::Directory { .. }) => {}
                (Modelled::Directory(Some(uid)), Seen::Directory { uid: shown, opaque }) => {
                    prop_assert_eq!((uid, false), (shown, opaque), "{}", path);
                }
                other => prop_assert!(false, "{path}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_view_above_others_hides_through_overlayfs_what_a_view_of_all_hides(
        layers in steps(),
        cut in 0usize..5,
    ) {
        let trees = trees(&layers);
        let (lower, upper) = trees.split_at(cut.min(trees.len()));
        let split = overlay(&walk(&view(upper, true)), &walk(&view(lower, false)));
        let whole = walk(&view(&trees, false));
        prop_assert!(split.keys().eq(whole.keys()), "{split:?}\n{whole:?}");
        for (path, (seen, _)) in whole {
            match (seen, split[&path]) {
                (Seen::Directory { .. }, Seen::Directory { .. }) => {}
                (one, other) => prop_assert_eq!(one, other, "{}", path),
            }
        }
    }
}

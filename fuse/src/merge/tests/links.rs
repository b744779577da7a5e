use super::*;
use crate::tree::sample::hard_link;

fn uids(layers: &[Arc<LayerTree>]) -> BTreeMap<String, Seen> {
    let walk = walk(&view(layers, false));
    walk.into_iter()
        .map(|(path, (seen, _))| (path, seen))
        .collect()
}

#[test]
fn a_hard_link_into_a_lower_layer_is_the_file_there() {
    let layers = [
        tree(&[owned(1, file("d/target")), owned(2, file("gone"))]),
        tree(&[
            owned(3, hard_link("link", "d/target")),
            hard_link("again", "./link"),
        ]),
        tree(&[hard_link("third", "/again"), file(".wh.gone")]),
    ];
    let view = view(&layers, false);
    let walk = walk(&view);
    assert_eq!(walk["/link"], walk["/d/target"]);
    assert_eq!(walk["/again"], walk["/d/target"]);
    assert_eq!(walk["/third"], walk["/d/target"]);
}

#[test]
fn a_hard_link_to_what_is_hidden_or_missing_is_left_out() {
    let layers = [
        tree(&[owned(1, file("d/target")), owned(4, file("same"))]),
        tree(&[file("d/.wh.target")]),
        tree(&[
            hard_link("hidden", "d/target"),
            hard_link("missing", "nowhere"),
            hard_link("directory", "d"),
            hard_link("self", "self"),
            hard_link("root", "/"),
            hard_link("same", "gone-away"),
        ]),
    ];
    let uids = uids(&layers);
    let names: Vec<_> = uids.keys().map(String::as_str).collect();
    assert_eq!(names, ["/d", "/same"]);
    assert_eq!(
        uids["/same"],
        Seen::File(4),
        "what is left out hides nothing"
    );
}

#[test]
fn a_hard_link_that_comes_before_its_target_is_that_file() {
    let layers = [tree(&[
        hard_link("first", "second"),
        hard_link("second", "third"),
        owned(7, file("third")),
        hard_link("fourth", "first"),
    ])];
    let view = view(&layers, false);
    let walk = walk(&view);
    let (seen, id) = walk["/third"];
    assert_eq!(seen, Seen::File(7));
    for name in ["/first", "/second", "/fourth"] {
        assert_eq!(walk[name], (seen, id));
    }
    assert_eq!(view.attr(view.node(id).unwrap()).unwrap().nlink, 4);
}

#[test]
fn cycles_of_hard_links_end() {
    let mut entries = vec![
        hard_link("a", "b"),
        hard_link("b", "a"),
        hard_link("c", "c"),
    ];
    entries.extend(
        (0..1000)
            .map(|number| hard_link(format!("n{number}"), format!("n{}", (number + 1) % 1000))),
    );
    entries.push(owned(5, file("real")));
    let uids = uids(&[tree(&entries)]);
    assert_eq!(uids.len(), 1);
    assert_eq!(uids["/real"], Seen::File(5));
}

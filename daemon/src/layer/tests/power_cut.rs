//! The machine loses power: of what was written to a layer's files and never synced, any part may be
//! missing. The map is never synced before the data or after it, so any of it may be there without the rest.

use super::*;

/// What a file system loses at a time.
const PAGE: usize = 4096;
/// What a disk writes whole.
const SECTOR: usize = 512;

/// Gives up some of the `unit`-sized pieces of a file.
fn lose(node: &Node, name: &str, whole: &[u8], unit: usize, random: &mut fastrand::Rng) {
    let file = node.file(name);
    let keep = random.f64();
    for (piece, at) in whole.chunks(unit).zip((0u64..).step_by(unit)) {
        let lost = vec![0; piece.len()];
        let kept = random.f64() < keep;
        file.write_all_at(if kept { piece } else { &lost }, at)
            .unwrap();
    }
    if random.u8(..) < 40 {
        // The new size of a file is written later than what was in it, or earlier.
        file.set_len(random.u64(..=whole.len() as u64)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_cut_every_read_is_right_whatever_was_lost() {
    let mut node = Node::new().await;
    node.layer.request(SpanId(0)..SpanId(u32::MAX), Lane::Fill);
    node.assert_right(node.all()).await;
    let [data, map] = ["data", "map"].map(|name| {
        let path = node.root.join(node.packed.digest.hex()).join(name);
        fs::read(path).unwrap()
    });
    let mut random = fastrand::Rng::with_seed(11);
    let mut survived = 0;
    for _ in 0..25 {
        lose(&node, "data", &data, PAGE, &mut random);
        lose(&node, "map", &map, SECTOR.min(map.len() / 3), &mut random);
        node = node.restart().await;
        survived += node.layer.spans_present();
        node.assert_right(node.all()).await;
        // What is here by now is right on disk as well.
        node = node.restart().await;
        node.assert_right(node.all()).await;
    }
    assert!(survived > 0, "not everything is ever thrown away");
}

//! Large files of a layer as files of their own.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::LazyLock;

use super::super::own_files::DIRECTORY;
use super::*;

/// The content of the file "large" of the packed layer.
static LARGE: LazyLock<Vec<u8>> = LazyLock::new(|| words(2 << 20, 1));

fn large(node: &Node) -> Range<UncompressedOffset> {
    // Behind two headers and "small".
    let start = 3 * 512;
    let end = start + LARGE.len();
    assert!(node.packed.tar[start..end] == LARGE[..]);
    UncompressedOffset(start as u64)..UncompressedOffset(end as u64)
}

fn path(node: &Node) -> PathBuf {
    let files = node.root.join(node.packed.digest.hex()).join(DIRECTORY);
    files.join(large(node).start.to_string())
}

fn ask_for(node: &Node) -> Option<Arc<fs::File>> {
    node.layer.own_file(large(node))
}

/// Asks until there is the file.
async fn had(node: &Node) -> Arc<fs::File> {
    for _ in 0..60_000 {
        if let Some(file) = ask_for(node) {
            return file;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("the file is never made");
}

/// A layer that is here and proven.
async fn proven(options: LayerOptions) -> Node {
    let node = Node::with(packed(Compression::Gzip, 1), options).await;
    prove(&node).await;
    node
}

async fn prove(node: &Node) {
    let diff_id = Digest::of(&node.packed.tar);
    node.store
        .expect(node.packed.digest, async move { Some(diff_id) });
    node.layer.fill_up();
    for _ in 0..60_000 {
        if node.layer.is_proven() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("the layer is never proven");
}

fn assert_right(mut file: &fs::File) {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    assert!(bytes == *LARGE);
}

/// Nothing is being made: what was begun has ended, and so would something begun now.
async fn settled(node: &Node) {
    while !node.layer.own_files.is_settled() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_asked_for_is_made_once_the_layer_is_proven_and_is_there_after_a_restart() {
    let node = Node::new().await;
    node.assert_right(node.all()).await;
    assert!(ask_for(&node).is_none());
    assert!(!path(&node).exists(), "it is not proven");
    let before = node.store.bytes_cached();
    prove(&node).await;
    let file = loop {
        // Nobody asks again.
        if path(&node).exists() {
            break had(&node).await;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    assert_right(&file);
    assert!(Arc::ptr_eq(&file, &had(&node).await), "one for all");
    settled(&node).await;
    assert_eq!(node.store.bytes_cached(), before + (2 << 20));
    let usage = node.store.usage(&node.packed.digest).unwrap();
    assert!(usage.size >= node.all().end + (2 << 20), "{usage:?}");
    drop(file);
    let node = node.restart().await;
    assert_eq!(node.store.bytes_cached(), before + (2 << 20));
    assert_right(&ask_for(&node).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_another_length_is_not_used_and_made_anew() {
    let node = proven(options()).await;
    drop(had(&node).await);
    settled(&node).await;
    let node = {
        let path = path(&node);
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"cut off").unwrap();
        fs::write(path.with_file_name(".new-7"), b"half").unwrap();
        node.restart().await
    };
    let name = path(&node).with_file_name(".new-7");
    assert!(!name.exists(), "what is unfinished is swept");
    assert!(ask_for(&node).is_none());
    assert_right(&*had(&node).await);
    settled(&node).await;
    let spans = node.all().end;
    assert_eq!(node.store.bytes_cached(), spans + (2 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_somebody_deleted_is_made_anew() {
    let node = proven(options()).await;
    drop(had(&node).await);
    settled(&node).await;
    fs::remove_file(path(&node)).unwrap();
    assert!(ask_for(&node).is_none());
    assert_right(&*had(&node).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_asked_for_again_while_it_is_made_is_made_once() {
    let node = proven(options()).await;
    let file = had(&node).await;
    settled(&node).await;
    let there = fs::metadata(path(&node)).unwrap();
    assert_eq!(there.ino(), file.metadata().unwrap().ino());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_given_up_to_make_a_file_and_a_file_goes_unless_it_is_open() {
    let node = proven(options()).await;
    let ledger = &node.layer.engine.ledger;
    let spans = node.store.bytes_cached();
    ledger.set_limit(Some(spans + (2 << 20) - 1));
    assert!(ask_for(&node).is_none());
    settled(&node).await;
    assert!(!path(&node).exists(), "there is no room");
    assert_eq!(node.store.bytes_cached(), spans);

    ledger.set_limit(None);
    let file = had(&node).await;
    settled(&node).await;
    ledger.set_limit(Some(1));
    ledger.evict();
    assert!(path(&node).exists(), "it is open");
    assert_eq!(node.store.bytes_cached(), 2 << 20, "the spans went");
    drop(file);
    ledger.evict();
    assert!(!path(&node).exists());
    assert_eq!(node.store.bytes_cached(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_span_that_is_missing_or_damaged_never_gets_into_a_file() {
    let node = proven(options()).await;
    let inside = node.span(2).start + 1000;
    assert!(inside > large(&node).start.0 && inside < large(&node).end.0);
    node.flip("data", inside);
    assert!(ask_for(&node).is_none());
    settled(&node).await;
    assert!(!path(&node).exists());
    assert!(node.layer.flights.is_absent(SpanId(2)), "it was found out");
    // Absent, it is not made either.
    assert!(ask_for(&node).is_none());
    settled(&node).await;
    assert!(!path(&node).exists());
    node.assert_right(node.span(2)).await;
    quiet(&node.layer).await;
    assert_right(&*had(&node).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_overlap_take_no_more_than_the_layer_has() {
    let node = proven(options()).await;
    let all = node.all().end;
    let shifted = |by: u64| UncompressedOffset(by)..UncompressedOffset(all);
    let _ = node.layer.own_file(shifted(0));
    settled(&node).await;
    for by in 1..20 {
        assert!(node.layer.own_file(shifted(by)).is_none());
    }
    settled(&node).await;
    assert!(node.layer.own_files.bytes() <= all);
    let outside = UncompressedOffset(0)..UncompressedOffset(all + 1);
    assert!(node.layer.own_file(outside).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_a_closed_layer_are_counted_and_go_with_it() {
    let node = proven(options()).await;
    drop(had(&node).await);
    settled(&node).await;
    let used = node.store.bytes_cached();
    let (root, _dir, packed) = node.end().await;
    let files = root.join(packed.digest.hex()).join(DIRECTORY);
    assert!(files.exists());
    let limited = LayerOptions {
        cache_limit: Some(1),
        ..options()
    };
    let store = LayerStore::start(&root, limited, Handle::current()).unwrap();
    assert!(store.bytes_cached() >= used, "{}", store.bytes_cached());
    store.reconfigure(&LayerOptions {
        cache_limit: Some(1),
        ..options()
    });
    assert!(!files.exists());
    assert_eq!(store.bytes_cached(), 0);
}

//! What the files of a layer go through.

use std::collections::BTreeSet;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::*;

/// All spans written, so that nothing is in flight when the daemon dies.
async fn settled(node: &Node) {
    let all = node.layer.spans().count() as usize;
    for _ in 0..30_000 {
        if node.layer.spans_present() == all {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{} of {all} spans are present", node.layer.spans_present());
}

async fn full() -> Node {
    filled(Node::new().await).await
}

/// The node with all of its layer on disk.
pub(super) async fn filled(node: Node) -> Node {
    node.layer.request(SpanId(0)..SpanId(u32::MAX), Lane::Fill);
    settled(&node).await;
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_fetched_is_there_after_a_restart_without_a_request() {
    let node = full().await.restart().await;
    node.assert_right(node.all()).await;
    node.assert_right(100..200).await;
    assert_eq!(node.source.requests(), []);
    // Spans behind the end of the archive have no bytes to be read.
    let end = node
        .layer
        .spans()
        .covering(UncompressedOffset(0)..UncompressedOffset(node.all().end));
    assert_eq!(node.layer.counters().spans_recovered, u64::from(end.end.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_unclean_stop_damaged_is_noticed_and_fetched_again() {
    let node = full().await;
    let span = node.span(3);
    node.flip("data", span.start + 1000);
    node.flip("map", 64 + 5 * 8);
    node.flip("map", 64 + 6 * 8 + 4);
    let node = node.restart().await;
    node.assert_right(node.all()).await;
    assert_eq!(
        node.source.requests().len(),
        3,
        "{:?}",
        node.source.requests()
    );
    settled(&node).await;
    let node = node.restart().await;
    node.assert_right(node.all()).await;
    assert_eq!(node.source.requests(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn data_that_was_lost_but_is_claimed_by_the_map_is_fetched_again() {
    let node = full().await;
    let size = node.file("data").metadata().unwrap().len();
    node.file("data").set_len(size / 2).unwrap();
    let node = node.restart().await;
    node.assert_right(node.all()).await;
    assert!(!node.source.requests().is_empty());
    settled(&node).await;

    fs::remove_file(node.root.join(node.packed.digest.hex()).join("map")).unwrap();
    let node = node.restart().await;
    node.assert_right(node.all()).await;
    assert_eq!(node.source.requests().len(), 1, "everything at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_span_that_the_disk_no_longer_gives_is_fetched_again_at_once() {
    let node = full().await;
    let before = node.source.requests().len();
    node.file("data").set_len(node.span(2).start).unwrap();
    node.assert_right(node.span(2).start..node.span(3).end)
        .await;
    assert_eq!(node.layer.counters().bad_cached_spans, 2);
    assert_eq!(node.source.requests().len(), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_ztoc_or_record_is_no_layer_and_can_be_stored_anew() {
    for file in ["ztoc", "origin"] {
        let node = Node::new().await;
        let digest = node.packed.digest;
        node.flip(file, 20);
        let store = LayerStore::start(&node.root, options(), Handle::current()).unwrap();
        let failed = open(&store, digest, Arc::clone(&node.source)).await;
        assert!(
            matches!(failed, Err(LayerError::Damaged { .. })),
            "{file}: {failed:?}"
        );
        store.remove(&digest).await.unwrap();
        assert_eq!(store.stored(&digest), None);
        store.insert(new_layer(&node.packed)).await.unwrap();
        let layer = open(&store, digest, Arc::clone(&node.source))
            .await
            .unwrap();
        assert_eq!(read(&layer, 0..100).await, node.expected(0..100));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_an_earlier_version_has_no_checksum_and_its_ztoc_is_compared_with_its_digest() {
    let node = Node::new().await;
    let digest = node.packed.digest;
    let path = node.root.join(digest.hex()).join("origin");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert!(record.as_object_mut().unwrap().remove("checksum").is_some());
    fs::write(&path, record.to_string()).unwrap();
    let reopened = || async {
        let store = LayerStore::start(&node.root, options(), Handle::current()).unwrap();
        open(&store, digest, Arc::clone(&node.source)).await
    };
    let layer = reopened().await.unwrap();
    assert_eq!(read(&layer, 0..100).await, node.expected(0..100));
    node.flip("ztoc", 20);
    let failed = reopened().await;
    assert!(
        matches!(failed, Err(LayerError::Damaged { .. })),
        "{failed:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ztoc_that_is_none_or_of_another_layer_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = LayerStore::start(dir.path(), options(), Handle::current()).unwrap();
    let good = new_layer(&packed(Compression::Gzip, 1));
    let garbage = NewLayer {
        bytes: words(5000, 3).into(),
        ..good.clone()
    };
    let failed = store.insert(garbage).await;
    assert!(matches!(failed, Err(LayerError::Ztoc { .. })), "{failed:?}");
    let other = NewLayer {
        size: good.size.map(|size| size + 1),
        ..good.clone()
    };
    let failed = store.insert(other).await;
    assert!(matches!(failed, Err(LayerError::Size { .. })), "{failed:?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let missing = open(&store, good.layer, Script::new(Bytes::new())).await;
    assert!(
        matches!(missing, Err(LayerError::Missing(_))),
        "{missing:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_nobody_names_are_deleted_unless_they_are_open_or_new() {
    let node = Node::new().await;
    let nothing = BTreeSet::new();
    let digest = node.packed.digest;
    let kept = node.root.join(digest.hex());
    assert!(node.store.retain(&nothing).await);
    assert!(kept.exists(), "it is open");

    let Node {
        root,
        _dir,
        store,
        layer,
        source,
        ..
    } = node;
    drop(layer);
    assert!(!store.retain(&BTreeSet::from([digest])).await);
    assert!(kept.exists(), "it is named");
    assert!(store.stored(&digest).is_some());
    assert!(store.retain(&nothing).await);
    assert!(kept.exists(), "it was just prepared");
    drop(open(&store, digest, source).await.unwrap());
    assert!(!store.retain(&nothing).await);
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_work_of_an_earlier_daemon_is_swept_and_layers_are_kept() {
    let node = Node::new().await;
    fs::create_dir(node.root.join(".new-left")).unwrap();
    fs::write(node.root.join(".new-left/ztoc"), "half").unwrap();
    LayerStore::start(&node.root, options(), Handle::current()).unwrap();
    let names = fs::read_dir(&node.root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    assert_eq!(
        names.collect::<Vec<_>>(),
        [node.packed.digest.hex().as_str()]
    );
}

/// A file system of so many bytes.
struct Tiny(TempDir);

impl Tiny {
    fn new(size: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let (kind, flags) = (Some("tmpfs"), MsFlags::empty());
        mount(kind, dir.path(), kind, flags, Some(&*options)).unwrap();
        Self(dir)
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_no_read_and_a_sequential_reader_fetches_each_span_once() {
    let tiny = Tiny::new("1500k");
    let root = tiny.0.path().to_owned();
    let node = Node::at(root, packed(Compression::Gzip, 1), options()).await;
    let all = node.all();
    for start in (all.start..all.end).step_by(32_768) {
        node.assert_right(start..(start + 32_768).min(all.end))
            .await;
    }
    let counters = node.layer.counters();
    assert!(counters.cache_write_failures > 0, "{counters:?}");
    assert!(node.layer.spans_present() > 0, "what fits is cached");
    assert_eq!(counters.failed_reads, 0);
    let covering = node
        .layer
        .spans()
        .covering(UncompressedOffset(0)..UncompressedOffset(all.end));
    assert_eq!(node.source.requests().len(), covering.end.0 as usize);
    node.assert_right(all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_layer_takes_on_disk_is_what_is_here_of_it() {
    let node = Node::new().await;
    let usage = || node.store.usage(&node.packed.digest).unwrap();
    let before = usage();
    let files = fs::read_dir(node.root.join(node.packed.digest.hex())).unwrap();
    // The directory counts too.
    assert_eq!(before.inodes, files.count() as u64 + 1);
    node.assert_right(node.all()).await;
    quiet(&node.layer).await;
    let grown = usage().size - before.size;
    let plain = node.layer.spans().uncompressed_size();
    // Blocks are allocated whole, and maybe later than written.
    node.file("data").sync_all().unwrap();
    let grown_on_disk = usage().size - before.size;
    assert!(grown <= grown_on_disk, "{grown}, {grown_on_disk}");
    assert!(
        (plain..plain + (64 << 10)).contains(&grown_on_disk),
        "{grown_on_disk} of {plain}"
    );
    let nobody = node.store.usage(&Digest::of(b"another")).unwrap();
    assert_eq!((nobody.size, nobody.inodes), (0, 0));
}

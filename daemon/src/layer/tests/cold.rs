//! What is on disk and not in memory, read past the page cache.

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::super::residency::cached_pages;
use super::disk::filled;
use super::*;

/// As much as has the next requests read ahead.
const STEP: u64 = 512 << 10;

/// All of a layer on a disk.
async fn full() -> Node {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let packed = packed(Compression::Gzip, 1);
    let mut node = Node::at(dir.path().to_owned(), packed, options()).await;
    node._dir = Some(dir);
    filled(node).await
}

/// Takes the layer out of memory.
fn chill(node: &Node) {
    let data = node.file("data");
    data.sync_all().unwrap();
    posix_fadvise(&data, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
}

/// The pages of it that are in memory, if the kernel tells.
fn pages(node: &Node) -> Option<u64> {
    cached_pages(&node.file("data"), &node.all())
}

/// Reads `range` as a part of one file that is all of the layer.
async fn read_in_file(node: &Node, range: Range<u64>) -> Result<Vec<u8>, ReadError> {
    let (reply, receive) = reply();
    let part = |range: Range<u64>| UncompressedOffset(range.start)..UncompressedOffset(range.end);
    node.layer
        .read_in_file(part(node.all()), part(range), reply);
    answered(receive).await
}

/// Reads all of the layer in sequence from `start` on.
async fn assert_sequence_right(node: &Node, start: u64) {
    let mut at = start;
    while at < node.all().end {
        let range = at..node.all().end.min(at + STEP);
        let right = read_in_file(node, range.clone()).await == node.expected(range.clone());
        assert!(right, "the bytes {range:?}");
        at = range.end;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_in_sequence_gets_all_bytes_and_leaves_no_page_in_memory() {
    let node = full().await;
    for start in [0, 512, 12_345] {
        chill(&node);
        assert_sequence_right(&node, start).await;
        let past = node.layer.engine.cold.large().has_any() && pages(&node).is_some();
        // The last request may be too short for this.
        let last = (node.all().end - start) % STEP;
        if past && last >= direct::SMALLEST {
            assert_eq!(pages(&node), Some(0), "from {start} on");
        }
    }
    assert_eq!(node.source.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_at_once_of_what_is_in_memory_now_and_then_get_their_bytes() {
    let node = full().await;
    let reader = |number: u64| {
        let node = &node;
        async move {
            for round in 0..4 {
                if number == 0 {
                    chill(node);
                }
                assert_sequence_right(node, (number * 77_777 + round * 4096) % STEP).await;
            }
        }
    };
    futures::future::join_all((0..8).map(reader)).await;
    node.layer.engine.cold.ahead().forget();
    assert_eq!(node.source.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_has_lost_is_fetched_again_for_who_reads_in_sequence() {
    let node = full().await;
    let data = node.file("data");
    data.set_len(node.all().end / 2).unwrap();
    chill(&node);
    assert_sequence_right(&node, 0).await;
    assert!(node.source.requests().len() > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_that_are_given_up_are_fetched_again_though_they_were_read_ahead() {
    let node = full().await;
    chill(&node);
    let [first, second] = [0..STEP, STEP..2 * STEP];
    for range in [first, second] {
        assert_eq!(
            read_in_file(&node, range.clone()).await,
            node.expected(range)
        );
    }
    for span in node.layer.spans().ids() {
        node.layer.distrust(span);
    }
    assert_sequence_right(&node, 2 * STEP).await;
    assert!(node.source.requests().len() > 1);
}

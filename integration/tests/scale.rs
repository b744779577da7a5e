//! What many containers and many images cost the daemon.
#![allow(clippy::unwrap_used)]

use integration::scale::{Plan, measure};

/// Threads that come and go with work (tokio's for blocking calls, those that wait for the disk).
const WORKERS: u64 = 40;

#[test]
fn containers_of_one_image_cost_the_daemon_nothing_and_an_image_a_view() {
    let plan = Plan {
        containers: 12,
        images: 6,
    };
    let growth = measure(plan).unwrap();
    let (containers, images) = (plan.containers as u64, plan.images as u64);
    let (one, many, all) = (growth.one, growth.containers, growth.images);
    assert_eq!((one.mounts, many.mounts, all.mounts), (1, 1, 1 + images));
    assert!(many.threads <= one.threads + WORKERS, "{growth:?}");
    assert!(
        many.descriptors < one.descriptors + containers,
        "less than one for each container: {growth:?}"
    );
    // A view has three threads.
    assert!(
        all.threads <= many.threads + 3 * images + WORKERS,
        "{growth:?}"
    );
    // A view has a connection, and a layer a zTOC, its bytes and their map.
    assert!(
        all.descriptors <= many.descriptors + 8 * images + 8,
        "{growth:?}"
    );
    assert!(all.memory_kib < 192 << 10, "{growth:?}");
}

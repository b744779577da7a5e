use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytes::Bytes;
use daemon::registry::{Mirror, Problem, Reference, Registry, RegistryConfig, Share};
use futures::{StreamExt as _, TryStreamExt as _};
use integration::registry::{Fault, Match, Recorded, ScriptedRegistry};
use tokio::sync::Semaphore;
use ztoc::Digest;

use super::{client, image, pattern, quick};

async fn collect(
    mut download: daemon::registry::Download,
) -> Result<Vec<u8>, daemon::registry::RegistryError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = download.chunk().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

#[tokio::test]
async fn a_download_that_breaks_goes_on_where_it_broke() {
    for fault in [
        Fault::Short(30_000),
        Fault::StallBody(30_000),
        Fault::status(503),
    ] {
        let registry = ScriptedRegistry::start().await.unwrap();
        let bytes = pattern(100_000);
        let digest = registry.put_blob("a", bytes.clone());
        registry.script(Match::path("/blobs/").turns(0..2), fault.clone());
        let download = client(quick()).download(&image(&registry, "a"), &digest.parse().unwrap());
        assert_eq!(collect(download).await.unwrap(), bytes, "{fault:?}");
        let asked: Vec<_> = registry
            .requests()
            .into_iter()
            .map(|request| request.range)
            .collect();
        if matches!(fault, Fault::Short(_)) {
            let from = |at: &str| Some(format!("bytes={at}-"));
            assert_eq!(asked, [None, from("30000"), from("60000")]);
        }
    }
}

#[tokio::test]
async fn a_server_without_ranges_is_read_again_from_the_start() {
    let registry = ScriptedRegistry::start().await.unwrap();
    let bytes = pattern(100_000);
    let digest = registry.put_blob("a", bytes.clone());
    registry.script(Match::path("/blobs/").once(), Fault::Short(30_000));
    registry.script(Match::path("/blobs/"), Fault::Whole);
    let download = client(quick()).download(&image(&registry, "a"), &digest.parse().unwrap());
    assert_eq!(collect(download).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_corrupt_download_ends_with_an_error() {
    let registry = ScriptedRegistry::start().await.unwrap();
    let digest = registry.put_blob("a", pattern(100_000));
    registry.script(Match::path("/blobs/"), Fault::Corrupt);
    let download = client(quick()).download(&image(&registry, "a"), &digest.parse().unwrap());
    let error = collect(download).await.unwrap_err();
    assert!(
        matches!(error.problem, Problem::WrongDigest { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_small_blob_that_came_corrupt_or_short_is_fetched_again() {
    for fault in [Fault::Corrupt, Fault::Short(10)] {
        let registry = ScriptedRegistry::start().await.unwrap();
        let bytes = pattern(1000);
        let digest = registry.put_blob("a", bytes.clone());
        registry.script(Match::path("/blobs/").once(), fault);
        let fetched = client(quick())
            .fetch(&image(&registry, "a"), &digest.parse().unwrap(), 1000)
            .await;
        assert_eq!(fetched.unwrap(), bytes);
    }
}

#[tokio::test]
async fn a_blob_above_the_limit_is_refused() {
    let registry = ScriptedRegistry::start().await.unwrap();
    let digest = registry.put_blob("a", pattern(1000));
    let error = client(quick())
        .fetch(&image(&registry, "a"), &digest.parse().unwrap(), 999)
        .await
        .unwrap_err();
    assert!(
        matches!(error.problem, Problem::TooLarge { limit: 999 }),
        "{error}"
    );
    assert_eq!(registry.requests().len(), 1);
}

#[tokio::test]
async fn small_blobs_follow_redirects() {
    let registry = ScriptedRegistry::start().await.unwrap();
    let bytes = pattern(1000);
    let digest = registry.put_blob("a", bytes.clone());
    registry.redirect_blobs(1);
    let fetched = client(quick())
        .fetch(&image(&registry, "a"), &digest.parse().unwrap(), 1000)
        .await;
    assert_eq!(fetched.unwrap(), bytes);
}

fn share(chunk: u64, permits: usize) -> Share {
    Share {
        chunk: Some(chunk),
        permits: vec![Arc::new(Semaphore::new(permits))],
        ahead: Arc::new(AtomicUsize::new(4)),
    }
}

async fn in_ranges(
    client: &Registry,
    image: &Reference,
    blob: &[u8],
    share: Share,
) -> std::io::Result<Vec<u8>> {
    let digest = Digest::of(blob);
    let download = client.download_in_ranges(image, &digest, Some(blob.len() as u64), share);
    // What is kept keeps its permit.
    let copied = download.try_fold(Vec::new(), |mut all, part| async move {
        all.extend_from_slice(&part);
        Ok(all)
    });
    copied.await
}

#[tokio::test]
async fn a_blob_comes_in_ranges_and_in_order_whatever_happens_to_them() {
    for fault in [
        None,
        Some(Fault::Short(100)),
        Some(Fault::Reset),
        Some(Fault::status(503)),
        Some(Fault::StallBody(1000)),
        Some(Fault::Multipart),
        Some(Fault::NoContentType),
    ] {
        let registry = ScriptedRegistry::start().await.unwrap();
        let blob = pattern(100_001);
        registry.put_blob("a", blob.clone());
        if let Some(fault) = fault.clone() {
            registry.script(Match::path("/blobs/").turns(1..3), fault);
        }
        let (client, image) = (client(quick()), image(&registry, "a"));
        let came = in_ranges(&client, &image, &blob, share(10_000, 3)).await;
        assert!(came.unwrap() == blob, "{fault:?}");
        let mut ranges: BTreeSet<_> = registry
            .requests()
            .into_iter()
            .filter_map(|request| request.range)
            .collect();
        // One byte tells whether there are any.
        assert!(ranges.remove("bytes=0-0"));
        assert_eq!(ranges.len(), 11, "{ranges:?}");
    }
}

#[tokio::test]
async fn a_host_that_ignores_ranges_is_asked_for_the_rest_in_one_piece() {
    let registry = ScriptedRegistry::start().await.unwrap();
    let blob = pattern(100_001);
    registry.put_blob("a", blob.clone());
    registry.script(Match::path("/blobs/"), Fault::Whole);
    let (client, image) = (client(quick()), image(&registry, "a"));
    let came = in_ranges(&client, &image, &blob, share(1000, 3)).await;
    assert!(came.unwrap() == blob);
    assert!(registry.count("GET", "/blobs/") <= 5);
}

#[tokio::test]
async fn a_cache_that_does_not_have_the_blob_yet_is_asked_once_and_for_ranges_when_it_has() {
    let registry = ScriptedRegistry::start().await.unwrap();
    let blob = pattern(100_001);
    registry.put_blob("a", blob.clone());
    registry.script(Match::path("/blobs/").once(), Fault::Whole);
    let (client, image) = (client(quick()), image(&registry, "a"));
    for (asked, range) in [(1, "bytes=0-0"), (13, "bytes=100000-100000")] {
        let came = in_ranges(&client, &image, &blob, share(10_000, 3)).await;
        assert!(came.unwrap() == blob);
        let requests = registry.requests();
        assert_eq!(requests.len(), asked);
        let has = |request: &Recorded| request.range.as_deref() == Some(range);
        assert!(requests.iter().any(has), "{requests:?}");
    }
}

#[tokio::test]
async fn no_more_is_asked_for_than_there_are_permits_until_what_came_is_given_back() {
    let registry = ScriptedRegistry::start().await.unwrap();
    let blob = pattern(100_000);
    let digest = registry.put_blob("a", blob.clone()).parse().unwrap();
    let (client, image) = (client(quick()), image(&registry, "a"));
    let share = share(10_000, 3);
    let permits = Arc::clone(&share.permits[0]);
    let download = client.download_in_ranges(&image, &digest, Some(100_000), share);
    let mut download = std::pin::pin!(download);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(download.next().await.unwrap().unwrap());
    }
    let fourth = tokio::time::timeout(Duration::from_millis(200), download.next()).await;
    assert!(fourth.is_err());
    assert_eq!(
        (
            registry.count("GET", "/blobs/"),
            permits.available_permits()
        ),
        (4, 0),
        "three ranges, after one byte"
    );
    held.remove(0);
    assert_eq!(
        download.next().await.unwrap().unwrap(),
        blob[30_000..40_000]
    );
    drop(held);
    assert!(permits.available_permits() >= 2);
}

#[tokio::test]
async fn a_blob_of_unknown_size_comes_in_one_piece() {
    let registry = ScriptedRegistry::start().await.unwrap();
    let blob = pattern(100_001);
    let digest = registry.put_blob("a", blob.clone()).parse().unwrap();
    let (client, image) = (client(quick()), image(&registry, "a"));
    let download = client.download_in_ranges(&image, &digest, None, share(1000, 3));
    let parts: Vec<Bytes> = download.try_collect().await.unwrap();
    assert!(parts.concat() == blob);
    assert_eq!(registry.count("GET", "/blobs/"), 1);
}

#[tokio::test]
async fn each_range_fails_over_to_the_next_host() {
    let (mirror, origin) = (
        ScriptedRegistry::start().await.unwrap(),
        ScriptedRegistry::start().await.unwrap(),
    );
    let blob = pattern(100_000);
    for registry in [&mirror, &origin] {
        registry.put_blob("a", blob.clone());
    }
    // The mirror has the beginning only, as a cache that is being filled.
    mirror.script(Match::path("/blobs/").turns(5..100), Fault::status(404));
    let mut config = quick();
    let listed = Mirror {
        host: format!("http://{}", mirror.host()),
        insecure: true,
        request_timeout: None,
    };
    config.mirrors.insert(origin.host(), vec![listed]);
    let client = client(config);
    let came = in_ranges(&client, &image(&origin, "a"), &blob, share(10_000, 2)).await;
    assert!(came.unwrap() == blob);
    assert_eq!(origin.count("GET", "/blobs/"), 6);
}

/// Only a second request can bring a range that stalls.
fn patient() -> RegistryConfig {
    let mut config = quick();
    config.http.stall_timeout = Duration::from_secs(3600);
    config.http.request_timeout = Duration::from_secs(3600);
    config.http.straggler = Duration::from_millis(50);
    config
}

#[tokio::test]
async fn a_range_that_takes_far_longer_than_the_line_explains_is_asked_for_again() {
    let registry = ScriptedRegistry::start().await.unwrap();
    let blob = pattern(1_000_001);
    registry.put_blob("a", blob.clone());
    let fourth = Match::path("/blobs/").turns(3..4);
    registry.script(fourth, Fault::StallBody(1000));
    let (client, image) = (client(patient()), image(&registry, "a"));
    let came = in_ranges(&client, &image, &blob, share(100_000, 3)).await;
    assert!(came.unwrap() == blob);
    let requests = registry.requests();
    let same = |request: &&Recorded| request.range == requests[3].range;
    assert_eq!(requests.iter().filter(same).count(), 2);
}

#[tokio::test]
async fn a_straggler_is_asked_of_the_next_host() {
    let (mirror, origin) = (
        ScriptedRegistry::start().await.unwrap(),
        ScriptedRegistry::start().await.unwrap(),
    );
    let blob = pattern(1_000_001);
    for registry in [&mirror, &origin] {
        registry.put_blob("a", blob.clone());
    }
    let fourth = Match::path("/blobs/").turns(3..4);
    mirror.script(fourth, Fault::StallBody(1000));
    let mut config = patient();
    let listed = Mirror {
        host: format!("http://{}", mirror.host()),
        insecure: true,
        request_timeout: Some(Duration::from_secs(3600)),
    };
    config.mirrors.insert(origin.host(), vec![listed]);
    let client = client(config);
    let came = in_ranges(&client, &image(&origin, "a"), &blob, share(100_000, 3)).await;
    assert!(came.unwrap() == blob);
    let asked: Vec<_> = origin
        .requests()
        .into_iter()
        .map(|request| request.range)
        .collect();
    assert!(asked.contains(&mirror.requests()[3].range), "{asked:?}");
}

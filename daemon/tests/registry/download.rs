use daemon::registry::Problem;
use integration::registry::{Fault, Match, ScriptedRegistry};

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

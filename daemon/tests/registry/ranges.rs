use std::time::{Duration, Instant};

use daemon::layer::BlobSource as _;
use daemon::registry::{Blob, Mirror, Problem, RegistryConfig};
use integration::registry::{Fault, Match, ScriptedRegistry};
use ztoc::CompressedOffset;

use super::{client, image, pattern, quick};

const SIZE: usize = 100_000;

struct Scene {
    registry: ScriptedRegistry,
    blob: Blob,
    bytes: Vec<u8>,
}

async fn scene_with(config: RegistryConfig) -> Scene {
    let registry = ScriptedRegistry::start().await.unwrap();
    let bytes = pattern(SIZE);
    let digest = registry.put_blob("team/app", bytes.clone());
    let blob = client(config).blob(
        &image(&registry, "team/app"),
        &digest.parse().unwrap(),
        SIZE as u64,
    );
    Scene {
        registry,
        blob,
        bytes,
    }
}

async fn scene() -> Scene {
    scene_with(quick()).await
}

impl Scene {
    async fn reads_right(&self) {
        let range = CompressedOffset(40_000)..CompressedOffset(50_000);
        assert_eq!(
            self.blob.fetch(range).await.unwrap(),
            &self.bytes[40_000..50_000]
        );
    }

    fn asked(&self) -> usize {
        self.registry.count("GET", "/blobs/")
    }
}

#[tokio::test]
async fn a_range_is_one_request_that_names_us() {
    let scene = scene().await;
    scene.reads_right().await;
    let requests = scene.registry.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].range.as_deref(), Some("bytes=40000-49999"));
    assert!(
        requests[0]
            .user_agent
            .as_deref()
            .unwrap()
            .starts_with("soci-snapshotter/")
    );
}

#[tokio::test]
async fn the_last_byte_and_the_whole_blob_can_be_read() {
    let scene = scene().await;
    assert_eq!(
        scene.blob.read(99_999..100_000).await.unwrap(),
        &scene.bytes[99_999..]
    );
    assert_eq!(scene.blob.read(0..100_000).await.unwrap(), &scene.bytes[..]);
    assert!(scene.blob.read(99_999..100_001).await.is_err());
    assert!(scene.blob.read(5..5).await.is_err());
    assert_eq!(scene.asked(), 2);
}

#[tokio::test]
async fn passing_failures_are_tried_again() {
    for fault in [
        Fault::status(500),
        Fault::status(503),
        Fault::retry_after(429, "0"),
        Fault::retry_after(503, "Wed, 21 Oct 2015 07:28:00 GMT"),
        Fault::retry_after(429, "garbage"),
        Fault::Reset,
        Fault::Short(500),
        Fault::Stall,
        Fault::StallBody(500),
    ] {
        let scene = scene().await;
        scene
            .registry
            .script(Match::path("/blobs/").turns(0..2), fault.clone());
        scene.reads_right().await;
        assert_eq!(scene.asked(), 3, "{fault:?}");
    }
}

#[tokio::test]
async fn retry_after_is_waited_for() {
    let scene = scene().await;
    scene
        .registry
        .script(Match::path("/blobs/").once(), Fault::retry_after(429, "1"));
    let start = Instant::now();
    scene.reads_right().await;
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_retry_after_beyond_the_limit_fails_at_once() {
    let scene = scene().await;
    scene
        .registry
        .script(Match::path("/blobs/"), Fault::retry_after(429, "86400"));
    let start = Instant::now();
    let error = scene.blob.read(0..10).await.unwrap_err();
    assert!(
        matches!(error.problem, Problem::Status { status: 429, .. }),
        "{error}"
    );
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn lasting_failures_are_not_tried_again() {
    for code in [400, 404, 403, 410, 416, 501] {
        let scene = scene().await;
        scene
            .registry
            .script(Match::path("/blobs/"), Fault::status(code));
        let error = scene.blob.read(0..10).await.unwrap_err();
        assert_eq!(scene.asked(), 1, "{code}: {error}");
    }
}

#[tokio::test]
async fn tries_are_bounded_and_the_error_tells_the_story() {
    let scene = scene().await;
    scene
        .registry
        .script(Match::path("/blobs/"), Fault::status(500));
    let error = scene.blob.read(0..10).await.unwrap_err().to_string();
    assert_eq!(scene.asked(), 4);
    for part in [
        "bytes 0-10 of blob sha256:",
        "team/app",
        &scene.registry.host(),
        "500",
    ] {
        assert!(error.contains(part), "{part:?} not in {error:?}");
    }
}

#[tokio::test]
async fn odd_but_right_answers_are_understood() {
    for fault in [
        Fault::Whole,
        Fault::Multipart,
        Fault::NoContentType,
        Fault::ContentRange(String::new()),
        Fault::ContentRange("bytes 40000-49999/*".to_owned()),
    ] {
        let scene = scene().await;
        scene.registry.script(Match::path("/blobs/"), fault.clone());
        scene.reads_right().await;
        assert_eq!(scene.asked(), 1, "{fault:?}");
    }
}

#[tokio::test]
async fn wrong_ranges_are_errors_and_never_other_bytes() {
    for range in [
        "bytes 0-9999/100000",
        "bytes 40001-50000/100000",
        "bytes 40000-49999/7",
        "lines 1-2/3",
        "bytes */100000",
    ] {
        let scene = scene().await;
        scene.registry.script(
            Match::path("/blobs/"),
            Fault::ContentRange(range.to_owned()),
        );
        let read = scene.blob.read(40_000..50_000).await;
        assert!(read.is_err(), "{range}");
    }
}

#[tokio::test]
async fn the_redirect_is_remembered_and_gets_no_credentials() {
    let scene = scene().await;
    scene.registry.redirect_blobs(100);
    for _ in 0..3 {
        scene.reads_right().await;
    }
    let requests = scene.registry.requests();
    let (storage, api): (Vec<_>, Vec<_>) = requests.iter().partition(|request| request.storage);
    assert_eq!((storage.len(), api.len()), (3, 1));
    assert!(
        storage
            .iter()
            .all(|request| request.range.as_deref() == Some("bytes=40000-49999"))
    );
}

#[tokio::test]
async fn a_redirect_that_has_run_out_is_refreshed() {
    let scene = scene().await;
    scene.registry.redirect_blobs(2);
    for _ in 0..5 {
        scene.reads_right().await;
    }
    let api = scene
        .registry
        .requests()
        .iter()
        .filter(|request| !request.storage)
        .count();
    assert_eq!(api, 3);
}

#[tokio::test]
async fn a_signature_is_in_no_error() {
    for fault in [
        Fault::status(500),
        Fault::Reset,
        Fault::StallBody(3),
        Fault::ContentRange("x".to_owned()),
    ] {
        let scene = scene().await;
        scene.registry.redirect_blobs(100);
        scene.reads_right().await;
        scene
            .registry
            .script(Match::path("team/app/blobs").method("GET"), fault);
        let error = scene.blob.read(0..10).await.unwrap_err();
        assert!(
            !format!("{error} {error:?}").contains("secret"),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn a_mirror_that_fails_is_passed_over_for_the_next_host() {
    let mirror = ScriptedRegistry::start().await.unwrap();
    let origin = ScriptedRegistry::start().await.unwrap();
    let bytes = pattern(SIZE);
    let digest = origin.put_blob("team/app", bytes.clone());
    mirror.put_blob("team/app", bytes.clone());
    let mut config = quick();
    let entry = Mirror {
        host: format!("http://{}/v2", mirror.host()),
        insecure: false,
        request_timeout: None,
    };
    config.mirrors.insert(origin.host(), vec![entry]);
    let blob = client(config).blob(
        &image(&origin, "team/app"),
        &digest.parse().unwrap(),
        SIZE as u64,
    );

    assert_eq!(blob.read(0..10).await.unwrap(), &bytes[..10]);
    assert_eq!((mirror.requests().len(), origin.requests().len()), (1, 0));
    assert!(mirror.requests()[0].query.contains("ns="));

    for fault in [Fault::status(404), Fault::status(500), Fault::Reset] {
        let before = origin.requests().len();
        mirror.script(Match::path("/blobs/").once(), fault);
        assert_eq!(blob.read(10..20).await.unwrap(), &bytes[10..20]);
        assert_eq!(origin.requests().len(), before + 1);
    }
}

#[tokio::test]
async fn headers_of_hosts_toml_go_to_their_host_and_not_where_it_redirects() {
    let mirror = ScriptedRegistry::start().await.unwrap();
    let bytes = pattern(SIZE);
    let digest = mirror.put_blob("team/app", bytes.clone());
    mirror.redirect_blobs(10);
    mirror.set_auth(integration::registry::Auth::Basic {
        user: "u".to_owned(),
        password: "p".to_owned(),
    });
    let dir = tempfile::tempdir().unwrap();
    let entry = dir.path().join("reg.example");
    std::fs::create_dir(&entry).unwrap();
    // The header is the credentials: the storage host refuses whoever shows any.
    let toml = format!(
        "[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n[host.\"http://{0}\".header]\nAuthorization = \"Basic dTpw\"\n",
        mirror.host()
    );
    std::fs::write(entry.join("hosts.toml"), toml).unwrap();
    let config = RegistryConfig {
        hosts_dirs: vec![dir.path().to_owned()],
        ..quick()
    };
    let image = "reg.example/team/app:v1".parse().unwrap();
    let blob = client(config).blob(&image, &digest.parse().unwrap(), SIZE as u64);
    for _ in 0..2 {
        assert_eq!(blob.read(0..10).await.unwrap(), &bytes[..10]);
    }
    assert_eq!(mirror.requests().len(), 3);
}

#[tokio::test]
async fn a_read_that_nobody_waits_for_any_more_is_dropped() {
    let scene = scene().await;
    scene.registry.script(Match::path("/blobs/"), Fault::Stall);
    let read = tokio::time::timeout(Duration::from_millis(50), scene.blob.read(0..10));
    assert!(read.await.is_err());
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(scene.asked(), 1);
}

#[tokio::test]
async fn an_unreachable_mirror_costs_its_timeout_once() {
    let origin = ScriptedRegistry::start().await.unwrap();
    let digest = origin.put_blob("team/app", pattern(SIZE));
    let stalled = ScriptedRegistry::start().await.unwrap();
    stalled.script(Match::path("/"), Fault::Stall);
    let mut config = quick();
    let entry = Mirror {
        host: stalled.host(),
        insecure: true,
        request_timeout: None,
    };
    config.mirrors.insert(origin.host(), vec![entry]);
    let blob = client(config).blob(
        &image(&origin, "team/app"),
        &digest.parse().unwrap(),
        SIZE as u64,
    );
    for _ in 0..5 {
        blob.read(0..10).await.unwrap();
    }
    assert_eq!((stalled.requests().len(), origin.requests().len()), (1, 5));
}

#[tokio::test]
async fn a_host_where_nobody_listens_is_a_clear_error() {
    let config = quick();
    let reference = "127.0.0.1:1/team/app".parse().unwrap();
    let digest = ztoc::Digest::of(b"x");
    let error = client(config)
        .blob(&reference, &digest, 10)
        .read(0..1)
        .await
        .unwrap_err();
    assert!(matches!(error.problem, Problem::Connect { .. }), "{error}");
    assert!(
        error.to_string().contains("127.0.0.1:1: cannot connect"),
        "{error}"
    );
}

use std::sync::{Arc, Mutex};

use daemon::registry::{Descriptor, Problem, media_type};
use integration::registry::{Fault, Match, ScriptedRegistry};
use serde_json::json;
use ztoc::Digest;

use super::{client, image, pattern, quick};

const SOCI_V1: &str = "application/vnd.amazon.soci.index.v1+json";

#[tokio::test]
async fn a_manifest_is_resolved_by_tag_and_by_digest() {
    let registry = ScriptedRegistry::start().await.unwrap();
    let bytes = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": []})
        .to_string();
    let digest = registry.put_manifest("a/b", Some("v1"), media_type::OCI_INDEX, bytes.clone());
    let client = client(quick());
    let by_tag = client.resolve(&image(&registry, "a/b:v1")).await.unwrap();
    assert_eq!(by_tag.descriptor.digest.to_string(), digest);
    assert_eq!(by_tag.descriptor.media_type, media_type::OCI_INDEX);
    assert_eq!(by_tag.bytes, bytes);
    let by_digest = client
        .manifest(&image(&registry, "a/b"), &digest.parse().unwrap())
        .await
        .unwrap();
    assert_eq!(by_digest.descriptor, by_tag.descriptor);
    let head = client
        .has_manifest(&image(&registry, "a/b:v1"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (head.digest, head.size),
        (by_tag.descriptor.digest, bytes.len() as u64)
    );
    assert_eq!(
        client
            .has_manifest(&image(&registry, "a/b:v2"))
            .await
            .unwrap(),
        None
    );
}

#[tokio::test]
async fn a_manifest_that_is_not_there_is_said_so_once() {
    let registry = ScriptedRegistry::start().await.unwrap();
    let error = client(quick())
        .resolve(&image(&registry, "a/b:gone"))
        .await
        .unwrap_err();
    assert!(error.is_not_found());
    assert!(
        error
            .to_string()
            .contains("manifest gone of a/b at 127.0.0.1"),
        "{error}"
    );
    assert!(error.to_string().contains("MANIFEST_UNKNOWN"), "{error}");
    assert_eq!(registry.requests().len(), 1);
}

#[tokio::test]
async fn a_manifest_with_other_bytes_than_its_digest_is_refused() {
    let registry = ScriptedRegistry::start().await.unwrap();
    registry.put_manifest(
        "a",
        Some("v1"),
        media_type::OCI_MANIFEST,
        r#"{"schemaVersion":2}"#,
    );
    registry.script(Match::path("/manifests/"), Fault::Corrupt);
    let error = client(quick())
        .resolve(&image(&registry, "a:v1"))
        .await
        .unwrap_err();
    assert!(
        matches!(error.problem, Problem::WrongDigest { .. }),
        "{error}"
    );
}

#[tokio::test]
async fn an_endless_manifest_is_not_read() {
    let registry = ScriptedRegistry::start().await.unwrap();
    registry.put_manifest(
        "a",
        Some("v1"),
        media_type::OCI_MANIFEST,
        vec![b' '; (8 << 20) + 1],
    );
    let error = client(quick())
        .resolve(&image(&registry, "a:v1"))
        .await
        .unwrap_err();
    assert!(matches!(error.problem, Problem::TooLarge { .. }), "{error}");
}

fn referrer(subject: &str, kind: &str, number: u32) -> String {
    json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": {"mediaType": kind, "digest": Digest::of(b"{}").to_string(), "size": 2},
        "layers": [],
        "subject": {"mediaType": media_type::OCI_MANIFEST, "digest": subject, "size": 2},
        "annotations": {"number": number.to_string()},
    })
    .to_string()
}

#[tokio::test]
async fn referrers_are_read_over_all_pages_and_filtered_by_type() {
    let registry = ScriptedRegistry::start().await.unwrap();
    registry.set_page_size(2);
    let subject = registry.put_manifest("a", Some("v1"), media_type::OCI_MANIFEST, "{}");
    let mut expected = Vec::new();
    for number in 0..5 {
        let digest = registry.put_manifest(
            "a",
            None,
            media_type::OCI_MANIFEST,
            referrer(&subject, SOCI_V1, number),
        );
        expected.push(digest);
        registry.put_manifest(
            "a",
            None,
            media_type::OCI_MANIFEST,
            referrer(&subject, "application/other", number),
        );
    }
    let found = client(quick())
        .referrers(&image(&registry, "a"), &subject.parse().unwrap(), SOCI_V1)
        .await
        .unwrap();
    let found: Vec<_> = found
        .iter()
        .map(|descriptor| descriptor.digest.to_string())
        .collect();
    assert_eq!(found, expected);
    assert_eq!(registry.count("GET", "/referrers/"), 5);
}

#[tokio::test]
async fn without_the_api_referrers_go_by_the_tag() {
    let registry = ScriptedRegistry::start().await.unwrap();
    registry.set_referrers(false);
    let subject = registry.put_manifest("a", Some("v1"), media_type::OCI_MANIFEST, "{}");
    let subject: Digest = subject.parse().unwrap();
    let image = image(&registry, "a");
    let client = client(quick());
    assert!(
        client
            .referrers(&image, &subject, SOCI_V1)
            .await
            .unwrap()
            .is_empty()
    );

    let bytes = referrer(&subject.to_string(), SOCI_V1, 0);
    let mut descriptor = Descriptor::of(media_type::OCI_MANIFEST, bytes.as_bytes());
    descriptor.artifact_type = Some(SOCI_V1.to_owned());
    let reference = image.with_digest(descriptor.digest);
    let pushed = client
        .push_manifest(&reference, media_type::OCI_MANIFEST, bytes.into())
        .await
        .unwrap();
    assert!(!pushed.subject_known);
    for _ in 0..2 {
        client
            .push_referrers_tag(&image, &subject, &descriptor)
            .await
            .unwrap();
    }
    let tag = format!("sha256-{}", subject.hex());
    let index = registry
        .content("a", &registry.tagged("a", &tag).unwrap())
        .unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(
        client.referrers(&image, &subject, SOCI_V1).await.unwrap(),
        [descriptor]
    );
}

#[tokio::test]
async fn a_registry_that_keeps_referrers_says_so_when_one_is_pushed() {
    let registry = ScriptedRegistry::start().await.unwrap();
    let subject = registry.put_manifest("a", Some("v1"), media_type::OCI_MANIFEST, "{}");
    let bytes = referrer(&subject, SOCI_V1, 0);
    let reference = image(&registry, "a").with_digest(Digest::of(bytes.as_bytes()));
    let pushed = client(quick())
        .push_manifest(&reference, media_type::OCI_MANIFEST, bytes.into())
        .await
        .unwrap();
    assert!(pushed.subject_known);
}

#[tokio::test]
async fn an_upload_says_how_far_it_is_and_begins_anew_when_it_has_to() {
    let registry = ScriptedRegistry::start().await.unwrap();
    let client = client(quick());
    let image = image(&registry, "a");
    let bytes = pattern(300_000);
    registry.script(
        Match::path("/blobs/uploads/").method("PUT").once(),
        Fault::status(503),
    );
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let sent = move |bytes| tell.lock().unwrap().push(bytes);
    let pushed = client.push_blob_watched(&image, bytes.clone().into(), sent);
    pushed.await.unwrap();
    let digest = Digest::of(&bytes).to_string();
    assert_eq!(registry.content("a", &digest).unwrap(), bytes);
    let told = told.lock().unwrap();
    let last = told.iter().rposition(|bytes| *bytes == 0).unwrap();
    assert!(last > 0, "the second attempt begins at 0: {told:?}");
    let (steps, whole) = (&told[last..], bytes.len() as u64);
    assert!(steps.is_sorted() && steps.len() > 3, "{steps:?}");
    assert_eq!(steps.last(), Some(&whole));
}

#[tokio::test]
async fn a_blob_is_pushed_once_from_memory_or_a_file() {
    let registry = ScriptedRegistry::start().await.unwrap();
    let client = client(quick());
    let image = image(&registry, "a");
    let bytes = pattern(300_000);
    for _ in 0..2 {
        client
            .push_blob(&image, bytes.clone().into())
            .await
            .unwrap();
    }
    let digest = Digest::of(&bytes);
    assert_eq!(registry.content("a", &digest.to_string()).unwrap(), bytes);
    assert!(client.has_blob(&image, &digest).await.unwrap());
    assert_eq!(registry.count("PUT", "/blobs/uploads/"), 1);

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes[1..]).unwrap();
    let digest = Digest::of(&bytes[1..]);
    registry.script(
        Match::path("/blobs/uploads/").method("PUT").once(),
        Fault::status(503),
    );
    client
        .push_blob_file(&image, &digest, file.path())
        .await
        .unwrap();
    assert_eq!(
        registry.content("a", &digest.to_string()).unwrap(),
        &bytes[1..]
    );
}

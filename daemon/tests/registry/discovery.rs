use std::sync::Arc;
use std::time::Duration;

use daemon::content::{ContentStore as _, OciLayoutStore};
use daemon::discovery::{
    Discovery, DiscoveryError, ImageQuery, Modes, V1_ARTIFACT_TYPE, V2_ARTIFACT_TYPE,
};
use daemon::registry::media_type;
use daemon::snapshot::images::NotLazy;
use integration::registry::{Fault, Match, ScriptedRegistry};
use serde_json::{Value, json};
use ztoc::Digest;

use super::{client, image, quick};

const LAYER: &[u8] = b"a layer";
const ZTOC: &[u8] = b"its zTOC";
const BOTH: Modes = Modes {
    v1: true,
    v2: true,
    compact: true,
};
const V2: Modes = Modes { v1: false, ..BOTH };

struct Scene {
    registry: ScriptedRegistry,
    store: Arc<OciLayoutStore>,
    dir: tempfile::TempDir,
    manifest: Digest,
}

fn soci_index(kind: &str, subject: Option<&str>) -> String {
    let mut index = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": {"mediaType": kind, "digest": Digest::of(b"{}").to_string(), "size": 2},
        "layers": [
            {"mediaType": "application/octet-stream", "digest": Digest::of(ZTOC).to_string(), "size": ZTOC.len(),
             "annotations": {"com.amazon.soci.image-layer-digest": Digest::of(LAYER).to_string(),
                             "com.amazon.soci.image-layer-mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                             "com.amazon.soci.span-size": "4194304"}},
            {"mediaType": "application/vnd.amazon.soci.prefetch.v1+json", "digest": Digest::of(b"p").to_string(), "size": 1,
             "annotations": {"com.amazon.soci.image-layer-digest": Digest::of(LAYER).to_string()}},
        ],
        // An unknown key and odd spacing, which storing must keep.
        "unknown":   {"kept": true},
    });
    if let Some(subject) = subject {
        index["subject"] =
            json!({"mediaType": media_type::OCI_MANIFEST, "digest": subject, "size": 1});
    }
    format!("{index:#}")
}

/// An image whose manifest names `index` if there is one.
async fn scene(index: Option<&str>) -> Scene {
    let registry = ScriptedRegistry::start().await.unwrap();
    let annotations = index
        .map(|digest| json!({"com.amazon.soci.index-digest": digest}))
        .unwrap_or(Value::Null);
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "annotations": annotations});
    let manifest = registry.put_manifest(
        "app",
        Some("v1"),
        media_type::OCI_MANIFEST,
        manifest.to_string(),
    );
    registry.put_blob("app", ZTOC);
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(OciLayoutStore::open_at(dir.path()).unwrap());
    Scene {
        registry,
        store,
        dir,
        manifest: manifest.parse().unwrap(),
    }
}

async fn scene_v2() -> (Scene, Digest) {
    let index = soci_index(V2_ARTIFACT_TYPE, None);
    let digest = Digest::of(index.as_bytes());
    let scene = scene(Some(&digest.to_string())).await;
    scene
        .registry
        .put_manifest("app", None, media_type::OCI_MANIFEST, index);
    (scene, digest)
}

impl Scene {
    fn discovery(&self, modes: Modes) -> Discovery {
        Discovery::new(client(quick()), self.store.clone(), modes)
    }

    fn query(&self) -> ImageQuery {
        ImageQuery {
            image: image(&self.registry, "app:v1"),
            manifest: Some(self.manifest),
            index: None,
        }
    }

    fn add_v1(&self) -> Digest {
        let index = soci_index(V1_ARTIFACT_TYPE, Some(&self.manifest.to_string()));
        let digest = self
            .registry
            .put_manifest("app", None, media_type::OCI_MANIFEST, index);
        digest.parse().unwrap()
    }
}

#[tokio::test]
async fn a_v2_index_is_found_by_the_annotation_and_stored_as_it_came() {
    let (scene, digest) = scene_v2().await;
    let index = scene.discovery(V2).find(&scene.query()).await.unwrap();
    assert_eq!(index.digest, digest);
    assert_eq!(index.layers.len(), 1);
    let ztoc = index.ztoc(&Digest::of(LAYER)).unwrap();
    assert_eq!(
        (ztoc.ztoc, ztoc.size, ztoc.span_size),
        (Digest::of(ZTOC), ZTOC.len() as u64, Some(4 << 20))
    );
    assert!(index.ztoc(&Digest::of(b"another")).is_none());
    let original = scene.registry.content("app", &digest.to_string()).unwrap();
    assert_eq!(
        scene.store.get(&digest, 1 << 20).await.unwrap(),
        Some(original)
    );
}

#[tokio::test]
async fn what_the_store_has_is_not_fetched() {
    let (scene, digest) = scene_v2().await;
    let first = scene.discovery(V2);
    let index = first.find(&scene.query()).await.unwrap();
    let image = image(&scene.registry, "app:v1");
    assert_eq!(
        first.fetch_ztoc(&image, &index.layers[0]).await.unwrap(),
        ZTOC
    );

    let again = OciLayoutStore::open_at(scene.dir.path()).unwrap();
    let second = Discovery::new(client(quick()), Arc::new(again), V2);
    let before = scene.registry.requests().len();
    let query = ImageQuery {
        index: Some(digest),
        ..scene.query()
    };
    let index = second.find(&query).await.unwrap();
    assert_eq!(
        second.fetch_ztoc(&image, &index.layers[0]).await.unwrap(),
        ZTOC
    );
    assert_eq!(scene.registry.requests().len(), before);
}

#[tokio::test]
async fn a_ztoc_that_rotted_in_the_store_is_fetched_again() {
    let (scene, _) = scene_v2().await;
    let discovery = scene.discovery(V2);
    let index = discovery.find(&scene.query()).await.unwrap();
    let image = image(&scene.registry, "app:v1");
    discovery
        .fetch_ztoc(&image, &index.layers[0])
        .await
        .unwrap();
    let file = scene
        .dir
        .path()
        .join("blobs/sha256")
        .join(Digest::of(ZTOC).hex());
    std::fs::write(&file, b"rotten").unwrap();
    assert_eq!(
        discovery
            .fetch_ztoc(&image, &index.layers[0])
            .await
            .unwrap(),
        ZTOC
    );
    assert_eq!(std::fs::read(&file).unwrap(), ZTOC);
}

#[tokio::test]
async fn many_layers_ask_for_their_index_once() {
    let (scene, _) = scene_v2().await;
    let discovery = scene.discovery(V2);
    let query = scene.query();
    let searches = (0..16).map(|_| discovery.find(&query));
    assert!(
        futures::future::join_all(searches)
            .await
            .iter()
            .all(Result::is_ok)
    );
    discovery.find(&query).await.unwrap();
    assert_eq!(scene.registry.requests().len(), 2);
}

#[tokio::test]
async fn a_v1_index_is_found_by_the_referrers_api_and_by_the_tag() {
    let with_api = scene(None).await;
    let digest = with_api.add_v1();
    assert_eq!(
        with_api
            .discovery(BOTH)
            .find(&with_api.query())
            .await
            .unwrap()
            .digest,
        digest
    );

    let by_tag = scene(None).await;
    let digest = by_tag.add_v1();
    by_tag.registry.set_referrers(false);
    let descriptor = json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest.to_string(), "size": 1,
                            "artifactType": V1_ARTIFACT_TYPE});
    let list =
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [descriptor]});
    let tag = format!("sha256-{}", by_tag.manifest.hex());
    by_tag
        .registry
        .put_manifest("app", Some(&tag), media_type::OCI_INDEX, list.to_string());
    assert_eq!(
        by_tag
            .discovery(BOTH)
            .find(&by_tag.query())
            .await
            .unwrap()
            .digest,
        digest
    );
}

#[tokio::test]
async fn v1_is_not_looked_for_unless_enabled() {
    let scene = scene(None).await;
    scene.add_v1();
    let error = scene.discovery(V2).find(&scene.query()).await.unwrap_err();
    assert!(matches!(error, DiscoveryError::NoIndex));
    assert_eq!(scene.registry.count("GET", "/referrers/"), 0);
}

#[tokio::test]
async fn a_v2_index_that_fails_falls_through_to_v1() {
    let gone = Digest::of(b"nowhere").to_string();
    let scene = scene(Some(&gone)).await;
    let digest = scene.add_v1();
    assert_eq!(
        scene
            .discovery(BOTH)
            .find(&scene.query())
            .await
            .unwrap()
            .digest,
        digest
    );
    let error = NotLazy::from(scene.discovery(V2).find(&scene.query()).await.unwrap_err());
    assert_eq!(error.label(), "artifact");
    assert!(error.to_string().contains(&gone), "{error}");
}

#[tokio::test]
async fn a_named_index_is_used_though_all_modes_are_off() {
    let (scene, digest) = scene_v2().await;
    let off = scene.discovery(Modes { v2: false, ..V2 });
    assert!(matches!(
        off.find(&scene.query()).await,
        Err(DiscoveryError::Disabled)
    ));
    let query = ImageQuery {
        index: Some(digest),
        ..scene.query()
    };
    assert_eq!(off.find(&query).await.unwrap().digest, digest);
}

#[tokio::test]
async fn a_failure_is_forgotten_after_seconds() {
    let (scene, digest) = scene_v2().await;
    let discovery = scene.discovery(V2);
    scene
        .registry
        .script(Match::path("/manifests/").turns(0..1), Fault::status(404));
    assert!(discovery.find(&scene.query()).await.is_err());
    assert!(discovery.find(&scene.query()).await.is_err());
    assert_eq!(scene.registry.requests().len(), 1);
    tokio::time::sleep(Duration::from_millis(5100)).await;
    assert_eq!(discovery.find(&scene.query()).await.unwrap().digest, digest);
}

#[tokio::test]
async fn artifacts_that_are_not_what_they_should_be_are_refused() {
    for bad in ["{}", "[]", &soci_index("application/other", None), "\u{0}"] {
        let digest = Digest::of(bad.as_bytes());
        let scene = scene(Some(&digest.to_string())).await;
        scene
            .registry
            .put_manifest("app", None, media_type::OCI_MANIFEST, bad.to_owned());
        let error = NotLazy::from(scene.discovery(V2).find(&scene.query()).await.unwrap_err());
        assert_eq!(error.label(), "artifact", "{bad:?}");
        assert_eq!(scene.store.list().await.unwrap(), [], "{bad:?}");
    }
}

#[tokio::test]
async fn a_ztoc_of_another_size_than_its_index_says_is_refused() {
    let (scene, _) = scene_v2().await;
    let discovery = scene.discovery(V2);
    let index = discovery.find(&scene.query()).await.unwrap();
    let image = image(&scene.registry, "app:v1");
    for size in [ZTOC.len() as u64 - 1, ZTOC.len() as u64 + 1, u64::MAX] {
        let mut ztoc = index.layers[0].clone();
        ztoc.size = size;
        assert!(discovery.fetch_ztoc(&image, &ztoc).await.is_err(), "{size}");
    }
}

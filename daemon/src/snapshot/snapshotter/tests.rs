#![allow(clippy::unwrap_used)]

mod double;

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tonic::Code;

use self::double::{Outcome, Scripted};
use super::*;
use crate::snapshot::labels;
use crate::snapshot::record::Source;

struct Ground {
    root: TempDir,
    images: Arc<Scripted>,
    snapshotter: Arc<Snapshotter>,
}

impl Ground {
    fn new(outcome: Outcome) -> Self {
        let root = tempfile::tempdir().unwrap();
        let images = Arc::new(Scripted::new(outcome, root.path().join("views")));
        let snapshotter = open(&root, &images);
        Self {
            root,
            images,
            snapshotter,
        }
    }

    /// The same root in a new process.
    fn restart(self) -> Self {
        let Self {
            root,
            images,
            snapshotter,
        } = self;
        drop(snapshotter);
        let snapshotter = open(&root, &images);
        Self {
            root,
            images,
            snapshotter,
        }
    }

    async fn layer(&self, name: u8, parent: Option<&str>) -> Result<Vec<Mount>, SnapshotError> {
        self.snapshotter
            .prepare(layer("default", name, parent))
            .await
    }

    async fn container(&self, key: &str, parent: &str) -> Result<Vec<Mount>, SnapshotError> {
        self.snapshotter.prepare(container(key, parent)).await
    }

    fn directories(&self) -> Vec<String> {
        let snapshots = self.root.path().join("snapshotter/snapshots");
        let entries = std::fs::read_dir(snapshots).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

fn open(root: &TempDir, images: &Arc<Scripted>) -> Arc<Snapshotter> {
    let images = Arc::clone(images) as Arc<dyn Images>;
    let metrics = Arc::new(Metrics::new());
    let (overlay, mapped_by) = (OverlayOptions::default(), MappedBy::default());
    Arc::new(Snapshotter::open(root.path(), images, overlay, mapped_by, metrics).unwrap())
}

fn digest(name: u8) -> Digest {
    Digest::of(&[name])
}

fn chain_id(name: u8) -> String {
    format!("sha256:chain-{name}")
}

fn layer(namespace: &str, name: u8, parent: Option<&str>) -> NewRequest {
    let labels = [
        (labels::REF, chain_id(name)),
        (labels::IMAGE, "registry.example/app:1".to_owned()),
        (labels::LAYER, digest(name).to_string()),
    ];
    NewRequest {
        key: format!("{namespace}/{name}/extract {}", chain_id(name)),
        parent: parent.map(str::to_owned),
        labels: labels
            .map(|(label, value)| (label.to_owned(), value))
            .into(),
        namespace: namespace.to_owned(),
    }
}

fn container(key: &str, parent: &str) -> NewRequest {
    NewRequest {
        key: key.to_owned(),
        parent: Some(parent.to_owned()),
        labels: Labels::new(),
        namespace: "default".to_owned(),
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, SnapshotError>) -> Code {
    result.unwrap_err().code()
}

#[tokio::test]
async fn a_lazy_layer_exists_at_once_as_containerd_looks_for_it() {
    let ground = Ground::new(Outcome::Lazy);
    assert_eq!(code(ground.layer(1, None).await), Code::AlreadyExists);
    let parent = chain_id(1);
    assert_eq!(
        code(ground.layer(2, Some(&parent)).await),
        Code::AlreadyExists
    );
    let filter = format!(
        r#"labels."containerd.io/snapshot.ref"=={},parent=="{parent}""#,
        chain_id(2)
    );
    let filters = Filters::parse(&[filter]).unwrap();
    let [found]: [Entry; 1] = ground
        .snapshotter
        .list(filters)
        .await
        .unwrap()
        .try_into()
        .unwrap();
    assert_eq!(found.key, chain_id(2));
    assert_eq!(found.record.kind, Kind::Committed);
    assert!(matches!(found.record.source, Source::Lazy { .. }));
    assert_eq!(found.record.labels[labels::REMOTE], labels::REMOTE_VALUE);
    assert_eq!(found.record.labels[labels::NAMESPACE], "default");
    assert!(ground.directories().is_empty());
    assert_eq!(ground.images.mounted(), 0);
    assert_eq!(
        ground.snapshotter.usage(chain_id(2)).await.unwrap(),
        Usage::default()
    );
}

#[tokio::test]
async fn a_layer_prepared_in_another_namespace_is_found_again() {
    let ground = Ground::new(Outcome::Lazy);
    for namespace in ["default", "k8s.io"] {
        let prepared = ground.snapshotter.prepare(layer(namespace, 1, None)).await;
        assert_eq!(code(prepared), Code::AlreadyExists);
    }
    assert_eq!(ground.images.prepared(), 1);
}

#[tokio::test]
async fn a_layer_asked_for_many_times_at_once_is_prepared_once() {
    let ground = Ground::new(Outcome::Lazy);
    ground.images.slow_down(Duration::from_millis(50));
    let calls = (0..8).map(|n| {
        let mut request = layer("default", 1, None);
        request.key = format!("default/{n}/extract");
        ground.snapshotter.prepare(request)
    });
    for prepared in futures::future::join_all(calls).await {
        assert_eq!(code(prepared), Code::AlreadyExists);
    }
    assert_eq!(ground.images.prepared(), 1);
}

#[tokio::test]
async fn the_same_layer_on_another_parent_is_a_snapshot_of_its_own() {
    let ground = Ground::new(Outcome::Lazy);
    for base in ["a/1/base", "b/2/base"] {
        ground.snapshotter.prepare(plain("active")).await.unwrap();
        ground
            .snapshotter
            .commit(commit("active", base))
            .await
            .unwrap();
        assert_eq!(code(ground.layer(2, Some(base)).await), Code::AlreadyExists);
    }
    let filter = format!(r#"labels."{}"=={}"#, labels::REF, chain_id(2));
    let filters = Filters::parse(&[filter]).unwrap();
    let found = ground.snapshotter.list(filters).await.unwrap();
    let parents: Vec<&str> = found
        .iter()
        .map(|entry| entry.record.parent.as_deref().unwrap())
        .collect();
    assert_eq!(parents, ["a/1/base", "b/2/base"]);
}

fn plain(key: &str) -> NewRequest {
    NewRequest {
        parent: None,
        ..container(key, "")
    }
}

fn commit(key: &str, name: &str) -> CommitRequest {
    CommitRequest {
        key: key.to_owned(),
        name: name.to_owned(),
        parent: None,
        labels: Labels::new(),
    }
}

#[tokio::test]
async fn an_unpacked_layer_is_committed_with_its_usage() {
    let ground = Ground::new(Outcome::Unpacked);
    assert_eq!(code(ground.layer(1, None).await), Code::AlreadyExists);
    let usage = ground.snapshotter.usage(chain_id(1)).await.unwrap();
    assert_eq!(usage.inodes, 2);
    assert!(usage.size >= 4096, "{usage:?}");
    let entry = ground.snapshotter.stat(chain_id(1)).await.unwrap();
    assert!(!entry.record.labels.contains_key(labels::REMOTE));
    let mounts = ground.container("c", &chain_id(1)).await.unwrap();
    let lower = mounts[0].options.last().unwrap();
    let files = PathBuf::from(lower.strip_prefix("lowerdir=").unwrap());
    assert!(files.join("unpacked").exists());
}

#[tokio::test]
async fn a_deferred_layer_is_unpacked_by_containerd_on_the_layers_below() {
    let ground = Ground::new(Outcome::Lazy);
    assert_eq!(code(ground.layer(1, None).await), Code::AlreadyExists);
    ground.images.set(Outcome::Deferred);
    let request = layer("default", 2, Some(&chain_id(1)));
    let key = request.key.clone();
    let mounts = ground.snapshotter.prepare(request).await.unwrap();
    assert_eq!(mounts[0].kind, "overlay");
    assert_eq!(ground.images.mounted(), 1);
    let again = ground.snapshotter.mounts(key.clone()).await.unwrap();
    assert_eq!(again, mounts);
    ground
        .snapshotter
        .commit(commit(&key, "default/9/chain-2"))
        .await
        .unwrap();
    assert_eq!(ground.images.mounted(), 0);
    let usage = ground
        .snapshotter
        .usage("default/9/chain-2".to_owned())
        .await;
    assert_eq!(usage.unwrap().inodes, 1);
}

#[tokio::test]
async fn a_layer_without_labels_is_deferred_unasked() {
    let ground = Ground::new(Outcome::Lazy);
    let mut request = layer("default", 1, None);
    request.labels.remove(labels::LAYER);
    let mounts = ground.snapshotter.prepare(request).await.unwrap();
    assert_eq!(mounts[0].kind, "bind");
    assert_eq!(ground.images.prepared(), 0);
}

#[tokio::test]
async fn a_chain_of_lazy_layers_is_one_mount_that_goes_with_its_last_container() {
    let ground = Ground::new(Outcome::Lazy);
    for name in 1..=3 {
        let parent = (name > 1).then(|| chain_id(name - 1));
        assert_eq!(
            code(ground.layer(name, parent.as_deref()).await),
            Code::AlreadyExists
        );
    }
    for key in ["one", "two"] {
        let mounts = ground.container(key, &chain_id(3)).await.unwrap();
        let lower = mounts[0].options.last().unwrap();
        assert!(!lower.contains(':'), "{lower}");
    }
    let view = ground.snapshotter.view(container("view", &chain_id(3)));
    assert_eq!(view.await.unwrap()[0].options, ["ro", "rbind"]);
    assert_eq!(ground.images.mounted(), 1);
    assert_eq!(
        ground.images.runs(),
        [vec![digest(1), digest(2), digest(3)]]
    );
    for key in ["one", "view", "two"] {
        assert_eq!(ground.images.mounted(), 1);
        ground.snapshotter.remove(key.to_owned()).await.unwrap();
    }
    assert_eq!(ground.images.mounted(), 0);
}

#[tokio::test]
async fn a_view_that_cannot_be_mounted_leaves_nothing_behind() {
    let ground = Ground::new(Outcome::Lazy);
    assert_eq!(code(ground.layer(1, None).await), Code::AlreadyExists);
    ground.images.break_mounts(true);
    assert_eq!(
        code(ground.container("c", &chain_id(1)).await),
        Code::Unavailable
    );
    assert_eq!(
        code(ground.snapshotter.stat("c".to_owned()).await),
        Code::NotFound
    );
    assert!(ground.directories().is_empty());
    ground.images.break_mounts(false);
    ground.container("c", &chain_id(1)).await.unwrap();
}

#[tokio::test]
async fn a_key_that_is_taken_keeps_its_snapshot_whole() {
    let ground = Ground::new(Outcome::Lazy);
    assert_eq!(code(ground.layer(1, None).await), Code::AlreadyExists);
    ground.container("c", &chain_id(1)).await.unwrap();
    let parent = chain_id(1);
    let (first, second) = tokio::join!(
        ground.container("c", &parent),
        ground.container("d", &parent)
    );
    assert_eq!(code(first), Code::AlreadyExists);
    second.unwrap();
    assert_eq!(ground.images.mounted(), 1);
    ground.snapshotter.mounts("c".to_owned()).await.unwrap();
    assert_eq!(ground.directories().len(), 2);
}

#[tokio::test]
async fn a_cleanup_removes_directories_and_collects_layers_without_snapshots() {
    let ground = Ground::new(Outcome::Lazy);
    assert_eq!(code(ground.layer(1, None).await), Code::AlreadyExists);
    assert_eq!(code(ground.layer(2, None).await), Code::AlreadyExists);
    ground.container("c", &chain_id(1)).await.unwrap();
    ground.container("d", &chain_id(1)).await.unwrap();
    ground.snapshotter.remove("c".to_owned()).await.unwrap();
    ground.snapshotter.remove(chain_id(2)).await.unwrap();
    assert_eq!(ground.directories().len(), 2);
    ground.snapshotter.cleanup().await.unwrap();
    assert_eq!(ground.directories().len(), 1);
    assert_eq!(ground.images.live(), [digest(1)].into());
}

#[tokio::test]
async fn what_was_in_use_at_a_cleanup_is_looked_at_again_until_it_is_gone() {
    let ground = Ground::new(Outcome::Lazy);
    ground.images.be_busy(3);
    let snapshotter = Arc::clone(&ground.snapshotter);
    let again = tokio::spawn(async move { snapshotter.finish_cleanups().await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(ground.images.busy(), 3, "nobody asked for a cleanup");
    ground.snapshotter.cleanup().await.unwrap();
    let gone = async {
        while ground.images.busy() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone)
        .await
        .unwrap();
    again.abort();
}

#[tokio::test]
async fn a_layer_that_is_being_prepared_is_not_collected() {
    let ground = Ground::new(Outcome::Lazy);
    ground.images.slow_down(Duration::from_millis(300));
    let snapshotter = Arc::clone(&ground.snapshotter);
    let preparing = tokio::spawn(async move { snapshotter.prepare(layer("n", 1, None)).await });
    while ground.images.prepared() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    ground.snapshotter.cleanup().await.unwrap();
    assert_eq!(ground.images.live(), [digest(1)].into());
    assert_eq!(code(preparing.await.unwrap()), Code::AlreadyExists);
    assert_eq!(ground.directories().len(), 0);
}

#[tokio::test]
async fn a_prepare_that_was_given_up_leaves_nothing_once_cleaned_up() {
    let ground = Ground::new(Outcome::Lazy);
    ground.images.slow_down(Duration::from_secs(60));
    let patience = Duration::from_millis(100);
    let given_up = tokio::time::timeout(patience, ground.layer(1, None)).await;
    assert!(given_up.is_err());
    ground.snapshotter.cleanup().await.unwrap();
    assert!(ground.directories().is_empty());
    assert!(ground.images.live().is_empty());
    ground.images.slow_down(Duration::ZERO);
    assert_eq!(code(ground.layer(1, None).await), Code::AlreadyExists);
}

#[tokio::test]
async fn after_a_restart_containers_are_mounted_as_before() {
    let ground = Ground::new(Outcome::Lazy);
    assert_eq!(code(ground.layer(1, None).await), Code::AlreadyExists);
    let before = ground.container("c", &chain_id(1)).await.unwrap();
    let ground = ground.restart();
    assert_eq!(ground.images.mounted(), 0);
    let after = ground.snapshotter.mounts("c".to_owned()).await.unwrap();
    assert_eq!(after, before);
    assert_eq!(ground.images.mounted(), 1);
    ground.snapshotter.close().await.unwrap();
    assert_eq!(ground.images.mounted(), 0);
}

#[tokio::test]
async fn calls_that_make_no_sense_have_the_status_containerd_expects() {
    let ground = Ground::new(Outcome::Lazy);
    let snapshotter = &ground.snapshotter;
    assert_eq!(code(ground.layer(1, None).await), Code::AlreadyExists);
    ground.container("c", &chain_id(1)).await.unwrap();
    assert_eq!(
        code(snapshotter.mounts(chain_id(1)).await),
        Code::FailedPrecondition
    );
    assert_eq!(
        code(snapshotter.remove(chain_id(1)).await),
        Code::FailedPrecondition
    );
    assert_eq!(
        code(snapshotter.remove("none".to_owned()).await),
        Code::NotFound
    );
    assert_eq!(
        code(snapshotter.usage("none".to_owned()).await),
        Code::NotFound
    );
    assert_eq!(code(ground.container("x", "none").await), Code::NotFound);
    assert_eq!(
        code(ground.container("x", "c").await),
        Code::InvalidArgument
    );
    assert_eq!(
        code(ground.container("", &chain_id(1)).await),
        Code::InvalidArgument
    );
    for labels in [
        Labels::from([("l".to_owned(), "v".repeat(MAX_LABEL))]),
        (0..=MAX_LABELS)
            .map(|number| (number.to_string(), "v".to_owned()))
            .collect(),
    ] {
        let request = NewRequest {
            labels: labels.clone(),
            ..container("labelled", &chain_id(1))
        };
        assert_eq!(
            code(snapshotter.prepare(request).await),
            Code::InvalidArgument
        );
        let replace = LabelChange::Replace(labels);
        let updated = snapshotter.update("c".to_owned(), replace).await;
        assert_eq!(code(updated), Code::InvalidArgument);
    }
    let long = "k".repeat(MAX_KEY + 1);
    assert_eq!(
        code(ground.container(&long, &chain_id(1)).await),
        Code::InvalidArgument
    );
    assert_eq!(
        code(snapshotter.commit(commit("none", "x")).await),
        Code::NotFound
    );
    assert_eq!(
        code(snapshotter.commit(commit("c", &chain_id(1))).await),
        Code::AlreadyExists
    );
}

#[tokio::test]
async fn labels_are_replaced_merged_and_removed() {
    let ground = Ground::new(Outcome::Lazy);
    ground.snapshotter.prepare(plain("a")).await.unwrap();
    let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let replace = LabelChange::Replace([label("x", "1"), label("y", "2"), label("z", "")].into());
    let entry = ground
        .snapshotter
        .update("a".to_owned(), replace)
        .await
        .unwrap();
    assert_eq!(
        entry.record.labels,
        [label("x", "1"), label("y", "2")].into()
    );
    let merge = vec![
        ("x".to_owned(), None),
        ("w".to_owned(), Some("3".to_owned())),
    ];
    let merge = LabelChange::Merge(merge);
    let entry = ground
        .snapshotter
        .update("a".to_owned(), merge)
        .await
        .unwrap();
    assert_eq!(
        entry.record.labels,
        [label("w", "3"), label("y", "2")].into()
    );
    assert!(entry.record.updated > entry.record.created);
}

#[tokio::test]
async fn a_label_that_is_no_mapping_is_refused_before_anything_is_made() {
    let ground = Ground::new(Outcome::Lazy);
    assert_eq!(code(ground.layer(1, None).await), Code::AlreadyExists);
    for (label, value) in [
        (labels::UID_MAPPING, "0:100000:65536"),
        (labels::GID_MAPPING, "0:0"),
    ] {
        let mut request = container("c", &chain_id(1));
        request.labels.insert(label.to_owned(), value.to_owned());
        assert_eq!(
            code(ground.snapshotter.prepare(request).await),
            Code::InvalidArgument
        );
    }
    assert_eq!(ground.images.mounted(), 0);
    ground.container("c", &chain_id(1)).await.unwrap();
}

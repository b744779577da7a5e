#![allow(clippy::unwrap_used)]

mod power_cut;

use tempfile::TempDir;

use super::*;

fn store() -> (TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("metadata.redb"), 1).unwrap();
    (directory, store)
}

fn new(store: &Store, key: &str, kind: Kind, parent: Option<&str>) -> NewSnapshot {
    NewSnapshot {
        id: store.allocate(),
        key: key.to_owned(),
        kind,
        parent: parent.map(str::to_owned),
        labels: Labels::new(),
        source: Source::Directory,
        usage: None,
    }
}

fn layer(store: &Store, target: &str, parent: Option<&str>) -> NewSnapshot {
    let mut layer = new(store, target, Kind::Committed, parent);
    layer
        .labels
        .insert(labels::REF.to_owned(), target.to_owned());
    layer
}

fn insert(store: &Store, key: &str, kind: Kind, parent: Option<&str>) {
    store.insert(&new(store, key, kind, parent)).unwrap();
}

const USAGE: Usage = Usage { size: 1, inodes: 2 };

fn commit_request(key: &str, name: &str) -> CommitRequest {
    CommitRequest {
        key: key.to_owned(),
        name: name.to_owned(),
        parent: None,
        labels: Labels::new(),
    }
}

#[test]
fn a_key_is_taken_once() {
    let (_directory, store) = store();
    insert(&store, "a", Kind::Active, None);
    let again = store.insert(&new(&store, "a", Kind::View, None));
    assert!(matches!(again, Err(SnapshotError::AlreadyExists { key }) if key == "a"));
}

#[test]
fn only_a_committed_snapshot_is_a_parent() {
    let (_directory, store) = store();
    insert(&store, "a", Kind::Active, None);
    let on_active = store.insert(&new(&store, "b", Kind::Active, Some("a")));
    assert!(matches!(on_active, Err(SnapshotError::Parent { parent }) if parent == "a"));
    let on_nothing = store.insert(&new(&store, "b", Kind::Active, Some("z")));
    assert!(matches!(on_nothing, Err(SnapshotError::NotFound { key }) if key == "z"));
    assert!(matches!(
        store.get("b"),
        Err(SnapshotError::NotFound { .. })
    ));
}

#[test]
fn a_snapshot_with_children_stays() {
    let (_directory, store) = store();
    insert(&store, "base", Kind::Committed, None);
    insert(&store, "child", Kind::Active, Some("base"));
    let refused = store.remove("base");
    assert!(matches!(refused, Err(SnapshotError::HasChildren { child, .. }) if child == "child"));
    store.remove("child").unwrap();
    store.remove("base").unwrap();
    assert!(store.list(|_| true).unwrap().is_empty());
}

#[test]
fn a_commit_renames_and_replaces_labels_and_keeps_the_number() {
    let (_directory, store) = store();
    let mut active = new(&store, "active", Kind::Active, None);
    active.labels.insert("old".to_owned(), "1".to_owned());
    store.insert(&active).unwrap();
    let mut request = commit_request("active", "name");
    request.labels.insert("new".to_owned(), "2".to_owned());
    store.commit(&request, USAGE).unwrap();
    let record = store.get("name").unwrap();
    assert_eq!(record.id, active.id);
    assert_eq!(record.kind, Kind::Committed);
    assert_eq!(record.labels, request.labels);
    assert_eq!(record.usage, Some(USAGE));
    assert!(store.get("active").is_err());
    assert!(matches!(
        store.commit(&commit_request("name", "x"), USAGE),
        Err(SnapshotError::Kind {
            kind: "committed",
            ..
        })
    ));
}

#[test]
fn a_commit_may_name_the_parent_that_prepare_left_out() {
    let (_directory, store) = store();
    insert(&store, "base", Kind::Committed, None);
    insert(&store, "a", Kind::Active, None);
    let mut request = commit_request("a", "name");
    request.parent = Some("base".to_owned());
    store.commit(&request, USAGE).unwrap();
    assert_eq!(store.get("name").unwrap().parent.as_deref(), Some("base"));
    assert!(matches!(
        store.remove("base"),
        Err(SnapshotError::HasChildren { .. })
    ));

    insert(&store, "b", Kind::Active, Some("name"));
    let mut request = commit_request("b", "other");
    request.parent = Some("base".to_owned());
    assert!(matches!(
        store.commit(&request, USAGE),
        Err(SnapshotError::Argument { .. })
    ));
    assert_eq!(store.get("b").unwrap().kind, Kind::Active);
}

#[test]
fn a_layer_is_found_by_reference_and_parent() {
    let (_directory, store) = store();
    let base = store.insert_layer(&layer(&store, "c0", None)).unwrap();
    assert_eq!(base, "c0");
    let again = store.insert_layer(&layer(&store, "c0", None)).unwrap();
    assert_eq!(again, "c0");
    assert_eq!(store.list(|_| true).unwrap().len(), 1);
    assert_eq!(store.find_layer("c0", None).unwrap().as_deref(), Some("c0"));
    assert_eq!(store.find_layer("c0", Some("c0")).unwrap(), None);
}

#[test]
fn the_same_layer_on_two_parents_has_two_names() {
    let (_directory, store) = store();
    insert(&store, "a/1/p", Kind::Committed, None);
    insert(&store, "b/2/p", Kind::Committed, None);
    let first = store
        .insert_layer(&layer(&store, "c", Some("a/1/p")))
        .unwrap();
    let second = store
        .insert_layer(&layer(&store, "c", Some("b/2/p")))
        .unwrap();
    assert_eq!(first, "c");
    assert_ne!(first, second);
    let found = |parent| store.find_layer("c", Some(parent)).unwrap();
    assert_eq!(found("a/1/p"), Some(first));
    assert_eq!(found("b/2/p"), Some(second));
}

#[test]
fn a_layer_whose_reference_label_is_taken_away_is_found_no_more() {
    let (_directory, store) = store();
    store.insert_layer(&layer(&store, "c", None)).unwrap();
    store
        .update("c", |labels| {
            labels.clear();
            Ok(())
        })
        .unwrap();
    assert_eq!(store.find_layer("c", None).unwrap(), None);
    store
        .update("c", |labels| {
            labels.insert(labels::REF.to_owned(), "d".to_owned());
            Ok(())
        })
        .unwrap();
    assert_eq!(store.find_layer("d", None).unwrap().as_deref(), Some("c"));
    store.remove("c").unwrap();
    assert_eq!(store.find_layer("d", None).unwrap(), None);
}

#[test]
fn records_and_numbers_outlive_the_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata.redb");
    let store = Store::open(&path, 1).unwrap();
    insert(&store, "a", Kind::Committed, None);
    let last = store.allocate();
    store
        .insert(&NewSnapshot {
            id: last,
            ..new(&store, "b", Kind::Active, Some("a"))
        })
        .unwrap();
    let before = store.get("b").unwrap();
    drop(store);
    let store = Store::open(&path, 1).unwrap();
    assert_eq!(store.get("b").unwrap(), before);
    assert!(store.allocate() > last);
    drop(store);
    assert_eq!(Store::open(&path, 900).unwrap().allocate(), SnapshotId(900));
}

#[test]
fn a_chain_is_listed_nearest_first() {
    let (_directory, store) = store();
    insert(&store, "a", Kind::Committed, None);
    insert(&store, "b", Kind::Committed, Some("a"));
    insert(&store, "c", Kind::Active, Some("b"));
    let chain = store.chain(Some("b")).unwrap();
    let parents: Vec<Option<String>> = chain.into_iter().map(|record| record.parent).collect();
    assert_eq!(parents, [Some("a".to_owned()), None]);
    assert!(store.chain(None).unwrap().is_empty());
    assert!(matches!(
        store.chain(Some("c")),
        Err(SnapshotError::Parent { .. })
    ));
}

#[test]
fn a_file_that_is_no_database_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata.redb");
    std::fs::write(&path, vec![7; 8192]).unwrap();
    assert!(matches!(
        Store::open(&path, 1),
        Err(SnapshotError::Store { .. })
    ));
}

/// A file system of a few megabytes; unmounted when dropped.
struct Small(TempDir);

impl Small {
    fn mount() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (kind, none) = (Some("tmpfs"), nix::mount::MsFlags::empty());
        nix::mount::mount(kind, dir.path(), kind, none, Some("size=8m")).unwrap();
        Self(dir)
    }

    /// Takes all the space there is; the file that has it.
    fn fill(&self) -> std::path::PathBuf {
        let filler = self.0.path().join("filler");
        let mut file = std::fs::File::create(&filler).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
        filler
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let flags = nix::mount::MntFlags::MNT_DETACH;
        nix::mount::umount2(self.0.path(), flags).unwrap();
    }
}

#[test]
fn a_full_disk_refuses_changes_only_until_there_is_space_again() {
    let small = Small::mount();
    let store = Store::open(&small.0.path().join("metadata.redb"), 1).unwrap();
    insert(&store, "before", Kind::Committed, None);
    let filler = small.fill();
    let large = |number: usize| {
        let mut large = new(&store, &format!("large-{number}"), Kind::Active, None);
        large.labels.insert("text".to_owned(), "x".repeat(100_000));
        large
    };
    let inserted = (0..200).find_map(|number| Some((number, store.insert(&large(number)).err()?)));
    let (last, error) = inserted.unwrap();
    assert!(matches!(error, SnapshotError::Store { .. }), "{error}");
    for _ in 0..3 {
        assert!(store.insert(&large(last)).is_err(), "it is still full");
    }

    std::fs::remove_file(filler).unwrap();
    store.insert(&large(last)).unwrap();
    insert(&store, "after", Kind::Active, Some("before"));
    let keys: Vec<String> = store
        .list(|_| true)
        .unwrap()
        .into_iter()
        .map(|entry| entry.key)
        .collect();
    assert_eq!(
        keys.len(),
        last + 3,
        "what was promised before is there, nothing else: {keys:?}"
    );
}

#[test]
fn a_damaged_record_is_passed_over_but_nothing_is_removed_for_its_sake() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata.redb");
    let store = Store::open(&path, 1).unwrap();
    for key in ["a", "b", "c"] {
        insert(&store, key, Kind::Active, None);
    }
    drop(store);
    let database = Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let mut records = transaction.open_table(table::RECORDS).unwrap();
    records.insert("b", &b"{\"id\":"[..]).unwrap();
    drop(records);
    transaction.commit().unwrap();
    drop(database);

    let store = Store::open(&path, 1).unwrap();
    let listed = store.list(|_| true).unwrap();
    let keys: Vec<&str> = listed.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(keys, ["a", "c"]);
    assert!(matches!(store.all(), Err(SnapshotError::Corrupt { .. })));
    assert!(matches!(store.get("b"), Err(SnapshotError::Corrupt { .. })));
    store.remove("a").unwrap();
}

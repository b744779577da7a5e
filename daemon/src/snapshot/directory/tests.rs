#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;

fn directories() -> (TempDir, Arc<Directories>) {
    let directory = tempfile::tempdir().unwrap();
    let directories = Directories::open(&directory.path().join("snapshots")).unwrap();
    (directory, Arc::new(directories))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_snapshots_directories_have_the_modes_containers_need() {
    let (directory, directories) = directories();
    let lower = directory.path().join("lower");
    fs::create_dir(&lower).unwrap();
    std::os::unix::fs::chown(&lower, Some(1234), Some(567)).unwrap();
    let claim = directories.claim(SnapshotId(3));
    claim.create(Kind::Active, Some(&lower)).unwrap();
    let path = directories.path(SnapshotId(3));
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&path.join("fs")), 0o755);
    assert_eq!(mode(&path.join("work")), 0o711);
    let owner = fs::metadata(path.join("fs")).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (1234, 567));
}

#[test]
fn a_sweep_takes_orphans_and_leaves_claimed_and_recorded_directories() {
    let (_directory, directories) = directories();
    for id in [1, 2, 3] {
        let claim = directories.claim(SnapshotId(id));
        claim.create(Kind::View, None).unwrap();
    }
    let claim = directories.claim(SnapshotId(1));
    let removed = directories.sweep(|| Ok([SnapshotId(2)].into())).unwrap();
    assert_eq!(removed, 1);
    assert!(directories.path(SnapshotId(1)).exists());
    assert!(directories.path(SnapshotId(2)).exists());
    assert!(!directories.path(SnapshotId(3)).exists());
    drop(claim);
    directories.sweep(|| Ok(BTreeSet::new())).unwrap();
    assert_eq!(directories.first_free().unwrap(), 1);
}

#[test]
fn usage_counts_blocks_and_each_inode_once() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let empty = usage(root).unwrap();
    assert_eq!(empty.inodes, 1);
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("d/file"), vec![1; 100_000]).unwrap();
    fs::hard_link(root.join("d/file"), root.join("link")).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(1 << 40).unwrap();
    std::os::unix::fs::symlink("/", root.join("out")).unwrap();
    let full = usage(root).unwrap();
    assert_eq!(full.inodes, 5);
    assert!(
        (100_000..300_000).contains(&(full.size - empty.size)),
        "{full:?}"
    );
}

#[test]
fn roots_that_overlay_cannot_name_are_refused() {
    for root in ["relative", "/a:b", "/a,b", "/a\\b", "/a\nb"] {
        let refused = Directories::open(Path::new(root));
        assert!(
            matches!(refused, Err(SnapshotError::Argument { .. })),
            "{root}"
        );
    }
}

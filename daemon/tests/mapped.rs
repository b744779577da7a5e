//! Directories shown with mapped ids, as root.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};

use daemon::snapshot::labels::{GID_MAPPING, UID_MAPPING};
use daemon::snapshot::mapped::{self, Mapped};
use daemon::snapshot::mapping;
use daemon::snapshot::record::SnapshotId;
use fuse::IdMapping;
use nix::errno::Errno;
use tempfile::TempDir;

const ID: SnapshotId = SnapshotId(7);

/// A root with a layer in a directory and a view, which is a directory as well.
struct Ground {
    root: TempDir,
    mapped: Mapped,
    lowers: [PathBuf; 2],
}

impl Ground {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let layers = root.path().join("snapshotter/snapshots");
        let lowers = [root.path().join("views/3"), layers.join("1/fs")];
        for lower in &lowers {
            fs::create_dir_all(lower).unwrap();
            let file = lower.join("file");
            fs::write(&file, "content").unwrap();
            chown(file, Some(1), Some(2)).unwrap();
        }
        let program = env!("CARGO_BIN_EXE_soci-snapshotter-grpc");
        Self {
            mapped: Mapped::new(root.path(), &layers).made_by(program.into()),
            root,
            lowers,
        }
    }

    fn put(&self, users: &str) -> Result<Vec<PathBuf>, mapped::NotMapped> {
        self.mapped.put(ID, &mapping(users), &self.lowers)
    }

    fn left(&self) -> usize {
        let root = self.root.path().join("snapshotter/mapped");
        fs::read_dir(root).into_iter().flatten().count()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // Before the directory is removed, and what is mounted in it with it.
        self.mapped.clear();
    }
}

fn mapping(users: &str) -> IdMapping {
    let labels = [(UID_MAPPING, users), (GID_MAPPING, "0:5000:100")];
    let labels = labels.map(|(label, value)| (label.to_owned(), value.to_owned()));
    mapping::of(&labels.into()).unwrap().unwrap()
}

fn owner(directory: &Path) -> (u32, u32) {
    let file = fs::metadata(directory.join("file")).unwrap();
    (file.uid(), file.gid())
}

#[test]
fn files_are_shown_as_owned_by_mapped_ids_and_can_only_be_read() {
    let ground = Ground::new();
    let shown = ground.put("0:1000:1,1:3000:10").unwrap();
    assert_eq!(shown.len(), 2);
    for (shown, lower) in shown.iter().zip(&ground.lowers) {
        assert_ne!(shown, lower);
        assert_eq!(owner(shown), (3000, 5002));
        assert_eq!(fs::read(shown.join("file")).unwrap(), b"content");
        let refused = fs::write(shown.join("file"), "other").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::EROFS as i32));
        assert_eq!(owner(lower), (1, 2));
    }
    assert!(mapped::shows(&shown[0], &ground.lowers[0]));
    assert!(!mapped::shows(&shown[1], &ground.lowers[0]));
}

#[test]
fn what_is_there_stays_until_it_would_show_something_else() {
    let ground = Ground::new();
    let mount = |path: &Path| {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let lines = table
            .lines()
            .filter(|line| line.contains(path.to_str().unwrap()));
        let ids: Vec<String> = lines
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect();
        ids
    };
    let first = ground.put("0:1000:10").unwrap();
    let before = mount(&first[0]);
    assert_eq!(before.len(), 1);
    assert_eq!(ground.put("0:1000:10").unwrap(), first);
    assert_eq!(mount(&first[0]), before);
    assert_eq!(ground.put("0:2000:10").unwrap(), first);
    assert_eq!(owner(&first[0]), (2001, 5002));
    assert_eq!(mount(&first[0]).len(), 1);
}

#[test]
fn taking_them_off_takes_no_file_of_a_layer() {
    let ground = Ground::new();
    let shown = ground.put("0:1000:10").unwrap();
    // Who looks at it goes on.
    let open = fs::File::open(shown[0].join("file")).unwrap();
    ground.mapped.sweep(|id| id == ID);
    assert_eq!(ground.left(), 1);
    ground.mapped.remove(ID);
    ground.mapped.remove(ID);
    assert_eq!(ground.left(), 0);
    assert_eq!(open.metadata().unwrap().uid(), 1001);
    ground.put("0:1000:10").unwrap();
    ground.mapped.sweep(|_| false);
    assert_eq!(ground.left(), 0);
    ground.put("0:1000:10").unwrap();
    mapped::unmount_all(ground.root.path());
    assert_eq!(ground.left(), 0);
    for lower in &ground.lowers {
        assert_eq!(owner(lower), (1, 2));
    }
}

#[test]
fn what_cannot_be_mapped_is_refused() {
    let ground = Ground::new();
    let gone = Mapped::new(ground.root.path(), &ground.lowers[0]).made_by("/nonexistent".into());
    let refused = gone.put(ID, &mapping("0:1:1"), &ground.lowers).unwrap_err();
    assert!(
        refused.to_string().contains("cannot be mapped"),
        "{refused}"
    );
}

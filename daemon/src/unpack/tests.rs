#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::process::Command;

use futures::stream;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tempfile::TempDir;

use super::*;

/// All that a reader of the tree can see of one name.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    size: u64,
    mtime: (i64, i64),
    links: u64,
    device: u64,
    xattrs: BTreeMap<String, Vec<u8>>,
    content: Vec<u8>,
}

fn look(path: &Path) -> Seen {
    let found = path.symlink_metadata().unwrap();
    let kind = found.file_type();
    let xattrs = xattr::list(path).unwrap().map(|name| {
        let value = xattr::get(path, &name).unwrap().unwrap();
        (name.into_string().unwrap(), value)
    });
    let content = if kind.is_file() {
        fs::read(path).unwrap()
    } else if kind.is_symlink() {
        fs::read_link(path)
            .unwrap()
            .into_os_string()
            .into_encoded_bytes()
    } else {
        Vec::new()
    };
    Seen {
        mode: found.mode(),
        owner: (found.uid(), found.gid()),
        size: if kind.is_dir() { 0 } else { found.size() },
        mtime: (found.mtime(), found.mtime_nsec()),
        links: if kind.is_dir() { 0 } else { found.nlink() },
        device: found.rdev(),
        xattrs: xattrs.collect(),
        content,
    }
}

/// Everything below `root`, by path; not `root` itself, which belongs to whoever made it.
fn walk(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                todo.push(path.clone());
            }
            seen.insert(path.strip_prefix(root).unwrap().to_owned(), look(&path));
        }
    }
    seen
}

/// Says where two trees differ, and not all that they have.
fn assert_same(
    left: &BTreeMap<PathBuf, Seen>,
    right: &BTreeMap<PathBuf, Seen>,
    what: &dyn std::fmt::Debug,
) {
    for path in left.keys().chain(right.keys()) {
        let (left, right) = (left.get(path), right.get(path));
        let (left, right) = (left.map(brief), right.map(brief));
        assert_eq!(left, right, "{} of {what:?}", path.display());
    }
}

/// With the digest of its content in the content's place.
fn brief(seen: &Seen) -> (String, Seen) {
    let digest = Digest::of(&seen.content).to_string();
    let seen = Seen {
        xattrs: seen.xattrs.clone(),
        content: Vec::new(),
        ..*seen
    };
    (digest, seen)
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// A tree with everything that a layer can hold.
fn rich_tree(root: &Path) {
    let path = |name: &str| root.join(name);
    fs::create_dir_all(path("usr/bin")).unwrap();
    fs::create_dir(path("sticky")).unwrap();
    fs::set_permissions(path("sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(path("usr/bin/su"), "setuid").unwrap();
    chown(path("usr/bin/su"), Some(0), Some(42)).unwrap();
    fs::set_permissions(path("usr/bin/su"), fs::Permissions::from_mode(0o6755)).unwrap();
    fs::write(path("usr/bin/ping"), "capable").unwrap();
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(path("usr/bin/ping"), "security.capability", &capability).unwrap();
    xattr::set(path("sticky"), "user.note", b"").unwrap();
    fs::hard_link(path("usr/bin/su"), path("usr/bin/sudo")).unwrap();
    symlink("../nowhere", path("usr/dangling")).unwrap();
    std::os::unix::fs::lchown(path("usr/dangling"), Some(7), Some(8)).unwrap();
    fs::hard_link(path("usr/dangling"), path("usr/again")).unwrap();
    fs::create_dir(path("dev")).unwrap();
    let mode = Mode::from_bits_truncate(0o620);
    mknod(&path("dev/tty"), SFlag::S_IFCHR, mode, makedev(5, 300)).unwrap();
    mknod(&path("dev/sda"), SFlag::S_IFBLK, mode, makedev(8, 1)).unwrap();
    mknod(&path("dev/fifo"), SFlag::S_IFIFO, mode, 0).unwrap();
    let long = "x".repeat(200);
    fs::create_dir_all(path(&format!("{long}/{long}"))).unwrap();
    fs::write(path(&format!("{long}/{long}/{long}")), "deep").unwrap();
    let sparse = File::create(path("sparse")).unwrap();
    sparse.write_all_at(b"data", 1 << 20).unwrap();
    sparse.set_len(3 << 20).unwrap();
    fs::write(path("empty"), "").unwrap();
    fs::write(path("large"), vec![7; 300_000]).unwrap();
    fs::create_dir(path("read-only")).unwrap();
    fs::write(path("read-only/file"), "x").unwrap();
    fs::set_permissions(path("read-only"), fs::Permissions::from_mode(0o555)).unwrap();
}

fn tar_of(tree: &Path, arguments: &[&str]) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut tar = Command::new("tar");
    tar.args(arguments)
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-cf"]);
    run(tar.arg(file.path()).arg("-C").arg(tree).arg("."));
    fs::read(file.path()).unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// A snapshot's directory with `fs` in it.
struct Snapshot {
    dir: TempDir,
}

impl Snapshot {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("fs")).unwrap();
        Self { dir }
    }

    fn fs(&self) -> PathBuf {
        self.dir.path().join("fs")
    }

    async fn unpack(&self, blob: &[u8], parents: &[PathBuf]) -> Result<(), UnpackError> {
        let expected = Expected {
            layer: Digest::of(blob),
            diff_id: None,
        };
        self.unpack_as(blob, expected, parents).await
    }

    async fn unpack_as(
        &self,
        blob: &[u8],
        expected: Expected,
        parents: &[PathBuf],
    ) -> Result<(), UnpackError> {
        let chunks = blob.chunks(10_007).map(Bytes::copy_from_slice).map(Ok);
        let chunks: Vec<io::Result<Bytes>> = chunks.collect();
        let site = self.site(parents.is_empty());
        let unpacked = unpack(stream::iter(chunks), expected, site).await?;
        unpacked.move_to(&self.fs(), parents)
    }

    fn site(&self, lowest: bool) -> Site<'_> {
        let beside = self.dir.path();
        Site { beside, lowest }
    }

    /// `fs` is as it was, and nothing else was left in the snapshot's directory.
    fn assert_untouched(&self) {
        assert_eq!(fs::read_dir(self.fs()).unwrap().count(), 0);
        assert_eq!(fs::read_dir(self.dir.path()).unwrap().count(), 1);
    }
}

/// A tar made header by header.
struct Odd(tar::Builder<Vec<u8>>);

impl Odd {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn add(mut self, kind: tar::EntryType, name: &str, link: &str, data: &str) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o640);
        header.set_uid(5);
        header.set_gid(6);
        header.set_mtime(1000);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.0.append(&header, data.as_bytes()).unwrap();
        self
    }

    fn file(self, name: &str, data: &str) -> Self {
        self.add(tar::EntryType::Regular, name, "", data)
    }

    fn dir(self, name: &str) -> Self {
        self.add(tar::EntryType::Directory, name, "", "")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.add(tar::EntryType::Symlink, name, target, "")
    }

    fn hard_link(self, name: &str, target: &str) -> Self {
        self.add(tar::EntryType::Link, name, target, "")
    }

    fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

#[tokio::test]
async fn an_unpacked_layer_equals_the_tree_that_gnu_tar_packed_in_each_format_and_compression() {
    let tree = tempfile::tempdir().unwrap();
    rich_tree(tree.path());
    let expected = walk(tree.path());
    let formats: [&[&str]; 4] = [
        &["--format=posix"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
    ];
    for format in formats {
        let tar = tar_of(tree.path(), format);
        for blob in [gzip(&tar), zstd::encode_all(&*tar, 1).unwrap(), tar.clone()] {
            let snapshot = Snapshot::new();
            snapshot.unpack(&blob, &[]).await.unwrap();
            assert_same(&walk(&snapshot.fs()), &expected, &format);
            assert_eq!(look(&snapshot.fs()).mode, 0o40755);
        }
    }
}

#[tokio::test]
async fn old_gnu_archives_unpack_too_with_whole_seconds_and_no_attributes() {
    let tree = tempfile::tempdir().unwrap();
    rich_tree(tree.path());
    let plain = |tree: &Path| {
        let mut seen = walk(tree);
        for seen in seen.values_mut() {
            seen.mtime.1 = 0;
            seen.xattrs.clear();
        }
        seen
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--format=gnu", "--sparse", "-cf"])
        .arg(file.path());
    run(tar.arg("-C").arg(tree.path()).arg("."));
    let snapshot = Snapshot::new();
    snapshot
        .unpack(&fs::read(file.path()).unwrap(), &[])
        .await
        .unwrap();
    assert_same(&plain(&snapshot.fs()), &plain(tree.path()), &"gnu");
}

#[tokio::test]
async fn sparse_files_keep_their_holes() {
    let tree = tempfile::tempdir().unwrap();
    let file = File::create(tree.path().join("sparse")).unwrap();
    file.write_all_at(b"x", 64 << 20).unwrap();
    let tar = tar_of(tree.path(), &["--format=posix", "--sparse"]);
    let snapshot = Snapshot::new();
    snapshot.unpack(&gzip(&tar), &[]).await.unwrap();
    let found = snapshot.fs().join("sparse").metadata().unwrap();
    assert_eq!(found.size(), (64 << 20) + 1);
    assert!(found.blocks() * 512 < 1 << 20);
}

#[tokio::test]
async fn whiteouts_become_what_overlayfs_understands() {
    let lower = tempfile::tempdir().unwrap();
    let layer = Odd::new()
        .file(".wh.gone", "")
        .dir("dir")
        .file("dir/.wh..wh..opq", "")
        .file("kept", "mine")
        .file(".wh.kept", "")
        .file(".wh.replaced", "")
        .file("replaced", "new")
        .finish();
    let snapshot = Snapshot::new();
    snapshot
        .unpack(&layer, &[lower.path().to_owned()])
        .await
        .unwrap();
    let root = snapshot.fs();
    for (name, device) in [("gone", true), ("kept", false), ("replaced", false)] {
        let seen = look(&root.join(name));
        assert_eq!(
            seen.mode & 0o170_000 == 0o020_000 && seen.device == 0,
            device,
            "{name}"
        );
    }
    assert_eq!(look(&root.join("gone")).owner, (5, 6));
    let opaque = &look(&root.join("dir")).xattrs["trusted.overlay.opaque"];
    assert_eq!(opaque, b"y");
    let names = walk(&root)
        .into_keys()
        .filter(|name| name.to_string_lossy().contains(".wh."));
    assert_eq!(names.count(), 0);
}

#[tokio::test]
async fn whiteouts_in_the_lowest_layer_mean_nothing() {
    let layer = Odd::new()
        .file("a", "1")
        .file(".wh.a", "")
        .file(".wh.b", "")
        .file(".wh..wh..opq", "");
    let snapshot = Snapshot::new();
    snapshot.unpack(&layer.finish(), &[]).await.unwrap();
    let names: Vec<PathBuf> = walk(&snapshot.fs()).into_keys().collect();
    assert_eq!(names, [Path::new("a")]);
    assert!(look(&snapshot.fs()).xattrs.is_empty());
}

#[tokio::test]
async fn no_name_and_no_link_leads_out_of_the_directory() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("victim"), "safe").unwrap();
    let before = walk(outside.path());
    let to = |rest: &str| format!("{}{rest}", outside.path().display());
    let up = "../".repeat(20);
    let layer = Odd::new()
        .file(&to("/absolute"), "x")
        .file(&format!("{up}{}", to("/upwards")), "x")
        .symlink("out", &to(""))
        .file("out/through", "x")
        .symlink("up", &format!("{up}{}", to("")))
        .file("up/victim", "overwritten")
        .dir("out/dir")
        .symlink("file", &to("/victim"))
        .file("file", "replaces the link")
        .symlink("again", &to("/victim"))
        .hard_link("again-too", "again")
        .file("..", "x")
        .finish();
    let snapshot = Snapshot::new();
    snapshot.unpack(&layer, &[]).await.unwrap();
    assert_eq!(walk(outside.path()), before);
    let inside = snapshot
        .fs()
        .join(outside.path().strip_prefix("/").unwrap());
    let names: Vec<PathBuf> = walk(&inside).into_keys().collect();
    assert_eq!(
        names,
        ["absolute", "dir", "through", "upwards", "victim"].map(PathBuf::from)
    );
    assert_eq!(
        look(&snapshot.fs().join("file")).content,
        b"replaces the link"
    );
    assert_eq!(
        look(&snapshot.fs().join("again-too")).mode & 0o170_000,
        0o120_000
    );
}

#[tokio::test]
async fn a_hard_link_to_what_is_outside_or_nowhere_fails_and_leaves_nothing() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    let target = outside.path().to_str().unwrap();
    for target in [target, &format!("../../../../..{target}"), "missing", "/"] {
        let layer = Odd::new().file("a", "x").hard_link("b", target).finish();
        let snapshot = Snapshot::new();
        let failed = snapshot.unpack(&layer, &[]).await;
        assert!(
            matches!(failed, Err(UnpackError::Entry { .. })),
            "{failed:?}"
        );
        snapshot.assert_untouched();
    }
}

#[tokio::test]
async fn a_hard_link_before_its_target_is_made() {
    let layer = Odd::new().hard_link("dir/b", "a").file("a", "x").finish();
    let snapshot = Snapshot::new();
    snapshot.unpack(&layer, &[]).await.unwrap();
    let seen = look(&snapshot.fs().join("dir/b"));
    assert_eq!((seen.links, &*seen.content), (2, &b"x"[..]));
}

#[tokio::test]
async fn implied_directories_look_like_those_below() {
    let (near, far) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir_all(far.path().join("a/b")).unwrap();
    let below = far.path().join("a/b");
    chown(&below, Some(11), Some(12)).unwrap();
    fs::set_permissions(&below, fs::Permissions::from_mode(0o750)).unwrap();
    xattr::set(&below, "user.x", b"1").unwrap();
    xattr::set(&below, "trusted.overlay.opaque", b"y").unwrap();
    File::open(&below)
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH)
        .unwrap();
    fs::create_dir(near.path().join("a")).unwrap();
    let layer = Odd::new().file("a/b/c/file", "x").finish();
    let snapshot = Snapshot::new();
    let parents = [near.path().to_owned(), far.path().to_owned()];
    snapshot.unpack(&layer, &parents).await.unwrap();
    let seen = look(&snapshot.fs().join("a/b"));
    assert_eq!(
        (seen.mode, seen.owner, seen.mtime),
        (0o40750, (11, 12), (0, 0))
    );
    assert_eq!(seen.xattrs.keys().collect::<Vec<_>>(), ["user.x"]);
    let unknown = look(&snapshot.fs().join("a/b/c"));
    assert_eq!((unknown.mode, unknown.owner), (0o40755, (0, 0)));
}

#[tokio::test]
async fn the_last_of_several_members_of_one_name_counts_and_directories_merge() {
    let layer = Odd::new()
        .dir("d")
        .file("d/kept", "1")
        .dir("d")
        .file("f", "old")
        .symlink("f", "elsewhere")
        .dir("tree")
        .file("tree/below", "x")
        .symlink("tree", "d")
        .file("tree/behind", "2")
        .finish();
    let snapshot = Snapshot::new();
    snapshot.unpack(&layer, &[]).await.unwrap();
    let names: Vec<PathBuf> = walk(&snapshot.fs()).into_keys().collect();
    assert_eq!(
        names,
        ["d", "d/behind", "d/kept", "f", "tree"].map(PathBuf::from)
    );
    assert_eq!(look(&snapshot.fs().join("d")).mtime, (1000, 0));
}

#[tokio::test]
async fn times_that_containerd_cannot_hold_become_1970() {
    let tree = tempfile::tempdir().unwrap();
    for (name, date) in [("old", "1969-12-31 UTC"), ("far", "2300-01-01 UTC")] {
        run(Command::new("touch")
            .arg("-d")
            .arg(date)
            .arg(tree.path().join(name)));
    }
    let tar = tar_of(tree.path(), &["--format=posix"]);
    let snapshot = Snapshot::new();
    snapshot.unpack(&tar, &[]).await.unwrap();
    for name in ["old", "far"] {
        assert_eq!(look(&snapshot.fs().join(name)).mtime, (0, 0), "{name}");
    }
}

#[tokio::test]
async fn a_blob_that_is_not_the_layer_leaves_the_directory_empty() {
    let tar = Odd::new()
        .dir("d")
        .file("d/f", &"x".repeat(50_000))
        .finish();
    let blob = gzip(&tar);
    let good = Expected {
        layer: Digest::of(&blob),
        diff_id: Some(Digest::of(&tar)),
    };
    let other = Digest::of(b"other");
    let snapshot = Snapshot::new();
    let wrong_layer = Expected {
        layer: other,
        ..good
    };
    let failed = snapshot.unpack_as(&blob, wrong_layer, &[]).await;
    assert!(
        matches!(failed, Err(UnpackError::Layer { .. })),
        "{failed:?}"
    );
    snapshot.assert_untouched();
    let wrong_tar = Expected {
        diff_id: Some(other),
        ..good
    };
    let failed = snapshot.unpack_as(&blob, wrong_tar, &[]).await;
    assert!(
        matches!(failed, Err(UnpackError::DiffId { .. })),
        "{failed:?}"
    );
    snapshot.assert_untouched();
    for damaged in [
        &blob[..blob.len() / 2],
        &tar[..2000],
        b"garbage",
        &[0x28, 0xb5, 0x2f, 0xfd, 1],
    ] {
        assert!(snapshot.unpack_as(damaged, good, &[]).await.is_err());
        snapshot.assert_untouched();
    }
    snapshot.unpack_as(&blob, good, &[]).await.unwrap();
}

#[tokio::test]
async fn a_download_that_breaks_or_is_given_up_leaves_the_directory_empty() {
    use futures::StreamExt as _;
    let tar = Odd::new().file("f", &"x".repeat(50_000)).finish();
    let expected = Expected {
        layer: Digest::of(&tar),
        diff_id: None,
    };
    let snapshot = Snapshot::new();
    let first = || stream::iter([Ok(Bytes::copy_from_slice(&tar[..1000]))]);
    let broken = first().chain(stream::iter([Err(io::Error::other("reset"))]));
    let failed = unpack(broken, expected, snapshot.site(true)).await;
    assert!(failed.unwrap_err().to_string().contains("reset"));
    snapshot.assert_untouched();

    let stalled = first().chain(stream::pending());
    let stalled = unpack(stalled, expected, snapshot.site(true));
    let given_up = tokio::time::timeout(std::time::Duration::from_millis(100), stalled).await;
    assert!(given_up.is_err());
    for _ in 0..100 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        if fs::read_dir(snapshot.dir.path()).unwrap().count() == 1 {
            break;
        }
    }
    snapshot.assert_untouched();
}

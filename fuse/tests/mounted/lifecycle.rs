//! Mounting, ending, and what the kernel is spared.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use fuse::{MountOptions, Operation, View};
use nix::mount::MntFlags;
use tempfile::TempDir;

use crate::layer::{Member, archive, layer};
use crate::mounts::{MountedView, Overlay};
use crate::walk::walk;

fn small() -> Vec<u8> {
    archive(&[
        Member::directory("d/"),
        Member::file("d/f", "data"),
        Member::symlink("d/l", "f"),
    ])
}

fn is_mount(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let path = path.display().to_string();
    table
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(&path))
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_mount_table_shows_what_operators_look_for() {
    let view = MountedView::of(&[small()]);
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let path = view.path().display().to_string();
    let line = table.lines().find(|line| line.contains(&path)).unwrap();
    let fields: Vec<_> = line.split(' ').collect();
    assert_eq!((fields[0], fields[2]), ("soci", "fuse.rawBridge"));
    let options: Vec<_> = fields[3].split(',').collect();
    for wanted in ["ro", "allow_other", "default_permissions"] {
        assert!(options.contains(&wanted), "{options:?}");
    }
    assert!(
        !options.contains(&"nosuid") && !options.contains(&"nodev"),
        "{options:?}"
    );
}

#[test]
fn dropping_a_session_unmounts_it() {
    let view = MountedView::of(&[small()]);
    let path = view.path().to_path_buf();
    assert!(is_mount(&path) && view.session.is_alive());
    drop(view);
    assert!(!is_mount(&path));
}

#[test]
fn whoever_uses_a_dropped_mount_is_served_to_the_end() {
    let view = MountedView::of(&[small()]);
    let overlay = Overlay::new(&[view.path()]);
    let opened = File::open(view.path().join("d")).unwrap();
    drop(view);
    assert_eq!(fs::read(overlay.path().join("d/f")).unwrap(), b"data");
    assert_eq!(fs::read_dir(overlay.path().join("d")).unwrap().count(), 2);
    drop(opened);
}

#[test]
fn a_session_notices_that_its_mount_is_gone() {
    let view = MountedView::of(&[small()]);
    fuse::detach(view.path()).unwrap();
    eventually("the threads go on", || !view.session.is_alive());
}

#[test]
fn an_aborted_connection_fails_cleanly_and_can_be_replaced() {
    let view = MountedView::of(&[small()]);
    let number = nix::sys::stat::minor(fs::metadata(view.path()).unwrap().dev());
    let control = format!("/sys/fs/fuse/connections/{number}/abort");
    if !Path::new(&control).exists() {
        let flags = nix::mount::MsFlags::empty();
        let none = None::<&str>;
        nix::mount::mount(
            none,
            "/sys/fs/fuse/connections",
            Some("fusectl"),
            flags,
            none,
        )
        .unwrap();
    }
    fs::write(control, "1").unwrap();
    eventually("the threads go on", || !view.session.is_alive());
    assert!(fs::read_dir(view.path()).is_err());
    let path = view.path().to_path_buf();
    drop(view);
    assert!(!is_mount(&path));
}

#[test]
fn a_session_that_is_left_mounted_serves_on() {
    let directory = TempDir::new().unwrap();
    let options = MountOptions::new(std::env::temp_dir());
    let view = View::new(vec![layer(&small())], false);
    let session = fuse::mount(view, directory.path(), &options).unwrap();
    let held = session.descriptor().as_fd().try_clone_to_owned().unwrap();
    session.leave_mounted();
    assert_eq!(fs::read(directory.path().join("d/f")).unwrap(), b"data");
    drop(held);
    fuse::detach(directory.path()).unwrap();
}

#[test]
fn something_mounted_in_its_place_is_not_unmounted() {
    let view = MountedView::of(&[small()]);
    fuse::detach(view.path()).unwrap();
    let path = view.path().to_path_buf();
    let (flags, kind) = (nix::mount::MsFlags::empty(), Some("tmpfs"));
    nix::mount::mount(kind, &path, kind, flags, None::<&str>).unwrap();
    drop(view);
    let still_there = is_mount(&path);
    nix::mount::umount2(&path, MntFlags::MNT_DETACH).unwrap();
    fs::remove_dir(&path).unwrap();
    assert!(still_there);
}

#[test]
fn a_mountpoint_that_is_not_there_is_an_error() {
    let options = MountOptions::new("/");
    let view = View::new(Vec::new(), false);
    assert!(fuse::mount(view, Path::new("/nowhere/at/all"), &options).is_err());
}

#[test]
fn a_view_of_no_layers_is_an_empty_directory() {
    let view = MountedView::new(Vec::new(), false);
    assert_eq!(fs::read_dir(view.path()).unwrap().count(), 0);
    assert!(fs::metadata(view.path().join("x")).is_err());
}

#[test]
fn the_kernel_asks_for_everything_once() {
    let view = MountedView::of(&[small()]);
    let counters = view.session.counters();
    let look_around = || {
        walk(view.path());
        assert!(fs::metadata(view.path().join("d/missing")).is_err());
        assert!(xattr::get(view.path().join("d"), "user.none").is_err());
    };
    // Names of attributes are the one thing that the kernel does not keep; nobody but listxattr(2) asks.
    let kept = Operation::ALL
        .into_iter()
        .filter(|&operation| operation != Operation::Listxattr);
    let requests = || -> Vec<u64> {
        kept.clone()
            .map(|operation| counters.requests(operation))
            .collect()
    };
    look_around();
    let first = requests();
    for _ in 0..10 {
        look_around();
    }
    assert_eq!(requests(), first);
    let refused = counters.requests(Operation::Getxattr);
    assert_eq!(refused, 1, "one refusal is enough");
    let failed = Operation::ALL.map(|operation| counters.failures(operation));
    assert_eq!(failed, [0; 7], "that a name is not there is no failure");
}

#[test]
fn read_ahead_is_raised_so_that_a_megabyte_is_one_read() {
    let data = vec![7; 8 << 20];
    let view = MountedView::of(&[archive(&[Member::file("large", &data)])]);
    assert!(fs::read(view.path().join("large")).unwrap() == data);
    let reads = view.session.counters().requests(Operation::Read);
    assert!(reads <= 12, "{reads} reads of 8 MiB");
}

#[test]
fn statfs_reports_the_file_system_behind() {
    let view = MountedView::of(&[small()]);
    let ours = nix::sys::statvfs::statvfs(view.path()).unwrap();
    let behind = nix::sys::statvfs::statvfs(&std::env::temp_dir()).unwrap();
    assert_eq!(ours.blocks(), behind.blocks());
    assert_eq!(ours.name_max(), 255);
}

#[test]
fn an_overlay_can_be_written_to_and_copies_up() {
    let tar = archive(&[
        Member::directory("d/").mode(0o755),
        Member::file("d/f", "data")
            .mode(0o640)
            .owner(3, 4)
            .xattr("user.a", "b"),
    ]);
    let view = MountedView::of(&[tar]);
    let overlay = Overlay::new(&[view.path()]);
    let path = overlay.path().join("d/f");
    let mut file = File::options().append(true).open(&path).unwrap();
    std::io::Write::write_all(&mut file, b" and more").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"data and more");
    fs::remove_file(overlay.path().join("d/f")).unwrap();
    assert!(!path.exists());
    assert!(overlay.upper().join("d").exists());
    assert_eq!(fs::read(view.path().join("d/f")).unwrap(), b"data");
}

#[test]
fn a_view_is_read_only() {
    let view = MountedView::of(&[small()]);
    let refused = [
        fs::write(view.path().join("d/f"), "x"),
        fs::write(view.path().join("new"), "x"),
        fs::remove_file(view.path().join("d/f")),
        fs::create_dir(view.path().join("new")),
    ];
    for outcome in refused {
        assert_eq!(
            outcome.unwrap_err().kind(),
            std::io::ErrorKind::ReadOnlyFilesystem
        );
    }
}

//! What an image may and may not do through a mount.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use tar::EntryType;

use crate::layer::{Member, archive};
use crate::mounts::{MountedView, Overlay};

/// Runs `program` as an ordinary user and gives what it prints.
fn as_nobody(program: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments).uid(65534).gid(65534);
    let output = command.output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8(output.stdout).unwrap())
}

/// A path that an ordinary user can reach to a view of `tar`, directly and through an overlay.
fn reachable(tar: Vec<u8>) -> (MountedView, Overlay) {
    let view = MountedView::of(&[tar]);
    let overlay = Overlay::new(&[view.path()]);
    overlay.let_everybody_in();
    (view, overlay)
}

fn program(name: &str) -> Vec<u8> {
    fs::read(format!("/usr/bin/{name}")).unwrap()
}

#[test]
fn a_setuid_program_runs_as_its_owner() {
    let tar = archive(&[
        Member::file("id", program("id")).mode(0o4755),
        Member::file("plain", program("id")).mode(0o755),
    ]);
    let (view, overlay) = reachable(tar);
    for root in [view.path(), overlay.path()] {
        assert_eq!(as_nobody(&root.join("id"), &["-u"]).unwrap().trim(), "0");
        assert_eq!(
            as_nobody(&root.join("plain"), &["-u"]).unwrap().trim(),
            "65534"
        );
    }
}

#[test]
fn file_capabilities_hold() {
    // Version 2, effective, permitted CAP_DAC_READ_SEARCH (bit 2).
    let capability = b"\x01\0\0\x02\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let tar = archive(&[
        Member::file("cat", program("cat"))
            .mode(0o755)
            .xattr("security.capability", capability),
        Member::file("powerless", program("cat")).mode(0o755),
        Member::file("secret", "secret").mode(0o600),
    ]);
    let (_view, overlay) = reachable(tar);
    let secret = overlay.path().join("secret").display().to_string();
    let read = |program: &str| as_nobody(&overlay.path().join(program), &[&secret]);
    assert_eq!(read("cat").as_deref(), Some("secret"));
    assert_eq!(read("powerless"), None);
}

#[test]
fn device_nodes_work() {
    let null = Member::new("zero", EntryType::Char, 0o666).device(1, 5);
    let view = MountedView::of(&[archive(&[null])]);
    let mut bytes = [1; 8];
    let mut zero = fs::File::open(view.path().join("zero")).unwrap();
    std::io::Read::read_exact(&mut zero, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 8]);
}

#[test]
fn files_of_others_are_closed_to_ordinary_users_without_an_overlay_too() {
    let tar = archive(&[
        Member::file("secret", "secret").mode(0o600),
        Member::file("public", "public").mode(0o644),
        Member::directory("closed/").mode(0o700),
        Member::file("closed/public", "x"),
    ]);
    let (view, overlay) = reachable(tar);
    for root in [view.path(), overlay.path()] {
        let read = |name: &str| {
            let path = root.join(name).display().to_string();
            as_nobody(Path::new("/bin/cat"), &[&path])
        };
        assert_eq!(read("public").as_deref(), Some("public"));
        assert_eq!(read("secret"), None);
        assert_eq!(read("closed/public"), None);
    }
}

#[test]
fn an_image_cannot_speak_to_overlayfs() {
    let below = archive(&[
        Member::directory("secret/").mode(0o700),
        Member::file("secret/file", "below"),
        Member::directory("d/"),
        Member::file("d/below", "below"),
    ]);
    let above = archive(&[
        Member::directory("d/")
            .xattr("trusted.overlay.opaque", "y")
            .xattr("user.overlay.opaque", "y")
            .xattr("user.kept", "1"),
        Member::directory("public/").xattr("trusted.overlay.redirect", "/secret"),
        Member::file("meta", "").xattr("trusted.overlay.metacopy", ""),
    ]);
    let view = MountedView::of(&[below, above]);
    let overlay = Overlay::new(&[view.path()]);
    let names = |name: &str| -> Vec<_> { xattr::list(view.path().join(name)).unwrap().collect() };
    assert_eq!(names("d"), ["user.kept"]);
    assert!(names("public").is_empty() && names("meta").is_empty());
    assert!(overlay.path().join("d/below").exists());
    assert!(!overlay.path().join("public/file").exists());
}

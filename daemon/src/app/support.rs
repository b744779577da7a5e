//! Whether this system can host the snapshotter, and what its overlayfs wants.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use crate::snapshot::mounts::OverlayOptions;

const HINT: &str = "the root directory must be on a file system that can hold the upper directory \
    of an overlay (ext4, xfs, btrfs; not an overlay itself); set skip_check_snapshotter_supported = \
    true to start all the same";

/// Mounts an overlay below `root` and takes it away again.
///
/// # Errors
/// It does not work; the text says what to do.
pub(super) fn check(root: &Path) -> Result<()> {
    let directory = tempfile::Builder::new()
        .prefix("check-")
        .tempdir_in(root)
        .with_context(|| format!("cannot write to {}", root.display()))?;
    let at = |name: &str| directory.path().join(name);
    for name in ["lower1", "lower2", "upper", "work", "merged"] {
        fs::create_dir(at(name)).with_context(|| format!("cannot write to {}", root.display()))?;
    }
    check_types(directory.path())?;
    let options = format!(
        "lowerdir={}:{},upperdir={},workdir={}",
        at("lower2").display(),
        at("lower1").display(),
        at("upper").display(),
        at("work").display()
    );
    let flags = MsFlags::empty();
    mount(
        Some("overlay"),
        &at("merged"),
        Some("overlay"),
        flags,
        Some(options.as_str()),
    )
    .with_context(|| format!("cannot mount an overlay on {}: {HINT}", root.display()))?;
    umount2(&at("merged"), MntFlags::MNT_DETACH).context("cannot unmount the overlay just mounted")
}

/// Overlayfs shows whiteouts and wrong types where a directory's entries do not tell their type.
fn check_types(directory: &Path) -> Result<()> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut entries = Dir::open(directory, flags, Mode::empty())?;
    let mut typed = entries.iter().flatten().map(|entry| entry.file_type());
    ensure!(
        typed.all(|kind| kind.is_some()),
        "the file system of {} does not tell the types of directory entries (d_type; xfs needs \
         ftype=1): {HINT}",
        directory.display()
    );
    Ok(())
}

/// What must be said in the options of every overlay here.
pub(super) fn overlay_options() -> OverlayOptions {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    OverlayOptions {
        index_off: read("/sys/module/overlay/parameters/index").trim() == "Y",
        user_xattr: in_user_namespace(&read("/proc/self/uid_map"))
            && knows_user_xattr(&read("/proc/sys/kernel/osrelease")),
    }
}

/// The first user namespace maps everything to itself.
fn in_user_namespace(map: &str) -> bool {
    let fields: Vec<&str> = map.split_whitespace().collect();
    !fields.is_empty() && fields != ["0", "0", "4294967295"]
}

/// Linux 5.11 and later.
fn knows_user_xattr(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse::<u32>().ok();
    match (next(), next()) {
        (Some(major), Some(minor)) => (major, minor) >= (5, 11),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_xattrs_are_asked_for_inside_user_namespaces_of_new_kernels() {
        assert!(!in_user_namespace("         0          0 4294967295\n"));
        assert!(in_user_namespace("0 1000 1\n"));
        assert!(!in_user_namespace(""));
        assert!(knows_user_xattr("5.11.0-rc1"));
        assert!(knows_user_xattr("6.1.0-18-amd64"));
        assert!(!knows_user_xattr("5.4.0"));
        assert!(!knows_user_xattr("what"));
    }
}

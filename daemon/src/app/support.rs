//! Whether this system can host the snapshotter, and what its overlayfs wants.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use crate::config::MapIds;
use crate::snapshot::mapped::MappedBy;
use crate::snapshot::mounts::OverlayOptions;

const HINT: &str = "the root directory must be on a file system that can hold the upper directory \
    of an overlay (ext4, xfs, btrfs; not an overlay itself); set skip_check_snapshotter_supported = \
    true to start all the same";

/// CAP_SYS_ADMIN in the masks of /proc/self/status.
const SYS_ADMIN: u64 = 1 << 21;

/// Whether this process may mount what containers of the system's root stand on.
///
/// # Errors
/// It may not; the text says what to do.
pub(super) fn check_rights() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    ensure!(
        may_mount(&status),
        "this process may not mount anything (it lacks CAP_SYS_ADMIN), and image layers are mounted: run it as root, \
         as a service of the system beside a containerd that root runs; a rootless containerd cannot be served"
    );
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    ensure!(
        !in_user_namespace(&map),
        "this process runs in a user namespace, as beside a rootless containerd, which cannot be served: opaque \
         directories, device nodes and owners of layers are out of reach there; set skip_check_snapshotter_supported \
         = true to start all the same"
    );
    Ok(())
}

/// Assumed if nothing is told: the mount itself tells then.
fn may_mount(status: &str) -> bool {
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_none_or(|mask| mask & SYS_ADMIN != 0)
}

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

/// Who maps the ids of views.
pub(super) fn mapped_by(wanted: MapIds) -> MappedBy {
    match wanted {
        MapIds::Kernel => MappedBy::Kernel,
        MapIds::Auto if fuse::kernel_maps_ids() => MappedBy::Kernel,
        MapIds::Auto | MapIds::Views => MappedBy::Views,
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
    fn who_lacks_the_capability_for_mounts_is_told_apart() {
        assert!(may_mount("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!may_mount(
            "CapPrm:\tffffffffffffffff\nCapEff:\t0000000000000000\n"
        ));
        assert!(may_mount(""));
    }

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

//! Checks of the machine: kernel, FUSE, overlayfs, the root directory.

use std::fs::{self, File};
use std::path::Path;

use nix::sys::statfs::{
    EXT4_SUPER_MAGIC, NFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, statfs,
};
use nix::sys::utsname::uname;
use nix::unistd::geteuid;

use super::Findings;
use crate::options::Globals;
use crate::paint::bytes;

/// Less than this is soon full of layers.
const LITTLE_SPACE: u64 = 2 << 30;

pub(super) fn check(findings: &mut Findings, globals: &Globals) {
    match geteuid().is_root() {
        true => findings.ok("privileges", "root"),
        false => findings.failure(
            "privileges",
            "not root",
            "run soci doctor as root, or half of what it says is guessed",
        ),
    }
    kernel(findings);
    fuse_device(findings);
    for (check, kind) in [
        ("FUSE in the kernel", "fuse"),
        ("overlayfs in the kernel", "overlay"),
    ] {
        let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        match known
            .lines()
            .any(|line| line.split_whitespace().last() == Some(kind))
        {
            true => findings.ok(check, "there"),
            false => findings.failure(
                check,
                "missing",
                format!(
                    "modprobe {kind}; to keep it: echo {kind} >/etc/modules-load.d/{kind}.conf"
                ),
            ),
        }
    }
    root(findings, &globals.root);
}

/// Major and minor number of a release such as `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(findings: &mut Findings) {
    let release = uname()
        .map(|it| it.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    match version(&release) {
        Some(version) if version >= (6, 9) => findings.ok("kernel", release),
        Some(version) if version >= (5, 11) => findings.warning(
            "kernel",
            format!("{release}: everything works but taking over requests of a killed snapshotter"),
            "Linux 6.9 or newer loses no read when the snapshotter is killed",
        ),
        _ => findings.failure("kernel", release, "Linux 5.11 or newer is needed"),
    }
}

fn fuse_device(findings: &mut Findings) {
    let opened = File::options().read(true).write(true).open("/dev/fuse");
    match opened {
        Ok(_) => findings.ok("/dev/fuse", "can be opened"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            findings.failure(
                "/dev/fuse",
                "missing",
                "modprobe fuse; in a container give it the device: --device /dev/fuse",
            );
        }
        Err(error) => findings.failure(
            "/dev/fuse",
            error.to_string(),
            "allow this process the device (cgroup rules, root)",
        ),
    }
}

fn root(findings: &mut Findings, root: &Path) {
    const CHECK: &str = "root directory";
    let existing = root
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or_else(|| Path::new("/"));
    let (kind, free) = match statfs(existing) {
        Ok(numbers) => {
            let free = numbers
                .blocks_available()
                .saturating_mul(u64::try_from(numbers.block_size()).unwrap_or(0));
            (numbers.filesystem_type(), free)
        }
        Err(error) => {
            return findings.failure(
                CHECK,
                format!("{}: {error}", root.display()),
                "give --root a directory on a local disk",
            );
        }
    };
    let name = root.display();
    if kind == OVERLAYFS_SUPER_MAGIC || kind == NFS_SUPER_MAGIC {
        findings.failure(
            CHECK,
            format!("{name} lies on a file system that cannot hold writable layers of overlays"),
            "use a directory on ext4 or xfs; in a container a volume",
        );
    } else if free < LITTLE_SPACE {
        findings.warning(
            CHECK,
            format!("{name}: only {} free", bytes(free)),
            "layers are cached there: give it more room",
        );
    } else if kind == TMPFS_MAGIC {
        findings.warning(
            CHECK,
            format!("{name} lies in memory"),
            "use a disk, so that the cache outlives a reboot",
        );
    } else {
        let on = if kind == EXT4_SUPER_MAGIC {
            " on ext4"
        } else {
            ""
        };
        findings.ok(CHECK, format!("{name}{on}, {} free", bytes(free)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_all_kinds_are_compared_by_number() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.10.205+"), Some((5, 10)));
        assert_eq!(version("6.12-rc3"), Some((6, 12)));
        assert!(version("6.12") > version("6.9.3"));
        assert_eq!(version("custom"), None);
    }
}

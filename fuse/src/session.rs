//! A mounted view.

mod mount_table;
mod offer;
mod replay;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags};
use nix::unistd::{getegid, geteuid};

use crate::access::AccessLog;
use crate::counters::Counters;
use crate::explain::Inspection;
use crate::filesystem::{MAX_READ, ViewFilesystem};
use crate::merge::View;
use crate::passthrough::{LargeFiles, Passthrough};
pub use crate::session::offer::{KernelOffer, OfferError};

/// What /proc/mounts shows as the source of a view.
const SOURCE: &str = "soci";

/// The type that /proc/mounts shows. The name is the one that the original's mounts have, so that
/// what operators and tests look for is found.
const TYPE: &str = "fuse.rawBridge";

/// How long a dropped session waits for its threads. They end at once unless somebody still uses
/// the mount, and then go on serving.
const FAREWELL: Duration = Duration::from_millis(500);

/// How a view is mounted.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// Threads that answer the kernel, at least 1. Two are best: a third makes metadata slower.
    pub threads: usize,
    /// The file system whose numbers statfs(2) reports, usually the daemon's root.
    pub statfs_path: PathBuf,
    /// The kernel's read-ahead per file in KiB, and so the largest read it asks for; no request is
    /// larger than 1024.
    pub read_ahead_kib: u32,
    /// Log each request of the kernel with its path, at debug level. Finding the path of a file
    /// takes a look at all names of its layer: for studying what a program reads, not for always.
    pub log_operations: bool,
    /// Large files that the kernel may read by itself, if it can and the view has such. Files are then opened by
    /// message. A view that is adopted must have what it was mounted with.
    pub passthrough: Option<Passthrough>,
}

/// A mounted view. Dropping it detaches the mount; whoever still uses it is served to the end.
#[derive(Debug)]
pub struct Session {
    mountpoint: PathBuf,
    /// The device number of the mounted file system.
    device_number: u64,
    device: OwnedFd,
    inspection: Inspection,
    server: Option<JoinHandle<()>>,
    detach_on_drop: bool,
    offer: KernelOffer,
    passthrough: Option<Passthrough>,
    withholding: Arc<AtomicBool>,
}

impl MountOptions {
    /// Two threads, 1 MiB of read-ahead, statfs(2) from the file system of `statfs_path`, no log of
    /// operations, nothing passed through.
    pub fn new(statfs_path: impl Into<PathBuf>) -> Self {
        Self {
            threads: 2,
            statfs_path: statfs_path.into(),
            read_ahead_kib: 1024,
            log_operations: false,
            passthrough: None,
        }
    }
}

/// Mounts `view` at `mountpoint`, read-only, and serves it from threads of its own.
///
/// Everybody may use the mount (`allow_other`), and the kernel checks permissions against the
/// attributes of the image (`default_permissions`): below an overlay that changes nothing, as the
/// overlay asks with its mounter's credentials, but a view that is bind-mounted by itself must not
/// give a root-only file to everybody. setuid bits and device nodes work as they do unpacked.
///
/// # Errors
/// When /dev/fuse cannot be opened, mount(2) refuses, or the handshake with the kernel fails.
pub fn mount(view: View, mountpoint: &Path, options: &MountOptions) -> io::Result<Session> {
    let mountpoint = fs::canonicalize(mountpoint)?;
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    attach(&device, &mountpoint)?;
    // The kernel has queued its first request by now; the file system answers from here on.
    serve(view, &mountpoint, device.into(), None, options).inspect_err(|_| {
        // The failure that led here is the one to report.
        let _ = detach(&mountpoint);
    })
}

/// Whether this kernel gives requests that a dead process has taken to the next one (`FUSE_NOTIFY_RESEND`).
pub fn kernel_resends() -> bool {
    this_kernel(resends)
}

/// Since Linux 6.9.
fn resends(release: &str) -> bool {
    is_since(release, (6, 9))
}

/// Whether this kernel maps the ids of a view that is mounted once more (`FUSE_ALLOW_IDMAP`).
pub fn kernel_maps_ids() -> bool {
    this_kernel(maps_ids)
}

/// Whether the release of the running kernel is one of those that `has` says; not if it cannot be read.
fn this_kernel(has: fn(&str) -> bool) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease");
    release.is_ok_and(|release| has(&release))
}

/// Since Linux 6.12. One before that has been taught to is taken for one that has not: views can always map by themselves.
fn maps_ids(release: &str) -> bool {
    is_since(release, (6, 12))
}

fn is_since(release: &str, since: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|text| text.parse::<u32>().ok());
    next().zip(next()).is_some_and(|version| version >= since)
}

/// Takes over a view that another process mounted at `mountpoint` and left, by ending or by being
/// killed. `view` must be of the same layers; `device` is that mount's [`Session::descriptor`] and
/// `offer` its [`Session::offer`]. Who reads in the meantime waits; requests that the other
/// process took and did not answer are asked for again, which needs Linux 6.9: before that, who
/// waits for one of those waits until it is killed.
///
/// # Errors
/// When the handshake cannot be replayed or no thread can be started. The mount stays.
pub fn adopt(
    view: View,
    mountpoint: &Path,
    device: OwnedFd,
    offer: KernelOffer,
    options: &MountOptions,
) -> io::Result<Session> {
    let session = serve(view, mountpoint, device, Some(offer), options)?;
    if let Err(error) = replay::ask_again(session.descriptor()) {
        let mountpoint = mountpoint.display();
        tracing::warn!(%mountpoint, %error, "requests of the process before this one are lost");
    }
    Ok(session)
}

fn attach(device: &File, mountpoint: &Path) -> io::Result<()> {
    let data = format!(
        "fd={},rootmode=40755,user_id={},group_id={},allow_other,default_permissions,max_read={}",
        device.as_raw_fd(),
        geteuid(),
        getegid(),
        MAX_READ,
    );
    // No MS_NOSUID and no MS_NODEV: setuid programs and device nodes are part of an image.
    let flags = MsFlags::MS_RDONLY;
    nix::mount::mount(Some(SOURCE), mountpoint, Some(TYPE), flags, Some(&*data))?;
    Ok(())
}

fn serve(
    view: View,
    mountpoint: &Path,
    device: OwnedFd,
    offer: Option<KernelOffer>,
    options: &MountOptions,
) -> io::Result<Session> {
    let held = device.try_clone()?;
    let inspection = Inspection {
        view: Arc::new(view),
        counters: Arc::default(),
        accesses: Arc::new(AccessLog::new()),
    };
    let large = options
        .passthrough
        .as_ref()
        .and_then(|passthrough| match offer {
            None => LargeFiles::begin(&inspection.view, passthrough),
            Some(_) => Some(LargeFiles::resume(&inspection.view, passthrough)),
        });
    let filesystem = ViewFilesystem::new(&inspection, options, large);
    let acl = fuser::SessionACL::All;
    let mut config = fuser::Config::default();
    config.n_threads = Some(options.threads.max(1));
    // A cloned descriptor that dies with the process fails its readers (ECONNABORTED); one
    // descriptor can be held through a crash by somebody else.
    config.clone_fd = false;
    let (made, withholding) = (filesystem.agreed(), filesystem.withholding());
    let session = match offer {
        None => fuser::Session::from_fd(filesystem, device, acl, config)?,
        Some(offer) => replay::session(filesystem, device.as_fd(), offer, config)?,
    };
    let agreed = *made.get().ok_or(io::ErrorKind::InvalidData)?;
    let name = mountpoint.to_path_buf();
    let server = thread::Builder::new()
        .name("fuse-view".to_owned())
        .spawn(move || {
            if let Err(error) = session.run() {
                tracing::error!(mountpoint = %name.display(), %error, "the view is served no more");
            }
        })?;
    let device_number = fs::metadata(mountpoint)?.dev();
    set_read_ahead(device_number, options.read_ahead_kib);
    Ok(Session {
        mountpoint: mountpoint.to_path_buf(),
        device_number,
        device: held,
        inspection,
        server: Some(server),
        detach_on_drop: true,
        offer: agreed.offer,
        passthrough: options.passthrough.clone().filter(|_| agreed.passthrough),
        withholding,
    })
}

/// Raises the mount's read-ahead: without it the kernel reads at most 128 KiB at once. A view
/// works without, only slower.
fn set_read_ahead(device_number: u64, kib: u32) {
    let (major, minor) = (
        nix::sys::stat::major(device_number),
        nix::sys::stat::minor(device_number),
    );
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&path, kib.to_string()) {
        tracing::warn!(path, %error, "read-ahead of the view stays at the kernel's default");
    }
}

/// Takes the mount at `mountpoint` out of the tree of names. Who uses it goes on using it; it is
/// never forced, as that would fail their reads.
///
/// # Errors
/// When nothing is mounted there (EINVAL) or umount2(2) refuses.
pub fn detach(mountpoint: &Path) -> io::Result<()> {
    let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    Ok(nix::mount::umount2(mountpoint, flags)?)
}

/// Detaches whatever is mounted at `mountpoint`, one on another; whether anything was.
pub fn detach_all(mountpoint: &Path) -> bool {
    const MOST_STACKED: usize = 64;
    let detached = (0..MOST_STACKED).take_while(|_| detach(mountpoint).is_ok());
    detached.count() > 0
}

/// The device number of the view that is mounted at `mountpoint`; `None` if what is there is no view.
/// The view itself is not asked: one whose process is gone does not answer.
///
/// # Errors
/// The table of mounts cannot be read.
pub fn device_number_at(mountpoint: &Path) -> io::Result<Option<u64>> {
    let table = fs::read("/proc/self/mountinfo")?;
    let mount = mount_table::topmost(&table, mountpoint);
    let view = mount.filter(|mount| mount.kind == TYPE.as_bytes());
    Ok(view.map(|mount| mount.device_number))
}

impl Session {
    /// Whether the kernel is still served: false after somebody unmounted or aborted it.
    pub fn is_alive(&self) -> bool {
        self.server
            .as_ref()
            .is_some_and(|server| !server.is_finished())
    }

    /// What the kernel has asked for so far.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.inspection.counters
    }

    /// What can be looked into.
    pub fn inspection(&self) -> &Inspection {
        &self.inspection
    }

    /// The connection's `/dev/fuse` descriptor, to be kept through a crash by somebody else. All
    /// duplicates are one connection, which lives as long as the last of them.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// What the kernel offered at the mount; whoever adopts the connection needs it.
    pub fn offer(&self) -> KernelOffer {
        self.offer
    }

    /// What of [`MountOptions::passthrough`] holds: nothing if the kernel cannot or the view has no large file. Whoever
    /// adopts the connection must be given the same.
    pub fn passthrough(&self) -> Option<&Passthrough> {
        self.passthrough.as_ref()
    }

    /// The device number of the mounted file system, as stat(2) gives it.
    pub fn device_number(&self) -> u64 {
        self.device_number
    }

    /// Where the view is mounted, without symbolic links.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Ends this value but not the mount, which is served until the process ends, and after that
    /// by whoever was given the [`descriptor`](Self::descriptor).
    pub fn leave_mounted(mut self) {
        self.detach_on_drop = false;
    }

    /// From now on a read that fails stays unanswered: the kernel asks whoever [adopts](adopt) the mount again, if it
    /// [can](kernel_resends). For a process about to end, which fails reads by ending what they wait for.
    pub fn withhold_failures(&self) {
        self.withholding.store(true, Ordering::Release);
    }

    /// Whether the mount at the mountpoint is still this one. The file system itself is not asked:
    /// a dead or stuck one does not answer.
    fn is_mounted(&self) -> bool {
        // Device numbers are given away again; the type tells ours from most others then.
        device_number_at(&self.mountpoint).is_ok_and(|found| found == Some(self.device_number))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.detach_on_drop {
            return;
        }
        if self.is_mounted()
            && let Err(error) = detach(&self.mountpoint)
        {
            let mountpoint = self.mountpoint.display();
            tracing::error!(%mountpoint, %error, "the view could not be unmounted");
        }
        let deadline = Instant::now() + FAREWELL;
        while self.is_alive() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_resend_since_6_9() {
        for release in ["6.9.0", "6.12.1-amd64", "7.0\n", "10.1"] {
            assert!(resends(release), "{release}");
        }
        for release in ["6.8.12", "5.15.0-1-generic", "6", "", "x.y"] {
            assert!(!resends(release), "{release}");
        }
    }

    #[test]
    fn kernels_map_ids_of_views_since_6_12() {
        assert!(maps_ids("6.12.0") && maps_ids("7.0"));
        assert!(!maps_ids("6.11.9-generic") && !maps_ids("5.15.0") && !maps_ids(""));
    }
}

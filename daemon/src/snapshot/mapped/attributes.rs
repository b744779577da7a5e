//! mount_setattr(2), for which no crate has a function.

#![allow(unsafe_code)]

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

/// `MOUNT_ATTR_RDONLY` and `MOUNT_ATTR_IDMAP` of linux/mount.h.
const READ_ONLY: u64 = 0x0000_0001;
const ID_MAPPED: u64 = 0x0010_0000;

/// `struct mount_attr` of linux/mount.h, in its first version.
#[repr(C)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Maps the ids of `mount`, which is nowhere in the tree of names yet, by a user namespace; nothing can be written through
/// it, and what is mounted below its source is not seen in it.
///
/// # Errors
/// EINVAL if the file system does not know of idmapped mounts, ENOSYS before Linux 5.12.
pub(super) fn map_ids(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    let descriptor = u64::try_from(user_namespace.as_raw_fd()).unwrap_or(u64::MAX);
    let attributes = Attributes {
        set: READ_ONLY | ID_MAPPED,
        clear: 0,
        propagation: libc::MS_PRIVATE,
        user_namespace: descriptor,
    };
    // SAFETY: the kernel reads two things only: an empty string, which ends where it says, and as many bytes of
    // `attributes` as it is told, all of them initialised. Both live until the call returns.
    let done: c_long = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

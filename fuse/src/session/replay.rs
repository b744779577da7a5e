//! Gives a live connection to a new fuser session, which expects a fresh one.

#![allow(unsafe_code)]

use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use fuser::{Config, SessionACL};
use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::offer::KernelOffer;
use crate::filesystem::ViewFilesystem;

/// FUSE_NOTIFY_RESEND: requests that were taken and not answered come again (Linux 6.9).
const RESEND: i32 = 7;

/// The kernel shakes hands once per connection, and fuser wants to shake hands before it serves.
/// So the kernel's first request is played to it again over a socket, the answer is dropped, and
/// then the socket's descriptor number is made to mean the live connection.
pub(super) fn session(
    filesystem: ViewFilesystem,
    device: BorrowedFd<'_>,
    offer: KernelOffer,
    config: Config,
) -> io::Result<fuser::Session<ViewFilesystem>> {
    // Packets, as each read of the device gives one request and each write is one answer.
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    let mut kernel = UnixStream::from(ours);
    kernel.write_all(&offer.request())?;
    let session = fuser::Session::from_fd(filesystem, theirs, SessionACL::All, config)?;
    let mut answer = [0; 256];
    let _ = kernel.read(&mut answer)?;
    replace(session.as_fd(), device)?;
    Ok(session)
}

/// Makes the descriptor number of `target` mean what `source` means.
fn replace(target: BorrowedFd<'_>, source: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the number is open, as it is borrowed, and stays so: it is never closed by this
    // value, and dup3(2) exchanges atomically what it means. Its owner, the fuser session, only
    // reads from and writes to it, which is as good with the new meaning.
    let mut target = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(target.as_raw_fd()) });
    nix::unistd::dup3(source, &mut target, OFlag::O_CLOEXEC)?;
    Ok(())
}

/// Asks the kernel for the requests that a dead process took.
pub(super) fn ask_again(device: BorrowedFd<'_>) -> io::Result<()> {
    // A `fuse_out_header`: length, code of the notification, and no request that it answers.
    let mut header = Vec::new();
    header.extend(16u32.to_ne_bytes());
    header.extend(RESEND.to_ne_bytes());
    header.extend(0u64.to_ne_bytes());
    nix::unistd::write(device, &header)?;
    Ok(())
}

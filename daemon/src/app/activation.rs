//! Socket activation by systemd: a descriptor number in the environment becomes a listener.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener as StdListener;

use anyhow::{Context, Result, bail};
use tokio::net::UnixListener;

/// The socket that systemd passed; none if it passed none.
///
/// # Errors
/// It passed several, or one that is no listening unix socket.
pub(super) fn listener() -> Result<Option<UnixListener>> {
    let mut passed = sd_notify::listen_fds().context("cannot read what systemd passed")?;
    let Some(number) = passed.next() else {
        return Ok(None);
    };
    if passed.next().is_some() {
        bail!("systemd passed more than one socket: the .socket unit must have one ListenStream");
    }
    // SAFETY: systemd's protocol gives us this descriptor, it was checked to be open, and nothing
    // else in this process takes it: this function is called once, at the start.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    let listener = StdListener::from(descriptor);
    listener
        .local_addr()
        .context("systemd passed something that is no unix socket")?;
    listener.set_nonblocking(true)?;
    Ok(Some(UnixListener::from_std(listener)?))
}

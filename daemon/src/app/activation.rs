//! What systemd passes at start: the socket to listen on, and the descriptors it kept for us.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener as StdListener;

use anyhow::{Context, Result, bail};
use tokio::net::UnixListener;

use crate::view::keeper::PREFIX;

/// What was passed.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// For socket activation.
    socket: Option<OwnedFd>,
    /// Descriptors of views that an earlier process had kept, by name.
    pub(super) views: Vec<(String, OwnedFd)>,
}

impl Passed {
    /// Takes it, once, at the start of the process.
    ///
    /// # Errors
    /// Several sockets were passed, or the environment makes no sense.
    pub(super) fn take() -> Result<Self> {
        let mut passed = Self::default();
        let all = sd_notify::listen_fds_with_names().context("cannot read what systemd passed")?;
        for (number, name) in all {
            // SAFETY: systemd's protocol gives us this descriptor, it was checked to be open, and
            // nothing else in this process takes it: this function is called once, at the start.
            let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
            if name.starts_with(PREFIX) {
                passed.views.push((name, descriptor));
            } else if passed.socket.replace(descriptor).is_some() {
                bail!(
                    "systemd passed more than one socket: the .socket unit must have one \
                     ListenStream"
                );
            }
        }
        Ok(passed)
    }

    /// The socket that systemd passed; none if it passed none.
    ///
    /// # Errors
    /// It is no listening unix socket.
    pub(super) fn listener(&mut self) -> Result<Option<UnixListener>> {
        let Some(socket) = self.socket.take() else {
            return Ok(None);
        };
        let listener = StdListener::from(socket);
        listener
            .local_addr()
            .context("systemd passed something that is no unix socket")?;
        listener.set_nonblocking(true)?;
        Ok(Some(UnixListener::from_std(listener)?))
    }
}

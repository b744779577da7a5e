//! systemd's file descriptor store.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;
use sd_notify::NotifyState;

use super::Keep;

/// How long the service manager may take to note something, in milliseconds. It does so at once unless
/// it is stuck itself.
const PATIENCE: u16 = 5000;

/// The service manager, which keeps descriptors of a unit with `FileDescriptorStoreMax=` over a restart
/// and passes them to the next process.
#[derive(Debug)]
pub struct ServiceManager {
    passed: Mutex<Vec<(String, OwnedFd)>>,
}

impl ServiceManager {
    /// Whether it has a store for us. systemd says so since version 254; for those before, our unit
    /// file sets the variable.
    pub fn has_store() -> bool {
        let most = std::env::var("FDSTORE").ok();
        let most = most.and_then(|most| most.parse::<u32>().ok());
        std::env::var_os("NOTIFY_SOCKET").is_some() && most.is_some_and(|most| most > 0)
    }

    /// `passed` is what it passed at start.
    pub fn new(passed: Vec<(String, OwnedFd)>) -> Self {
        Self {
            passed: Mutex::new(passed),
        }
    }

    /// Keeps what somebody else kept until now.
    ///
    /// # Errors
    /// The manager cannot be told.
    pub(super) fn take_over(&self, name: String, descriptor: OwnedFd) -> io::Result<()> {
        self.keep(&name, descriptor.as_fd())?;
        self.passed.lock().push((name, descriptor));
        Ok(())
    }
}

impl Keep for ServiceManager {
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let state = [
            NotifyState::FdStore,
            NotifyState::FdName(name),
            // Else each request of the kernel on the connection would wake the manager.
            NotifyState::Custom("FDPOLL=0"),
        ];
        sd_notify::notify_with_fds(&state, &[descriptor])?;
        // What a process sent before it died is dropped if it was not looked at by then.
        wait_until_read()
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)])
    }

    fn kept(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        Ok(std::mem::take(&mut *self.passed.lock()))
    }

    fn end(&self) {}
}

/// Waits until the manager has read everything sent so far: it closes the pipe when it gets there.
fn wait_until_read() -> io::Result<()> {
    let (reader, writer) = io::pipe()?;
    sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[writer.as_fd()])?;
    drop(writer);
    let mut watched = [PollFd::new(reader.as_fd(), PollFlags::empty())];
    loop {
        match poll(&mut watched, PollTimeout::from(PATIENCE)) {
            Err(nix::errno::Errno::EINTR) => {}
            Ok(0) => return Err(io::Error::from(io::ErrorKind::TimedOut)),
            ended => return Ok(ended.map(drop)?),
        }
    }
}

//! Who keeps the descriptors of mounted views while no daemon runs.
//!
//! A FUSE connection lives as long as a descriptor of it is open somewhere. A daemon that is killed or
//! upgraded takes its own along; a copy kept elsewhere makes that a pause for whoever reads, and lets the
//! next daemon go on where the last one stopped.

mod holder;
mod manager;

use std::fmt::Debug;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

pub use self::holder::HolderClient;
pub use self::manager::ServiceManager;

/// What the names of views' descriptors begin with; behind it stands the number of the view.
pub const PREFIX: &str = "view-";

/// Keeps descriptors by name for the daemon that comes next. All calls block, for a moment.
pub trait Keep: Send + Sync + Debug {
    /// Has a copy of `descriptor` kept. When this returns it survives the death of this process.
    ///
    /// # Errors
    /// Nobody keeps it.
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()>;

    /// Has the descriptor of that name closed, if there is one.
    ///
    /// # Errors
    /// It may still be kept.
    fn forget(&self, name: &str) -> io::Result<()>;

    /// What an earlier daemon had kept. They stay kept.
    ///
    /// # Errors
    /// They cannot be had.
    fn kept(&self) -> io::Result<Vec<(String, OwnedFd)>>;

    /// Nothing is kept from here on, and whatever was started for that ends.
    fn end(&self);
}

/// Keeps nothing: containers do not survive the daemon.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nobody;

impl Keep for Nobody {
    fn keep(&self, _: &str, _: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    fn forget(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn kept(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        Ok(Vec::new())
    }

    fn end(&self) {}
}

/// The keeper for a daemon on `root`: the service manager if it has a store, else a holder process. `passed`
/// is what the service manager passed at start.
///
/// What the other one holds, because the daemon was started in the other way before, is taken over.
///
/// # Errors
/// A holder process is there and does not answer.
pub fn choose(root: &Path, passed: Vec<(String, OwnedFd)>) -> io::Result<Arc<dyn Keep>> {
    let holder = HolderClient::new(root)?;
    if !passed.is_empty() || ServiceManager::has_store() {
        let manager = ServiceManager::new(passed);
        for (name, descriptor) in holder.kept()? {
            manager.take_over(name, descriptor)?;
        }
        holder.end();
        return Ok(Arc::new(manager));
    }
    Ok(Arc::new(holder))
}

//! Files that the kernel was given to read from.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::Arc;

use fuser::{BackingId, FileHandle, FopenFlags, ReplyOpen};

use super::opens::Backing;

/// A file that the kernel reads from by itself. With the last of these values the kernel is told that
/// no more opens of it come; what is open stays so.
#[derive(Debug, Clone)]
pub(super) struct Given(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    number: u32,
    id: BackingId,
    /// Held so that the layer keeps it.
    _file: Option<Arc<File>>,
}

impl Backing for Given {
    fn number(&self) -> u32 {
        self.0.number
    }
}

impl Given {
    /// Gives `file` to the kernel.
    ///
    /// # Errors
    /// The kernel does not take it: EPERM without `CAP_SYS_ADMIN`, ELOOP if it lies on a stacked file system,
    /// EOPNOTSUPP if that cannot be read in this way.
    pub(super) fn new(reply: &ReplyOpen, file: Arc<File>) -> io::Result<Self> {
        let number = reply.open_backing(&*file)?.into_raw();
        Ok(Self::wrap(reply, number, Some(file)))
    }

    /// One that the process before gave to the kernel; `file`, if it is still to be had, is the same.
    pub(super) fn again(reply: &ReplyOpen, number: u32, file: Option<Arc<File>>) -> Self {
        Self::wrap(reply, number, file)
    }

    fn wrap(reply: &ReplyOpen, number: u32, file: Option<Arc<File>>) -> Self {
        // SAFETY: the number is open in this connection: either it has just been given, and its first owner has
        // let go of it, or the process before wrote it down, which it does only while it is open. Nobody else
        // closes it.
        let id = unsafe { reply.wrap_backing(number) };
        Self(Arc::new(Inner {
            number,
            id,
            _file: file,
        }))
    }

    /// Answers an open with it.
    pub(super) fn answer(&self, reply: ReplyOpen, handle: FileHandle) {
        // The kernel takes no other flags with it.
        reply.opened_passthrough(handle, FopenFlags::empty(), &self.0.id);
    }
}

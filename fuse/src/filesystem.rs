//! The kernel's requests, answered from a view.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};
use nix::sys::statvfs::statvfs;

use crate::access::AccessLog;
use crate::attr::negative;
use crate::counters::{Counters, Operation};
use crate::error::Error;
use crate::explain::Inspection;
use crate::merge::{Child, MergedDirectory, View};
use crate::passthrough::LargeFiles;
use crate::reader::Reader;
use crate::session::{KernelOffer, MountOptions};
use crate::trace::ReadTrace;

/// A view never changes: what the kernel has been told holds until it forgets. The largest time
/// that is sure not to overflow in any kernel: 68 years.
const FOREVER: Duration = Duration::from_secs(i32::MAX as u64);

/// The largest read in one request, in bytes: 256 pages, the kernel's limit without a sysctl.
pub(crate) const MAX_READ: u32 = 1 << 20;

/// Read-ahead requests in flight at once: each may wait for the network.
const MAX_BACKGROUND: u16 = 64;

/// Node ids are never given to another file.
const GENERATION: Generation = Generation(0);

/// What a mount asks of the kernel where the kernel has it.
const WANTED: [InitFlags; 8] = [
    // Directory and attributes in one request, always: a walk costs a sixth of the round trips.
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_NO_OPEN_SUPPORT,
    InitFlags::FUSE_NO_OPENDIR_SUPPORT,
    // Requests taken by a process that died are given again to the one that takes over.
    InitFlags::FUSE_HAS_RESEND,
    // Containers with a user namespace of their own: overlay's lowerdirs are id-mapped mounts.
    InitFlags::FUSE_ALLOW_IDMAP,
];

/// A view as a file system.
#[derive(Debug)]
pub(crate) struct ViewFilesystem {
    view: Arc<View>,
    counters: Arc<Counters>,
    accesses: Arc<AccessLog>,
    statfs_path: PathBuf,
    log_operations: bool,
    zero_message_open: bool,
    zero_message_opendir: bool,
    /// Those that the kernel may read by itself; then opens are answered.
    large: Option<LargeFiles>,
    /// Known once the kernel has said its part.
    agreed: Arc<OnceLock<Agreed>>,
    /// Reads that fail are left to the next process.
    withholding: Arc<AtomicBool>,
}

/// What a mount and the kernel have agreed on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Agreed {
    pub(crate) offer: KernelOffer,
    /// Large files may be passed through.
    pub(crate) passthrough: bool,
}

impl ViewFilesystem {
    pub(crate) fn new(
        inspection: &Inspection,
        options: &MountOptions,
        large: Option<LargeFiles>,
    ) -> Self {
        Self {
            view: Arc::clone(&inspection.view),
            counters: Arc::clone(&inspection.counters),
            accesses: Arc::clone(&inspection.accesses),
            statfs_path: options.statfs_path.clone(),
            log_operations: options.log_operations,
            zero_message_open: false,
            zero_message_opendir: false,
            large,
            agreed: Arc::new(OnceLock::new()),
            withholding: Arc::default(),
        }
    }

    /// Once true, reads that fail are not answered.
    pub(crate) fn withholding(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.withholding)
    }

    /// Where will be what is agreed on with the kernel.
    pub(crate) fn agreed(&self) -> Arc<OnceLock<Agreed>> {
        Arc::clone(&self.agreed)
    }

    fn find(&self, parent: INodeNo, name: &[u8]) -> Result<FileAttr, Error> {
        let parent = self.view.directory(self.view.node(parent)?)?;
        Ok(match self.view.child(&parent, name) {
            Child::Absent => negative(),
            child => self.attr_of(child),
        })
    }

    fn attr_of(&self, child: Child) -> FileAttr {
        match child {
            Child::Directory(directory) => {
                let directory = Arc::new(directory);
                self.view.remember(Arc::clone(&directory));
                self.view.directory_attr(&directory)
            }
            Child::File(node) | Child::Whiteout(node) => self.view.file_attr(node),
            Child::Absent => negative(),
        }
    }

    /// Gives the entries of a directory from position `offset` on to `add`, each with the position
    /// after it, until that says it has no room.
    fn list(
        &self,
        ino: INodeNo,
        offset: u64,
        mut add: impl FnMut(u64, &[u8], Child) -> bool,
    ) -> Result<(), Error> {
        let directory = self.view.directory(self.view.node(ino)?)?;
        if offset == 0
            && add(
                1,
                b".",
                Child::Directory(MergedDirectory::clone(&directory)),
            )
        {
            return Ok(());
        }
        if offset <= 1 {
            let parent = self.view.parent(&directory)?;
            if add(2, b"..", Child::Directory(MergedDirectory::clone(&parent))) {
                return Ok(());
            }
        }
        let first = offset.max(2);
        let Ok(skipped) = usize::try_from(first - 2) else {
            return Ok(());
        };
        let listing = self.view.listing(&directory);
        for (listed, next) in listing.from(skipped).iter().zip(first + 1..) {
            let name = listed.name_in(&self.view);
            if add(next, name, self.view.listed_child(&directory, listed)) {
                break;
            }
        }
        Ok(())
    }

    fn give_xattr(
        &self,
        operation: Operation,
        value: Result<&[u8], Error>,
        size: u32,
        reply: ReplyXattr,
    ) {
        match (value, usize::try_from(size)) {
            (Ok(value), Ok(0)) => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
            (Ok(value), Ok(room)) if value.len() <= room => reply.data(value),
            (Ok(_), _) => reply.error(Error::BufferTooSmall.into()),
            (Err(error), _) => reply.error(self.errno(operation, error)),
        }
    }

    /// Counts a request for `ino`, or for `name` in it, and logs it if that is wanted.
    fn came(&self, operation: Operation, ino: INodeNo, name: &[u8]) {
        self.counters.came(operation);
        if self.log_operations {
            let path = self.view.path_for_log(ino, name);
            let path = path.escape_ascii();
            tracing::debug!(operation = operation.name(), %path, "FUSE operation");
        }
    }

    fn errno(&self, operation: Operation, error: Error) -> Errno {
        if error.is_failure() {
            self.counters.failed(operation);
        }
        error.into()
    }
}

/// Requests that a read-only view never has are left to fuser, which refuses them; those that the
/// kernel sends all the same are refused here, as fuser would complain in the log.
impl Filesystem for ViewFilesystem {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offer = KernelOffer::of(config);
        self.large = self
            .large
            .take()
            .filter(|_| LargeFiles::is_possible(config));
        // There is one handshake, and so nothing there yet.
        let _ = self.agreed.set(Agreed {
            offer,
            passthrough: self.large.is_some(),
        });
        for flag in WANTED {
            // What this kernel does not have is done without.
            let _ = config.add_capabilities(flag);
        }
        let has = config.capabilities();
        self.zero_message_open =
            has.contains(InitFlags::FUSE_NO_OPEN_SUPPORT) && self.large.is_none();
        self.zero_message_opendir = has.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        // Both are within the limits; this also makes the largest read (`max_pages`) a megabyte.
        let _ = config.set_max_write(MAX_READ);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.came(Operation::Lookup, parent, name.as_bytes());
        match self.find(parent, name.as_bytes()) {
            Ok(attr) => reply.entry(&FOREVER, &attr, GENERATION),
            Err(error) => reply.error(self.errno(Operation::Lookup, error)),
        }
    }

    /// Nothing is kept per inode, so nothing is to be forgotten.
    fn forget(&self, _: &Request, _: INodeNo, _: u64) {}

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.came(Operation::Getattr, ino, b"");
        match self.view.node(ino).and_then(|node| self.view.attr(node)) {
            Ok(attr) => reply.attr(&FOREVER, &attr),
            Err(error) => reply.error(self.errno(Operation::Getattr, error)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.came(Operation::Readlink, ino, b"");
        match self.view.node(ino).and_then(|node| self.view.symlink(node)) {
            Ok(target) => reply.data(target),
            Err(error) => reply.error(self.errno(Operation::Readlink, error)),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if let Some(large) = &self.large {
            return large.open(&self.view, ino, &self.counters, reply);
        }
        if self.zero_message_open {
            return reply.error(Error::NotServed.into());
        }
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.came(Operation::Read, ino, b"");
        let node = match self.view.node(ino) {
            Ok(node) => node,
            Err(error) => {
                reply.error(self.errno(Operation::Read, error));
                return self.counters.answered_read();
            }
        };
        let (counters, withholding) = (Arc::clone(&self.counters), Arc::clone(&self.withholding));
        let reading = self.accesses.came(ino.0, offset, size);
        let reader = Reader::new(request.pid());
        let trace = ReadTrace::begin(&self.view, ino, offset, size);
        let span = trace.span();
        let _inside = span.enter();
        self.view.read(node, offset, size, reader, move |outcome| {
            match outcome {
                Ok(bytes) => {
                    counters.gave(bytes.len());
                    reply.data(bytes);
                    trace.ended(reading.ended(false), false);
                }
                Err(error) if error.is_failure() && withholding.load(Ordering::Acquire) => {
                    // Dropped, it would answer EIO.
                    std::mem::forget(reply);
                    return;
                }
                Err(error) => {
                    if error.is_failure() {
                        counters.failed(Operation::Read);
                    }
                    tracing::debug!(ino = ino.0, offset, size, %error, "read failed");
                    reply.error(error.into());
                    trace.ended(reading.ended(true), true);
                }
            }
            counters.answered_read();
        });
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
        if let Some(large) = &self.large {
            large.closed(ino, handle);
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Error::NotServed.into());
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if self.zero_message_opendir {
            return reply.error(Error::NotServed.into());
        }
        let kept = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
        reply.opened(FileHandle(0), kept);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.came(Operation::Readdir, ino, b"");
        let listed = self.list(ino, offset, |next, name, child| {
            let attr = self.attr_of(child);
            reply.add(attr.ino, next, attr.kind, OsStr::from_bytes(name))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.errno(Operation::Readdir, error)),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.came(Operation::Readdir, ino, b"");
        let listed = self.list(ino, offset, |next, name, child| {
            let attr = self.attr_of(child);
            reply.add(
                attr.ino,
                next,
                OsStr::from_bytes(name),
                &FOREVER,
                &attr,
                GENERATION,
            )
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.errno(Operation::Readdir, error)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match statvfs(&self.statfs_path) {
            Ok(numbers) => reply.statfs(
                numbers.blocks(),
                numbers.blocks_free(),
                numbers.blocks_available(),
                numbers.files(),
                numbers.files_free(),
                u32::try_from(numbers.block_size()).unwrap_or(4096),
                255,
                u32::try_from(numbers.fragment_size()).unwrap_or(4096),
            ),
            Err(_) => reply.error(Error::Statfs.into()),
        }
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.came(Operation::Getxattr, ino, b"");
        let node = self.view.node(ino);
        let value = node.and_then(|node| self.view.xattr(node, name.as_bytes()));
        let value = value.as_deref().map_err(|error| *error);
        self.give_xattr(Operation::Getxattr, value, size, reply);
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.came(Operation::Listxattr, ino, b"");
        let node = self.view.node(ino);
        let names = node.and_then(|node| self.view.xattr_names(node));
        let names = names.as_deref().map_err(|error| *error);
        self.give_xattr(Operation::Listxattr, names, size, reply);
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.error(Error::NotServed.into());
    }

    /// ENOTTY is what a file system without file attributes says; overlayfs expects it at copy-up.
    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    /// Holes are shown as data; the kernel then seeks by itself.
    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Error::NotServed.into());
    }
}

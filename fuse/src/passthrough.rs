//! Large files that the kernel reads by itself (`FOPEN_PASSTHROUGH`, Linux 6.9).
//!
//! Of a file that a layer has as a file of its own, an open gives the kernel that file: reads, page faults and the page
//! cache are then those of the file system it lies on, without a message to us. The price is a message for each
//! open and close of any file in the view, so only views that have a large file are mounted like this.

mod backing;
mod opens;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{FileHandle, FopenFlags, INodeNo, InitFlags, KernelConfig, ReplyOpen};
use parking_lot::Mutex;
use ztoc::UncompressedOffset;

use crate::counters::Counters;
use crate::merge::View;
use crate::passthrough::backing::Given;
use crate::passthrough::opens::{Opens, Register};
use crate::tree::Body;

/// How many file systems may lie on one another, ours included: a container's overlay above makes two, the kernel's
/// limit, and so files are read from one that lies on none.
const STACK_DEPTH: u32 = 1;

/// The handle of a file whose opens are not counted.
const SMALL: FileHandle = FileHandle(0);
/// Of a large file that is read from us.
const ORDINARY: FileHandle = FileHandle(1);
/// Of a large file that the kernel reads by itself.
const THROUGH: FileHandle = FileHandle(2);

/// Which files of a view the kernel may read by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passthrough {
    /// Those of at least so many bytes.
    pub min_size: u64,
    /// The file in which it is written down how they are open, for the process that adopts the view.
    pub opens: PathBuf,
}

/// The large files of one view.
#[derive(Debug)]
pub(crate) struct LargeFiles {
    /// Ascending.
    ids: Box<[INodeNo]>,
    /// No other lock is taken under it; held over short calls that wait for nothing.
    opens: Mutex<Opens<Given>>,
    /// The kernel has refused a file.
    refused: AtomicBool,
}

/// The kernel, asked with the reply to one open.
struct Asked<'a> {
    large: &'a LargeFiles,
    reply: &'a ReplyOpen,
    file: Option<Arc<File>>,
}

impl LargeFiles {
    /// Those of a view that is being mounted; `None` if it has none, or their opens cannot be written down.
    pub(crate) fn begin(view: &View, options: &Passthrough) -> Option<Self> {
        let ids = view.large_files(options.min_size);
        if ids.is_empty() {
            return None;
        }
        let opens = File::create(&options.opens).and_then(|file| Opens::begin(ids.len(), file));
        match opens {
            Ok(opens) => Some(Self::new(ids, opens)),
            Err(error) => {
                let path = options.opens.display();
                tracing::warn!(%path, %error, "the large files of a view are not passed through");
                None
            }
        }
    }

    /// Those of a view that is being adopted.
    pub(crate) fn resume(view: &View, options: &Passthrough) -> Self {
        let ids = view.large_files(options.min_size);
        let journal = File::options().read(true).write(true).open(&options.opens);
        let opens = journal.and_then(|file| Opens::resume(ids.len(), file));
        let opens = opens.unwrap_or_else(|error| {
            let path = options.opens.display();
            tracing::warn!(%path, %error, "it is not known how large files are open; none is passed through");
            Opens::unknown(ids.len())
        });
        Self::new(ids, opens)
    }

    fn new(ids: Vec<INodeNo>, opens: Opens<Given>) -> Self {
        Self {
            ids: ids.into(),
            opens: Mutex::new(opens),
            refused: AtomicBool::new(false),
        }
    }

    /// Asks the kernel for passthrough; whether it has it.
    pub(crate) fn is_possible(config: &mut KernelConfig) -> bool {
        config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(STACK_DEPTH).is_ok()
    }

    /// Answers an open.
    pub(crate) fn open(&self, view: &View, ino: INodeNo, counters: &Counters, reply: ReplyOpen) {
        let Ok(at) = self.ids.binary_search(&ino) else {
            return reply.opened(SMALL, FopenFlags::FOPEN_KEEP_CACHE);
        };
        let wanted = self.opens.lock().wants_backing(at) && !self.refused.load(Ordering::Relaxed);
        let asked = Asked {
            large: self,
            file: wanted.then(|| own_file(view, ino)).flatten(),
            reply: &reply,
        };
        let given = self.opens.lock().open(at, &asked);
        match given {
            Some(given) => {
                counters.passed_through();
                given.answer(reply, THROUGH);
            }
            None => reply.opened(ORDINARY, FopenFlags::FOPEN_KEEP_CACHE),
        }
    }

    /// A handle that an open was answered with is there no more. To be called after that was answered.
    pub(crate) fn closed(&self, ino: INodeNo, handle: FileHandle) {
        if handle == SMALL {
            return;
        }
        if let Ok(at) = self.ids.binary_search(&ino) {
            let unused = self.opens.lock().close(at, handle == THROUGH);
            drop(unused);
        }
    }
}

impl Register<Given> for Asked<'_> {
    fn register(&self) -> Option<Given> {
        let file = Arc::clone(self.file.as_ref()?);
        let given = Given::new(self.reply, file);
        given.map_err(|error| self.large.refuse(&error)).ok()
    }

    fn again(&self, number: u32) -> Given {
        Given::again(self.reply, number, self.file.clone())
    }
}

impl LargeFiles {
    fn refuse(&self, error: &io::Error) {
        if !self.refused.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "the kernel does not take files to read by itself; they are read as others are");
        }
    }
}

/// The file that the bytes of `ino` are in, if its layer has one. One that is not there yet may be made then.
fn own_file(view: &View, ino: INodeNo) -> Option<Arc<File>> {
    let node = view.node(ino).ok()?;
    let Body::Regular { offset, size } = view.inode(node).body else {
        return None;
    };
    let range = offset..UncompressedOffset(offset.0.checked_add(size)?);
    let content = Arc::clone(&view.layer(node).content);
    // What the kernel reads by itself is not looked at by us any more.
    view.judged(node, offset, move |right| {
        right.then(|| content.own_file(range)).flatten()
    })
}

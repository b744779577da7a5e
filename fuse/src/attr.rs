//! Attributes as stat(2) shows them.

use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, INodeNo};

use crate::error::Error;
use crate::ids::NO_ID;
use crate::inode::Node;
use crate::merge::{MergedDirectory, View};
use crate::tree::{Body, Metadata};

/// What ext4 and overlayfs report, and du(1) counts in.
const BLOCK: u64 = 4096;

/// stat(2) counts blocks of 512 bytes.
const SECTORS_PER_BLOCK: u64 = BLOCK / 512;

/// ext4 keeps shorter symlink targets within the inode.
const LONGEST_INLINE_TARGET: usize = 59;

impl View {
    /// The attributes of `node`.
    pub(crate) fn attr(&self, node: Node) -> Result<FileAttr, Error> {
        match self.inode(node).body {
            Body::Directory(_) => Ok(self.directory_attr(&*self.directory(node)?)),
            _ => Ok(self.file_attr(node)),
        }
    }

    /// The attributes of anything but a directory.
    pub(crate) fn file_attr(&self, node: Node) -> FileAttr {
        let inode = self.inode(node);
        let tree = &self.layer(node).tree;
        let metadata = self.shown(inode.metadata);
        let mut attr = attr(self.id(node), metadata, inode.nlink);
        match &inode.body {
            Body::Regular { size, .. } => attr.set_regular(*size),
            Body::Sparse(number) => attr.set_regular(tree.sparse(*number).entry.size),
            Body::Symlink(target) => attr.set_symlink(tree.text(*target).len()),
            Body::CharDevice(number) => attr.set_device(FileType::CharDevice, *number),
            Body::BlockDevice(number) => attr.set_device(FileType::BlockDevice, *number),
            Body::Fifo => attr.kind = FileType::NamedPipe,
            Body::Directory(_) => attr.set_directory(),
            // overlayfs knows a whiteout by its being the character device 0:0.
            Body::Whiteout | Body::LowerLink(_) => {
                attr.set_device(FileType::CharDevice, 0);
                attr.nlink = 1;
            }
        }
        attr
    }

    /// The attributes of a directory. overlayfs counts one link for a directory merged of several
    /// layers, and so must a view that stands for them.
    pub(crate) fn directory_attr(&self, directory: &MergedDirectory) -> FileAttr {
        let metadata = match directory.metadata {
            Some(node) => self.inode(node).metadata,
            None => self.implied_metadata(directory.node()),
        };
        let node = directory.node();
        let nlink = match directory.parts.len() {
            1 => self.inode(node).nlink,
            _ => 1,
        };
        let mut attr = attr(self.id(node), self.shown(metadata), nlink);
        attr.set_directory();
        attr
    }

    /// With the owners that the view shows.
    fn shown(&self, metadata: Metadata) -> Metadata {
        let Some(ids) = self.ids() else {
            return metadata;
        };
        Metadata {
            uid: ids.users.to_host(metadata.uid).unwrap_or(NO_ID),
            gid: ids.groups.to_host(metadata.gid).unwrap_or(NO_ID),
            ..metadata
        }
    }
}

/// An answer that says "there is no such name" and may be kept.
pub(crate) fn negative() -> FileAttr {
    attr(INodeNo(0), Metadata::IMPLIED, 0)
}

fn attr(ino: INodeNo, metadata: Metadata, nlink: u32) -> FileAttr {
    let since_epoch = Duration::new(metadata.mtime_seconds, metadata.mtime_nanos);
    let time = SystemTime::UNIX_EPOCH
        .checked_add(since_epoch)
        .unwrap_or(SystemTime::UNIX_EPOCH);
    FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: FileType::RegularFile,
        perm: metadata.permissions,
        nlink,
        uid: metadata.uid,
        gid: metadata.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// What the kind of a file adds to its attributes.
trait Kind {
    fn set_regular(&mut self, size: u64);
    fn set_symlink(&mut self, target_len: usize);
    fn set_device(&mut self, kind: FileType, number: u32);
    fn set_directory(&mut self);
}

impl Kind for FileAttr {
    fn set_regular(&mut self, size: u64) {
        self.kind = FileType::RegularFile;
        self.size = size;
        self.blocks = size.div_ceil(BLOCK) * SECTORS_PER_BLOCK;
    }

    fn set_symlink(&mut self, target_len: usize) {
        self.kind = FileType::Symlink;
        self.size = target_len as u64;
        let inline = target_len <= LONGEST_INLINE_TARGET;
        self.blocks = if inline { 0 } else { SECTORS_PER_BLOCK };
        // Linux gives every symlink these.
        self.perm = 0o777;
    }

    fn set_device(&mut self, kind: FileType, number: u32) {
        self.kind = kind;
        self.rdev = number;
    }

    fn set_directory(&mut self) {
        self.kind = FileType::Directory;
        self.size = BLOCK;
        self.blocks = SECTORS_PER_BLOCK;
    }
}

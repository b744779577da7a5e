//! Lays a built tree out: numbers, names and entries in their final, compact place.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};

use super::build::{Builder, ROOT};
use super::children::Names;
use super::draft::{Draft, DraftBody, DraftIndex, DraftSparse};
use super::headers::HeaderCheck;
use super::left_out::{LeftOut, Reason};
use super::name::PATH_MAX;
use super::room::room;
use super::{
    Body, Directory, Dirent, Inode, InodeIndex, LayerTree, SparseFile, Text, Xattr, XattrSet,
};

/// Lays out what `builder` has made; `checks` are those of each entry's headers, if there are any.
pub(super) fn finish(builder: Builder<'_>, checks: Vec<HeaderCheck>) -> LayerTree {
    let text_len = builder.text_len();
    let (drafts, names, left_out) = builder.into_parts();
    let mut layout = Layout {
        numbers: vec![None; drafts.len()],
        drafts: &drafts,
        names: &names,
        checks: &checks,
        headers: room(drafts.len()),
        inodes: room(drafts.len()),
        dirents: room(drafts.len()),
        texts: room(text_len),
        xattrs: Vec::new(),
        sparse: Vec::new(),
        queue: VecDeque::new(),
        left_out,
    };
    // The first number is always to be had.
    let root = layout.number(ROOT, InodeIndex::ROOT, Text { offset: 0, len: 0 });
    debug_assert_eq!(root.ok(), Some(InodeIndex::ROOT));
    while let Some((draft, inode)) = layout.queue.pop_front() {
        layout.lay_out(draft, inode);
    }
    layout.into_tree()
}

struct Layout<'b, 't> {
    drafts: &'b [Draft<'t>],
    names: &'b Names<'t>,
    checks: &'b [HeaderCheck],
    headers: Vec<HeaderCheck>,
    /// The number of each draft that has one.
    numbers: Vec<Option<InodeIndex>>,
    inodes: Vec<Inode>,
    dirents: Vec<Dirent>,
    texts: Vec<u8>,
    xattrs: Vec<XattrSet>,
    sparse: Vec<SparseFile>,
    /// Directories that have a number but no entries yet.
    queue: VecDeque<(DraftIndex, InodeIndex)>,
    left_out: LeftOut<'t>,
}

impl<'t> Layout<'_, 't> {
    /// Gives the entries of a directory their place, and numbers to what they name.
    fn lay_out(&mut self, draft: DraftIndex, directory: InodeIndex) {
        let drafts = self.drafts;
        let DraftBody::Directory(from) = &drafts[draft as usize].body else {
            return;
        };
        let first = self.dirents.len();
        let mut subdirectories = 0;
        for (name, child) in self.names.iter(&from.children) {
            match self.enter(name, child, directory) {
                Ok(Some(inode)) => subdirectories += u32::from(self.is_directory(inode)),
                Ok(None) => {}
                Err(reason) => self.left_out.add(reason, name),
            }
        }
        let inode = &mut self.inodes[directory.position()];
        inode.nlink = 2 + subdirectories;
        if let Body::Directory(to) = &mut inode.body {
            // Neither can exceed the number of drafts, which is a `u32`.
            to.first = u32::try_from(first).unwrap_or(u32::MAX);
            to.count = u32::try_from(self.dirents.len() - first).unwrap_or(u32::MAX);
        }
    }

    /// Adds the entry `name` of `directory`; `None` if it names nothing.
    fn enter(
        &mut self,
        name: &'t [u8],
        child: DraftIndex,
        directory: InodeIndex,
    ) -> Result<Option<InodeIndex>, Reason> {
        let child = match self.drafts[child as usize].body {
            DraftBody::Alias(target) => target,
            DraftBody::Dangling => return Ok(None),
            _ => child,
        };
        let text = self.text(name)?;
        let inode = self.number(child, directory, text)?;
        self.dirents.push(Dirent {
            name_offset: text.offset,
            name_len: u8::try_from(name.len()).map_err(|_| Reason::Name)?,
            inode,
        });
        Ok(Some(inode))
    }

    fn number(
        &mut self,
        draft: DraftIndex,
        parent: InodeIndex,
        name: Text,
    ) -> Result<InodeIndex, Reason> {
        if let Some(inode) = self.numbers[draft as usize] {
            self.inodes[inode.position()].nlink += 1;
            return Ok(inode);
        }
        let drafts = self.drafts;
        let from = &drafts[draft as usize];
        let index = u32::try_from(self.inodes.len()).map_err(|_| Reason::TooMany)?;
        let inode = Inode {
            metadata: from.metadata,
            nlink: 1,
            body: self.body(from, parent, name)?,
            xattrs: self.xattr_set(from),
        };
        self.headers.push(self.header_check(from));
        self.inodes.push(inode);
        self.numbers[draft as usize] = Some(InodeIndex(index));
        if matches!(from.body, DraftBody::Directory(_)) {
            self.queue.push_back((draft, InodeIndex(index)));
        }
        Ok(InodeIndex(index))
    }

    fn body(&mut self, draft: &Draft<'t>, parent: InodeIndex, name: Text) -> Result<Body, Reason> {
        Ok(match &draft.body {
            DraftBody::Directory(directory) => Body::Directory(Directory {
                parent,
                name,
                first: 0,
                count: 0,
                opaque: directory.opaque,
                implied: directory.implied,
            }),
            &DraftBody::Regular { offset, size } => {
                is_possible(size)?;
                Body::Regular { offset, size }
            }
            DraftBody::Sparse(file) => self.sparse(file)?,
            DraftBody::Symlink(target) => Body::Symlink(self.text(target)?),
            DraftBody::CharDevice(number) => Body::CharDevice(*number),
            DraftBody::BlockDevice(number) => Body::BlockDevice(*number),
            DraftBody::Fifo => Body::Fifo,
            DraftBody::Link(link) => Body::LowerLink(self.text(link.target)?),
            DraftBody::Whiteout | DraftBody::Alias(_) | DraftBody::Dangling => Body::Whiteout,
        })
    }

    fn sparse(&mut self, file: &DraftSparse) -> Result<Body, Reason> {
        is_possible(file.entry.size)?;
        let map = file.map.as_deref().map(Arc::from);
        let number = u32::try_from(self.sparse.len()).map_err(|_| Reason::TooMany)?;
        self.sparse.push(SparseFile {
            entry: file.entry.clone(),
            header: file.header.unwrap_or_default(),
            map: map.map_or_else(OnceLock::new, OnceLock::from),
        });
        Ok(Body::Sparse(number))
    }

    fn header_check(&self, draft: &Draft<'_>) -> HeaderCheck {
        let check = self.checks.get(draft.number as usize);
        match (&draft.body, check) {
            (DraftBody::Directory(_) | DraftBody::Whiteout | DraftBody::Link(_), _) => {
                HeaderCheck::unneeded()
            }
            (_, check) => check.map_or_else(HeaderCheck::unneeded, HeaderCheck::to_be_made),
        }
    }

    fn xattr_set(&mut self, draft: &Draft<'_>) -> Option<NonZeroU32> {
        if draft.xattrs().is_empty() {
            return None;
        }
        let mut set: Vec<Xattr> = draft
            .xattrs()
            .iter()
            .map(|&(name, value)| (name.into(), value.into()))
            .collect();
        set.sort();
        self.xattrs.push(set.into());
        u32::try_from(self.xattrs.len())
            .ok()
            .and_then(NonZeroU32::new)
    }

    fn text(&mut self, bytes: &[u8]) -> Result<Text, Reason> {
        let len = u16::try_from(bytes.len())
            .ok()
            .filter(|&len| usize::from(len) <= PATH_MAX);
        let len = len.ok_or(Reason::Name)?;
        let offset = u32::try_from(self.texts.len()).map_err(|_| Reason::TooMany)?;
        self.texts.extend_from_slice(bytes);
        Ok(Text { offset, len })
    }

    fn is_directory(&self, inode: InodeIndex) -> bool {
        matches!(self.inodes[inode.position()].body, Body::Directory(_))
    }

    fn into_tree(self) -> LayerTree {
        self.left_out.report();
        let marks = self.inodes.iter().any(|inode| match &inode.body {
            Body::Directory(directory) => directory.opaque,
            Body::Whiteout => true,
            _ => false,
        });
        LayerTree {
            inodes: self.inodes.into(),
            headers: self.headers.into(),
            dirents: self.dirents.into(),
            texts: self.texts.into(),
            xattrs: self.xattrs.into(),
            sparse: self.sparse.into(),
            marks,
        }
    }
}

/// The kernel takes no file larger than this.
fn is_possible(size: u64) -> Result<(), Reason> {
    i64::try_from(size).map(drop).map_err(|_| Reason::Size)
}

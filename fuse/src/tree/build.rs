//! Applies a layer's members one after another, as containerd's unpacker does.

use ztoc::toc::Member;
use ztoc::{Entry, EntryKind};

use super::children::Names;
use super::draft::{Draft, DraftBody, DraftDirectory, DraftIndex, Link};
use super::finish;
use super::left_out::{LeftOut, Reason};
use super::name::{self, Base, PATH_MAX};
use super::room::room;
use super::source::{self, Source};
use super::{LayerTree, Metadata};

/// Symlinks followed on the way to one name; containerd's limit.
const MAX_LINKS_WALKED: u32 = 255;

/// Hops from one unresolved hard link to the next.
const MAX_LINK_HOPS: u32 = 40;

/// Implied directories each member may bring on average, and some to spare: names of thousands of
/// components would otherwise make a small table of contents a huge tree.
const IMPLIED_PER_ENTRY: usize = 4;
const IMPLIED_AT_LEAST: usize = 1 << 16;

/// Entries that room is made for before they are seen.
const RESERVED: usize = 1 << 18;

pub(super) const ROOT: DraftIndex = 0;
pub(super) const WHITEOUT: DraftIndex = 1;

pub(super) struct Builder<'t> {
    drafts: Vec<Draft<'t>>,
    names: Names<'t>,
    left_out: LeftOut<'t>,
    unresolved: Vec<DraftIndex>,
    implied_left: usize,
    /// Steps that symlinks on the way to names may cost in all.
    link_steps_left: u64,
    /// The directory of the last member, as its name has it. It leads there as long as no name on the way
    /// stands for something else.
    last_parent: Option<(&'t [u8], DraftIndex)>,
    /// Of the entry that is applied.
    number: u32,
    /// Bytes of the names so far, be they taken away again or not.
    text_len: usize,
}

/// Builds the tree of what `source` has.
pub(super) fn build<S: Source>(source: &S) -> Result<LayerTree, S::Error> {
    let mut builder = Builder::new(source.len());
    let checks = source::read(source, |number, member| {
        builder.number = number;
        if let Err(reason) = builder.apply(member) {
            builder.left_out.add(reason, member.entry.name);
        }
    })?;
    builder.settle_links();
    Ok(finish::finish(builder, checks))
}

impl<'t> Builder<'t> {
    fn new(entries: usize) -> Self {
        // Some more for directories without an entry of their own.
        let reserved = entries.min(RESERVED) + entries.min(RESERVED) / 8;
        let mut drafts = room(reserved + 2);
        let whiteout = Draft::new(DraftBody::Whiteout, Metadata::WHITEOUT, 0);
        drafts.extend([Draft::implied_directory(ROOT), whiteout]);
        Self {
            drafts,
            names: Names::new(reserved),
            left_out: LeftOut::default(),
            unresolved: Vec::new(),
            implied_left: entries
                .saturating_mul(IMPLIED_PER_ENTRY)
                .saturating_add(IMPLIED_AT_LEAST),
            link_steps_left: (entries as u64).saturating_mul(64).saturating_add(1 << 20),
            last_parent: None,
            number: 0,
            text_len: 0,
        }
    }

    fn apply(&mut self, member: &Member<'t>) -> Result<(), Reason> {
        let entry = &member.entry;
        if entry.name.len() <= PATH_MAX
            && let Some((parent, base)) = name::split(entry.name)
        {
            let parent = match self.last_parent {
                Some((known, index)) if known == parent => index,
                _ => {
                    let index = self.walk(&name::components(parent), true)?;
                    self.last_parent = Some((parent, index));
                    index
                }
            };
            return self.apply_base(parent, base, member);
        }
        let components = name::components(entry.name);
        let Some((&base, parents)) = components.split_last() else {
            self.apply_root(entry);
            return Ok(());
        };
        if entry.name.len() > PATH_MAX {
            return Err(Reason::Name);
        }
        let parent = self.walk(parents, true)?;
        self.apply_base(parent, base, member)
    }

    fn apply_base(
        &mut self,
        parent: DraftIndex,
        base: &'t [u8],
        member: &Member<'t>,
    ) -> Result<(), Reason> {
        match Base::parse(base) {
            Base::Invalid => Err(Reason::Name),
            Base::Opaque => {
                self.directory_mut(parent).opaque = true;
                Ok(())
            }
            Base::Whiteout(hidden) => {
                if self.child(parent, hidden).is_none() {
                    self.name(parent, hidden, WHITEOUT);
                }
                Ok(())
            }
            Base::Name(base) => self.put(parent, base, member),
        }
    }

    /// containerd ignores what a layer says of the root's owner and mode; its time does no harm.
    fn apply_root(&mut self, entry: &Entry<&[u8]>) {
        if entry.kind == EntryKind::Directory {
            self.drafts[ROOT as usize].metadata.set_mtime(entry.mtime);
        }
    }

    fn put(
        &mut self,
        parent: DraftIndex,
        base: &'t [u8],
        member: &Member<'t>,
    ) -> Result<(), Reason> {
        let entry = &member.entry;
        let body = match entry.kind {
            EntryKind::Directory => return self.put_directory(parent, base, entry),
            EntryKind::HardLink => return self.put_link(parent, base, entry),
            EntryKind::Regular => DraftBody::regular(member),
            EntryKind::SymLink => match entry.link {
                b"" => return Err(Reason::SymlinkTarget),
                link if link.len() > PATH_MAX => return Err(Reason::SymlinkTarget),
                link if link.contains(&0) => return Err(Reason::SymlinkTarget),
                link => DraftBody::Symlink(link),
            },
            EntryKind::CharDevice => match super::device_number(entry) {
                // How overlayfs writes a whiteout down: unpacked, it would act as one.
                0 => {
                    self.name(parent, base, WHITEOUT);
                    return Ok(());
                }
                number => DraftBody::CharDevice(number),
            },
            EntryKind::BlockDevice => DraftBody::BlockDevice(super::device_number(entry)),
            EntryKind::Fifo => DraftBody::Fifo,
        };
        let inode = self.push(Draft::of(body, entry, self.number))?;
        self.name(parent, base, inode);
        Ok(())
    }

    fn put_directory(
        &mut self,
        parent: DraftIndex,
        base: &'t [u8],
        entry: &Entry<&'t [u8]>,
    ) -> Result<(), Reason> {
        let existing = self.child(parent, base);
        let index = match existing {
            Some(index) if self.is_directory(index) => index,
            _ => {
                let index = self.push(Draft::implied_directory(parent))?;
                self.name(parent, base, index);
                index
            }
        };
        let draft = &mut self.drafts[index as usize];
        draft.metadata = Metadata::of(entry);
        draft.add_xattrs(entry);
        self.directory_mut(index).implied = false;
        Ok(())
    }

    fn put_link(
        &mut self,
        parent: DraftIndex,
        base: &'t [u8],
        entry: &Entry<&'t [u8]>,
    ) -> Result<(), Reason> {
        let target = name::components(entry.link);
        let inode = match self.resolve(&target) {
            Some(inode) => {
                self.drafts[inode as usize].relink(entry);
                inode
            }
            None => {
                let (name, target) = (entry.name, entry.link);
                let body = DraftBody::Link(Box::new(Link { name, target }));
                let link = self.push(Draft::of(body, entry, self.number))?;
                self.unresolved.push(link);
                link
            }
        };
        self.name(parent, base, inode);
        Ok(())
    }

    /// The inode of the file at `path` as far as the layer goes now.
    fn resolve(&mut self, path: &[&'t [u8]]) -> Option<DraftIndex> {
        let (&base, parents) = path.split_last()?;
        let parent = self.walk(parents, false).ok()?;
        let inode = self.child(parent, base)?;
        (inode != WHITEOUT && !self.is_directory(inode)).then_some(inode)
    }

    /// The directory at `path`. Symlinks are followed within the layer; with `create`, what is
    /// missing is made.
    fn walk(&mut self, path: &[&'t [u8]], create: bool) -> Result<DraftIndex, Reason> {
        let mut rest: Vec<&'t [u8]> = path.iter().rev().copied().collect();
        let mut at = ROOT;
        let mut links = 0;
        while let Some(component) = rest.pop() {
            match component {
                b"" | b"." => continue,
                b".." => {
                    at = self.directory(at).parent;
                    continue;
                }
                _ => {}
            }
            let child = self.child(at, component);
            at = match child.map(|child| (child, &self.drafts[child as usize].body)) {
                Some((child, DraftBody::Directory(_))) => child,
                Some((_, &DraftBody::Symlink(target))) => {
                    links += 1;
                    self.pay_for_link(links, target.len())?;
                    rest.extend(target.split(|&byte| byte == b'/').rev());
                    if target.first() == Some(&b'/') {
                        ROOT
                    } else {
                        at
                    }
                }
                None | Some((WHITEOUT, _)) if create => self.imply(at, component)?,
                None | Some((WHITEOUT, _)) => return Err(Reason::HardLink),
                Some(_) => return Err(Reason::Parent),
            };
        }
        Ok(at)
    }

    fn pay_for_link(&mut self, links: u32, target_len: usize) -> Result<(), Reason> {
        let steps = self.link_steps_left.checked_sub(target_len as u64);
        self.link_steps_left = steps.ok_or(Reason::Links)?;
        if links > MAX_LINKS_WALKED {
            return Err(Reason::Links);
        }
        Ok(())
    }

    fn imply(&mut self, parent: DraftIndex, base: &'t [u8]) -> Result<DraftIndex, Reason> {
        if !name::is_valid(base) {
            return Err(Reason::Name);
        }
        self.implied_left = self.implied_left.checked_sub(1).ok_or(Reason::TooMany)?;
        let index = self.push(Draft::implied_directory(parent))?;
        self.name(parent, base, index);
        Ok(index)
    }

    /// What `name` in `directory` stands for.
    fn child(&mut self, directory: DraftIndex, name: &[u8]) -> Option<DraftIndex> {
        let directory = directory_of(&mut self.drafts, directory);
        self.names.get(&mut directory.children, name)
    }

    /// Has `name` in `parent` stand for `child`.
    fn name(&mut self, parent: DraftIndex, name: &'t [u8], child: DraftIndex) {
        self.text_len += name.len();
        let parent = directory_of(&mut self.drafts, parent);
        let before = self.names.insert(&mut parent.children, name, child);
        if before.is_some() {
            self.last_parent = None;
        }
    }

    /// Finds the targets of hard links that came before them.
    fn settle_links(&mut self) {
        for index in std::mem::take(&mut self.unresolved) {
            let DraftBody::Link(link) = &self.drafts[index as usize].body else {
                continue;
            };
            let (name, target) = (link.name, link.target);
            match self.follow_links(target) {
                Ok(Some(target)) => {
                    self.drafts[index as usize].body = DraftBody::Alias(target);
                }
                // Only a lower layer can have it.
                Ok(None) => {}
                Err(reason) => {
                    self.left_out.add(reason, name);
                    self.drafts[index as usize].body = DraftBody::Dangling;
                }
            }
        }
    }

    /// The inode that a link to `target` leads to; `None` if this layer does not have it.
    fn follow_links(&mut self, mut target: &'t [u8]) -> Result<Option<DraftIndex>, Reason> {
        for _ in 0..MAX_LINK_HOPS {
            let Some(inode) = self.resolve(&name::components(target)) else {
                return Ok(None);
            };
            match &self.drafts[inode as usize].body {
                DraftBody::Link(next) => target = next.target,
                DraftBody::Alias(inode) => return Ok(Some(*inode)),
                DraftBody::Dangling => return Err(Reason::HardLink),
                _ => return Ok(Some(inode)),
            }
        }
        Err(Reason::HardLink)
    }

    /// Bytes that the names take.
    pub(super) fn text_len(&self) -> usize {
        self.text_len
    }

    /// The inodes, what names there are for them, and what was left out.
    pub(super) fn into_parts(self) -> (Vec<Draft<'t>>, Names<'t>, LeftOut<'t>) {
        (self.drafts, self.names, self.left_out)
    }

    fn push(&mut self, draft: Draft<'t>) -> Result<DraftIndex, Reason> {
        let index = DraftIndex::try_from(self.drafts.len()).map_err(|_| Reason::TooMany)?;
        self.drafts.push(draft);
        Ok(index)
    }

    fn is_directory(&self, index: DraftIndex) -> bool {
        matches!(self.drafts[index as usize].body, DraftBody::Directory(_))
    }

    fn directory(&self, index: DraftIndex) -> &DraftDirectory<'t> {
        match &self.drafts[index as usize].body {
            DraftBody::Directory(directory) => directory,
            _ => unreachable!("only directories are walked into"),
        }
    }

    fn directory_mut(&mut self, index: DraftIndex) -> &mut DraftDirectory<'t> {
        directory_of(&mut self.drafts, index)
    }
}

fn directory_of<'b, 't>(
    drafts: &'b mut [Draft<'t>],
    index: DraftIndex,
) -> &'b mut DraftDirectory<'t> {
    match &mut drafts[index as usize].body {
        DraftBody::Directory(directory) => directory,
        _ => unreachable!("only directories are walked into"),
    }
}

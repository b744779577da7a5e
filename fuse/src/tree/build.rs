//! Applies a layer's members one after another, as containerd's unpacker does.

use std::thread;

use ztoc::{Entry, EntryKind, Toc};

use super::children::Children;
use super::finish;
use super::headers::HeaderCheck;
use super::left_out::{LeftOut, Reason};
use super::name::{self, Base, PATH_MAX};
use super::{LayerTree, Metadata};

/// Symlinks followed on the way to one name; containerd's limit.
const MAX_LINKS_WALKED: u32 = 255;

/// Hops from one unresolved hard link to the next.
const MAX_LINK_HOPS: u32 = 40;

/// Implied directories each member may bring on average, and some to spare: names of thousands of
/// components would otherwise make a small table of contents a huge tree.
const IMPLIED_PER_ENTRY: usize = 4;
const IMPLIED_AT_LEAST: usize = 1 << 16;

/// Entries from which on a second thread pays.
const MANY: usize = 10_000;

const FILE_CAPABILITIES: &[u8] = b"security.capability";

pub(super) const ROOT: DraftIndex = 0;
pub(super) const WHITEOUT: DraftIndex = 1;

/// The number of an inode while the tree is built; not all survive.
pub(super) type DraftIndex = u32;

/// Small, as there is one for each file, and memory that is touched for the first time is what building takes longest for.
pub(super) struct Draft<'t> {
    pub(super) body: DraftBody<'t>,
    /// Of the entry it was made of; of a directory, any number.
    pub(super) number: u32,
    /// What cannot be had of that entry.
    own: Option<Box<Own<'t>>>,
}

/// Attributes of a directory, of a file with extended ones, or of one that has them of another name.
struct Own<'t> {
    metadata: Metadata,
    xattrs: Vec<(&'t [u8], &'t [u8])>,
}

pub(super) enum DraftBody<'t> {
    Directory(Box<DraftDirectory<'t>>),
    /// A regular file, symlink, device or pipe with an entry of its own.
    File(&'t Entry),
    Whiteout,
    /// A hard link whose target has not been seen.
    Link(&'t Entry),
    /// A hard link that turned out to be this inode.
    Alias(DraftIndex),
    /// A hard link that leads nowhere.
    Dangling,
}

pub(super) struct DraftDirectory<'t> {
    pub(super) parent: DraftIndex,
    pub(super) children: Children<'t>,
    pub(super) opaque: bool,
    pub(super) implied: bool,
}

pub(super) struct Builder<'t> {
    drafts: Vec<Draft<'t>>,
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

/// Builds the tree of `entries`; `toc`, of which they are, tells where their headers lie. Of many, another thread sees
/// to the headers meanwhile; it ends before this returns.
pub(super) fn build(entries: &[Entry], toc: Option<&Toc>) -> LayerTree {
    let many = toc.filter(|toc| toc.entries().len() >= MANY);
    thread::scope(|scope| {
        let checks = many.and_then(|toc| {
            let thread = thread::Builder::new().name("headers".to_owned());
            thread.spawn_scoped(scope, || HeaderCheck::all(toc)).ok()
        });
        let mut builder = Builder::new(entries.len());
        for (number, entry) in (0..).zip(entries) {
            builder.number = number;
            if let Err(reason) = builder.apply(entry) {
                builder.left_out.add(reason, &entry.name);
            }
        }
        builder.settle_links();
        // What a thread that failed has not done is done as for few.
        let checks = checks.and_then(|checks| checks.join().ok());
        finish::finish(builder, toc, checks.as_deref())
    })
}

impl<'t> Builder<'t> {
    fn new(entries: usize) -> Self {
        let whiteout = Draft {
            body: DraftBody::Whiteout,
            number: 0,
            own: None,
        };
        let mut drafts = Vec::with_capacity(entries.saturating_add(2));
        drafts.extend([Draft::implied_directory(ROOT), whiteout]);
        Self {
            drafts,
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

    fn apply(&mut self, entry: &'t Entry) -> Result<(), Reason> {
        if entry.name.len() <= PATH_MAX
            && let Some((parent, base)) = name::split(&entry.name)
        {
            let parent = match self.last_parent {
                Some((known, index)) if known == parent => index,
                _ => {
                    let index = self.walk(&name::components(parent), true)?;
                    self.last_parent = Some((parent, index));
                    index
                }
            };
            return self.apply_base(parent, base, entry);
        }
        let components = name::components(&entry.name);
        let Some((&base, parents)) = components.split_last() else {
            self.apply_root(entry);
            return Ok(());
        };
        if entry.name.len() > PATH_MAX {
            return Err(Reason::Name);
        }
        let parent = self.walk(parents, true)?;
        self.apply_base(parent, base, entry)
    }

    fn apply_base(
        &mut self,
        parent: DraftIndex,
        base: &'t [u8],
        entry: &'t Entry,
    ) -> Result<(), Reason> {
        match Base::parse(base) {
            Base::Invalid => Err(Reason::Name),
            Base::Opaque => {
                self.directory_mut(parent).opaque = true;
                Ok(())
            }
            Base::Whiteout(hidden) => {
                if self.directory(parent).children.get(hidden).is_none() {
                    self.name(parent, hidden, WHITEOUT);
                }
                Ok(())
            }
            Base::Name(base) => self.put(parent, base, entry),
        }
    }

    /// containerd ignores what a layer says of the root's owner and mode; its time does no harm.
    fn apply_root(&mut self, entry: &Entry) {
        if entry.kind == EntryKind::Directory {
            let root = self.drafts[ROOT as usize].own();
            root.metadata.set_mtime(entry.mtime);
        }
    }

    fn put(&mut self, parent: DraftIndex, base: &'t [u8], entry: &'t Entry) -> Result<(), Reason> {
        match entry.kind {
            EntryKind::Directory => return self.put_directory(parent, base, entry),
            EntryKind::HardLink => return self.put_link(parent, base, entry),
            EntryKind::SymLink if entry.link.is_empty() || entry.link.len() > PATH_MAX => {
                return Err(Reason::SymlinkTarget);
            }
            EntryKind::SymLink if entry.link.contains(&0) => return Err(Reason::SymlinkTarget),
            _ => {}
        }
        let inode = if is_whiteout_device(entry) {
            WHITEOUT
        } else {
            self.push(Draft::file(entry, self.number))?
        };
        self.name(parent, base, inode);
        Ok(())
    }

    fn put_directory(
        &mut self,
        parent: DraftIndex,
        base: &'t [u8],
        entry: &'t Entry,
    ) -> Result<(), Reason> {
        let existing = self.directory(parent).children.get(base);
        let index = match existing {
            Some(index) if self.is_directory(index) => index,
            _ => {
                let index = self.push(Draft::implied_directory(parent))?;
                self.name(parent, base, index);
                index
            }
        };
        let own = self.drafts[index as usize].own();
        own.metadata = Metadata::of(entry);
        own.add_xattrs(entry);
        self.directory_mut(index).implied = false;
        Ok(())
    }

    fn put_link(
        &mut self,
        parent: DraftIndex,
        base: &'t [u8],
        entry: &'t Entry,
    ) -> Result<(), Reason> {
        let target = name::components(&entry.link);
        let inode = match self.resolve(&target) {
            Some(inode) => {
                self.drafts[inode as usize].relink(entry);
                inode
            }
            None => {
                let link = self.push(Draft::link(entry, self.number))?;
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
        let inode = self.directory(parent).children.get(base)?;
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
            let child = self.directory(at).children.get(component);
            at = match child.map(|child| (child, &self.drafts[child as usize].body)) {
                Some((child, DraftBody::Directory(_))) => child,
                Some((_, DraftBody::File(entry))) if entry.kind == EntryKind::SymLink => {
                    let target = &entry.link;
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

    /// Has `name` in `parent` stand for `child`.
    fn name(&mut self, parent: DraftIndex, name: &'t [u8], child: DraftIndex) {
        self.text_len += name.len();
        if self
            .directory_mut(parent)
            .children
            .insert(name, child)
            .is_some()
        {
            self.last_parent = None;
        }
    }

    /// Finds the targets of hard links that came before them.
    fn settle_links(&mut self) {
        for index in std::mem::take(&mut self.unresolved) {
            let DraftBody::Link(link) = self.drafts[index as usize].body else {
                continue;
            };
            match self.follow_links(link) {
                Ok(Some(target)) => {
                    self.drafts[index as usize].body = DraftBody::Alias(target);
                }
                // Only a lower layer can have it.
                Ok(None) => {}
                Err(reason) => {
                    self.left_out.add(reason, &link.name);
                    self.drafts[index as usize].body = DraftBody::Dangling;
                }
            }
        }
    }

    /// The inode that `link` leads to; `None` if this layer does not have it.
    fn follow_links(&mut self, link: &'t Entry) -> Result<Option<DraftIndex>, Reason> {
        let mut link = link;
        for _ in 0..MAX_LINK_HOPS {
            let Some(target) = self.resolve(&name::components(&link.link)) else {
                return Ok(None);
            };
            match self.drafts[target as usize].body {
                DraftBody::Link(next) => link = next,
                DraftBody::Alias(target) => return Ok(Some(target)),
                DraftBody::Dangling => return Err(Reason::HardLink),
                _ => return Ok(Some(target)),
            }
        }
        Err(Reason::HardLink)
    }

    /// Bytes that the names take.
    pub(super) fn text_len(&self) -> usize {
        self.text_len
    }

    /// The inodes and what was left out.
    pub(super) fn into_parts(self) -> (Vec<Draft<'t>>, LeftOut<'t>) {
        (self.drafts, self.left_out)
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
        match &mut self.drafts[index as usize].body {
            DraftBody::Directory(directory) => directory,
            _ => unreachable!("only directories are walked into"),
        }
    }
}

/// A character device 0:0 is how overlayfs writes a whiteout down: unpacked, it would act as one.
fn is_whiteout_device(entry: &Entry) -> bool {
    entry.kind == EntryKind::CharDevice && super::device_number(entry) == 0
}

impl<'t> Draft<'t> {
    fn implied_directory(parent: DraftIndex) -> Self {
        Self {
            body: DraftBody::Directory(Box::new(DraftDirectory {
                parent,
                children: Children::default(),
                opaque: false,
                implied: true,
            })),
            number: 0,
            own: None,
        }
    }

    fn file(entry: &'t Entry, number: u32) -> Self {
        let mut draft = Self {
            number,
            body: DraftBody::File(entry),
            own: None,
        };
        // Most PAX records are of times and long names.
        if entry.xattrs().next().is_some() {
            draft.own().add_xattrs(entry);
        }
        draft
    }

    fn link(entry: &'t Entry, number: u32) -> Self {
        Self {
            body: DraftBody::Link(entry),
            ..Self::file(entry, number)
        }
    }

    /// What another name of this inode says of it: containerd sets owner, attributes, mode and time
    /// of each name in turn on the one inode; setting the owner takes file capabilities away.
    fn relink(&mut self, entry: &'t Entry) {
        let own = self.own();
        own.metadata = Metadata::of(entry);
        own.xattrs.retain(|(name, _)| *name != FILE_CAPABILITIES);
        own.add_xattrs(entry);
    }

    /// Owner, mode and time.
    pub(super) fn metadata(&self) -> Metadata {
        if let Some(own) = &self.own {
            return own.metadata;
        }
        match self.body {
            DraftBody::File(entry) | DraftBody::Link(entry) => Metadata::of(entry),
            DraftBody::Whiteout => Metadata::WHITEOUT,
            DraftBody::Directory(_) | DraftBody::Alias(_) | DraftBody::Dangling => {
                Metadata::IMPLIED
            }
        }
    }

    /// Extended attributes.
    pub(super) fn xattrs(&self) -> &[(&'t [u8], &'t [u8])] {
        self.own.as_ref().map_or(&[], |own| &own.xattrs)
    }

    /// Attributes of its own, so that they can be changed.
    fn own(&mut self) -> &mut Own<'t> {
        let metadata = self.metadata();
        self.own.get_or_insert_with(|| {
            Box::new(Own {
                metadata,
                xattrs: Vec::new(),
            })
        })
    }
}

impl<'t> Own<'t> {
    fn add_xattrs(&mut self, entry: &'t Entry) {
        for (name, value) in entry.xattrs() {
            if !is_servable_xattr(name, value) {
                continue;
            }
            match self.xattrs.iter_mut().find(|(known, _)| *known == name) {
                Some(known) => known.1 = value,
                None => self.xattrs.push((name, value)),
            }
        }
    }
}

/// Whether an attribute may appear in a view. What begins with `trusted.overlay.` or
/// `user.overlay.` would be believed by overlayfs: an image could redirect or hide directories.
fn is_servable_xattr(name: &[u8], value: &[u8]) -> bool {
    const XATTR_NAME_MAX: usize = 255;
    const XATTR_SIZE_MAX: usize = 65536;
    let fits = !name.is_empty() && name.len() <= XATTR_NAME_MAX && value.len() <= XATTR_SIZE_MAX;
    let ours = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    fits && !ours && !name.contains(&0)
}

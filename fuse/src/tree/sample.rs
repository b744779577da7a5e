//! Tables of contents made for tests, also such as no tar could have.

#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::sync::Arc;

use ztoc::toc::{Member, Timestamp};
use ztoc::{Entry, EntryKind, UncompressedOffset};

use super::source::Source;
use super::{LayerTree, build};

pub(crate) fn entry(name: impl AsRef<[u8]>, kind: EntryKind) -> Entry {
    Entry {
        name: name.as_ref().to_vec(),
        kind,
        offset: UncompressedOffset(512),
        size: 0,
        link: Vec::new(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        uname: Vec::new(),
        gname: Vec::new(),
        mtime: Some(Timestamp::default()),
        dev_major: 0,
        dev_minor: 0,
        pax: Vec::new(),
    }
}

pub(crate) fn file(name: impl AsRef<[u8]>) -> Entry {
    entry(name, EntryKind::Regular)
}

pub(crate) fn directory(name: impl AsRef<[u8]>) -> Entry {
    entry(name, EntryKind::Directory)
}

pub(crate) fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    let link = target.as_ref().to_vec();
    Entry {
        link,
        ..entry(name, EntryKind::SymLink)
    }
}

pub(crate) fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Entry {
    let link = target.as_ref().to_vec();
    Entry {
        link,
        ..entry(name, EntryKind::HardLink)
    }
}

pub(crate) fn owned(uid: u32, entry: Entry) -> Entry {
    Entry { uid, ..entry }
}

pub(crate) fn tree(entries: &[Entry]) -> Arc<LayerTree> {
    Arc::new(build::build(&Entries(entries)).unwrap())
}

/// Entries as if of a tar, but for its headers.
struct Entries<'a>(&'a [Entry]);

impl Source for Entries<'_> {
    type Error = Infallible;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn members(&self) -> impl Iterator<Item = Result<Member<'_>, Infallible>> {
        let entries = self.0.iter().map(Entry::borrowed);
        entries.map(|entry| {
            Ok(Member {
                entry,
                header: None,
            })
        })
    }

    fn has_headers(&self) -> bool {
        false
    }
}

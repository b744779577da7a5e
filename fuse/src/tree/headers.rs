//! What the tar headers of files must say.
//!
//! The table of contents comes from somewhere else than the layer. A file is read only when the headers in
//! front of its data are those of the entry that the file was made of: looked at once, with the first read.
//! All that is kept of the entry for this is a fingerprint, under a key that nobody outside knows.

use std::hash::{BuildHasher as _, Hash as _, Hasher as _, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use ztoc::Entry;
use ztoc::toc::Member;

const BLOCK: u64 = 512;
/// Most bytes of headers in front of a file: extended ones have up to a megabyte each.
const MOST: u64 = 4 << 20;
/// Longest name that a header holds without another one in front of it.
const PLAIN_NAME: usize = 100;
/// Number of blocks that no headers have.
const NONE_ARE_RIGHT: u16 = u16::MAX;

/// The headers of one file.
#[derive(Debug)]
pub(crate) struct HeaderCheck {
    fingerprint: u32,
    /// In front of the data; 0 if nothing can be said of them.
    blocks: u16,
    passed: AtomicBool,
}

/// What is known of a file's headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Headers {
    /// They are right, or cannot be judged.
    Right,
    /// So many bytes in front of the data have to be looked at.
    Unread(u64),
    /// Between the entry before this one and its data there is no room for them, or far too much.
    Impossible,
}

impl HeaderCheck {
    /// For what has no data in the tar.
    pub(super) fn unneeded() -> Self {
        Self {
            fingerprint: 0,
            blocks: 0,
            passed: AtomicBool::new(true),
        }
    }

    /// For an entry.
    pub(super) fn of(member: &Member<'_>) -> Self {
        let entry = &member.entry;
        let blocks = match member.header {
            Some(start) => match entry.offset.0.checked_sub(start.0) {
                Some(bytes @ 1..=MOST) if bytes.is_multiple_of(BLOCK) => {
                    u16::try_from(bytes / BLOCK).unwrap_or(NONE_ARE_RIGHT)
                }
                _ => NONE_ARE_RIGHT,
            },
            // What lies before it is a sparse file of unknown length: then a header without others in
            // front of it has to do.
            None if is_plain(entry) => 1,
            None => 0,
        };
        Self {
            fingerprint: fingerprint(entry),
            blocks,
            passed: AtomicBool::new(false),
        }
    }

    /// The same check, not made yet.
    pub(super) fn to_be_made(&self) -> Self {
        let Self {
            fingerprint,
            blocks,
            ..
        } = *self;
        Self {
            fingerprint,
            blocks,
            passed: AtomicBool::new(false),
        }
    }

    pub(crate) fn state(&self) -> Headers {
        match self.blocks {
            _ if self.passed.load(Ordering::Relaxed) => Headers::Right,
            0 => Headers::Right,
            NONE_ARE_RIGHT => Headers::Impossible,
            blocks => Headers::Unread(u64::from(blocks) * BLOCK),
        }
    }

    /// Whether `bytes`, all that lies between the entry before and the data, are the headers.
    pub(crate) fn look(&self, bytes: &[u8]) -> bool {
        let right = Entry::of_headers(bytes)
            .is_some_and(|entry| fingerprint(&entry.borrowed()) == self.fingerprint);
        if right {
            self.passed.store(true, Ordering::Relaxed);
        }
        right
    }
}

fn is_plain(entry: &Entry<&[u8]>) -> bool {
    entry.pax.is_empty() && entry.name.len() <= PLAIN_NAME && entry.link.len() <= PLAIN_NAME
}

/// Of all that a view shows of a file, but for its time.
fn fingerprint(entry: &Entry<&[u8]>) -> u32 {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let mut hasher = KEY.build_hasher();
    // With the lengths in front no two entries are the same bytes: names of files have 12 bits of length, of what is in
    // headers 22.
    let lengths = (entry.name.len() as u64) << 32 | entry.link.len() as u64;
    let numbers = [
        entry.mode.cast_unsigned(),
        entry.size,
        u64::from(entry.uid) << 32 | u64::from(entry.gid),
        lengths << 8 | entry.kind as u64,
    ];
    hasher.write(numbers.map(u64::to_ne_bytes).as_flattened());
    hasher.write(entry.name);
    hasher.write(entry.link);
    if !entry.pax.is_empty() {
        entry.xattrs().for_each(|xattr| xattr.hash(&mut hasher));
    }
    let [a, b, c, d, ..] = hasher.finish().to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tree::sample::{directory, file};
    use crate::tree::{InodeIndex, LayerTree};
    use ztoc::{Toc, UncompressedOffset};

    fn check(toc: &Toc, index: usize) -> HeaderCheck {
        HeaderCheck::of(&toc.members().nth(index).unwrap())
    }

    fn fingerprint(entry: &Entry) -> u32 {
        super::fingerprint(&entry.borrowed())
    }

    fn at(offset: u64, entry: Entry) -> Entry {
        let offset = UncompressedOffset(offset);
        Entry { offset, ..entry }
    }

    fn state(entries: &[Entry], index: usize) -> Headers {
        let toc = Toc::new(entries.to_vec(), 1 << 30).unwrap();
        check(&toc, index).state()
    }

    #[test]
    fn headers_lie_between_the_entry_before_and_the_data() {
        let sized = Entry {
            size: 700,
            ..file("a")
        };
        let entries = [at(512, sized), at(512 + 1024 + 1536, file("b"))];
        assert_eq!(state(&entries, 0), Headers::Unread(512));
        assert_eq!(state(&entries, 1), Headers::Unread(1536));
    }

    #[test]
    fn a_place_without_room_for_headers_or_with_room_for_more_has_none() {
        let crowded = [at(512, directory("a")), at(512, file("b"))];
        assert_eq!(state(&crowded[1..], 0), Headers::Unread(512));
        let both = Toc::new(crowded.to_vec(), 1 << 30).unwrap();
        // They share the headers of the first, and only one of them has such.
        for number in 0..crowded.len() {
            assert_eq!(check(&both, number).state(), Headers::Unread(512));
        }
        assert_eq!(state(&[at(700, file("a"))], 0), Headers::Impossible);
        assert_eq!(state(&[at(0, file("a"))], 0), Headers::Impossible);
        assert_eq!(state(&[at(MOST + 512, file("a"))], 0), Headers::Impossible);
    }

    #[test]
    fn of_many_files_the_checks_are_the_same() {
        let entries = (0..12_000).map(|number: u64| {
            let size = number % 5 * 300;
            at(
                2048 * number + 512,
                Entry {
                    size,
                    ..file(format!("{number:06}"))
                },
            )
        });
        let toc = Toc::new(entries.collect(), 1 << 30).unwrap();
        let tree = LayerTree::new(&toc);
        for (member, inode) in toc.members().zip(1..) {
            let (ours, own) = (
                tree.header_check(InodeIndex(inode)),
                HeaderCheck::of(&member),
            );
            assert_eq!(ours.state(), own.state(), "{inode}");
            assert_eq!(ours.fingerprint, own.fingerprint, "{inode}");
        }
    }

    #[test]
    fn everything_that_a_view_shows_is_in_the_fingerprint() {
        let entry = file("name");
        let own = fingerprint(&entry);
        assert_eq!(fingerprint(&at(9, entry.clone())), own);
        let others = [
            file("nam"),
            directory("name"),
            Entry {
                size: 1,
                ..entry.clone()
            },
            Entry {
                mode: 0o4755,
                ..entry.clone()
            },
            Entry {
                uid: 1,
                ..entry.clone()
            },
            Entry {
                gid: 1,
                ..entry.clone()
            },
            Entry {
                pax: vec![(b"SCHILY.xattr.security.capability".to_vec(), b"x".to_vec())],
                ..entry
            },
        ];
        for other in others {
            assert_ne!(fingerprint(&other), own, "{other:?}");
        }
    }
}

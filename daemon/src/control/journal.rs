//! How the last layers were provided, and why not lazily: what an operator asks first.

use std::collections::VecDeque;
use std::time::SystemTime;

use parking_lot::Mutex;

/// Layers remembered.
const MOST: usize = 2048;
/// Bytes of a reason remembered.
const LONGEST: usize = 500;

/// The layers prepared last.
#[derive(Debug, Default)]
pub struct Journal {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Number of the first kept.
    first: u64,
    kept: VecDeque<Entry>,
}

/// One layer, as it was provided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When.
    pub at: SystemTime,
    /// The name it was to be committed under.
    pub chain_id: String,
    /// Digest of the compressed layer; empty if the labels did not say.
    pub layer: String,
    /// The image it was prepared for; empty if the labels did not say.
    pub image: String,
    /// `known`, `lazy`, `unpacked` or `deferred`.
    pub outcome: &'static str,
    /// Why not lazily; empty for a lazy one.
    pub reason: String,
}

impl Journal {
    /// Remembers an entry; the oldest makes room.
    pub fn note(&self, mut entry: Entry) {
        if let Some((end, _)) = entry.reason.char_indices().nth(LONGEST) {
            entry.reason.truncate(end);
        }
        let mut inner = self.inner.lock();
        if inner.kept.len() == MOST {
            inner.kept.pop_front();
            inner.first += 1;
        }
        inner.kept.push_back(entry);
    }

    /// The entries from number `from` on, as far as they are kept, and the number to go on with.
    pub fn since(&self, from: u64) -> (Vec<Entry>, u64) {
        let inner = self.inner.lock();
        let skip = usize::try_from(from.saturating_sub(inner.first)).unwrap_or(usize::MAX);
        let next = inner.first + inner.kept.len() as u64;
        (inner.kept.iter().skip(skip).cloned().collect(), next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: usize) -> Entry {
        Entry {
            at: SystemTime::UNIX_EPOCH,
            chain_id: number.to_string(),
            layer: String::new(),
            image: String::new(),
            outcome: "deferred",
            reason: "ß".repeat(LONGEST + 7),
        }
    }

    #[test]
    fn the_newest_entries_are_kept_and_each_is_given_once() {
        let journal = Journal::default();
        (0..MOST + 3).for_each(|number| journal.note(entry(number)));
        let (all, next) = journal.since(0);
        assert_eq!((all.len(), next), (MOST, MOST as u64 + 3));
        assert_eq!(all[0].chain_id, "3");
        assert_eq!(all[0].reason.chars().count(), LONGEST);
        assert_eq!(journal.since(next).0, []);
        journal.note(entry(9));
        assert_eq!(journal.since(next).0.len(), 1);
    }
}

//! Merged directories and listings that were used lately.
//!
//! All of it can be made again at any time; the kernel keeps what it has been told, so that little
//! is asked for twice and little need be kept.

use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::{Listing, MergedDirectory};
use crate::inode::Node;

/// Merged directories kept per view, about 100 bytes each.
const DIRECTORIES: usize = 4096;

/// Names kept in listings per view, 16 bytes each; one larger listing is kept all the same, as the
/// kernel comes for it in many pieces.
const NAMES: usize = 1 << 16;

/// Never held together, never over I/O.
pub(super) struct Cache {
    directories: Mutex<LruCache<Node, Arc<MergedDirectory>>>,
    listings: Mutex<Listings>,
}

struct Listings {
    kept: LruCache<Node, Arc<Listing>>,
    names: usize,
}

impl Cache {
    pub(super) fn new() -> Self {
        Self {
            // Unbounded ones take no memory in advance; both are kept within bounds below.
            directories: Mutex::new(LruCache::unbounded()),
            listings: Mutex::new(Listings {
                kept: LruCache::unbounded(),
                names: 0,
            }),
        }
    }

    pub(super) fn directory(&self, node: Node) -> Option<Arc<MergedDirectory>> {
        self.directories.lock().get(&node).cloned()
    }

    pub(super) fn keep_directory(&self, node: Node, directory: Arc<MergedDirectory>) {
        let mut directories = self.directories.lock();
        directories.put(node, directory);
        if directories.len() > DIRECTORIES {
            directories.pop_lru();
        }
    }

    pub(super) fn listing(&self, node: Node) -> Option<Arc<Listing>> {
        self.listings.lock().kept.get(&node).cloned()
    }

    pub(super) fn keep_listing(&self, node: Node, listing: Arc<Listing>) {
        let mut listings = self.listings.lock();
        listings.names += listing.len();
        if let Some((_, dropped)) = listings.kept.push(node, listing) {
            listings.names -= dropped.len();
        }
        let full =
            |listings: &Listings| listings.names > NAMES || listings.kept.len() > DIRECTORIES;
        while full(&listings) && listings.kept.len() > 1 {
            let Some((_, dropped)) = listings.kept.pop_lru() else {
                break;
            };
            listings.names -= dropped.len();
        }
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

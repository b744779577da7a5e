//! Buffers that others look at, and that are used again once they have: a fresh one costs a page fault for each of its
//! pages.

use std::sync::Arc;

/// Buffers that have been handed on.
#[derive(Debug, Default)]
pub(super) struct Lent(Vec<Arc<Vec<u8>>>);

impl Lent {
    /// Hands `buffer` on.
    pub(super) fn lend(&mut self, buffer: Vec<u8>) -> Arc<Vec<u8>> {
        let lent = Arc::new(buffer);
        self.0.push(Arc::clone(&lent));
        lent
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// A buffer that nobody looks at any more, with what is in it; an empty one if there is none.
    pub(super) fn returned(&mut self) -> Vec<u8> {
        let free = self.0.iter().position(|lent| Arc::strong_count(lent) == 1);
        free.and_then(|index| Arc::try_unwrap(self.0.swap_remove(index)).ok())
            .unwrap_or_default()
    }
}

//! What trees are built of.

use ztoc::error::DecodeError;
use ztoc::toc::Member;
use ztoc::{LeanToc, Toc};

/// The entries of a layer, to be gone through as often as wanted.
pub(super) trait Source: Sync {
    /// How many there are.
    fn len(&self) -> usize;

    /// All of them in tar order; an error is the last.
    fn members(&self) -> impl Iterator<Item = Result<Member<'_>, DecodeError>>;

    /// Whether there is a tar with headers.
    fn has_headers(&self) -> bool {
        true
    }
}

impl Source for Toc {
    fn len(&self) -> usize {
        self.entries().len()
    }

    fn members(&self) -> impl Iterator<Item = Result<Member<'_>, DecodeError>> {
        self.members().map(Ok)
    }
}

impl Source for LeanToc<'_> {
    fn len(&self) -> usize {
        self.len()
    }

    fn members(&self) -> impl Iterator<Item = Result<Member<'_>, DecodeError>> {
        self.members()
    }
}

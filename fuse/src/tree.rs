//! The names of one layer.

use ztoc::Toc;

/// What one layer contributes to a view: its names, attributes and where the bytes lie.
#[derive(Debug)]
pub struct LayerTree {}

impl LayerTree {
    /// Builds the tree of a layer. Never fails: what no file system could hold (a name too long, a
    /// parent that is a file, a hard link to nothing) is left out and reported in the log once.
    pub fn new(_toc: Toc) -> Self {
        todo!()
    }
}

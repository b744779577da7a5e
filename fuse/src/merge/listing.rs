//! All names of a merged directory, in an order that never changes.

use super::{Child, Layer, MergedDirectory, Rules, decide};
use crate::inode::Node;
use crate::tree::InodeIndex;

/// The names of a merged directory, ascending; a position in it is a readdir(3) offset, which
/// therefore means the same after the listing was dropped and made again.
#[derive(Debug)]
pub(crate) struct Listing(Box<[Listed]>);

/// One name of a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Listed {
    /// The layer and directory entry that has the name.
    layer: u32,
    dirent: u32,
    /// What goes by it; a merged directory's top-most part.
    pub(crate) node: Node,
}

impl Listing {
    pub(super) fn new(layers: &[Layer], directory: &MergedDirectory, rules: &Rules<'_>) -> Self {
        let mut candidates = Vec::new();
        for part in &directory.parts {
            let tree = &layers[part.layer as usize].tree;
            if let Some(directory) = tree.directory(part.inode) {
                candidates.extend(tree.dirent_numbers(directory).map(|dirent| Listed {
                    layer: part.layer,
                    dirent,
                    node: Node {
                        layer: part.layer,
                        inode: tree.dirent(dirent).inode,
                    },
                }));
            }
        }
        if directory.parts.len() > 1 {
            // Stable: of equal names the top-most stays first.
            candidates.sort_by(|a, b| a.name(layers).cmp(b.name(layers)));
        }
        let same = |a: &Listed, b: &Listed| a.name(layers) == b.name(layers);
        let visible = candidates.chunk_by(same).filter_map(|group| {
            let nodes = group.iter().map(|listed| listed.node);
            let node = match decide(layers, directory, nodes, rules) {
                Child::Absent => return None,
                Child::Whiteout(node) | Child::File(node) => node,
                Child::Directory(directory) => directory.node(),
            };
            Some(Listed { node, ..group[0] })
        });
        Self(visible.collect())
    }

    /// The names from position `first` on.
    pub(crate) fn from(&self, first: usize) -> &[Listed] {
        self.0.get(first..).unwrap_or_default()
    }

    /// How many names there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Listed {
    fn name<'l>(&self, layers: &'l [Layer]) -> &'l [u8] {
        let tree = &layers[self.layer as usize].tree;
        tree.name(tree.dirent(self.dirent))
    }

    /// The layer of the directory entry with the name, and that entry's number.
    pub(crate) fn name_in<'l>(&self, view: &'l super::View) -> &'l [u8] {
        self.name(&view.layers)
    }
}

const _: () = assert!(size_of::<Listed>() == 8 + size_of::<(u32, InodeIndex)>());

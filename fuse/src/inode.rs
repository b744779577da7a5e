//! Node ids: numbers that mean the same to every process that serves the same chain of layers.

use fuser::INodeNo;

use crate::tree::{InodeIndex, LayerTree};

/// A file of one layer of a view. A merged directory goes by its top-most part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    /// Counted from the bottom.
    pub(crate) layer: u32,
    pub(crate) inode: InodeIndex,
}

/// Node ids of a chain: layer after layer from the bottom, each taking as many as it has inodes.
///
/// They are dense, not layer and inode side by side, so that they stay below 2^32: programs with
/// 32-bit inode numbers cannot stat(2) anything above.
#[derive(Debug)]
pub(crate) struct Numbering {
    /// The first id of each layer, and the end.
    bases: Box<[u64]>,
}

impl Numbering {
    /// Numbers the inodes of `trees`, bottom first.
    pub(crate) fn new<'a>(trees: impl Iterator<Item = &'a LayerTree>) -> Self {
        let mut next = INodeNo::ROOT.0 + 1;
        let mut bases = vec![next];
        for tree in trees {
            next += tree.len();
            bases.push(next);
        }
        Self {
            bases: bases.into(),
        }
    }

    /// The id of `node`; every layer's root is the one root.
    pub(crate) fn id(&self, node: Node) -> INodeNo {
        if node.inode == InodeIndex::ROOT {
            return INodeNo::ROOT;
        }
        INodeNo(self.bases[node.layer as usize] + u64::from(node.inode.0))
    }

    /// The node that goes by `id`, if one does.
    pub(crate) fn node(&self, id: INodeNo) -> Option<Node> {
        let layers = self.bases.len() - 1;
        if id == INodeNo::ROOT {
            let layer = u32::try_from(layers.checked_sub(1)?).ok()?;
            return Some(Node {
                layer,
                inode: InodeIndex::ROOT,
            });
        }
        let layer = self
            .bases
            .partition_point(|&base| base <= id.0)
            .checked_sub(1)?;
        let inode = InodeIndex(u32::try_from(id.0 - self.bases[layer]).ok()?);
        if layer == layers || inode == InodeIndex::ROOT {
            return None;
        }
        let layer = u32::try_from(layer).ok()?;
        Some(Node { layer, inode })
    }
}

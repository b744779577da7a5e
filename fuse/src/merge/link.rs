//! Hard links whose target only a lower layer has.

use std::collections::HashMap;

use super::{Child, Layer, Rules, child, root_of};
use crate::inode::Node;
use crate::tree::components;

/// Steps that looking for targets may cost in all, so that a hostile image stays cheap.
const MAX_STEPS: usize = 1 << 24;

/// Where the hard links into lower layers lead.
#[derive(Debug, Default)]
pub(super) struct LowerLinks(HashMap<Node, Node>);

impl LowerLinks {
    /// Finds the targets of all such links of `layers`, from the bottom up, so that a link to a
    /// link of a lower layer finds that one's target.
    pub(super) fn resolve(layers: &[Layer]) -> Self {
        let mut links = Self::default();
        let mut steps_left = MAX_STEPS;
        let mut dangling = 0u64;
        for (layer, number) in layers.iter().zip(0u32..) {
            for (inode, path) in layer.tree.lower_links() {
                let node = Node {
                    layer: number,
                    inode,
                };
                let path = components(path);
                let cost = path.len().saturating_mul(number as usize);
                let affordable = steps_left.checked_sub(cost);
                steps_left = affordable.unwrap_or(0);
                match affordable.and_then(|_| links.find(layers, number, &path)) {
                    Some(target) => drop(links.0.insert(node, target)),
                    None => dangling += 1,
                }
            }
        }
        if dangling > 0 {
            tracing::warn!(
                dangling,
                "hard links of this view lead nowhere and are left out"
            );
        }
        links
    }

    /// The file that the link `node` is.
    pub(super) fn target(&self, node: Node) -> Option<Node> {
        self.0.get(&node).copied()
    }

    /// The file at `path` as the layers below `limit` together have it.
    fn find(&self, layers: &[Layer], limit: u32, path: &[&[u8]]) -> Option<Node> {
        let rules = Rules {
            links: self,
            whiteouts: false,
        };
        let (base, parents) = path.split_last()?;
        if limit == 0 {
            return None;
        }
        let mut at = root_of(limit as usize);
        for name in parents {
            let Child::Directory(next) = child(layers, &at, name, &rules) else {
                return None;
            };
            at = next;
        }
        match child(layers, &at, base, &rules) {
            Child::File(node) => Some(node),
            _ => None,
        }
    }
}

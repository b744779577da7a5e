//! Layers merged into one tree.

use std::sync::Arc;

use crate::content::LayerContent;
use crate::tree::LayerTree;

/// One layer of a view.
#[derive(Clone)]
pub struct Layer {
    /// Its names.
    pub tree: Arc<LayerTree>,
    /// Its bytes.
    pub content: Arc<dyn LayerContent>,
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layer").field("tree", &self.tree).finish_non_exhaustive()
    }
}

/// A run of layers seen as one tree.
#[derive(Debug)]
pub struct View {}

impl View {
    /// Merges `layers`, bottom first. `stacked` says that an overlay puts other lowerdirs below
    /// this view, so that its whiteouts and opaque directories must stay visible to overlayfs.
    pub fn new(_layers: Vec<Layer>, _stacked: bool) -> Self {
        todo!()
    }
}

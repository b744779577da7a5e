//! Layers merged into one tree, directory by directory as they are asked for.

mod cache;
mod link;
mod listing;
mod lower;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use fuser::INodeNo;
use ztoc::Toc;

use crate::content::{LayerContent, ReadReply};
use crate::error::Error;
use crate::ids::IdMapping;
use crate::inode::{Node, Numbering};
use crate::merge::cache::Cache;
use crate::merge::link::LowerLinks;
pub(crate) use crate::merge::listing::{Listed, Listing};
pub use crate::merge::lower::LowerDirectory;
use crate::merge::lower::LowerMetadata;
use crate::tree::{Body, Inode, InodeIndex, LayerTree, Metadata};

/// One layer of a view.
#[derive(Clone)]
pub struct Layer {
    /// Its names.
    pub tree: Arc<LayerTree>,
    /// Its bytes.
    pub content: Arc<dyn LayerContent>,
}

/// A run of layers seen as one tree: what overlayfs would show of them unpacked.
///
/// In a view with other lowerdirs below (`stacked`) whiteouts and opaque directories stay visible,
/// as overlayfs writes them down, wherever something below the view could be hidden.
#[derive(Debug)]
pub struct View {
    layers: Box<[Layer]>,
    stacked: bool,
    numbering: Numbering,
    links: LowerLinks,
    lower: LowerMetadata,
    root: Arc<MergedDirectory>,
    cache: Cache,
    xattrs: bool,
    ids: Option<IdMapping>,
}

/// A directory as the layers together have it.
#[derive(Debug, Clone)]
pub(crate) struct MergedDirectory {
    /// The layers' directories, top-most first; never empty.
    pub(crate) parts: Box<[Node]>,
    /// Whose attributes it has; `None` if no layer says.
    pub(crate) metadata: Option<Node>,
    /// Nothing below the view can show through.
    closed: bool,
    /// Must be marked opaque for the overlay above.
    pub(crate) opaque: bool,
}

/// What a name is in a merged directory.
#[derive(Debug)]
pub(crate) enum Child {
    Absent,
    /// Hidden, and something below the view must be hidden too.
    Whiteout(Node),
    File(Node),
    Directory(MergedDirectory),
}

impl MergedDirectory {
    /// The node it goes by.
    pub(crate) fn node(&self) -> Node {
        self.parts[0]
    }
}

impl View {
    /// Merges `layers`, bottom first. `stacked` says that an overlay puts other lowerdirs below
    /// this view, so that its whiteouts and opaque directories must stay visible to overlayfs.
    pub fn new(mut layers: Vec<Layer>, stacked: bool) -> Self {
        if layers.is_empty() {
            layers.push(Layer::empty());
        }
        let layers = layers.into_boxed_slice();
        let trees = || layers.iter().map(|layer| &*layer.tree);
        let marks = layers.len() > 1 || trees().any(LayerTree::has_marks);
        Self {
            numbering: Numbering::new(trees()),
            xattrs: trees().any(LayerTree::has_xattrs) || (stacked && marks),
            root: Arc::new(root_of(layers.len())),
            links: LowerLinks::resolve(&layers),
            lower: LowerMetadata::default(),
            cache: Cache::new(),
            layers,
            stacked,
            ids: None,
        }
    }

    /// Shows the users and groups of this node that the image's are by `ids`, as a mount with mapped ids would: for kernels
    /// that do not map those of a FUSE file system. What a container does not have is nobody's.
    #[must_use]
    pub fn with_ids(self, ids: Option<IdMapping>) -> Self {
        Self { ids, ..self }
    }

    /// Takes the attributes of directories that no layer of this view has an entry of, only names
    /// in them, from the directories that an overlay puts below it, top-most first: an
    /// overlay shows the attributes that its top-most lowerdir gives, and `/tmp` must not lose its
    /// sticky bit because a layer brings `tmp/file` and no `tmp/`. Blocks on local file systems.
    ///
    /// # Errors
    /// When one of the directories cannot be opened.
    pub fn with_lower(mut self, lower: &[LowerDirectory<'_>]) -> io::Result<Self> {
        self.lower = LowerMetadata::read(&self.layers, lower)?;
        Ok(self)
    }

    /// The ids that are shown, if they are not the image's.
    pub(crate) fn ids(&self) -> Option<&IdMapping> {
        self.ids.as_ref()
    }

    /// What is known of a directory that no layer has an entry of, in the image's ids.
    pub(crate) fn implied_metadata(&self, node: Node) -> Metadata {
        self.lower.get(node).unwrap_or(Metadata::IMPLIED)
    }

    /// Whether any file of the view can have an extended attribute.
    pub(crate) fn has_xattrs(&self) -> bool {
        self.xattrs
    }

    /// The node id of `node`.
    pub(crate) fn id(&self, node: Node) -> INodeNo {
        self.numbering.id(node)
    }

    /// The node with the id `id`.
    pub(crate) fn node(&self, id: INodeNo) -> Result<Node, Error> {
        self.numbering.node(id).ok_or(Error::Stale)
    }

    /// The layers, bottom first.
    pub(crate) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// The layer that has `node`.
    pub(crate) fn layer(&self, node: Node) -> &Layer {
        &self.layers[node.layer as usize]
    }

    /// What `node` is.
    pub(crate) fn inode(&self, node: Node) -> &Inode {
        self.layer(node).tree.inode(node.inode)
    }

    /// The regular files of one piece that have at least `min_size` bytes, and any at all; ascending.
    pub(crate) fn large_files(&self, min_size: u64) -> Vec<INodeNo> {
        let layers = self.layers.iter().zip(0u32..);
        let nodes = layers.flat_map(|(layer, number)| {
            let large = layer.tree.large_files(min_size.max(1));
            large.map(move |inode| Node {
                layer: number,
                inode,
            })
        });
        nodes.map(|node| self.id(node)).collect()
    }

    /// The merged directory that goes by `node`.
    ///
    /// # Errors
    /// [`Error::NotADirectory`], or [`Error::Stale`] if the directory is hidden in this view.
    pub(crate) fn directory(&self, node: Node) -> Result<Arc<MergedDirectory>, Error> {
        if node.inode == InodeIndex::ROOT {
            return Ok(Arc::clone(&self.root));
        }
        if let Some(known) = self.cache.directory(node) {
            return Ok(known);
        }
        let tree = &self.layer(node).tree;
        tree.directory(node.inode).ok_or(Error::NotADirectory)?;
        let at = self.descend(&tree.path(node.inode))?;
        if at.node() != node {
            return Err(Error::Stale);
        }
        self.remember(Arc::clone(&at));
        Ok(at)
    }

    /// The merged directory at `path`.
    fn descend(&self, path: &[&[u8]]) -> Result<Arc<MergedDirectory>, Error> {
        let mut at = Arc::clone(&self.root);
        for name in path {
            let Child::Directory(next) = self.child(&at, name) else {
                return Err(Error::Stale);
            };
            at = Arc::new(next);
        }
        Ok(at)
    }

    /// Keeps a directory that is likely to be asked for.
    pub(crate) fn remember(&self, directory: Arc<MergedDirectory>) {
        self.cache.keep_directory(directory.node(), directory);
    }

    /// What `name` is in `parent`.
    pub(crate) fn child(&self, parent: &MergedDirectory, name: &[u8]) -> Child {
        child(&self.layers, parent, name, &self.rules())
    }

    /// What a name of a listing is; `directory` is the listed one.
    pub(crate) fn listed_child(&self, directory: &MergedDirectory, listed: &Listed) -> Child {
        match self.inode(listed.node).body {
            Body::Directory(_) => self.child(directory, listed.name_in(self)),
            Body::Whiteout => Child::Whiteout(listed.node),
            _ => Child::File(listed.node),
        }
    }

    /// The directory above; the root's is the root.
    pub(crate) fn parent(
        &self,
        directory: &MergedDirectory,
    ) -> Result<Arc<MergedDirectory>, Error> {
        let node = directory.node();
        let mut path = self.layer(node).tree.path(node.inode);
        path.pop();
        self.descend(&path)
    }

    /// The target of the symbolic link `node`.
    pub(crate) fn symlink(&self, node: Node) -> Result<&[u8], Error> {
        match self.inode(node).body {
            Body::Symlink(target) => Ok(self.layer(node).tree.text(target)),
            _ => Err(Error::NotASymlink),
        }
    }

    /// The path of `name` in the directory `id`, or of `id` itself if `name` is empty.
    pub(crate) fn path_for_log(&self, id: INodeNo, name: &[u8]) -> Vec<u8> {
        let node = self.node(id).ok();
        let mut names = node.map_or_else(Vec::new, |node| {
            self.layer(node).tree.search_path(node.inode)
        });
        names.push(name);
        let mut path = Vec::new();
        for name in names.into_iter().filter(|name| !name.is_empty()) {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        path
    }

    /// All names of the directory that goes by `node`.
    pub(crate) fn listing(&self, directory: &MergedDirectory) -> Arc<Listing> {
        let node = directory.node();
        if let Some(known) = self.cache.listing(node) {
            return known;
        }
        let listing = Arc::new(Listing::new(&self.layers, directory, &self.rules()));
        self.cache.keep_listing(node, Arc::clone(&listing));
        listing
    }

    fn rules(&self) -> Rules<'_> {
        Rules {
            links: &self.links,
            whiteouts: self.stacked,
        }
    }
}

/// What merging needs besides the layers.
struct Rules<'a> {
    links: &'a LowerLinks,
    /// Whether whiteouts are shown where something below the view could be hidden.
    whiteouts: bool,
}

/// The root of the lowest `layers` layers. overlayfs does not look for opaque marks on the roots
/// of its lowerdirs, and so an opaque root hides nothing here either.
fn root_of(layers: usize) -> MergedDirectory {
    let layers = u32::try_from(layers).unwrap_or(u32::MAX);
    let part = |layer| Node {
        layer,
        inode: InodeIndex::ROOT,
    };
    MergedDirectory {
        parts: (0..layers).rev().map(part).collect(),
        metadata: layers.checked_sub(1).map(part),
        closed: false,
        opaque: false,
    }
}

fn child(layers: &[Layer], parent: &MergedDirectory, name: &[u8], rules: &Rules<'_>) -> Child {
    let candidates = parent.parts.iter().filter_map(|part| {
        let tree = &layers[part.layer as usize].tree;
        let inode = tree.child(tree.directory(part.inode)?, name)?;
        let layer = part.layer;
        Some(Node { layer, inode })
    });
    decide(layers, parent, candidates, rules)
}

/// What a name is, given what each layer has by it, top-most first.
fn decide(
    layers: &[Layer],
    parent: &MergedDirectory,
    candidates: impl Iterator<Item = Node>,
    rules: &Rules<'_>,
) -> Child {
    let mut parts = Vec::new();
    let mut closed = parent.closed;
    for node in candidates {
        let file = match &layers[node.layer as usize].tree.inode(node.inode).body {
            Body::Directory(directory) => {
                parts.push(node);
                if directory.opaque {
                    closed = true;
                    break;
                }
                continue;
            }
            Body::Whiteout if parts.is_empty() => {
                return match rules.whiteouts && !parent.closed {
                    true => Child::Whiteout(node),
                    false => Child::Absent,
                };
            }
            Body::LowerLink(_) => match rules.links.target(node) {
                Some(target) => target,
                None => continue,
            },
            _ => node,
        };
        if parts.is_empty() {
            return Child::File(file);
        }
        closed = true;
        break;
    }
    if parts.is_empty() {
        return Child::Absent;
    }
    Child::Directory(MergedDirectory {
        metadata: match metadata_of(layers, parts[0]) {
            Source::Layer(node) => Some(node),
            Source::Below | Source::Nobody => None,
        },
        parts: parts.into(),
        closed,
        opaque: closed && !parent.closed && rules.whiteouts,
    })
}

/// Whose attributes a directory has.
enum Source {
    /// This layer's.
    Layer(Node),
    /// No layer says, and something below the view may.
    Below,
    /// Nobody's: it is something else in the nearest layer that has the name.
    Nobody,
}

/// Whose attributes the directory `top` has. containerd's unpacker gives a directory that a layer
/// only implies the attributes it has in the nearest layer below, unless it is something else there.
fn metadata_of(layers: &[Layer], top: Node) -> Source {
    let tree = &layers[top.layer as usize].tree;
    match tree.directory(top.inode) {
        Some(directory) if directory.implied => {}
        _ => return Source::Layer(top),
    }
    let path = tree.path(top.inode);
    for layer in (0..top.layer).rev() {
        let tree = &layers[layer as usize].tree;
        let Some(inode) = tree.locate(&path) else {
            continue;
        };
        match tree.directory(inode) {
            Some(directory) if directory.implied => {}
            Some(_) => return Source::Layer(Node { layer, inode }),
            None => return Source::Nobody,
        }
    }
    Source::Below
}

/// The bytes of a layer that has none.
struct NoContent;

impl LayerContent for NoContent {
    fn read(&self, _: std::ops::Range<ztoc::UncompressedOffset>, reply: ReadReply) {
        drop(reply);
    }
}

impl Layer {
    /// One without bytes.
    #[cfg(test)]
    pub(crate) fn without_content() -> Self {
        Self::empty()
    }

    fn empty() -> Self {
        Self {
            tree: Arc::new(LayerTree::new(&Toc::default())),
            content: Arc::new(NoContent),
        }
    }
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Layer")
            .field("tree", &self.tree)
            .finish_non_exhaustive()
    }
}

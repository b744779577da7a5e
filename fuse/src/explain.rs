//! Where the files of a view come from.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use fuser::INodeNo;
use ztoc::UncompressedOffset;
use ztoc::toc::FileData;

use crate::access::AccessLog;
use crate::counters::Counters;
use crate::inode::Node;
use crate::merge::{Child, View};
use crate::reader::Reader;
use crate::tree::{Body, InodeIndex, LayerTree, SparseFile, components};

/// The kernel gives up after as many symbolic links.
const MAX_LINKS: usize = 40;

/// What can be looked into of a mounted view, as long as it is kept.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// Its names.
    pub view: Arc<View>,
    /// Requests of the kernel.
    pub counters: Arc<Counters>,
    /// Reads.
    pub accesses: Arc<AccessLog>,
}

/// A file of a view, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its number in the view.
    pub ino: u64,
    /// Its layer, counted from the bottom; of a directory, the top-most that has it.
    pub layer: usize,
    /// What it is: `reg`, `dir`, `symlink`, `char`, `block`, `fifo` or `whiteout`.
    pub kind: &'static str,
    /// Bytes of a regular file.
    pub size: u64,
    /// Where its data lie in the layer's uncompressed tar; of a file with holes, from the first to the
    /// last of them. Empty for anything but a regular file.
    pub data: Range<UncompressedOffset>,
    /// Whether the file lies in one piece.
    pub contiguous: bool,
}

impl View {
    /// What is at `path`, through symbolic links within the view, and the path without links.
    pub fn explain(&self, path: &[u8]) -> Option<(Vec<u8>, Origin)> {
        let mut rest = owned(path);
        rest.reverse();
        let mut at: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        let mut node = self.node(INodeNo::ROOT).ok()?;
        while let Some(name) = rest.pop() {
            let parent = self.directory_at(&at)?;
            node = match self.child(&parent, &name) {
                Child::Absent => return None,
                Child::Directory(directory) => directory.node(),
                Child::File(node) | Child::Whiteout(node) => node,
            };
            if let Ok(target) = self.symlink(node) {
                links += 1;
                if links > MAX_LINKS {
                    return None;
                }
                let base = if target.starts_with(b"/") {
                    Vec::new()
                } else {
                    at.clone()
                };
                let mut whole = [&base.join(&b'/')[..], target].join(&b'/');
                for name in rest.iter().rev() {
                    whole.push(b'/');
                    whole.extend_from_slice(name);
                }
                rest = owned(&whole);
                rest.reverse();
                at.clear();
                node = self.node(INodeNo::ROOT).ok()?;
                continue;
            }
            at.push(name);
        }
        let path = [&b"/"[..], &at.join(&b'/')].concat();
        Some((path, self.origin_of(node)))
    }

    fn directory_at(&self, path: &[Vec<u8>]) -> Option<Arc<crate::merge::MergedDirectory>> {
        let mut at = self.directory(self.node(INodeNo::ROOT).ok()?).ok()?;
        for name in path {
            match self.child(&at, name) {
                Child::Directory(next) => at = Arc::new(next),
                _ => return None,
            }
        }
        Some(at)
    }

    /// Where the file with the number `ino` comes from.
    pub fn origin(&self, ino: u64) -> Option<Origin> {
        Some(self.origin_of(self.node(INodeNo(ino)).ok()?))
    }

    fn origin_of(&self, node: Node) -> Origin {
        let nothing = UncompressedOffset(0)..UncompressedOffset(0);
        let mut contiguous = true;
        let (kind, size, data) = match &self.inode(node).body {
            Body::Directory(_) => ("dir", 0, nothing),
            Body::Regular { offset, size } => {
                let end = UncompressedOffset(offset.0.saturating_add(*size));
                ("reg", *size, *offset..end)
            }
            Body::Sparse(number) => {
                contiguous = false;
                let file = self.layer(node).tree.sparse(*number);
                ("reg", file.entry.size, extent(file))
            }
            Body::Symlink(_) => ("symlink", 0, nothing),
            Body::CharDevice(_) => ("char", 0, nothing),
            Body::BlockDevice(_) => ("block", 0, nothing),
            Body::Fifo => ("fifo", 0, nothing),
            Body::Whiteout => ("whiteout", 0, nothing),
            Body::LowerLink(_) => ("reg", 0, nothing),
        };
        Origin {
            ino: self.id(node).0,
            layer: node.layer as usize,
            kind,
            size,
            data,
            contiguous,
        }
    }

    /// Reads up to `len` bytes of the file `ino` from `position` on; fewer only at its end. The answer may
    /// come on another thread, and is an error's text if there are no bytes to be had.
    pub fn read_file(
        &self,
        ino: u64,
        position: u64,
        len: u32,
        answer: impl FnOnce(Result<&[u8], String>) + Send + 'static,
    ) {
        match self.node(INodeNo(ino)) {
            Ok(node) => self.read(node, position, len, Reader::UNKNOWN, move |outcome| {
                answer(outcome.map_err(|error| error.to_string()));
            }),
            Err(error) => answer(Err(error.to_string())),
        }
    }

    /// A path of each of these files, one of several if it has hard links. Looks through all names of the
    /// layers concerned, once.
    pub fn paths(&self, inos: impl IntoIterator<Item = u64>) -> HashMap<u64, Vec<u8>> {
        let mut wanted: HashMap<u32, HashSet<InodeIndex>> = HashMap::new();
        for node in inos
            .into_iter()
            .filter_map(|ino| self.node(INodeNo(ino)).ok())
        {
            wanted.entry(node.layer).or_default().insert(node.inode);
        }
        let mut paths = HashMap::new();
        for (layer, inodes) in wanted {
            let tree = &self.layers()[layer as usize].tree;
            for (inode, path) in tree.paths_of(&inodes) {
                paths.insert(self.id(Node { layer, inode }).0, path);
            }
        }
        paths
    }
}

impl LayerTree {
    /// Whether any name is a hard link to what only a lower layer may have.
    pub fn links_below(&self) -> bool {
        self.lower_links().next().is_some()
    }

    fn paths_of(&self, wanted: &HashSet<InodeIndex>) -> HashMap<InodeIndex, Vec<u8>> {
        let mut paths = HashMap::new();
        let all = (0..u32::try_from(self.len()).unwrap_or(u32::MAX)).map(InodeIndex);
        for (index, directory) in all.filter_map(|index| Some((index, self.directory(index)?))) {
            for dirent in self.dirents(directory) {
                if wanted.contains(&dirent.inode) {
                    let mut names = self.path(index);
                    names.push(self.name(dirent));
                    let path = [&b"/"[..], &names.join(&b'/')].concat();
                    paths.entry(dirent.inode).or_insert(path);
                }
            }
        }
        paths
    }
}

fn owned(path: &[u8]) -> Vec<Vec<u8>> {
    components(path).into_iter().map(<[u8]>::to_vec).collect()
}

/// From the first to the last byte that a file with holes has in the tar.
fn extent(file: &SparseFile) -> Range<UncompressedOffset> {
    match file.entry.data() {
        FileData::Contiguous(range) | FileData::MapInArchive(range) => range,
        FileData::Sparse(extents) => {
            let start = extents
                .first()
                .map_or(file.entry.offset, |first| first.tar_offset);
            let end = extents.last().map_or(start, |last| {
                UncompressedOffset(last.tar_offset.0.saturating_add(last.len))
            });
            start..end.max(start)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::merge::Layer;
    use crate::tree::sample::{directory, file, symlink, tree};
    use ztoc::Entry;

    fn view(layers: &[&[Entry]]) -> View {
        let layer = |entries: &&[Entry]| Layer {
            tree: tree(entries),
            ..Layer::without_content()
        };
        View::new(layers.iter().map(layer).collect(), false)
    }

    fn sized(name: &str, offset: u64, size: u64) -> Entry {
        Entry {
            offset: UncompressedOffset(offset),
            size,
            ..file(name)
        }
    }

    #[test]
    fn a_path_is_explained_through_links_and_layers() {
        let bottom = [
            directory("usr"),
            directory("usr/bin"),
            sized("usr/bin/sh", 512, 9),
            symlink("bin", "usr/bin"),
        ];
        let top = [
            symlink("usr/bin/ash", "../../bin/sh"),
            sized("usr/new", 1024, 5),
            file(".wh.gone"),
        ];
        let view = view(&[&bottom, &top]);
        let (path, origin) = view.explain(b"/usr/bin/ash").unwrap();
        assert_eq!(path, b"/usr/bin/sh");
        assert_eq!((origin.layer, origin.kind, origin.size), (0, "reg", 9));
        assert_eq!(
            origin.data,
            UncompressedOffset(512)..UncompressedOffset(521)
        );
        assert_eq!(view.origin(origin.ino), Some(origin));
        assert_eq!(view.explain(b"bin/../usr//new").unwrap().1.layer, 1);
        assert_eq!(view.explain(b"/usr").unwrap().1.kind, "dir");
        assert_eq!(view.explain(b"/").unwrap().0, b"/");
        assert_eq!(view.explain(b"/usr/new/x"), None);
        assert_eq!(view.explain(b"/nothing"), None);
    }

    #[test]
    fn links_that_lead_round_in_circles_lead_nowhere() {
        let view = view(&[&[symlink("a", "b"), symlink("b", "/a")]]);
        assert_eq!(view.explain(b"/a"), None);
    }

    #[test]
    fn numbers_have_the_paths_that_lead_to_them() {
        let view = view(&[&[directory("d"), file("d/e"), file("top")], &[file("d/f")]]);
        let paths = ["/d/e", "/top", "/d/f"];
        let inos = paths.map(|path| view.explain(path.as_bytes()).unwrap().1.ino);
        let found = view.paths(inos.into_iter().chain([u64::MAX, 0]));
        for (path, ino) in paths.iter().zip(inos) {
            assert_eq!(found[&ino], path.as_bytes());
        }
        assert_eq!(found.len(), 3);
    }
}

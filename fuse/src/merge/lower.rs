//! What directories below a view say of directories that the view only implies.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::{Layer, Source, metadata_of};
use crate::ids::{IdMap, IdMapping, NO_ID};
use crate::inode::Node;
use crate::tree::Metadata;

/// Paths looked up in lower directories; a hostile image implies many.
const MAX_LOOKUPS: usize = 1 << 18;

/// A directory that an overlay puts below a view.
#[derive(Debug, Clone, Copy)]
pub struct LowerDirectory<'a> {
    /// Where.
    pub path: &'a Path,
    /// By which mapping its owners are shown; `None` if they are the image's.
    pub ids: Option<&'a IdMapping>,
}

/// Attributes of directories that no layer of the view has an entry of, by their top-most node.
#[derive(Debug, Default)]
pub(super) struct LowerMetadata(HashMap<Node, Metadata>);

impl LowerMetadata {
    /// Looks the directories that `layers` imply up in `lower`, top-most first.
    pub(super) fn read(layers: &[Layer], lower: &[LowerDirectory<'_>]) -> io::Result<Self> {
        let opened = lower
            .iter()
            .map(|lower| Ok((File::open(lower.path)?, lower.ids)));
        let directories: io::Result<Vec<_>> = opened.collect();
        let directories = directories?;
        let mut found = HashMap::new();
        let mut lookups = 0usize;
        for (layer, number) in layers.iter().zip(0u32..) {
            for inode in layer.tree.implied_directories() {
                let node = Node {
                    layer: number,
                    inode,
                };
                lookups += directories.len();
                if lookups > MAX_LOOKUPS || !matches!(metadata_of(layers, node), Source::Below) {
                    continue;
                }
                let path = layer.tree.path(inode).join(&b'/');
                let metadata = directories
                    .iter()
                    .find_map(|(lower, ids)| look(lower, *ids, &path));
                if let Some(Found::Directory(metadata)) = metadata {
                    found.insert(node, metadata);
                }
            }
        }
        Ok(Self(found))
    }

    pub(super) fn get(&self, node: Node) -> Option<Metadata> {
        self.0.get(&node).copied()
    }
}

enum Found {
    Directory(Metadata),
    /// Whatever else it is, nothing further down counts.
    Other,
}

/// What is at `path` in `lower`; `None` if there is nothing. No symbolic link is followed, so that
/// the path cannot lead out.
fn look(lower: &File, ids: Option<&IdMapping>, path: &[u8]) -> Option<Found> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let opened = match openat2(lower, OsStr::from_bytes(path), how) {
        Ok(opened) => File::from(opened),
        Err(nix::errno::Errno::ENOENT) => return None,
        Err(_) => return Some(Found::Other),
    };
    let seen = opened.metadata().ok()?;
    if !seen.is_dir() {
        return Some(Found::Other);
    }
    Some(Found::Directory(Metadata {
        mtime_seconds: u64::try_from(seen.mtime()).unwrap_or_default(),
        mtime_nanos: u32::try_from(seen.mtime_nsec()).unwrap_or_default(),
        uid: the_images(ids.map(|ids| &ids.users), seen.uid()),
        gid: the_images(ids.map(|ids| &ids.groups), seen.gid()),
        // Twelve bits always fit.
        permissions: u16::try_from(seen.mode() & 0o7777).unwrap_or_default(),
    }))
}

/// The image's id of one that is shown by `map`. Which one of those it is that the container does not have cannot be told.
fn the_images(map: Option<&IdMap>, shown: u32) -> u32 {
    match map {
        Some(map) => map.to_container(shown).unwrap_or(NO_ID),
        None => shown,
    }
}

//! Which directories a snapshot is mounted from. Values only, no file system is touched.

use std::path::{Path, PathBuf};

use fuse::IdMapping;

use super::images::{LazyLayer, LazyRun};
use super::record::{Kind, Record, SnapshotId};
use crate::error::SnapshotError;

/// A mount as containerd is to perform it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `bind` or `overlay`.
    pub kind: &'static str,
    /// A directory, or `overlay`.
    pub source: String,
    /// In the words of mount(8).
    pub options: Vec<String>,
}

/// One lower directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lower {
    /// The directory of an unpacked layer.
    Directory(PathBuf),
    /// The merged view of neighbouring lazy layers.
    View(LazyRun),
}

/// The lower directories of a chain, nearest first. `chain` is nearest first too. Neighbouring lazy
/// layers make one view, since one mount that merges them costs less than one mount each. Views show
/// `ids`, if there are any; `files` names the directory of an unpacked layer.
///
/// # Errors
/// A record of a lazy layer is corrupt.
pub fn lowers(
    chain: &[Record],
    ids: Option<&IdMapping>,
    files: impl Fn(SnapshotId) -> PathBuf,
) -> Result<Vec<Lower>, SnapshotError> {
    let mut lowers = Vec::new();
    let mut run: Vec<LazyLayer> = Vec::new();
    for record in chain {
        if let Some(layer) = record.source.layer()? {
            run.push(layer);
            continue;
        }
        lowers.extend(view(&mut run, true, ids));
        lowers.push(Lower::Directory(files(record.id)));
    }
    lowers.extend(view(&mut run, false, ids));
    Ok(lowers)
}

/// The view of a run that was gathered nearest first; none if it is empty.
fn view(run: &mut Vec<LazyLayer>, stacked: bool, ids: Option<&IdMapping>) -> Option<Lower> {
    if run.is_empty() {
        return None;
    }
    let mut layers = std::mem::take(run);
    layers.reverse();
    Some(Lower::View(LazyRun {
        layers,
        stacked,
        ids: ids.cloned(),
    }))
}

/// What the kernel at hand wants of an overlay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OverlayOptions {
    /// `index=off`: where the kernel indexes by default, an upper directory could not be mounted
    /// again on the same view after that was mounted anew.
    pub index_off: bool,
    /// `userxattr`: inside a user namespace trusted.* attributes are out of reach.
    pub user_xattr: bool,
}

/// The mounts of a view or active snapshot with directory `own` on `lowers`, nearest first.
pub fn mounts(kind: Kind, own: &Path, lowers: &[PathBuf], overlay: OverlayOptions) -> Vec<Mount> {
    let mount = match (kind, lowers) {
        (Kind::Active, []) => bind(&own.join("fs"), "rw"),
        (_, []) => bind(&own.join("fs"), "ro"),
        (Kind::Active, lowers) => {
            let own = [
                format!("workdir={}", own.join("work").display()),
                format!("upperdir={}", own.join("fs").display()),
            ];
            stack(own.into(), lowers, overlay)
        }
        (_, [only]) => bind(only, "ro"),
        (_, lowers) => stack(Vec::new(), lowers, overlay),
    };
    vec![mount]
}

fn bind(source: &Path, access: &str) -> Mount {
    Mount {
        kind: "bind",
        source: source.display().to_string(),
        options: vec![access.to_owned(), "rbind".to_owned()],
    }
}

fn stack(own: Vec<String>, lowers: &[PathBuf], overlay: OverlayOptions) -> Mount {
    let mut options = Vec::new();
    if overlay.index_off {
        options.push("index=off".to_owned());
    }
    if overlay.user_xattr {
        options.push("userxattr".to_owned());
    }
    options.extend(own);
    let lowers: Vec<String> = lowers
        .iter()
        .map(|lower| lower.display().to_string())
        .collect();
    options.push(format!("lowerdir={}", lowers.join(":")));
    Mount {
        kind: "overlay",
        source: "overlay".to_owned(),
        options,
    }
}

#[cfg(test)]
mod tests;

//! The directory of views: mount points, the records beside them, and what earlier daemons left.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::keeper::{Keep, PREFIX};

/// The record of the view mounted at `path`.
pub(super) fn record_path(path: &Path) -> PathBuf {
    path.with_extension("json")
}

/// Where it is written down how the large files of the view mounted at `path` are open.
pub(super) fn opens_path(path: &Path) -> PathBuf {
    path.with_extension("opens")
}

/// The name under which the descriptor of the view mounted at `path` is kept.
pub(super) fn kept_name(path: &Path) -> String {
    let number = path.file_name().unwrap_or_default().to_string_lossy();
    format!("{PREFIX}{number}")
}

/// The numbers of all views under `root` that have a mount point or a record.
pub(super) fn numbers(root: &Path) -> io::Result<BTreeSet<u64>> {
    let mut numbers = BTreeSet::new();
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name();
        let number = Path::new(&name).file_stem().and_then(|stem| stem.to_str());
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    Ok(numbers)
}

/// Removes the mount point of a view that is unmounted, and its records.
pub(super) fn remove(path: &Path) {
    let (record, opens) = (record_path(path), opens_path(path));
    let removed = [
        fs::remove_file(&record),
        fs::remove_file(&opens),
        fs::remove_dir(path),
    ];
    for (what, removed) in [&record, &opens, path].into_iter().zip(removed) {
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(path = %what.display(), "cannot remove what is left of a view: {error}");
            }
            _ => {}
        }
    }
}

/// Takes off the mounts of an earlier daemon, which answer ENOTCONN if it is dead, and removes
/// everything in `root`. Answers how many were mounted.
pub(super) fn sweep(root: &Path) -> io::Result<usize> {
    let mut unmounted = 0;
    for number in numbers(root)? {
        let path = root.join(number.to_string());
        if fuse::detach_all(&path) {
            tracing::info!(path = %path.display(), "unmounted a view of an earlier daemon");
            unmounted += 1;
        }
        remove(&path);
    }
    remove_unfinished(root)?;
    Ok(unmounted)
}

/// Removes records that were never finished.
pub(super) fn remove_unfinished(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "new") {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Unmounts all views that a stopped daemon left under `root`, and ends their `keeper`. Containers that
/// still use one lose their files. Answers how many there were. Blocks.
///
/// # Errors
/// The directory cannot be read, or the keeper does not answer.
pub fn unmount_all(root: &Path, keeper: &dyn Keep) -> io::Result<usize> {
    let unmounted = match sweep(root) {
        Err(error) if error.kind() == ErrorKind::NotFound => 0,
        swept => swept?,
    };
    for (name, descriptor) in keeper.kept()? {
        drop(descriptor);
        keeper.forget(&name)?;
    }
    keeper.end();
    Ok(unmounted)
}

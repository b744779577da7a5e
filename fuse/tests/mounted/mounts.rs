//! Mounts that end with the test, however it ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fuse::{Layer, MountOptions, Session, View};
use nix::mount::{MntFlags, MsFlags};
use tempfile::TempDir;

/// A view mounted for one test.
pub(crate) struct MountedView {
    // The session ends before its directory is removed.
    pub(crate) session: Session,
    directory: TempDir,
}

impl MountedView {
    pub(crate) fn new(layers: Vec<Layer>, stacked: bool) -> Self {
        Self::serving(View::new(layers, stacked))
    }

    pub(crate) fn serving(view: View) -> Self {
        Self::with(view, &MountOptions::new(std::env::temp_dir()))
    }

    pub(crate) fn with(view: View, options: &MountOptions) -> Self {
        let directory = TempDir::new().unwrap();
        let session = fuse::mount(view, directory.path(), options).unwrap();
        Self { session, directory }
    }

    pub(crate) fn of(archives: &[Vec<u8>]) -> Self {
        Self::new(
            archives
                .iter()
                .map(|tar| crate::layer::layer(tar))
                .collect(),
            false,
        )
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// An overlay mounted for one test.
pub(crate) struct Overlay {
    merged: PathBuf,
    directory: TempDir,
}

impl Overlay {
    /// `lower` is top-most first, as overlayfs takes it; a fresh upper directory goes on top.
    pub(crate) fn new(lower: &[&Path]) -> Self {
        let directory = TempDir::new().unwrap();
        let make = |name: &str| {
            let path = directory.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let (upper, work, merged) = (make("upper"), make("work"), make("merged"));
        let lower: Vec<_> = lower
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let data = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.join(":"),
            upper.display(),
            work.display()
        );
        let flags = MsFlags::empty();
        nix::mount::mount(
            Some("overlay"),
            &merged,
            Some("overlay"),
            flags,
            Some(&*data),
        )
        .unwrap();
        Self { merged, directory }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.merged
    }

    /// Opens the way to the mount, which temporary directories close, to ordinary users.
    pub(crate) fn let_everybody_in(&self) {
        let everybody = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.directory.path(), everybody).unwrap();
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.directory.path().join("upper")
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.merged, MntFlags::MNT_DETACH);
    }
}

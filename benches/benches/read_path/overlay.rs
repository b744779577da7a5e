//! An overlay of one lower directory, as containerd mounts it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Unmounted when dropped.
pub(crate) struct Overlay(PathBuf);

impl Overlay {
    pub(crate) fn over(lower: &Path, place: &Path, name: &str) -> Result<Self> {
        let dir = |kind: &str| -> Result<PathBuf> {
            let dir = place.join(format!("{name}-{kind}"));
            fs::create_dir_all(&dir)?;
            Ok(dir)
        };
        let (upper, work, at) = (dir("upper")?, dir("work")?, dir("merged")?);
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        let kind = Some("overlay");
        mount(kind, &at, kind, MsFlags::empty(), Some(&*options))
            .context("cannot mount an overlay")?;
        Ok(Self(at))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", self.0.display());
        }
    }
}

//! The golden files, made by the original implementation.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::binaries::project;

/// `SPANSHOT_GOLDEN`, else `shared/golden` beside the project.
pub fn directory() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("SPANSHOT_GOLDEN") {
        return Ok(dir.into());
    }
    project()
        .ancestors()
        .skip(1)
        .map(|dir| dir.join("shared/golden"))
        .find(|dir| dir.is_dir())
        .context("no shared/golden beside the project: set SPANSHOT_GOLDEN")
}

/// The layer blob `name` (with its extensions).
pub fn layer(name: &str) -> Result<PathBuf> {
    Ok(directory()?.join("layers").join(name))
}

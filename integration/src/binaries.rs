//! The binaries under test.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use crate::command::{command, run};

/// Where the binaries under test are: `SPANSHOT_BIN_DIR`, else the directory cargo builds into for
/// the profile this code was built with, in which they are brought up to date first.
pub fn directory() -> Result<PathBuf> {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    if let Some(dir) = DIRECTORY.get() {
        return Ok(dir.clone());
    }
    let dir = match env::var_os("SPANSHOT_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => build()?,
    };
    Ok(DIRECTORY.get_or_init(|| dir).clone())
}

/// The binary `name`.
pub fn binary(name: &str) -> Result<PathBuf> {
    let path = directory()?.join(name);
    ensure!(path.is_file(), "no binary {}", path.display());
    Ok(path)
}

/// The project's root directory.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate lies in the workspace")
}

fn build() -> Result<PathBuf> {
    let mut cargo = command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(project())
        .args(["build", "--quiet", "-p", "daemon", "--bins"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    run(&mut cargo).context("cannot build the binaries under test")?;
    let executable = env::current_exe()?;
    let profile = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    let target = executable.ancestors().find(|dir| dir.ends_with(profile));
    Ok(target
        .context("not running from a cargo target directory")?
        .to_owned())
}

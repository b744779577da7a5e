//! Things that take a minute to make and are the same every time.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// `$XDG_CACHE_HOME/spanshot`, else `/var/cache/spanshot`.
pub fn directory() -> PathBuf {
    let base = env::var_os("XDG_CACHE_HOME").unwrap_or_else(|| "/var/cache".into());
    PathBuf::from(base).join("spanshot")
}

/// The directory `key`, filled by `make` if it is not there yet. Whoever comes while it is being
/// made waits for it; one that was cut short is made anew.
pub fn cached(key: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = directory();
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let lock = File::create(cache.join(format!("{key}.lock")))?;
    lock.lock()?;
    let ready = cache.join(key);
    if ready.is_dir() {
        return Ok(ready);
    }
    let partial = cache.join(format!("{key}.partial"));
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial)?;
    make(&partial).with_context(|| format!("cannot make {key}"))?;
    fs::rename(&partial, &ready)?;
    Ok(ready)
}

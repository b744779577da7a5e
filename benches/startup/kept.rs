//! A registry's directory that is kept between runs, and which images it has.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use integration::{binaries, image};
use serde::{Deserialize, Serialize};

/// The directory, which nobody else uses meanwhile.
#[derive(Debug)]
pub(crate) struct Kept {
    dir: PathBuf,
    images: BTreeMap<String, Image>,
    /// The digest of the program that makes indexes: another makes others.
    tools: String,
    _lock: File,
}

/// An image that the registry has.
#[derive(Debug, Serialize, Deserialize)]
struct Image {
    /// The digest of what it was made by.
    recipe: String,
    bytes: u64,
}

impl Kept {
    /// Opens `dir`, and waits for whoever uses it.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let lock = File::create(dir.join("lock"))?;
        lock.lock()?;
        // What was asked of the registry in other runs is nothing to this one, which reads it all the time.
        let _ = fs::remove_file(dir.join("registry.log"));
        let list = fs::read(dir.join(LIST)).unwrap_or_default();
        let soci = fs::read(binaries::binary("soci")?)?;
        Ok(Self {
            dir: dir.to_owned(),
            // None, or unreadable: all are made again.
            images: serde_json::from_slice(&list).unwrap_or_default(),
            tools: image::sha256(&soci),
            _lock: lock,
        })
    }

    /// Where the registry has its data.
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// Of the program that makes indexes.
    pub(crate) fn tools(&self) -> &str {
        &self.tools
    }

    /// The bytes of the image `name`, which `make` makes if it is not there or its recipe was another.
    pub(crate) fn image(
        &mut self,
        name: &str,
        recipe: &str,
        make: impl FnOnce() -> Result<u64>,
    ) -> Result<u64> {
        let recipe = image::sha256(recipe.as_bytes());
        let is_made = |image: &&Image| image.recipe == recipe;
        if let Some(image) = self.images.get(name).filter(is_made) {
            return Ok(image.bytes);
        }
        let bytes = make().with_context(|| format!("cannot make the image {name}"))?;
        self.images.insert(name.to_owned(), Image { recipe, bytes });
        fs::write(self.dir.join(LIST), serde_json::to_vec(&self.images)?)?;
        Ok(bytes)
    }
}

/// The file that says which images there are.
const LIST: &str = "images.json";

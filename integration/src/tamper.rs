//! Indexed images whose SOCI artifacts are not what they should be, consistent in every digest.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::image::{INDEX, Layout};

/// Annotation of an image manifest that names its SOCI index (v2).
const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";

/// Copies the layout of an image with one SOCI index to `dir`, with the zTOCs that `change` makes of
/// those there are (in the order of the index).
pub fn ztocs(
    layout: &Layout,
    dir: &Path,
    change: impl FnOnce(Vec<Vec<u8>>) -> Vec<Vec<u8>>,
) -> Result<Layout> {
    let copy = Layout::create(dir)?;
    for blob in fs::read_dir(layout.path().join("blobs/sha256"))? {
        let blob = blob?;
        fs::copy(blob.path(), dir.join("blobs/sha256").join(blob.file_name()))?;
    }
    let old = Indexed::read(layout)?;
    let mut index = old.index.clone();
    let descriptors = index["layers"]
        .as_array_mut()
        .context("an index lists zTOCs")?;
    let ztocs: Result<Vec<_>> = descriptors
        .iter()
        .map(|ztoc| Ok(fs::read(layout.blob(text(&ztoc["digest"])?))?))
        .collect();
    for (descriptor, bytes) in descriptors.iter_mut().zip(change(ztocs?)) {
        descriptor["digest"] = copy.add_blob(&bytes)?.into();
        descriptor["size"] = bytes.len().into();
    }
    old.rewrite(&copy, &index)?;
    Ok(copy)
}

/// The digest of the SOCI index that the image in `layout` names.
pub fn index_digest(layout: &Layout) -> Result<String> {
    Ok(Indexed::read(layout)?.index_digest)
}

/// The parts of a layout with one image that has a v2 index.
struct Indexed {
    root: Value,
    manifest_digest: String,
    index_digest: String,
    index: Value,
}

impl Indexed {
    fn read(layout: &Layout) -> Result<Self> {
        let roots = layout.roots()?;
        let root = layout.json(text(&roots.first().context("empty layout")?["digest"])?)?;
        for child in root["manifests"]
            .as_array()
            .context("the root is an image index")?
        {
            let manifest_digest = text(&child["digest"])?.to_owned();
            let manifest = layout.json(&manifest_digest)?;
            if let Some(digest) = manifest["annotations"][INDEX_DIGEST].as_str() {
                let index = layout.json(digest)?;
                let index_digest = digest.to_owned();
                return Ok(Self {
                    root,
                    manifest_digest,
                    index_digest,
                    index,
                });
            }
        }
        anyhow::bail!("{} names no SOCI index", layout.path().display())
    }

    /// Writes `index` in place of the old one, and everything above it, as the layout's root.
    fn rewrite(self, layout: &Layout, index: &Value) -> Result<()> {
        let index = serde_json::to_vec(index)?;
        let index_digest = layout.add_blob(&index)?;
        let mut manifest = layout.json(&self.manifest_digest)?;
        manifest["annotations"][INDEX_DIGEST] = index_digest.as_str().into();
        let manifest = serde_json::to_vec(&manifest)?;
        let manifest_digest = layout.add_blob(&manifest)?;
        let mut root = self.root;
        for child in root["manifests"].as_array_mut().into_iter().flatten() {
            if child["digest"] == self.manifest_digest.as_str() {
                child["digest"] = manifest_digest.as_str().into();
                child["size"] = manifest.len().into();
            } else if child["digest"] == self.index_digest.as_str() {
                child["digest"] = index_digest.as_str().into();
                child["size"] = index.len().into();
            }
        }
        let root = serde_json::to_vec(&root)?;
        let digest = layout.add_blob(&root)?;
        let descriptor = json!({"mediaType": INDEX, "digest": digest, "size": root.len()});
        let layout_index = json!({"schemaVersion": 2, "manifests": [descriptor]});
        fs::write(
            layout.path().join("index.json"),
            serde_json::to_vec(&layout_index)?,
        )?;
        Ok(())
    }
}

fn text(value: &Value) -> Result<&str> {
    value
        .as_str()
        .with_context(|| format!("no digest but {value}"))
}

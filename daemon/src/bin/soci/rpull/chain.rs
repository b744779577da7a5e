//! Chain IDs: the names of snapshots, from the uncompressed digests of layers (OCI image
//! specification, "Layer ChainID").

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use ztoc::Digest;
use ztoc::index::Manifest;

/// The diff IDs and chain IDs of an image, lowest layer first.
#[derive(Debug)]
pub(super) struct Chain {
    diffs: Vec<Digest>,
    ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

impl Chain {
    /// Reads the diff IDs of `manifest`'s layers from its config.
    pub(super) fn read(config: &[u8], manifest: &Manifest) -> Result<Self> {
        let config: Config = serde_json::from_slice(config).context("not an image config")?;
        let diffs = config.rootfs.diff_ids;
        let layers = manifest.layers.len();
        ensure!(
            diffs.len() == layers,
            "{} diff IDs for {layers} layers",
            diffs.len()
        );
        Ok(Self {
            ids: chain_ids(&diffs),
            diffs,
        })
    }

    pub(super) fn diff(&self, layer: usize) -> Option<Digest> {
        self.diffs.get(layer).copied()
    }

    pub(super) fn id(&self, layer: usize) -> Option<Digest> {
        self.ids.get(layer).copied()
    }

    /// The chain ID of the layer below; empty for the lowest.
    pub(super) fn parent(&self, layer: usize) -> String {
        let below = layer.checked_sub(1).and_then(|below| self.id(below));
        below.map_or_else(String::new, |id| id.to_string())
    }

    /// The chain ID of the whole image.
    pub(super) fn top(&self) -> Option<Digest> {
        self.ids.last().copied()
    }
}

fn chain_ids(diffs: &[Digest]) -> Vec<Digest> {
    let next = |below: &mut Option<Digest>, diff: &Digest| {
        let id = match below {
            Some(below) => Digest::of(format!("{below} {diff}").as_bytes()),
            None => *diff,
        };
        *below = Some(id);
        *below
    };
    diffs.iter().scan(None, next).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn chain_ids_hash_the_chain_below_with_the_layer() {
        let digests = [b"a", b"b", b"c"].map(|name| Digest::of(name));
        let ids = chain_ids(&digests);
        assert_eq!(ids[0], digests[0]);
        assert_eq!(
            ids[1],
            Digest::of(format!("{} {}", digests[0], digests[1]).as_bytes())
        );
        assert_eq!(
            ids[2],
            Digest::of(format!("{} {}", ids[1], digests[2]).as_bytes())
        );
    }
}

//! Images as OCI layouts, made from layer blobs.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::walk::{HashWriter, digest_of, hex};

/// OCI image index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const PLAIN_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An OCI image layout on disk.
#[derive(Debug, Clone)]
pub struct Layout {
    dir: PathBuf,
}

/// A layer in a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Media type.
    pub media_type: String,
    /// Digest of the blob.
    pub digest: String,
    /// Bytes of the blob.
    pub size: u64,
    /// Digest of the uncompressed tar.
    pub diff_id: String,
}

/// An image in a layout.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of its manifest.
    pub manifest: String,
    /// Its layers, bottom first.
    pub layers: Vec<Layer>,
}

impl Layout {
    /// A new, empty layout.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir.join("blobs/sha256"))?;
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let layout = Self {
            dir: dir.to_owned(),
        };
        layout.write_index(&[])?;
        Ok(layout)
    }

    /// The layout in `dir`.
    pub fn open(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The path of a blob by digest.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs").join(digest.replace(':', "/"))
    }

    /// The JSON blob `digest`.
    pub fn json(&self, digest: &str) -> Result<Value> {
        let path = self.blob(digest);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Stores a blob; its digest.
    pub fn add_blob(&self, bytes: &[u8]) -> Result<String> {
        let digest = sha256(bytes);
        fs::write(self.blob(&digest), bytes)?;
        Ok(digest)
    }

    /// Stores the layer blob in `file`: gzip, zstd or plain tar.
    pub fn add_layer_file(&self, file: &Path) -> Result<Layer> {
        let digest = format!("sha256:{}", digest_of(file)?);
        let blob = self.blob(&digest);
        if !blob.exists() {
            fs::copy(file, &blob).with_context(|| format!("cannot copy {}", file.display()))?;
        }
        let (media_type, mut tar) = open_layer(file)?;
        let mut hasher = Sha256::new();
        io::copy(&mut tar, &mut HashWriter(&mut hasher))
            .with_context(|| format!("cannot inflate {}", file.display()))?;
        Ok(Layer {
            media_type: media_type.to_owned(),
            digest,
            size: fs::metadata(file)?.len(),
            diff_id: format!("sha256:{}", hex(&hasher.finalize())),
        })
    }

    /// Compresses and stores the tar in `bytes` as a layer.
    pub fn add_gzip_layer(&self, tar: &[u8]) -> Result<Layer> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(tar)?;
        let blob = encoder.finish()?;
        Ok(Layer {
            media_type: GZIP_LAYER.to_owned(),
            digest: self.add_blob(&blob)?,
            size: blob.len() as u64,
            diff_id: sha256(tar),
        })
    }

    /// Writes config and manifest of an image of `layers` (bottom first) for this machine's
    /// architecture that runs `command`, and makes it the layout's only image, named `tag`.
    pub fn add_image(&self, layers: &[Layer], command: &[&str], tag: &str) -> Result<Image> {
        let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "Cmd": command,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let layer = |layer: &Layer| json!({"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.add_json(CONFIG, &config)?,
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
        });
        let mut descriptor = self.add_json(MANIFEST, &manifest)?;
        let digest = descriptor["digest"].as_str().unwrap_or_default().to_owned();
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        self.write_index(&[descriptor])?;
        Ok(Image {
            manifest: digest,
            layers: layers.to_vec(),
        })
    }

    /// Makes the layout's only root an image index of one image for each platform: an architecture, and layers
    /// that are in the layout.
    pub fn add_platforms(&self, platforms: &[(&str, Vec<Layer>)]) -> Result<Vec<Image>> {
        let (mut images, mut manifests) = (Vec::new(), Vec::new());
        for (architecture, layers) in platforms {
            images.push(self.add_image(layers, &["sh"], "x")?);
            let mut entry = self.roots()?.remove(0);
            entry["platform"] = json!({"architecture": architecture, "os": "linux"});
            manifests.push(entry);
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        self.set_root(INDEX, &index)?;
        Ok(images)
    }

    /// The descriptors that `index.json` lists.
    pub fn roots(&self) -> Result<Vec<Value>> {
        let index: Value = serde_json::from_slice(&fs::read(self.dir.join("index.json"))?)?;
        Ok(index["manifests"].as_array().cloned().unwrap_or_default())
    }

    /// Makes the JSON document `value` (a manifest or an index) the layout's only root; its digest.
    pub fn set_root(&self, media_type: &str, value: &Value) -> Result<String> {
        let root = self.add_json(media_type, value)?;
        let digest = root["digest"].as_str().unwrap_or_default().to_owned();
        self.write_index(&[root])?;
        Ok(digest)
    }

    /// Stores the JSON document `value`; a descriptor of it.
    pub fn add_json(&self, media_type: &str, value: &Value) -> Result<Value> {
        let bytes = serde_json::to_vec(value)?;
        let digest = self.add_blob(&bytes)?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
    }

    fn write_index(&self, manifests: &[Value]) -> Result<()> {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        fs::write(self.dir.join("index.json"), serde_json::to_vec(&index)?)?;
        Ok(())
    }
}

impl Image {
    /// The chain ID of its topmost layer: the name of the committed snapshot.
    pub fn chain_id(&self) -> String {
        let mut diff_ids = self.layers.iter().map(|layer| layer.diff_id.clone());
        let bottom = diff_ids.next().unwrap_or_default();
        diff_ids.fold(bottom, |chain, diff_id| {
            sha256(format!("{chain} {diff_id}").as_bytes())
        })
    }

    /// Bytes of all its layer blobs.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }
}

/// The digest of `bytes`.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// An architecture that is not this machine's.
pub fn other_architecture() -> &'static str {
    match architecture() {
        "arm64" => "amd64",
        _ => "arm64",
    }
}

/// This machine's architecture as images call it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A layer blob's media type, by its first bytes, and its tar.
fn open_layer(file: &Path) -> Result<(&'static str, Box<dyn Read>)> {
    let mut magic = Vec::new();
    File::open(file)?.take(4).read_to_end(&mut magic)?;
    let blob = File::open(file)?;
    Ok(match magic[..] {
        [0x1f, 0x8b, ..] => (GZIP_LAYER, Box::new(MultiGzDecoder::new(blob))),
        [0x28, 0xb5, 0x2f, 0xfd] => (ZSTD_LAYER, Box::new(zstd::Decoder::new(blob)?)),
        _ => (PLAIN_LAYER, Box::new(blob)),
    })
}

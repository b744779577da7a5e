//! Images for the nydus snapshotter, made of an image's layers by nydus's own builder, with the arguments that nydus's own converter
//! gives it, and put together as that converter does: each layer becomes a blob, and one layer above them holds the metadata
//! of them all.

use std::fs::{self, File};
use std::io::{self, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use integration::command::{command, run};
use integration::image::{MANIFEST, sha256};
use integration::{Layout, Scratch};
use serde_json::{Value, json};

use super::table::Table;

/// What a blob refers to for the data of its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Data {
    /// It holds them itself, in chunks.
    Own,
    /// The layer as it was made, which stays in the registry (zran).
    Layer,
}

const BLOB: &str = "application/vnd.oci.image.layer.nydus.blob.v1";
const METADATA: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Everything is worth fetching ahead of being read: what nydus says of an image of which it knows nothing more.
const PREFETCH: &[u8] = b"/";

/// A layer for nydus.
#[derive(Debug)]
struct Blob {
    digest: String,
    size: u64,
    /// Of the table at its end and the header after it.
    table: String,
    /// The digest of the layer it was made of.
    layer: String,
    /// Its metadata, in a file whose name is the digest of whatever has the data.
    metadata: PathBuf,
}

/// Makes a layout in `to` of the image that `from` holds, by the program `builder`. Works in `scratch`.
pub(crate) fn convert(
    builder: &Path,
    scratch: &Scratch,
    from: &Layout,
    to: &Path,
    data: Data,
) -> Result<Layout> {
    let root = from.roots()?.into_iter().next().context("no image")?;
    let manifest = from.json(text(&root["digest"])?)?;
    let mut config = from.json(text(&manifest["config"]["digest"])?)?;
    let layout = Layout::create(to)?;
    let dir = scratch.dir("nydus")?;
    let mut blobs = Vec::new();
    for layer in manifest["layers"].as_array().context("no layers")? {
        let digest = text(&layer["digest"])?;
        let made = blob(builder, &dir, &layout, &from.blob(digest), digest, data);
        blobs.push(made.with_context(|| format!("layer {digest}"))?);
    }
    let (metadata, used) = merge(builder, &dir, &blobs, data)?;
    let mut layers: Vec<_> = blobs
        .iter()
        .filter(|blob| data == Data::Layer || used.contains(&blob.digest))
        .map(|blob| descriptor(blob, data))
        .collect();
    let mut diff_ids: Vec<_> = layers.iter().map(|layer| layer["digest"].clone()).collect();
    let tar = archive(&metadata)?;
    diff_ids.push(sha256(&tar).into());
    layers.push(metadata_layer(&layout, &tar)?);
    config["rootfs"]["diff_ids"] = diff_ids.into();
    layout.set_root(
        MANIFEST,
        &json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": layout.add_json(CONFIG, &config)?,
            "layers": layers,
        }),
    )?;
    Ok(layout)
}

/// Makes a blob of the layer in `file`, and puts it into `layout`.
fn blob(
    builder: &Path,
    dir: &Path,
    layout: &Layout,
    file: &Path,
    digest: &str,
    data: Data,
) -> Result<Blob> {
    let (made, tar) = (dir.join("blob"), dir.join("layer.tar"));
    let mut create = command(builder);
    create.args(["create", "--log-level", "warn", "--blob-inline-meta"]);
    create.args(["--features", "blob-toc", "--blob"]).arg(&made);
    match data {
        Data::Own => {
            let mut layer = MultiGzDecoder::new(File::open(file)?);
            io::copy(&mut layer, &mut File::create(&tar)?)?;
            create.args(["--type", "tar-rafs", "--fs-version", "6"]);
            create.args(["--prefetch-policy", "fs", "--whiteout-spec", "none"]);
            create.arg(&tar);
        }
        Data::Layer => {
            create.args(["--type", "targz-ref"]).arg(file);
        }
    }
    told(create, PREFETCH)?;
    let bytes = fs::read(&made)?;
    // It is written over, not anew, if it is there.
    fs::remove_file(&made)?;
    let table = Table::of(&bytes)?;
    let stored = layout.add_blob(&bytes)?;
    let named = match data {
        Data::Own => &stored,
        Data::Layer => digest,
    };
    let metadata = dir.join(hex(named)?);
    fs::write(&metadata, table.part(&bytes, "image.boot")?)?;
    Ok(Blob {
        size: bytes.len() as u64,
        table: table.digest().to_owned(),
        layer: digest.to_owned(),
        digest: stored,
        metadata,
    })
}

/// The metadata of all layers, and the digests of the blobs that it refers to.
fn merge(builder: &Path, dir: &Path, blobs: &[Blob], data: Data) -> Result<(Vec<u8>, Vec<String>)> {
    let (made, said) = (dir.join("merged"), dir.join("merged.json"));
    let mut merge = command(builder);
    merge.args(["merge", "--log-level", "warn", "--prefetch-policy", "fs"]);
    merge.arg("--output-json").arg(&said);
    merge.arg("--bootstrap").arg(&made);
    merge.args(blobs.iter().map(|blob| &blob.metadata));
    if data == Data::Layer {
        let digests: Result<Vec<_>> = blobs.iter().map(|blob| hex(&blob.digest)).collect();
        let tables: Result<Vec<_>> = blobs.iter().map(|blob| hex(&blob.table)).collect();
        let sizes: Vec<_> = blobs.iter().map(|blob| blob.size.to_string()).collect();
        merge.args(["--blob-digests", &digests?.join(",")]);
        merge.args(["--blob-toc-digests", &tables?.join(",")]);
        merge.args(["--blob-sizes", &sizes.join(",")]);
    }
    told(merge, PREFETCH)?;
    let said: Value = serde_json::from_slice(&fs::read(said)?)?;
    let used = said["blobs"].as_array().context("no blobs")?.iter();
    let used = used.map(|id| Ok(format!("sha256:{}", text(id)?)));
    Ok((fs::read(made)?, used.collect::<Result<_>>()?))
}

/// What a manifest says of `blob`.
fn descriptor(blob: &Blob, data: Data) -> Value {
    let mut annotations = json!({"containerd.io/snapshot/nydus-blob": "true"});
    if data == Data::Layer {
        annotations["containerd.io/snapshot/nydus-ref"] = blob.layer.clone().into();
    }
    json!({"mediaType": BLOB, "digest": blob.digest, "size": blob.size, "annotations": annotations})
}

/// The tar with an image's metadata where the snapshotter looks for them.
fn archive(metadata: &[u8]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o755);
    header.set_size(0);
    tar.append_data(&mut header, "image", io::empty())?;
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o444);
    header.set_size(metadata.len() as u64);
    tar.append_data(&mut header, "image/image.boot", metadata)?;
    Ok(tar.into_inner()?)
}

/// The layer above all others, which `tar` is; what a manifest says of it.
fn metadata_layer(layout: &Layout, tar: &[u8]) -> Result<Value> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(tar)?;
    let bytes = gzip.finish()?;
    Ok(json!({
        "mediaType": METADATA,
        "digest": layout.add_blob(&bytes)?,
        "size": bytes.len(),
        "annotations": {
            "containerd.io/snapshot/nydus-bootstrap": "true",
            "containerd.io/snapshot/nydus-fs-version": "6",
        },
    }))
}

/// Runs `program` with `input`.
fn told(mut program: Command, input: &[u8]) -> Result<()> {
    let mut file = tempfile::tempfile()?;
    file.write_all(input)?;
    file.rewind()?;
    run(program.stdin(Stdio::from(file)))?;
    Ok(())
}

fn text(value: &Value) -> Result<&str> {
    value
        .as_str()
        .with_context(|| format!("{value} is no text"))
}

fn hex(digest: &str) -> Result<&str> {
    digest.strip_prefix("sha256:").context("no SHA-256")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_snapshotter_finds_the_metadata_and_what_each_layer_is() {
        let tar = archive(b"metadata").unwrap();
        let mut archive = tar::Archive::new(&*tar);
        let mut files = archive.entries().unwrap().map(Result::unwrap);
        assert_eq!(&*files.next().unwrap().path_bytes(), b"image");
        let mut file = files.next().unwrap();
        assert_eq!(&*file.path_bytes(), b"image/image.boot");
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "metadata");

        let blob = Blob {
            digest: "sha256:aa".to_owned(),
            size: 5,
            table: String::new(),
            layer: "sha256:bb".to_owned(),
            metadata: PathBuf::new(),
        };
        let own = descriptor(&blob, Data::Own);
        assert_eq!(own["mediaType"], BLOB);
        assert_eq!(
            own["annotations"],
            json!({"containerd.io/snapshot/nydus-blob": "true"})
        );
        let refers = &descriptor(&blob, Data::Layer)["annotations"];
        assert_eq!(refers["containerd.io/snapshot/nydus-ref"], "sha256:bb");
    }
}

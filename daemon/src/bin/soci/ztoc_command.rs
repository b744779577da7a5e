//! `soci ztoc`: zTOCs of layers, in the store or as files.

mod build;
mod file;
mod info;
mod verify;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::{Args, Subcommand};
use daemon::artifacts::{Artifact, ArtifactKind};
use ztoc::Digest;
use ztoc::index::Manifest;

use crate::blobs::Blobs;
use crate::image::SourceImage;
use crate::layers::AnyZtoc;
use crate::options::Globals;
use crate::session::Session;
use crate::table;

/// No zTOC is larger: that of a layer of 100 GiB at the usual span size has some 900 MB.
const MAX_ZTOC_SIZE: u64 = 1 << 30;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build the zTOC of a layer file, without containerd and network
    Build(build::Arguments),
    /// Build the compact zTOC of a layer file: for smaller spans, on a tenth of the bytes
    Compact(build::CompactArguments),
    /// List zTOCs, newest first
    #[command(visible_alias = "ls")]
    List(List),
    /// Show a zTOC, compact or not, as JSON
    Info {
        /// Digest of a zTOC, or a file
        #[arg(value_name = "DIGEST|FILE")]
        ztoc: String,
    },
    /// Read one file of a layer through its zTOC
    GetFile(file::Arguments),
    /// Check that a zTOC tells the truth about its layer: digests, checkpoints, and all entries
    Verify(verify::Arguments),
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only this zTOC
    #[arg(long, value_name = "DIGEST")]
    ztoc_digest: Option<Digest>,
    /// Only zTOCs of this image's layers
    #[arg(long, value_name = "IMAGE")]
    image_ref: Option<String>,
    /// Print only digests
    #[arg(long, short)]
    quiet: bool,
}

pub(crate) async fn run(globals: &Globals, command: Command) -> Result<()> {
    match command {
        Command::Build(arguments) => build::run(arguments).await,
        Command::Compact(arguments) => build::run_compact(arguments).await,
        Command::List(arguments) => list(&Session::open(globals)?, &arguments, globals.json).await,
        Command::Info { ztoc } => info::run(ZtocSource::find(globals, &ztoc).await?).await,
        Command::GetFile(arguments) => file::run(globals, arguments).await,
        Command::Verify(arguments) => verify::run(globals, arguments).await,
    }
}

/// A zTOC's bytes and, where it is in the store, what is recorded about it.
struct ZtocSource {
    name: String,
    bytes: Bytes,
    session: Option<Session>,
    record: Option<Artifact>,
}

impl ZtocSource {
    /// By digest from the store, else from the file of that name.
    async fn find(globals: &Globals, name: &str) -> Result<Self> {
        let Ok(digest) = name.parse::<Digest>() else {
            return Ok(Self {
                name: name.to_owned(),
                bytes: read_file(name).with_context(|| format!("cannot read zTOC {name}"))?,
                session: None,
                record: None,
            });
        };
        let session = Session::open(globals)?;
        let store = session.store(&session.containerd)?;
        let bytes = store.get(&digest, MAX_ZTOC_SIZE).await?;
        Ok(Self {
            name: name.to_owned(),
            bytes: bytes
                .with_context(|| format!("zTOC {digest}: not found in the content store"))?,
            record: session.artifacts.get(&digest)?,
            session: Some(session),
        })
    }

    async fn decode(&self) -> Result<AnyZtoc> {
        let decoded = crate::layers::decode(self.bytes.clone()).await;
        decoded.with_context(|| format!("zTOC {}", self.name))
    }
}

fn read_file(name: &str) -> Result<Bytes> {
    let mut bytes = Vec::new();
    File::open(name)?
        .take(MAX_ZTOC_SIZE + 1)
        .read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= MAX_ZTOC_SIZE, "too large for a zTOC");
    Ok(bytes.into())
}

async fn list(session: &Session, arguments: &List, as_json: bool) -> Result<()> {
    let layers = match &arguments.image_ref {
        Some(name) => Some(layers_of(session, name).await?),
        None => None,
    };
    let mut rows = Vec::new();
    for artifact in session.artifacts.list()? {
        let ArtifactKind::Ztoc { layer, .. } = artifact.kind else {
            continue;
        };
        let wanted = arguments.ztoc_digest.is_none_or(|it| it == artifact.digest)
            && layers.as_ref().is_none_or(|layers| layers.contains(&layer));
        if wanted {
            rows.push([
                artifact.digest.to_string(),
                artifact.size.to_string(),
                layer.to_string(),
            ]);
        }
    }
    if as_json {
        let rows: Vec<_> = rows
            .iter()
            .map(|[digest, size, layer]| {
                serde_json::json!({"digest": digest, "size": size.parse::<u64>().ok(), "layer_digest": layer})
            })
            .collect();
        return table::print_json(&rows);
    }
    if arguments.quiet {
        let mut out = std::io::stdout().lock();
        for [digest, ..] in rows {
            writeln!(out, "{digest}")?;
        }
        return Ok(());
    }
    Ok(table::print(["DIGEST", "SIZE", "LAYER DIGEST"], &rows)?)
}

/// The layers of all manifests of an image that are there.
async fn layers_of(session: &Session, name: &str) -> Result<BTreeSet<Digest>> {
    let image = session.image(name).await?;
    let blobs = Blobs::Containerd(session.containerd.clone());
    let source = SourceImage::load(&image.name, &image.target, blobs).await?;
    let mut layers = BTreeSet::new();
    for digest in source.digests() {
        if let Some(bytes) = source.blobs.find_document(&digest).await?
            && let Ok(manifest) = Manifest::parse(&bytes)
        {
            layers.extend(manifest.layers.iter().map(|layer| layer.digest));
        }
    }
    Ok(layers)
}

//! `soci index`: indexes this machine has made.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use daemon::artifacts::{Artifact, ArtifactKind, IndexedImage};
use serde::Serialize;
use ztoc::Digest;
use ztoc::index::{IndexVersion, MAX_DOCUMENT_SIZE, OCI_MANIFEST, Platform, SociIndex};

use crate::layers::now;
use crate::options::Globals;
use crate::session::Session;
use crate::table;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List indexes, newest first
    #[command(visible_alias = "ls")]
    List(List),
    /// Show an index as JSON
    Info {
        /// Digest of the index
        digest: Digest,
    },
    /// Remove indexes from the store; their zTOCs stay
    #[command(visible_alias = "rm")]
    Remove(Remove),
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only indexes of this image
    #[arg(long = "ref", value_name = "IMAGE")]
    reference: Option<String>,
    /// Only indexes of these platforms; repeat it or separate by commas
    #[arg(
        long = "platform",
        short,
        value_delimiter = ',',
        value_name = "PLATFORM"
    )]
    platforms: Vec<Platform>,
    /// Print only digests
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// Digests of indexes
    digests: Vec<Digest>,
    /// All indexes of this image
    #[arg(long = "ref", value_name = "IMAGE", conflicts_with = "digests")]
    reference: Option<String>,
}

pub(crate) async fn run(globals: &Globals, command: Command) -> Result<()> {
    let session = Session::open(globals)?;
    match command {
        Command::List(arguments) => list(&session, &arguments, globals.json).await,
        Command::Info { digest } => info(&session, &digest).await,
        Command::Remove(arguments) => remove(&session, arguments).await,
    }
}

async fn list(session: &Session, arguments: &List, as_json: bool) -> Result<()> {
    let target = match &arguments.reference {
        Some(name) => Some(session.image(name).await?.target.digest),
        None => None,
    };
    let names = image_names(session).await;
    let all = arguments.reference.is_none() && arguments.platforms.is_empty();
    let mut rows = Vec::new();
    let mut digests = Vec::new();
    for artifact in session.artifacts.list()? {
        let ArtifactKind::Index { version, images } = &artifact.kind else {
            continue;
        };
        let shown = images.iter().filter(|image| {
            target.is_none_or(|target| image.target == target)
                && (arguments.platforms.is_empty()
                    || arguments
                        .platforms
                        .iter()
                        .any(|it| it.matches(&image.platform)))
        });
        for image in shown {
            if digests.last() != Some(&artifact.digest) {
                digests.push(artifact.digest);
            }
            rows.extend(rows_of(&artifact, *version, Some(image), &names));
        }
        if images.is_empty() && all {
            digests.push(artifact.digest);
            rows.extend(rows_of(&artifact, *version, None, &names));
        }
    }
    if as_json {
        return table::print_json(&rows);
    }
    if arguments.quiet {
        let mut out = std::io::stdout().lock();
        for digest in digests {
            writeln!(out, "{digest}")?;
        }
        return Ok(());
    }
    let header = [
        "DIGEST",
        "SIZE",
        "IMAGE REF",
        "PLATFORM",
        "MEDIA TYPE",
        "MANIFEST VERSION",
        "CREATED",
    ];
    let rows: Vec<_> = rows.into_iter().map(Row::cells).collect();
    Ok(table::print(header, &rows)?)
}

/// Names by target. Without containerd the list is still worth something.
async fn image_names(session: &Session) -> BTreeMap<Digest, Vec<String>> {
    let mut names = BTreeMap::<_, Vec<_>>::new();
    match session.containerd.images().await {
        Ok(images) => {
            for image in images {
                names
                    .entry(image.target.digest)
                    .or_default()
                    .push(image.name);
            }
        }
        Err(error) => eprintln!("soci: warning: image names are not known: {error}"),
    }
    names
}

/// An index as it is listed.
#[derive(Debug, Serialize)]
struct Row {
    digest: String,
    size: u64,
    image_ref: String,
    platform: String,
    media_type: &'static str,
    version: &'static str,
    /// Nanoseconds since 1970.
    created_at: i64,
}

impl Row {
    fn cells(self) -> [String; 7] {
        [
            self.digest,
            self.size.to_string(),
            self.image_ref,
            self.platform,
            self.media_type.to_owned(),
            self.version.to_owned(),
            age(self.created_at),
        ]
    }
}

/// One row for each name of the image.
fn rows_of(
    artifact: &Artifact,
    version: IndexVersion,
    image: Option<&IndexedImage>,
    names: &BTreeMap<Digest, Vec<String>>,
) -> Vec<Row> {
    let unnamed = vec![String::new()];
    let names = image.and_then(|image| names.get(&image.target));
    let row = |name: &String| Row {
        digest: artifact.digest.to_string(),
        size: artifact.size,
        image_ref: name.clone(),
        platform: image
            .map(|image| image.platform.to_string())
            .unwrap_or_default(),
        media_type: OCI_MANIFEST,
        version: match version {
            IndexVersion::V1 => "v1",
            IndexVersion::V2 => "v2",
        },
        created_at: artifact.created_at,
    };
    names.unwrap_or(&unnamed).iter().map(row).collect()
}

/// How long ago, as the original says it.
pub(crate) fn age(created_at: i64) -> String {
    const NANOS_PER_SECOND: i64 = 1_000_000_000;
    match created_at {
        0 => "n/a".to_owned(),
        at => format!(
            "{}s ago",
            now().saturating_sub(at).max(0) / NANOS_PER_SECOND
        ),
    }
}

async fn info(session: &Session, digest: &Digest) -> Result<()> {
    let store = session.store(&session.containerd)?;
    let bytes = store.get(digest, MAX_DOCUMENT_SIZE as u64).await?;
    let bytes = bytes.with_context(|| format!("index {digest}: not found in the content store"))?;
    SociIndex::parse(&bytes).with_context(|| format!("{digest}"))?;
    let value: serde_json::Value = serde_json::from_slice(&bytes)?;
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &value)?;
    Ok(writeln!(out)?)
}

async fn remove(session: &Session, arguments: Remove) -> Result<()> {
    let digests = match arguments.reference {
        Some(name) => indexes_of(session, session.image(&name).await?.target.digest)?,
        None if arguments.digests.is_empty() => bail!("which index? give digests, or --ref IMAGE"),
        None => arguments.digests,
    };
    let store = session.store(&session.containerd)?;
    for digest in digests {
        let known = session.artifacts.get(&digest)?;
        if !known.is_some_and(|it| it.kind.is_index()) {
            bail!("index {digest}: not found");
        }
        session.artifacts.remove(&digest)?;
        store.delete(&digest).await?;
    }
    Ok(())
}

fn indexes_of(session: &Session, target: Digest) -> Result<Vec<Digest>> {
    let of_image = |artifact: &Artifact| {
        let mut images = artifact.kind.images().iter();
        images.any(|it| it.target == target)
    };
    let all = session.artifacts.list()?.into_iter();
    Ok(all
        .filter(of_image)
        .map(|artifact| artifact.digest)
        .collect())
}

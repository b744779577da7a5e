//! `soci push`: the newest v1 index of an image, to the image's registry.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use daemon::artifacts::{Artifact, ArtifactKind};
use daemon::content::ContentStore;
use daemon::registry::{self, Reference, Registry};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use ztoc::Digest;
use ztoc::index::{
    COMPACT_INDEX, EMPTY_CONFIG, IndexVersion, MAX_DOCUMENT_SIZE, Manifest, OCI_MANIFEST, Platform,
    SOCI_INDEX_V1,
};

use crate::blobs::Blobs;
use crate::image::SourceImage;
use crate::options::{Globals, PlatformArguments, RegistryArguments};
use crate::progress::{Progress, short};
use crate::session::Session;

/// Larger zTOCs are not read into memory to be pushed.
const MAX_BLOB_SIZE: u64 = 1 << 30;
/// Blobs uploaded at a time, unless the user says otherwise: the original's number.
const UPLOADS: u64 = 3;
/// Most blobs uploaded at a time, whatever the user says: each is held in memory.
const MOST_UPLOADS: u64 = 64;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Image in containerd, by the reference it is pushed to
    reference: String,
    #[command(flatten)]
    platforms: PlatformArguments,
    /// What to do if the registry has an index of the image already
    #[arg(long, value_enum, default_value = "warn", value_name = "WHAT")]
    existing_index: ExistingIndex,
    /// Blobs uploaded at a time, at most 64; 0 is the default
    #[arg(long, default_value_t = UPLOADS, value_name = "NUMBER")]
    max_concurrent_uploads: u64,
    /// Print only the digests of the indexes pushed
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    registry: RegistryArguments,
    #[command(flatten)]
    ignored: IgnoredArguments,
}

/// A flag that nerdctl and scripts pass on, without effect here or in the original.
#[derive(Debug, Args)]
struct IgnoredArguments {
    #[arg(long, hide = true)]
    snapshotter: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExistingIndex {
    /// Say so, and push
    Warn,
    /// Push nothing
    Skip,
    /// Push
    Allow,
}

pub(crate) async fn run(globals: &Globals, arguments: Arguments) -> Result<()> {
    let session = Session::open(globals)?;
    let reference: Reference = arguments.reference.parse()?;
    let image = session.image(&arguments.reference).await?;
    let blobs = Blobs::Containerd(session.containerd.clone());
    let source = SourceImage::load(&image.name, &image.target, blobs).await?;
    let records = session.artifacts.list()?;
    let platforms = source.choose(&arguments.platforms)?;
    // All are looked up before the first is pushed: what is missing shows before anything happens.
    let chosen: Vec<(Platform, Digest, Newest<'_>)> = platforms
        .into_iter()
        .map(|platform| {
            let (manifest, indexes) = newest(&source, &platform, &records)?;
            Ok((platform, manifest, indexes))
        })
        .collect::<Result<_>>()?;
    let pusher = Pusher {
        registry: Registry::new(arguments.registry.config()?)?,
        store: session.store(&session.containerd)?,
        reference,
        arguments: &arguments,
        progress: Progress::new(globals.json),
    };
    for (platform, manifest, indexes) in chosen {
        pusher
            .push_all(&manifest, indexes)
            .await
            .with_context(|| format!("index of {}, platform {platform}", image.name))?;
    }
    Ok(())
}

/// The newest v1 index of a manifest and its newest compact index, of which it has one at least.
struct Newest<'a> {
    soci: Option<&'a Artifact>,
    compact: Option<&'a Artifact>,
}

/// The platform's manifest and its newest indexes. `records` are newest first.
fn newest<'a>(
    source: &SourceImage,
    platform: &Platform,
    records: &'a [Artifact],
) -> Result<(Digest, Newest<'a>)> {
    let name = &source.name;
    let Some(descriptor) = source.descriptor(platform) else {
        bail!("image {name} has no platform {platform}");
    };
    let manifest = descriptor.digest;
    let versions = |artifact: &Artifact| match &artifact.kind {
        ArtifactKind::Index { version, images } => {
            let mine = images.iter().any(|it| it.manifest == manifest);
            mine.then_some(*version)
        }
        _ => None,
    };
    // What is found by referrers. That of a converted image is part of it.
    let compact = records.iter().find(|it| {
        let mut images = it.kind.images().iter();
        matches!(it.kind, ArtifactKind::CompactIndex { .. })
            && images.any(|image| image.manifest == manifest)
    });
    let of_version = |wanted| records.iter().find(|it| versions(it) == Some(wanted));
    let soci = of_version(IndexVersion::V1);
    let v2 = of_version(IndexVersion::V2).is_some();
    if soci.is_some() || (compact.is_some() && !v2) {
        return Ok((manifest, Newest { soci, compact }));
    }
    if v2 {
        eprintln!(
            "soci: warning: image {name}, platform {platform}: its v2 index is part of the image and is pushed with it"
        );
    }
    bail!("image {name}, platform {platform}: no v1 index to push; make one with soci create")
}

struct Pusher<'a> {
    registry: Registry,
    store: Arc<dyn ContentStore>,
    reference: Reference,
    arguments: &'a Arguments,
    progress: Progress,
}

impl Pusher<'_> {
    async fn push_all(&self, manifest: &Digest, indexes: Newest<'_>) -> Result<()> {
        if !self.wanted(manifest).await? {
            return Ok(());
        }
        if let Some(index) = indexes.soci {
            self.push(manifest, &index.digest).await?;
        }
        if let Some(index) = indexes.compact {
            self.push(manifest, &index.digest).await?;
        }
        Ok(())
    }

    /// Pushes an index of either form.
    async fn push(&self, manifest: &Digest, digest: &Digest) -> Result<()> {
        let bytes = self.store.get(digest, MAX_DOCUMENT_SIZE as u64).await?;
        let Some(bytes) = bytes else {
            bail!("index {digest} is not in the content store; make it again with soci create");
        };
        let index = Manifest::parse(&bytes).with_context(|| format!("index {digest}"))?;
        if index.subject.as_ref().map(|it| it.digest) != Some(*manifest) {
            bail!("index {digest} is not of manifest {manifest}");
        }
        let compact = index.config.media_type == COMPACT_INDEX;
        let (event, form) = match compact {
            true => ("compact_index", "compact index"),
            false => ("index", "soci index"),
        };
        let value = json!({"event": event, "digest": digest, "manifest": manifest});
        if !self.arguments.quiet {
            let line = format!("pushing {form} with digest: {digest}");
            self.progress.result(&line, &value);
        } else if !compact {
            self.progress.result(&digest.to_string(), &value);
        }
        self.blobs(&index).await?;
        self.upload(digest, EMPTY_CONFIG.into(), Some(index.config.digest))
            .await?;
        let pushed = self
            .registry
            .push_manifest(
                &self.reference.with_digest(*digest),
                OCI_MANIFEST,
                bytes.clone(),
            )
            .await?;
        if !pushed.subject_known {
            let descriptor = referrer(&bytes, &index);
            self.registry
                .push_referrers_tag(&self.reference, manifest, &descriptor)
                .await?;
        }
        self.tell("successfully pushed artifact", "pushed", digest);
        Ok(())
    }

    /// Whether to push, by what the registry has and what the user said about that.
    async fn wanted(&self, manifest: &Digest) -> Result<bool> {
        let choice = self.arguments.existing_index;
        if choice == ExistingIndex::Allow {
            return Ok(true);
        }
        if !self.arguments.quiet {
            let line = "checking if a soci index already exists in remote repository...";
            self.progress
                .result(line, &json!({"event": "checking", "manifest": manifest}));
        }
        let there = self
            .registry
            .referrers(&self.reference, manifest, SOCI_INDEX_V1)
            .await?;
        let Some(first) = there.first() else {
            return Ok(true);
        };
        let found = format!(
            "a soci index already exists in the remote repository: {}",
            first.digest
        );
        if choice == ExistingIndex::Skip {
            if !self.arguments.quiet {
                let value = json!({"event": "index_exists", "digest": first.digest});
                self.progress
                    .result(&format!("{found}; skipping push"), &value);
            }
            return Ok(false);
        }
        self.progress.note(&format!("soci: warning: {found}"));
        Ok(true)
    }

    async fn blobs(&self, index: &Manifest) -> Result<()> {
        let at_once = match self.arguments.max_concurrent_uploads {
            0 => UPLOADS,
            wanted => wanted.min(MOST_UPLOADS),
        };
        stream::iter(&index.layers)
            .map(|blob| async move {
                let digest = blob.digest;
                if self.registry.has_blob(&self.reference, &digest).await? {
                    self.tell("skipped artifact", "skipped", &digest);
                    return Ok(());
                }
                let bytes = self.store.get(&digest, MAX_BLOB_SIZE).await?;
                let bytes = bytes.with_context(|| {
                    format!("{digest} is not in the content store; make the index again with soci create --force")
                })?;
                self.upload(&digest, bytes, None).await
            })
            .buffer_unordered(usize::try_from(at_once)?)
            .try_collect()
            .await
    }

    /// Pushes a blob; the config, which every index shares, without a word if it is there.
    async fn upload(
        &self,
        digest: &Digest,
        bytes: bytes::Bytes,
        config: Option<Digest>,
    ) -> Result<()> {
        let digest = config.as_ref().unwrap_or(digest);
        if config.is_some() && self.registry.has_blob(&self.reference, digest).await? {
            self.tell("skipped artifact", "skipped", digest);
            return Ok(());
        }
        self.tell("pushing artifact", "pushing", digest);
        let label = format!("push {}", short(digest));
        let bar = self.progress.bytes(&label, bytes.len() as u64);
        let upload = bar.clone();
        let pushed = self
            .registry
            .push_blob_watched(&self.reference, bytes, move |sent| upload.at(sent))
            .await;
        bar.done();
        pushed?;
        self.tell("successfully pushed artifact", "pushed", digest);
        Ok(())
    }

    fn tell(&self, what: &str, event: &str, digest: &Digest) {
        if !self.arguments.quiet {
            let value = json!({"event": event, "digest": digest});
            self.progress
                .result(&format!("{what} with digest: {digest}"), &value);
        }
    }
}

/// The index as the referrers tag lists it: with its annotations.
fn referrer(bytes: &[u8], index: &Manifest) -> registry::Descriptor {
    let mut descriptor = registry::Descriptor::of(OCI_MANIFEST, bytes);
    descriptor.annotations.clone_from(&index.annotations);
    descriptor.artifact_type = Some(index.config.media_type.clone());
    descriptor
}

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
    EMPTY_CONFIG, IndexVersion, MAX_DOCUMENT_SIZE, Manifest, OCI_MANIFEST, Platform, SOCI_INDEX_V1,
    SociIndex,
};

use crate::blobs::Blobs;
use crate::image::SourceImage;
use crate::options::{Globals, PlatformArguments, RegistryArguments};
use crate::progress::{Progress, short};
use crate::session::Session;

/// Larger zTOCs are not read into memory to be pushed.
const MAX_BLOB_SIZE: u64 = 1 << 30;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Image in containerd, by the reference it is pushed to
    reference: String,
    #[command(flatten)]
    platforms: PlatformArguments,
    /// What to do if the registry has an index of the image already
    #[arg(long, value_enum, default_value = "warn", value_name = "WHAT")]
    existing_index: ExistingIndex,
    /// Blobs uploaded at a time
    #[arg(long, default_value = "3", value_parser = clap::value_parser!(u16).range(1..=64))]
    max_concurrent_uploads: u16,
    /// Print only the digests of the indexes pushed
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    registry: RegistryArguments,
    #[command(flatten)]
    ignored: IgnoredArguments,
}

/// Flags that nerdctl and scripts pass on, without effect here or in the original.
#[derive(Debug, Args)]
struct IgnoredArguments {
    #[arg(long, hide = true)]
    refresh: bool,
    #[arg(long, hide = true)]
    http_dump: bool,
    #[arg(long, hide = true)]
    http_trace: bool,
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
    let chosen: Vec<(Platform, Digest, &Artifact)> = platforms
        .into_iter()
        .map(|platform| {
            let (manifest, index) = newest(&source, &platform, &records)?;
            Ok((platform, manifest, index))
        })
        .collect::<Result<_>>()?;
    let pusher = Pusher {
        registry: Registry::new(arguments.registry.config()?)?,
        store: session.store(&session.containerd)?,
        reference,
        arguments: &arguments,
        progress: Progress::new(globals.json),
    };
    for (platform, manifest, index) in chosen {
        pusher
            .push(&manifest, &index.digest)
            .await
            .with_context(|| format!("index of {}, platform {platform}", image.name))?;
    }
    Ok(())
}

/// The platform's manifest and its newest v1 index. `records` are newest first.
fn newest<'a>(
    source: &SourceImage,
    platform: &Platform,
    records: &'a [Artifact],
) -> Result<(Digest, &'a Artifact)> {
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
        ArtifactKind::Ztoc { .. } | ArtifactKind::Prefetch { .. } => None,
    };
    let of_version = |wanted| records.iter().find(|it| versions(it) == Some(wanted));
    if let Some(index) = of_version(IndexVersion::V1) {
        return Ok((manifest, index));
    }
    if of_version(IndexVersion::V2).is_some() {
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
    async fn push(&self, manifest: &Digest, digest: &Digest) -> Result<()> {
        if !self.wanted(manifest).await? {
            return Ok(());
        }
        let bytes = self.store.get(digest, MAX_DOCUMENT_SIZE as u64).await?;
        let Some(bytes) = bytes else {
            bail!("index {digest} is not in the content store; make it again with soci create");
        };
        let index = SociIndex::parse(&bytes).with_context(|| format!("index {digest}"))?;
        let value = json!({"event": "index", "digest": digest, "manifest": manifest});
        if self.arguments.quiet {
            self.progress.result(&digest.to_string(), &value);
        } else {
            let line = format!("pushing soci index with digest: {digest}");
            self.progress.result(&line, &value);
        }
        self.blobs(&index).await?;
        self.upload(digest, EMPTY_CONFIG.into(), Some(index.config().digest))
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
            let descriptor = referrer(&bytes)?;
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

    async fn blobs(&self, index: &SociIndex) -> Result<()> {
        stream::iter(index.blobs())
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
            .buffer_unordered(self.arguments.max_concurrent_uploads.into())
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
        let upload = self.progress.spinner(&format!("push {}", short(digest)));
        let pushed = self.registry.push_blob(&self.reference, bytes).await;
        upload.done();
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
fn referrer(bytes: &[u8]) -> Result<registry::Descriptor> {
    let mut descriptor = registry::Descriptor::of(OCI_MANIFEST, bytes);
    descriptor.annotations = Manifest::parse(bytes)?.annotations;
    descriptor.artifact_type = Some(SOCI_INDEX_V1.to_owned());
    Ok(descriptor)
}

//! `soci rpull`: pulls an image into containerd, each layer prepared by the snapshotter before anything is
//! fetched. What containerd's own clients can do since 2.1 only, this does with any version.

mod chain;
mod fetch;
mod labels;
mod unpack;

use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use daemon::containerd::{Containerd, Image};
use daemon::content::{ContainerdStore, ContentStore, Labels};
use daemon::registry::{self, Reference, Registry};
use ztoc::Digest;
use ztoc::index::{Descriptor, ImageIndex, MAX_DOCUMENT_SIZE, Manifest, Platform, is_manifest};

use self::chain::Chain;
use self::fetch::Fetcher;
use self::labels::LayerLabels;
use self::unpack::{Outcome, Unpacker};
use crate::blobs::Blobs;
use crate::image::{PlatformManifest, SourceImage};
use crate::options::{Globals, PlatformArguments, RegistryArguments};
use crate::progress::Progress;
use crate::session::leased;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Image to pull, such as registry.example.com/app:1.0
    reference: Reference,
    /// Platform of the image [default: the host's]
    #[arg(long, short, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Snapshotter plugin of containerd
    #[arg(long, default_value = "soci", value_name = "NAME")]
    snapshotter: String,
    /// SOCI index to use instead of the one the image names
    #[arg(long, value_name = "DIGEST")]
    soci_index_digest: Option<Digest>,
    #[command(flatten)]
    registry: RegistryArguments,
}

pub(crate) async fn run(globals: &Globals, arguments: Arguments) -> Result<()> {
    let containerd = Containerd::new(&globals.address, &globals.namespace)?;
    let registry = Registry::new(arguments.registry.config()?)?;
    let progress = Progress::new(globals.json);
    let start = Instant::now();
    let report = leased(&containerd, async |containerd| {
        let pull = Pull {
            containerd,
            store: ContainerdStore::new(containerd.clone()),
            registry,
            progress: progress.clone(),
            arguments: &arguments,
        };
        pull.run().await
    })
    .await
    .with_context(|| format!("image {}", arguments.reference))?;
    let value = report.value(&arguments.reference, start.elapsed());
    progress.result(
        &report.summary(&arguments.reference, start.elapsed()),
        &value,
    );
    // Asked for by name, a snapshotter that never loads lazily is no surprise.
    if report.lazy == 0 && arguments.snapshotter != "overlayfs" {
        progress.note(NOT_LAZY);
    }
    Ok(())
}

const NOT_LAZY: &str = "soci: warning: no layer is loaded lazily; does the image have a SOCI index, \
and is the snapshotter set up to use its version? The snapshotter's log tells the reason";

struct Pull<'a> {
    /// Under a lease.
    containerd: &'a Containerd,
    store: ContainerdStore,
    registry: Registry,
    progress: Progress,
    arguments: &'a Arguments,
}

impl Pull<'_> {
    async fn run(&self) -> Result<Report> {
        let reference = &self.arguments.reference;
        let resolving = self.progress.spinner("resolving");
        let resolved = self.registry.resolve(reference).await?;
        let target = Descriptor::new(
            resolved.descriptor.media_type.clone(),
            resolved.descriptor.digest,
            resolved.bytes.len() as u64,
        );
        let image = self.manifest(&target, &resolved.bytes).await?;
        let config = image.manifest.config.digest;
        let chain = Chain::read(&self.document(&config).await?, &image.manifest)
            .with_context(|| format!("config {config}"))?;
        resolving.done();

        let outcomes = self.unpacker(&image, &chain).run().await?;
        if let Some(top) = chain.top() {
            let key = format!(
                "containerd.io/gc.ref.snapshot.{}",
                self.arguments.snapshotter
            );
            let label = Labels::from([(key, top.to_string())]);
            self.store.label(&config, &label).await?;
        }
        let image = Image {
            name: reference.to_string(),
            target,
            labels: Labels::new(),
        };
        self.containerd.put_image(&image).await?;
        Ok(Report::of(&outcomes))
    }

    fn unpacker<'b>(&'b self, image: &'b PlatformManifest, chain: &'b Chain) -> Unpacker<'b> {
        let reference = &self.arguments.reference;
        Unpacker {
            containerd: self.containerd,
            snapshotter: self.containerd.snapshotter(&self.arguments.snapshotter),
            layers: &image.manifest.layers,
            chain,
            labels: LayerLabels {
                image: reference.to_string(),
                manifest: image.descriptor.digest,
                layers: &image.manifest.layers,
                soci_index: self.arguments.soci_index_digest,
            },
            fetcher: Fetcher::new(
                self.containerd.clone(),
                self.registry.clone(),
                reference.clone(),
                self.progress.clone(),
            ),
            progress: self.progress.clone(),
        }
    }

    /// Brings index, manifest and config of the platform into containerd.
    async fn manifest(&self, target: &Descriptor, bytes: &[u8]) -> Result<PlatformManifest> {
        let blobs = Blobs::Containerd(self.containerd.clone());
        let name = self.arguments.reference.to_string();
        self.put(target, bytes).await?;
        if is_manifest(&target.media_type) {
            self.put_config(bytes).await?;
        }
        let source = SourceImage::load(&name, target, blobs).await?;
        let wanted = PlatformArguments {
            platforms: self.arguments.platform.clone().into_iter().collect(),
            all_platforms: false,
        };
        let [platform] = &source.choose(&wanted)?[..] else {
            bail!("one platform at a time can be pulled");
        };
        if !source.single
            && let Some(listed) = source.descriptor(platform)
        {
            let manifest = self.document(&listed.digest).await?;
            self.put(listed, &manifest).await?;
            self.put_config(&manifest).await?;
        }
        source.manifest(platform).await
    }

    /// From containerd if it is there, else from the registry.
    async fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        let limit = MAX_DOCUMENT_SIZE as u64;
        if let Some(bytes) = self.store.get(digest, limit).await? {
            return Ok(bytes.into());
        }
        let reference = &self.arguments.reference;
        Ok(self
            .registry
            .manifest(reference, digest)
            .await?
            .bytes
            .into())
    }

    async fn put_config(&self, manifest: &[u8]) -> Result<()> {
        let config = Manifest::parse(manifest)?.config;
        if self.store.size(&config.digest).await?.is_some() {
            return Ok(());
        }
        let limit = MAX_DOCUMENT_SIZE as u64;
        let reference = &self.arguments.reference;
        let bytes = self
            .registry
            .fetch(reference, &config.digest, limit)
            .await?;
        self.put(&config, &bytes).await
    }

    async fn put(&self, descriptor: &Descriptor, bytes: &[u8]) -> Result<()> {
        let mut labels = fetch::source_label(&self.arguments.reference);
        labels.extend(children(bytes).map(|(name, digest)| {
            (
                format!("containerd.io/gc.ref.content.{name}"),
                digest.to_string(),
            )
        }));
        let described = registry::Descriptor::of(&descriptor.media_type, bytes);
        if described.digest != descriptor.digest {
            bail!(
                "{}: the bytes hash to {}",
                descriptor.digest,
                described.digest
            );
        }
        let bytes = bytes.to_vec().into();
        Ok(self.store.put(&described, bytes, &labels).await?)
    }
}

/// What a document refers to, under the names containerd gives its labels.
fn children(bytes: &[u8]) -> impl Iterator<Item = (String, Digest)> {
    let manifest = Manifest::parse(bytes).ok();
    let index = ImageIndex::parse(bytes).ok();
    let config = manifest
        .as_ref()
        .map(|it| ("config".to_owned(), it.config.digest));
    let layers = manifest.into_iter().flat_map(|it| it.layers);
    let layers = layers
        .enumerate()
        .map(|(i, layer)| (format!("l.{i}"), layer.digest));
    let listed = index.into_iter().flat_map(|it| it.manifests);
    let listed = listed
        .enumerate()
        .map(|(i, entry)| (format!("m.{i}"), entry.digest));
    config.into_iter().chain(layers).chain(listed)
}

/// What came of the layers.
struct Report {
    lazy: usize,
    provided: usize,
    pulled: usize,
    bytes: u64,
}

impl Report {
    fn of(outcomes: &[Outcome]) -> Self {
        let count = |wanted: fn(&Outcome) -> bool| outcomes.iter().filter(|it| wanted(it)).count();
        Self {
            lazy: count(|it| matches!(it, Outcome::Lazy)),
            provided: count(|it| matches!(it, Outcome::Provided)),
            pulled: count(|it| matches!(it, Outcome::Pulled { .. })),
            bytes: outcomes.iter().map(Outcome::fetched).sum(),
        }
    }

    fn value(&self, reference: &Reference, elapsed: std::time::Duration) -> serde_json::Value {
        serde_json::json!({
            "event": "pulled", "image": reference.to_string(), "seconds": elapsed.as_secs_f64(),
            "lazy": self.lazy, "local": self.provided, "pulled": self.pulled, "bytes": self.bytes,
        })
    }

    fn summary(&self, reference: &Reference, elapsed: std::time::Duration) -> String {
        let Self {
            lazy,
            provided,
            pulled,
            bytes,
        } = self;
        let layers = lazy + provided + pulled;
        let seconds = elapsed.as_secs_f64();
        format!(
            "pulled {reference} in {seconds:.1} s: {layers} layers, {lazy} lazy, {provided} local, {pulled} pulled ({bytes} bytes)"
        )
    }
}

//! Images as commands see them: an image index, real or made for a single manifest, and the
//! manifests in it.

use anyhow::{Context, Result, bail};
use ztoc::Digest;
use ztoc::index::{
    Descriptor, ImageIndex, Manifest, Platform, annotation, is_image_index, is_manifest,
};

use crate::blobs::Blobs;
use crate::options::PlatformArguments;

/// An image whose index is read.
#[derive(Debug)]
pub(crate) struct SourceImage {
    /// How the user calls it, for messages.
    pub(crate) name: String,
    /// What the name points at.
    pub(crate) target: Descriptor,
    /// Its index; of a single manifest, one that lists it with the platform of its config.
    pub(crate) index: ImageIndex,
    /// Whether the target is a manifest.
    pub(crate) single: bool,
    pub(crate) blobs: Blobs,
}

/// One platform's manifest.
#[derive(Debug, Clone)]
pub(crate) struct PlatformManifest {
    /// As the index lists it.
    pub(crate) descriptor: Descriptor,
    pub(crate) manifest: Manifest,
    pub(crate) platform: Platform,
}

impl SourceImage {
    /// Reads what `target` points at.
    pub(crate) async fn load(name: &str, target: &Descriptor, blobs: Blobs) -> Result<Self> {
        Self::read(name, target, blobs)
            .await
            .with_context(|| format!("image {name}"))
    }

    async fn read(name: &str, target: &Descriptor, blobs: Blobs) -> Result<Self> {
        let single = is_manifest(&target.media_type);
        let index = if single {
            single_index(target, &blobs).await?
        } else if is_image_index(&target.media_type) {
            ImageIndex::parse(&blobs.document("image index", target).await?)
                .with_context(|| format!("image index {}", target.digest))?
        } else {
            bail!("{:?} is no image media type", target.media_type);
        };
        Ok(Self {
            name: name.to_owned(),
            target: target.clone(),
            index,
            single,
            blobs,
        })
    }

    /// Entries that are images of a platform: no attestations, no SOCI indexes.
    fn images(&self) -> impl Iterator<Item = (&Descriptor, Platform)> {
        self.index.manifests.iter().filter_map(|entry| {
            let platform = entry.platform.as_ref()?;
            let is_image = is_manifest(&entry.media_type)
                && !platform.is_unknown()
                && entry.artifact_type.is_none()
                && entry
                    .annotation(annotation::IMAGE_MANIFEST_DIGEST)
                    .is_none();
            is_image.then(|| (entry, platform.normalized()))
        })
    }

    /// The platforms the user means, each once: those named, all, or the host's; the only one of
    /// a single-platform image.
    pub(crate) fn choose(&self, arguments: &PlatformArguments) -> Result<Vec<Platform>> {
        let all: Vec<Platform> = self.images().map(|(_, platform)| platform).collect();
        let mut chosen = match (&arguments.platforms[..], &all[..]) {
            (_, []) => bail!("image {}: it lists no platform", self.name),
            (_, all) if arguments.all_platforms => all.to_vec(),
            ([], [only]) => vec![only.clone()],
            ([], _) => vec![Platform::host()],
            (named, _) => named.iter().map(Platform::normalized).collect(),
        };
        let mut seen = std::collections::BTreeSet::new();
        chosen.retain(|platform| seen.insert(platform.clone()));
        Ok(chosen)
    }

    /// The first manifest of that platform.
    pub(crate) async fn manifest(&self, platform: &Platform) -> Result<PlatformManifest> {
        self.find_manifest(platform)
            .await
            .with_context(|| format!("image {}, platform {platform}", self.name))
    }

    async fn find_manifest(&self, platform: &Platform) -> Result<PlatformManifest> {
        let Some(descriptor) = self.descriptor(platform) else {
            let all: Vec<_> = self.images().map(|(_, it)| it.to_string()).collect();
            bail!("the image has no such platform, only {}", all.join(", "));
        };
        let bytes = self.blobs.document("manifest", descriptor).await?;
        Ok(PlatformManifest {
            descriptor: descriptor.clone(),
            manifest: Manifest::parse(&bytes)
                .with_context(|| format!("manifest {}", descriptor.digest))?,
            platform: platform.clone(),
        })
    }

    /// The first entry of that platform.
    pub(crate) fn descriptor(&self, platform: &Platform) -> Option<&Descriptor> {
        self.images()
            .find(|(_, it)| {
                it.matches(platform)
                    && (platform.os_version.is_empty() || platform.os_version == it.os_version)
            })
            .map(|(descriptor, _)| descriptor)
    }

    /// The digests of all manifests and of the target.
    pub(crate) fn digests(&self) -> impl Iterator<Item = Digest> {
        let listed = self.index.manifests.iter().map(|entry| entry.digest);
        listed.chain([self.target.digest])
    }
}

/// Lists a single manifest under the platform that its config names.
async fn single_index(target: &Descriptor, blobs: &Blobs) -> Result<ImageIndex> {
    let manifest = Manifest::parse(&blobs.document("manifest", target).await?)
        .with_context(|| format!("manifest {}", target.digest))?;
    let mut entry = target.clone();
    // These name the image, not the manifest: they belong where the image is listed.
    entry.annotations.remove(annotation::REF_NAME);
    entry.annotations.remove(annotation::IMAGE_NAME);
    if entry.platform.is_none() {
        let config = blobs.document("config", &manifest.config).await?;
        let platform: Platform = serde_json::from_slice(&config)
            .with_context(|| format!("config {}", manifest.config.digest))?;
        if platform.os.is_empty() || platform.architecture.is_empty() {
            bail!("config {} names no platform", manifest.config.digest);
        }
        entry.platform = Some(platform.normalized());
    }
    Ok(ImageIndex::new(vec![entry]))
}

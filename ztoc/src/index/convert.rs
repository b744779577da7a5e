//! Ties SOCI indexes v2 to an image: each indexed manifest gets an annotation with its index's
//! digest, and the image index lists both.

use super::compact::CompactIndex;
use super::descriptor::Descriptor;
use super::manifest::{ImageIndex, Manifest};
use super::platform::Platform;
use super::soci::SociIndex;
use super::{COMPACT_INDEX, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, annotation};
use crate::digest::Digest;

/// A manifest of the source image for which an index was built.
#[derive(Debug, Clone)]
pub struct IndexedManifest {
    /// Its digest, as the image index lists it.
    pub digest: Digest,
    /// Its content.
    pub manifest: Manifest,
    /// The platform it was indexed for.
    pub platform: Platform,
    /// Its v2 index, if it gets one.
    pub index: Option<SociIndex>,
    /// Its compact index, if it gets one.
    pub compact: Option<CompactIndex>,
}

/// New content: canonical bytes and their descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Describes `bytes`.
    pub descriptor: Descriptor,
    /// The content.
    pub bytes: Vec<u8>,
}

/// What has to be stored for a converted image, in the order in which content may refer to
/// earlier content.
#[derive(Debug, Clone)]
pub struct Conversion {
    /// The SOCI indexes and compact indexes.
    pub soci_indexes: Vec<Document>,
    /// The annotated image manifests, with their content.
    pub manifests: Vec<(Document, Manifest)>,
    /// The image index: the converted image.
    pub index: Document,
    /// Its content.
    pub image_index: ImageIndex,
}

/// Why an image cannot be converted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The image index lists no such manifest.
    #[error("the image index does not list manifest {0}")]
    NotListed(Digest),
    /// No index for any platform.
    #[error("empty index: no layer of any chosen platform has a zTOC")]
    NothingIndexed,
}

/// Converts an image. Entries of `image` that were not indexed keep their bytes and their place:
/// other platforms, attestations, earlier SOCI indexes of other platforms. Converting the
/// result with the same indexes changes nothing.
pub fn convert(
    mut image: ImageIndex,
    indexed: Vec<IndexedManifest>,
) -> Result<Conversion, ConvertError> {
    if indexed.is_empty() {
        return Err(ConvertError::NothingIndexed);
    }
    let (mut soci_indexes, mut manifests) = (Vec::new(), Vec::new());
    for source in indexed {
        let indexes = source.documents();
        let manifest = annotate(&mut image, &source, &indexes)?;
        retarget(&mut image, source.digest, manifest.0.descriptor.digest);
        for index in &indexes {
            place(&mut image, &source.platform, &manifest.0, index);
        }
        manifests.push(manifest);
        soci_indexes.extend(indexes);
    }
    OCI_INDEX.clone_into(&mut image.media_type);
    let bytes = image.encode();
    Ok(Conversion {
        soci_indexes,
        manifests,
        index: Document {
            descriptor: Descriptor::of(OCI_INDEX, &bytes),
            bytes,
        },
        image_index: image,
    })
}

impl IndexedManifest {
    /// The indexes that it gets.
    fn documents(&self) -> Vec<Document> {
        let soci = self.index.iter();
        let soci = soci.map(|index| document(index.encode(), index.version().artifact_type()));
        let compact = self.compact.iter();
        let compact = compact.map(|index| document(index.encode(), COMPACT_INDEX));
        soci.chain(compact).collect()
    }
}

fn document(bytes: Vec<u8>, artifact_type: &str) -> Document {
    let mut descriptor = Descriptor::of(OCI_MANIFEST, &bytes);
    descriptor.artifact_type = Some(artifact_type.to_owned());
    Document { descriptor, bytes }
}

/// Which annotation of the image manifest names an index of this kind.
fn annotation_of(index: &Document) -> &'static str {
    match index.descriptor.artifact_type.as_deref() {
        Some(COMPACT_INDEX) => annotation::COMPACT_INDEX_DIGEST,
        _ => annotation::INDEX_DIGEST,
    }
}

/// Makes the annotated manifest and puts it in the place of the old one.
fn annotate(
    image: &mut ImageIndex,
    source: &IndexedManifest,
    indexes: &[Document],
) -> Result<(Document, Manifest), ConvertError> {
    let entry = image
        .manifests
        .iter_mut()
        .find(|entry| entry.digest == source.digest)
        .ok_or(ConvertError::NotListed(source.digest))?;
    let mut manifest = source.manifest.clone();
    OCI_MANIFEST.clone_into(&mut manifest.media_type);
    OCI_CONFIG.clone_into(&mut manifest.config.media_type);
    for index in indexes {
        let digest = index.descriptor.digest.to_string();
        let key = annotation_of(index).to_owned();
        manifest.annotations.insert(key, digest);
    }
    let bytes = manifest.encode();
    let described = Descriptor::of(OCI_MANIFEST, &bytes);
    entry.media_type.clone_from(&described.media_type);
    entry.digest = described.digest;
    entry.size = described.size;
    entry.data = None;
    entry.annotations.extend(manifest.annotations.clone());
    let document = Document {
        descriptor: entry.clone(),
        bytes,
    };
    Ok((document, manifest))
}

/// Indexes that were made for the manifest earlier, and are not made anew, belong to what it is now.
fn retarget(image: &mut ImageIndex, from: Digest, to: Digest) {
    let (key, from) = (annotation::IMAGE_MANIFEST_DIGEST, from.to_string());
    for entry in &mut image.manifests {
        if let Some(target) = entry.annotations.get_mut(key).filter(|it| **it == from) {
            *target = to.to_string();
        }
    }
}

/// Lists an index: in the place of the platform's earlier one of its kind, else at the end, because
/// clients take the first entry that matches their platform.
fn place(image: &mut ImageIndex, platform: &Platform, manifest: &Document, index: &Document) {
    let mut entry = index.descriptor.clone();
    entry.platform = Some(platform.normalized());
    entry.annotations.insert(
        annotation::IMAGE_MANIFEST_DIGEST.to_owned(),
        manifest.descriptor.digest.to_string(),
    );
    let same_kind = |listed: &&mut Descriptor| {
        listed.artifact_type == entry.artifact_type && is_for(listed, platform)
    };
    let earlier = image.manifests.iter_mut().find(same_kind);
    match earlier {
        Some(earlier) => *earlier = entry,
        None => image.manifests.push(entry),
    }
}

fn is_for(listed: &Descriptor, platform: &Platform) -> bool {
    let listed = listed.platform.as_ref();
    listed.is_some_and(|other| other.matches(platform) && other.os_version == platform.os_version)
}

//! The compact index: an OCI manifest that lists compact zTOCs, beside a SOCI index.

use std::collections::BTreeMap;

use super::descriptor::{Annotations, Descriptor};
use super::manifest::Manifest;
use super::soci::{IndexError, PrefetchDescriptor, Subject, ZtocDescriptor};
use super::{COMPACT_INDEX, EMPTY_CONFIG, OCI_MANIFEST, PREFETCH, annotation};
use crate::compact;
use crate::digest::Digest;

/// A compact zTOC as a compact index lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompactDescriptor {
    /// What is told of a zTOC, here of the compact one.
    pub ztoc: ZtocDescriptor,
    /// What begins the blob, and is verified when it is fetched alone.
    pub head: Head,
}

/// The first bytes of a compact zTOC: those that a mount needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Head {
    /// How many.
    pub size: u64,
    /// Their sha256.
    pub digest: Digest,
}

/// A compact index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompactIndex {
    manifest: Manifest,
    ztocs: Vec<CompactDescriptor>,
    prefetch: Vec<PrefetchDescriptor>,
}

impl CompactIndex {
    /// Builds an index; with a `subject` it is found by the referrers of the image manifest.
    ///
    /// # Errors
    ///
    /// There is nothing to list.
    pub fn new(
        ztocs: Vec<CompactDescriptor>,
        prefetch: Vec<PrefetchDescriptor>,
        subject: Option<Subject>,
    ) -> Result<Self, IndexError> {
        if ztocs.is_empty() {
            return Err(IndexError::Empty);
        }
        let layers = ztocs.iter().map(CompactDescriptor::descriptor);
        let prefetched = prefetch.iter().map(PrefetchDescriptor::descriptor);
        let manifest = Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            artifact_type: Some(COMPACT_INDEX.to_owned()),
            config: Descriptor::of(COMPACT_INDEX, EMPTY_CONFIG),
            layers: layers.chain(prefetched).collect(),
            subject: subject.map(|it| Descriptor::new(it.media_type, it.digest, it.size)),
            annotations: Annotations::new(),
            other: BTreeMap::new(),
        };
        Ok(Self {
            manifest,
            ztocs,
            prefetch,
        })
    }

    /// Reads an index. Entries of media types that are not known are passed over.
    ///
    /// # Errors
    ///
    /// It is no compact index, or an entry does not say what it is for.
    pub fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        let manifest = Manifest::parse(bytes)?;
        let config = &manifest.config.media_type;
        if config != COMPACT_INDEX {
            let text = config.chars().take(200).collect();
            return Err(IndexError::UnknownVersion(text));
        }
        let (mut ztocs, mut prefetch) = (Vec::new(), Vec::new());
        for entry in &manifest.layers {
            match entry.media_type.as_str() {
                compact::MEDIA_TYPE => ztocs.push(CompactDescriptor::parse(entry)?),
                PREFETCH => prefetch.push(PrefetchDescriptor::parse(entry)?),
                _ => {}
            }
        }
        Ok(Self {
            manifest,
            ztocs,
            prefetch,
        })
    }

    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        self.manifest.encode()
    }

    /// All compact zTOCs, in layer order.
    pub fn ztocs(&self) -> &[CompactDescriptor] {
        &self.ztocs
    }

    /// All prefetch artifacts; their spans are those of the compact zTOCs.
    pub fn prefetch(&self) -> &[PrefetchDescriptor] {
        &self.prefetch
    }

    /// The image manifest that the index belongs to, if it is found by that.
    pub fn subject(&self) -> Option<&Descriptor> {
        self.manifest.subject.as_ref()
    }

    /// Descriptors of everything the index lists, as it lists them.
    pub fn blobs(&self) -> &[Descriptor] {
        &self.manifest.layers
    }

    /// The config blob's descriptor.
    pub fn config(&self) -> &Descriptor {
        &self.manifest.config
    }
}

impl CompactDescriptor {
    fn descriptor(&self) -> Descriptor {
        let mut descriptor = self.ztoc.descriptor();
        compact::MEDIA_TYPE.clone_into(&mut descriptor.media_type);
        let Head { size, digest } = self.head;
        let annotations = &mut descriptor.annotations;
        annotations.insert(annotation::HEAD_SIZE.to_owned(), size.to_string());
        annotations.insert(annotation::HEAD_DIGEST.to_owned(), digest.to_string());
        descriptor
    }

    fn parse(entry: &Descriptor) -> Result<Self, IndexError> {
        let ztoc = ZtocDescriptor::parse(entry)?;
        let text = |key| entry.annotation(key).unwrap_or_default();
        let head = Head::parse(
            text(annotation::HEAD_SIZE),
            text(annotation::HEAD_DIGEST),
            entry.size,
        );
        let head = head.ok_or(IndexError::NoHead { blob: entry.digest })?;
        Ok(Self { ztoc, head })
    }
}

impl Head {
    /// The head of a blob of `blob` bytes, from the texts of its annotations; `None` if they are not the size and the digest
    /// of one.
    pub fn parse(size: &str, digest: &str, blob: u64) -> Option<Self> {
        let size = size.parse().ok()?;
        let possible = compact::HEADER_LEN as u64..=blob.min(compact::MAX_HEAD_LEN as u64);
        let digest = digest.parse().ok()?;
        possible.contains(&size).then_some(Self { size, digest })
    }

    /// The head of `blob`; `None` if that is no compact zTOC.
    pub fn of(blob: &[u8]) -> Option<Self> {
        let head = blob.get(..compact::head_len(blob).ok()??)?;
        Some(Self {
            size: head.len() as u64,
            digest: Digest::of(head),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::compact::SPAN_SIZE;

    fn described(layer: &[u8]) -> CompactDescriptor {
        CompactDescriptor {
            ztoc: ZtocDescriptor {
                digest: Digest::of(b"blob"),
                size: 5000,
                layer_digest: Digest::of(layer),
                layer_media_type: String::from("application/vnd.oci.image.layer.v1.tar+gzip"),
                span_size: Some(SPAN_SIZE),
                disable_xattrs: false,
            },
            head: Head {
                size: 1000,
                digest: Digest::of(b"head"),
            },
        }
    }

    #[test]
    fn a_compact_index_is_read_back_and_names_its_image() {
        let subject = Subject {
            media_type: OCI_MANIFEST.to_owned(),
            digest: Digest::of(b"image"),
            size: 7,
        };
        let built = CompactIndex::new(
            vec![described(b"a"), described(b"b")],
            Vec::new(),
            Some(subject),
        );
        let bytes = built.as_ref().unwrap().encode();
        let read = CompactIndex::parse(&bytes).unwrap();
        assert_eq!(read, built.unwrap());
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains(r#""artifactType":"application/vnd.spanshot.index.v1+json""#));
        assert!(text.contains(&Digest::of(b"image").to_string()));
        assert!(super::super::SociIndex::parse(text.as_bytes()).is_err());
    }

    #[test]
    fn a_head_longer_than_its_blob_or_shorter_than_a_header_is_refused() {
        let digest = Digest::of(b"head").to_string();
        assert!(Head::parse("5000", &digest, 5000).is_some());
        assert_eq!(Head::parse("5001", &digest, 5000), None);
        assert_eq!(Head::parse("10", &digest, 5000), None);
        assert_eq!(Head::parse("1000", "sha256:00", 5000), None);
        let mut wrong = described(b"a");
        wrong.head.size = 6000;
        let built = CompactIndex::new(vec![wrong], Vec::new(), None).unwrap();
        let refused = CompactIndex::parse(&built.encode());
        assert!(
            matches!(refused, Err(IndexError::NoHead { .. })),
            "{refused:?}"
        );
    }
}

//! SOCI indexes, OCI manifests and image indexes as canonical JSON.
//!
//! A SOCI index is an OCI image manifest whose `config.mediaType` names the index version and
//! whose layers are zTOCs. Its digest is what images, registries and other SOCI implementations
//! refer to, so its bytes have one form: what Go's `encoding/json` makes of the same structure
//! ([`canonical_json`]).
//!
//! * [`Descriptor`], [`Platform`], [`Manifest`], [`ImageIndex`]: the OCI structures;
//! * [`SociIndex`]: building and reading index v1 and v2;
//! * [`CompactIndex`]: the compact zTOCs beside them;
//! * [`Prefetch`]: spans wanted first;
//! * [`convert`]: ties v2 indexes to the manifests of an image.

mod canonical;
mod compact;
mod convert;
mod descriptor;
mod manifest;
mod platform;
mod prefetch;
mod soci;

pub use canonical::canonical_json;
pub use compact::{CompactDescriptor, CompactIndex, Head};
pub use convert::{Conversion, ConvertError, Document, IndexedManifest, convert};
pub use descriptor::{Annotations, Descriptor};
pub use manifest::{DocumentError, ImageIndex, MAX_DOCUMENT_SIZE, Manifest};
pub use platform::{ParsePlatformError, Platform};
pub use prefetch::{Prefetch, PrefetchError, PrefetchRange};
pub use soci::{IndexError, IndexVersion, PrefetchDescriptor, SociIndex, Subject, ZtocDescriptor};

use crate::ztoc::Compression;

/// `artifactType` and `config.mediaType` of a v1 index: found by the referrers API.
pub const SOCI_INDEX_V1: &str = "application/vnd.amazon.soci.index.v1+json";
/// `artifactType` and `config.mediaType` of a v2 index: found by an annotation of the image.
pub const SOCI_INDEX_V2: &str = "application/vnd.amazon.soci.index.v2+json";
/// `artifactType` and `config.mediaType` of a compact index: found by the referrers API, or by an annotation
/// of the image.
pub const COMPACT_INDEX: &str = "application/vnd.spanshot.index.v1+json";
/// Media type of a zTOC.
pub const ZTOC: &str = "application/octet-stream";
/// Media type of a prefetch artifact.
pub const PREFETCH: &str = "application/vnd.amazon.soci.prefetch.v1+json";
/// An OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// A Docker image manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// A Docker manifest list.
pub const DOCKER_MANIFEST_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// A Docker image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// The config blob of every SOCI index.
pub const EMPTY_CONFIG: &[u8] = b"{}";
/// The build tool the original names in zTOCs and indexes. Artifacts are identical only under
/// the same name.
pub const BUILD_TOOL: &str = "AWS SOCI CLI v0.2";

/// Annotation keys.
pub mod annotation {
    /// On an image manifest (v2) and on its descriptor: the digest of its SOCI index.
    pub const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";
    /// On the descriptor of a SOCI index in an image index: the manifest it belongs to.
    pub const IMAGE_MANIFEST_DIGEST: &str = "com.amazon.soci.image-manifest-digest";
    /// On a zTOC or prefetch descriptor: the layer it describes.
    pub const LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";
    /// On a zTOC descriptor: the media type of the layer.
    pub const LAYER_MEDIA_TYPE: &str = "com.amazon.soci.image-layer-mediaType";
    /// On a zTOC descriptor: the wanted span size in decimal. Older indexes have none.
    pub const SPAN_SIZE: &str = "com.amazon.soci.span-size";
    /// On a zTOC descriptor: `true` where the layer has no extended attributes.
    pub const DISABLE_XATTRS: &str = "com.amazon.soci.disable-xattrs";
    /// On a SOCI index: what built it.
    pub const BUILD_TOOL: &str = "com.amazon.soci.build-tool-identifier";
    /// On an image manifest and on its descriptor: the digest of its compact index.
    pub const COMPACT_INDEX_DIGEST: &str = "spanshot.compact-index-digest";
    /// On a compact zTOC descriptor: sha256 of its head.
    pub const HEAD_DIGEST: &str = "spanshot.head-digest";
    /// On a compact zTOC descriptor: the length of its head in bytes.
    pub const HEAD_SIZE: &str = "spanshot.head-size";
    /// OCI: the name (tag) of an image in an OCI layout.
    pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
    /// containerd: the full name of an image in an OCI layout.
    pub const IMAGE_NAME: &str = "io.containerd.image.name";
}

/// Whether a media type is that of an image manifest, OCI or Docker.
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// Whether a media type is that of an image index or manifest list.
pub fn is_image_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_MANIFEST_LIST)
}

/// What a layer's media type says about its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// A tar a zTOC can describe.
    Tar(Compression),
    /// A layer no zTOC can describe (zstd, encrypted).
    Unsupported,
    /// Not a file system layer.
    NotALayer,
}

/// Reads a layer's media type.
pub fn layer_kind(media_type: &str) -> LayerKind {
    const TARS: [&str; 4] = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
    ];
    let Some(suffix) = TARS.iter().find_map(|tar| media_type.strip_prefix(tar)) else {
        return LayerKind::NotALayer;
    };
    match suffix {
        "" => LayerKind::Tar(Compression::Uncompressed),
        "+gzip" | ".gzip" => LayerKind::Tar(Compression::Gzip),
        other if other.starts_with(['+', '.']) => LayerKind::Unsupported,
        _ => LayerKind::NotALayer,
    }
}

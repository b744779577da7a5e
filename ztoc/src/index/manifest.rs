//! Image manifests and image indexes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::canonical::canonical_json;
use super::descriptor::{Annotations, Descriptor, null_is_empty};
use super::{OCI_INDEX, is_image_index, is_manifest};

/// The largest manifest or index that is read: what registries accept, 4 MiB.
pub const MAX_DOCUMENT_SIZE: usize = 4 << 20;

/// A manifest or index that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// Over [`MAX_DOCUMENT_SIZE`].
    #[error("{size} bytes are more than a manifest may have ({MAX_DOCUMENT_SIZE})")]
    TooLarge {
        /// Its size.
        size: usize,
    },
    /// No JSON of the expected shape.
    #[error("malformed manifest")]
    Json(#[from] serde_json::Error),
    /// Docker schema 1 and others.
    #[error("manifest schema version {0} is not supported")]
    SchemaVersion(i64),
    /// Content and media type disagree: the same bytes would mean different things to
    /// different readers (CVE-2021-41190).
    #[error("media type is {actual:?} where {expected} belongs")]
    MediaType {
        /// What the reader came for.
        expected: &'static str,
        /// What the document says.
        actual: String,
    },
    /// A manifest that is an index as well, or the reverse.
    #[error("{0} has keys of both a manifest and an image index")]
    Ambiguous(&'static str),
}

/// An OCI or Docker image manifest. Fields are in canonical order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: i64,
    /// Media type; may be absent in OCI manifests.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Kind of artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Image configuration.
    pub config: Descriptor,
    /// Layers, lowest first. Always present in the canonical form.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub layers: Vec<Descriptor>,
    /// The manifest this one refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Annotations.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Annotations::is_empty"
    )]
    pub annotations: Annotations,
    /// Keys this version does not know, kept as they are.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// An OCI image index or Docker manifest list. Fields are in canonical order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageIndex {
    /// 2.
    pub schema_version: i64,
    /// Media type; may be absent in OCI indexes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Kind of artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Manifests, in order of preference.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub manifests: Vec<Descriptor>,
    /// The manifest this one refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Annotations.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Annotations::is_empty"
    )]
    pub annotations: Annotations,
    /// Keys this version does not know, kept as they are.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

impl Manifest {
    /// Reads an image manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let manifest: Self = parse(bytes)?;
        check_schema(manifest.schema_version)?;
        let media_type = &manifest.media_type;
        if !media_type.is_empty() && !is_manifest(media_type) {
            return Err(wrong_media_type("an image manifest", media_type));
        }
        if manifest.other.contains_key("manifests") {
            return Err(DocumentError::Ambiguous("image manifest"));
        }
        Ok(manifest)
    }

    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        canonical_json(self).expect("all keys are strings")
    }
}

impl ImageIndex {
    /// An OCI index that lists `manifests`.
    pub fn new(manifests: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: OCI_INDEX.to_owned(),
            artifact_type: None,
            manifests,
            subject: None,
            annotations: Annotations::new(),
            other: BTreeMap::new(),
        }
    }

    /// Reads an image index or manifest list.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let index: Self = parse(bytes)?;
        check_schema(index.schema_version)?;
        let media_type = &index.media_type;
        if !media_type.is_empty() && !is_image_index(media_type) {
            return Err(wrong_media_type("an image index", media_type));
        }
        if ["config", "layers"]
            .iter()
            .any(|key| index.other.contains_key(*key))
        {
            return Err(DocumentError::Ambiguous("image index"));
        }
        Ok(index)
    }

    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        canonical_json(self).expect("all keys are strings")
    }
}

fn parse<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, DocumentError> {
    if bytes.len() > MAX_DOCUMENT_SIZE {
        return Err(DocumentError::TooLarge { size: bytes.len() });
    }
    Ok(serde_json::from_slice(bytes)?)
}

fn check_schema(version: i64) -> Result<(), DocumentError> {
    match version {
        2 => Ok(()),
        other => Err(DocumentError::SchemaVersion(other)),
    }
}

fn wrong_media_type(expected: &'static str, actual: &str) -> DocumentError {
    DocumentError::MediaType {
        expected,
        actual: actual.chars().take(200).collect(),
    }
}

//! The registry: references, manifests, blobs, ranges of blobs, pushes.
//!
//! Built on `reqwest`, not on `oci-client`: that client reads whole bodies of any size into memory, knows
//! no mirrors, no retries and no `Retry-After`, follows redirects without telling where they led, and
//! asks credentials of its caller once instead of whenever a registry wants them. What it would save is
//! the token exchange (`auth.rs`).
//!
//! Every call goes over the hosts of its reference, mirrors first, and over again while failures are
//! of the passing kind, within one budget of tries and time. Dropping a future cancels what it does.

mod blob;
mod config;
mod credentials;
mod descriptor;
mod download;
mod error;
mod redacted;
mod reference;
mod referrers;

use std::sync::Arc;

use bytes::Bytes;
use ztoc::Digest;

pub use blob::Blob;
pub use config::{HttpConfig, Mirror, RegistryConfig, TlsConfig};
pub use credentials::{
    CredentialError, CredentialProvider, CredentialQuery, Credentials, DockerConfig,
    FixedCredentials,
};
pub use descriptor::{Descriptor, Resolved, media_type};
pub use download::Download;
pub use error::{Detail, Problem, RegistryError};
pub use reference::{ParseReferenceError, Reference};

/// Largest manifest or index read, in bytes.
pub const MAX_MANIFEST_SIZE: u64 = 8 << 20;

/// A client of all registries. Clones share connections, tokens and what is known of hosts.
#[derive(Debug, Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: RegistryConfig,
}

/// What came of pushing a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pushed {
    /// Whether the registry keeps referrers by itself (it answered with `OCI-Subject`).
    pub subject_known: bool,
}

impl Registry {
    /// A client with these settings. Fails when certificates cannot be read, or a mirror is no URL.
    pub fn new(config: RegistryConfig) -> Result<Self, RegistryError> {
        Ok(Self {
            shared: Arc::new(Shared { config }),
        })
    }

    /// The manifest or index that `reference` names.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved, RegistryError> {
        let _ = (reference, &self.shared.config);
        todo!()
    }

    /// The manifest or index `digest` in the repository of `reference`.
    pub async fn manifest(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<Resolved, RegistryError> {
        self.resolve(&reference.with_digest(*digest)).await
    }

    /// A whole blob of at most `limit` bytes, verified.
    pub async fn fetch(
        &self,
        reference: &Reference,
        digest: &Digest,
        limit: u64,
    ) -> Result<Bytes, RegistryError> {
        let _ = (reference, digest, limit);
        todo!()
    }

    /// Starts the download of a whole blob of any size; continued where it broke, verified at its end.
    pub fn download(&self, reference: &Reference, digest: &Digest) -> Download {
        let _ = (reference, digest);
        todo!()
    }

    /// A blob of `size` bytes to be read by ranges. Asks the registry nothing yet.
    pub fn blob(&self, reference: &Reference, digest: &Digest, size: u64) -> Blob {
        let _ = (reference, digest, size);
        todo!()
    }

    /// The manifests of `artifact_type` that name `subject`: by the referrers API, else by the
    /// referrers tag. Empty when there are none.
    pub async fn referrers(
        &self,
        reference: &Reference,
        subject: &Digest,
        artifact_type: &str,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let _ = (reference, subject, artifact_type);
        todo!()
    }

    /// The descriptor of the manifest that `reference` names, without its bytes; `None` if there is none.
    pub async fn has_manifest(
        &self,
        reference: &Reference,
    ) -> Result<Option<Descriptor>, RegistryError> {
        let _ = reference;
        todo!()
    }

    /// Whether the repository has the blob.
    pub async fn has_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<bool, RegistryError> {
        let _ = (reference, digest);
        todo!()
    }

    /// Puts a blob into the repository, unless it is there.
    pub async fn push_blob(
        &self,
        reference: &Reference,
        bytes: Bytes,
    ) -> Result<(), RegistryError> {
        let _ = (reference, bytes);
        todo!()
    }

    /// Puts a blob of any size from a file into the repository, unless it is there.
    pub async fn push_blob_file(
        &self,
        reference: &Reference,
        digest: &Digest,
        path: &std::path::Path,
    ) -> Result<(), RegistryError> {
        let _ = (reference, digest, path);
        todo!()
    }

    /// Puts a manifest or index under the digest or tag of `reference` (the digest if it has both).
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Pushed, RegistryError> {
        let _ = (reference, media_type, bytes);
        todo!()
    }

    /// Adds `descriptor` to the index under the referrers tag of `subject`. For registries that do
    /// not keep referrers by themselves ([`Pushed::subject_known`]).
    pub async fn push_referrers_tag(
        &self,
        reference: &Reference,
        subject: &Digest,
        descriptor: &Descriptor,
    ) -> Result<(), RegistryError> {
        let _ = (reference, subject, descriptor);
        todo!()
    }
}

//! The registry: references, manifests, blobs, ranges of blobs, pushes.
//!
//! Built on `reqwest`, not on `oci-client`: that client reads whole bodies of any size into memory, knows
//! no mirrors, no retries and no `Retry-After`, follows redirects without telling where they led, and
//! asks credentials of its caller once instead of whenever a registry wants them. What it would save is
//! the token exchange (`auth.rs`).
//!
//! Every call goes over the hosts of its reference, mirrors first, and over again while failures are
//! of the passing kind, within one budget of tries and time. Dropping a future cancels what it does.

mod auth;
mod blob;
mod body;
mod config;
mod credentials;
mod descriptor;
mod download;
mod error;
pub(crate) mod flight;
mod hosts;
mod manifests;
mod parallel;
mod proxy;
mod push;
mod redacted;
mod reference;
mod referrers;
mod retry;
pub mod tls;
mod transport;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use ztoc::Digest;

pub use blob::Blob;
pub use config::{HttpConfig, Mirror, RegistryConfig, TlsConfig};
pub use credentials::{
    CredentialError, CredentialProvider, CredentialQuery, Credentials, DockerConfig,
    FixedCredentials, KubeletProviders, PullSecrets,
};
pub(crate) use descriptor::digest_text;
pub use descriptor::{Descriptor, Resolved, media_type};
pub use download::Download;
pub use error::{Asked, Detail, Problem, RegistryError};
pub use parallel::Share;
pub use reference::{ParseReferenceError, Reference};

pub(crate) use download::digest_of;

use crate::layer::Link;
use hosts::{Hosts, Purpose};
use retry::{Attempts, Subject};
use transport::{Payload, Sent, Transport};

/// Parsers that are private to their modules, for [`crate::hostile`].
#[cfg(any(test, fuzzing))]
pub(crate) mod probes {
    pub(crate) use super::auth::probe as challenge;
    pub(crate) use super::auth::probe_token as token;
    pub(crate) use super::blob::probe as range;
    pub(crate) use super::credentials::probe as docker_config;
    pub(crate) use super::credentials::probe_kubelet as kubelet;
    pub(crate) use super::credentials::probe_secrets as secrets;
    pub(crate) use super::hosts::probe as hosts_file;
    pub(crate) use super::manifests::probe as manifest;
    pub(crate) use super::referrers::probe as referrers;
}

/// Largest manifest or index read, in bytes.
pub const MAX_MANIFEST_SIZE: u64 = 8 << 20;

/// A client of all registries. Clones share connections, tokens and what is known of hosts.
#[derive(Debug, Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    hosts: Hosts,
    transport: Transport,
    /// How fast whole layers come.
    line: Arc<Link>,
}

/// What came of pushing a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pushed {
    /// Whether the registry keeps referrers by itself (it answered with `OCI-Subject`).
    pub subject_known: bool,
}

impl Registry {
    /// A client with these settings. Fails when a mirror is no host, or a certificate cannot be read;
    /// blocks on reading them.
    pub fn new(config: RegistryConfig) -> Result<Self, Problem> {
        let transport = Transport::new(&config);
        let client = tls::client(&config, &tls::HostTls::default())?;
        Ok(Self {
            shared: Arc::new(Shared {
                hosts: Hosts::new(Arc::new(config), client)?,
                transport,
                line: Arc::default(),
            }),
        })
    }

    /// The manifest or index that `reference` names, verified if it names a digest.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved, RegistryError> {
        manifests::resolve(self, reference).await
    }

    /// The manifest or index `digest` in the repository of `reference`, verified.
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
        download::fetch(self, reference, digest, limit).await
    }

    /// A download of a whole blob of any size, begun when first read; continued where it broke,
    /// verified at its end.
    pub fn download(&self, reference: &Reference, digest: &Digest) -> Download {
        Download::new(self.clone(), reference.clone(), *digest)
    }

    /// A download of a whole blob in ranges, `share` of them at a time, given out in order. Not
    /// verified. In one piece if the host knows no ranges or `size` is not known.
    pub fn download_in_ranges(
        &self,
        reference: &Reference,
        digest: &Digest,
        size: Option<u64>,
        share: Share,
    ) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
        parallel::download(self, reference, digest, size, share)
    }

    /// A blob of `size` bytes to be read by ranges. Asks the registry nothing yet.
    pub fn blob(&self, reference: &Reference, digest: &Digest, size: u64) -> Blob {
        Blob::new(self.clone(), reference.clone(), *digest, size)
    }

    /// The manifests of `artifact_type` that name `subject`: by the referrers API, else by the
    /// referrers tag. Empty when there are none.
    pub async fn referrers(
        &self,
        reference: &Reference,
        subject: &Digest,
        artifact_type: &str,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        referrers::list(self, reference, subject, artifact_type).await
    }

    /// What the origin says of the manifest that `reference` names, without its bytes; `None` if
    /// there is none.
    pub async fn has_manifest(
        &self,
        reference: &Reference,
    ) -> Result<Option<Descriptor>, RegistryError> {
        manifests::head(self, reference).await
    }

    /// Whether the origin's repository has the blob.
    pub async fn has_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<bool, RegistryError> {
        push::has_blob(self, reference, digest).await
    }

    /// Puts a blob into the repository, unless it is there.
    pub async fn push_blob(
        &self,
        reference: &Reference,
        bytes: Bytes,
    ) -> Result<(), RegistryError> {
        let digest = digest_of(&bytes).await;
        push::blob(self, reference, &digest, Payload::Bytes(bytes)).await
    }

    /// The same; `sent` is told how many bytes are on their way, as often as that changes. It does not block.
    pub async fn push_blob_watched(
        &self,
        reference: &Reference,
        bytes: Bytes,
        sent: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<(), RegistryError> {
        let digest = digest_of(&bytes).await;
        let sent = Sent(Arc::new(sent));
        let payload = Payload::Watched { bytes, sent };
        push::blob(self, reference, &digest, payload).await
    }

    /// Puts a blob of any size from a file into the repository, unless it is there.
    pub async fn push_blob_file(
        &self,
        reference: &Reference,
        digest: &Digest,
        path: &Path,
    ) -> Result<(), RegistryError> {
        let size = tokio::fs::metadata(path).await.map_err(|error| {
            let detail = format!("{}: {error}", path.display());
            self.error(
                reference,
                format!("upload of blob {digest}"),
                Problem::Setup { detail },
            )
        })?;
        let payload = Payload::File {
            path: path.to_owned(),
            size: size.len(),
        };
        push::blob(self, reference, digest, payload).await
    }

    /// Puts a manifest or index under the digest or tag of `reference` (the digest if it has both).
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Pushed, RegistryError> {
        push::manifest(self, reference, media_type, bytes).await
    }

    /// Adds `descriptor` to the index under the referrers tag of `subject`. For registries that do
    /// not keep referrers by themselves ([`Pushed::subject_known`]).
    pub async fn push_referrers_tag(
        &self,
        reference: &Reference,
        subject: &Digest,
        descriptor: &Descriptor,
    ) -> Result<(), RegistryError> {
        referrers::push_tag(self, reference, subject, descriptor).await
    }

    /// Whether the host that is asked first is known to answer ranges with ranges.
    async fn serves_ranges(&self, reference: &Reference) -> bool {
        let hosts = self.shared.hosts.of(reference, Purpose::Pull).await;
        hosts.is_ok_and(|hosts| hosts.first().is_some_and(|host| host.serves_ranges()))
    }

    fn line(&self) -> &Arc<Link> {
        &self.shared.line
    }

    fn transport(&self) -> &Transport {
        &self.shared.transport
    }

    /// The tries of a call that asks for `object`.
    async fn attempts(
        &self,
        reference: &Reference,
        purpose: Purpose,
        object: String,
    ) -> Result<Attempts, RegistryError> {
        match self.shared.hosts.of(reference, purpose).await {
            Ok(hosts) => {
                let subject = Subject {
                    object,
                    repository: reference.repository().to_owned(),
                };
                Ok(Attempts::new(subject, hosts, &self.shared.transport.http))
            }
            Err(problem) => Err(self.error(reference, object, problem)),
        }
    }

    fn error(&self, reference: &Reference, object: String, problem: Problem) -> RegistryError {
        let subject = Subject {
            object,
            repository: reference.repository().to_owned(),
        };
        subject.error(reference.host(), problem)
    }
}

//! Pushes: blobs and manifests, to the origin or what `hosts.toml` says takes them.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use ztoc::Digest;

use super::auth::Scope;
use super::error::{Problem, RegistryError};
use super::hosts::{Endpoint, Purpose};
use super::transport::{Call, Payload, location};
use super::{Pushed, Reference, Registry};

/// Sent by registries that keep referrers when a manifest has a subject.
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

fn scope(reference: &Reference) -> Scope {
    Scope {
        repository: reference.repository().to_owned(),
        push: true,
    }
}

/// Whether the repository has the blob.
pub(super) async fn has_blob(
    registry: &Registry,
    reference: &Reference,
    digest: &Digest,
) -> Result<bool, RegistryError> {
    let mut attempts = registry
        .attempts(reference, Purpose::Push, format!("blob {digest}"))
        .await?;
    loop {
        let endpoint = attempts.endpoint();
        match attempts
            .limited(exists(registry, &endpoint, reference, digest))
            .await
        {
            Ok(exists) => return Ok(exists),
            Err(problem) => attempts.failed(problem).await?,
        }
    }
}

async fn exists(
    registry: &Registry,
    endpoint: &Arc<Endpoint>,
    reference: &Reference,
    digest: &Digest,
) -> Result<bool, Problem> {
    let url = endpoint.url(reference.repository(), &format!("blobs/{digest}"));
    let call = Call::new(
        Method::HEAD,
        url,
        Scope {
            push: false,
            ..scope(reference)
        },
    );
    match registry
        .transport()
        .send(endpoint, &call)
        .await?
        .expect(&[StatusCode::OK])
        .await
    {
        Ok(_) => Ok(true),
        Err(Problem::NotFound { .. }) => Ok(false),
        Err(problem) => Err(problem),
    }
}

/// Puts a blob, unless it is there.
pub(super) async fn blob(
    registry: &Registry,
    reference: &Reference,
    digest: &Digest,
    payload: Payload,
) -> Result<(), RegistryError> {
    if has_blob(registry, reference, digest).await? {
        return Ok(());
    }
    let mut attempts = registry
        .attempts(reference, Purpose::Push, format!("upload of blob {digest}"))
        .await?
        .unlimited();
    loop {
        let endpoint = attempts.endpoint();
        match upload(registry, &endpoint, reference, digest, payload.clone()).await {
            Ok(()) => return Ok(()),
            Err(problem) => attempts.failed(problem).await?,
        }
    }
}

/// One upload in one piece. A session that failed is left to the registry to clean up.
async fn upload(
    registry: &Registry,
    endpoint: &Arc<Endpoint>,
    reference: &Reference,
    digest: &Digest,
    payload: Payload,
) -> Result<(), Problem> {
    let url = endpoint.url(reference.repository(), "blobs/uploads/");
    let call = Call::new(Method::POST, url, scope(reference)).payload(Payload::Bytes(Bytes::new()));
    let opened = registry
        .transport()
        .send(endpoint, &call)
        .await?
        .expect(&[StatusCode::ACCEPTED])
        .await?;
    let mut url = location(opened.response.headers(), &opened.url)?;
    url.query_pairs_mut()
        .append_pair("digest", &digest.to_string());
    let call = Call::new(Method::PUT, url, scope(reference))
        .header(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        )
        .payload(payload);
    registry
        .transport()
        .send(endpoint, &call)
        .await?
        .expect(&[StatusCode::CREATED])
        .await?;
    Ok(())
}

/// Puts a manifest under the digest or tag of `reference`.
pub(super) async fn manifest(
    registry: &Registry,
    reference: &Reference,
    media_type: &str,
    bytes: Bytes,
) -> Result<Pushed, RegistryError> {
    let object = format!("upload of manifest {}", reference.manifest_path());
    let mut attempts = registry.attempts(reference, Purpose::Push, object).await?;
    loop {
        let endpoint = attempts.endpoint();
        let attempt = put_manifest(registry, &endpoint, reference, media_type, bytes.clone());
        match attempts.limited(attempt).await {
            Ok(pushed) => return Ok(pushed),
            Err(problem) => attempts.failed(problem).await?,
        }
    }
}

async fn put_manifest(
    registry: &Registry,
    endpoint: &Arc<Endpoint>,
    reference: &Reference,
    media_type: &str,
    bytes: Bytes,
) -> Result<Pushed, Problem> {
    let kind = HeaderValue::try_from(media_type).map_err(|_| Problem::Setup {
        detail: format!("{media_type:?} is no media type"),
    })?;
    let url = endpoint.url(
        reference.repository(),
        &format!("manifests/{}", reference.manifest_path()),
    );
    let call = Call::new(Method::PUT, url, scope(reference))
        .header(CONTENT_TYPE, kind)
        .payload(Payload::Bytes(bytes));
    let answer = registry.transport().send(endpoint, &call).await?;
    let answer = answer
        .expect(&[StatusCode::CREATED, StatusCode::OK, StatusCode::ACCEPTED])
        .await?;
    Ok(Pushed {
        subject_known: answer.response.headers().contains_key(OCI_SUBJECT),
    })
}

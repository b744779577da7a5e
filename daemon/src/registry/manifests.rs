//! Manifests and indexes by tag or digest.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use ztoc::Digest;

use super::auth::Scope;
use super::blob::check_encoding;
use super::body::Body;
use super::descriptor::{Descriptor, Resolved, media_type};
use super::download::digest_of;
use super::error::{Problem, RegistryError};
use super::hosts::{Endpoint, Purpose};
use super::transport::{Answer, Call};
use super::{MAX_MANIFEST_SIZE, Reference, Registry};

const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";
/// The digest by which a registry knows what it sends.
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// The manifest or index of `reference`, verified if it names a digest.
pub(super) async fn resolve(
    registry: &Registry,
    reference: &Reference,
) -> Result<Resolved, RegistryError> {
    let object = format!("manifest {}", reference.manifest_path());
    let purpose = if reference.digest().is_some() {
        Purpose::Pull
    } else {
        Purpose::Resolve
    };
    let mut attempts = registry.attempts(reference, purpose, object).await?;
    loop {
        let endpoint = attempts.endpoint();
        match attempts.limited(get(registry, &endpoint, reference)).await {
            Ok(resolved) => return Ok(resolved),
            Err(problem) => attempts.failed(problem).await?,
        }
    }
}

/// What the registry says of the manifest of `reference`, without its bytes.
pub(super) async fn head(
    registry: &Registry,
    reference: &Reference,
) -> Result<Option<Descriptor>, RegistryError> {
    let object = format!("manifest {}", reference.manifest_path());
    let mut attempts = registry.attempts(reference, Purpose::Push, object).await?;
    loop {
        let endpoint = attempts.endpoint();
        let attempt = async {
            let call = call(Method::HEAD, &endpoint, reference);
            let answer = registry.transport().send(&endpoint, &call).await?;
            match answer.expect(&[StatusCode::OK]).await {
                Ok(answer) => described(&answer, reference).map(Some),
                Err(Problem::NotFound { .. }) => Ok(None),
                Err(problem) => Err(problem),
            }
        };
        match attempts.limited(attempt).await {
            Ok(descriptor) => return Ok(descriptor),
            Err(problem) => attempts.failed(problem).await?,
        }
    }
}

fn call(method: Method, endpoint: &Endpoint, reference: &Reference) -> Call {
    let repository = reference.repository();
    let url = endpoint.url(
        repository,
        &format!("manifests/{}", reference.manifest_path()),
    );
    let scope = Scope {
        repository: repository.to_owned(),
        push: false,
    };
    Call::new(method, url, scope).header(ACCEPT, HeaderValue::from_static(ACCEPTED))
}

async fn get(
    registry: &Registry,
    endpoint: &Arc<Endpoint>,
    reference: &Reference,
) -> Result<Resolved, Problem> {
    let call = call(Method::GET, endpoint, reference);
    let answer = registry
        .transport()
        .send(endpoint, &call)
        .await?
        .expect(&[StatusCode::OK])
        .await?;
    check_encoding(&answer)?;
    let announced = answer
        .header(CONTENT_DIGEST)
        .and_then(|text| text.parse().ok());
    let declared = content_type(&answer);
    let body = Body::new(answer.response, registry.transport().http.stall_timeout);
    let bytes = body.read_all(MAX_MANIFEST_SIZE).await?;
    let digest = digest_of(&bytes).await;
    if reference
        .digest()
        .or(announced)
        .is_some_and(|wanted: Digest| wanted != digest)
    {
        return Err(Problem::WrongDigest { actual: digest });
    }
    Ok(Resolved {
        descriptor: Descriptor {
            media_type: agreed_media_type(declared, &bytes)?,
            digest,
            size: bytes.len() as u64,
            annotations: std::collections::BTreeMap::new(),
            artifact_type: None,
        },
        bytes,
    })
}

fn described(answer: &Answer, reference: &Reference) -> Result<Descriptor, Problem> {
    let announced = answer
        .header(CONTENT_DIGEST)
        .and_then(|text| text.parse().ok());
    let digest = reference.digest().or(announced);
    Ok(Descriptor {
        media_type: content_type(answer).unwrap_or_default(),
        digest: digest.ok_or_else(|| Problem::malformed("no Docker-Content-Digest"))?,
        size: answer
            .header(CONTENT_LENGTH)
            .and_then(|text| text.parse().ok())
            .unwrap_or_default(),
        annotations: std::collections::BTreeMap::new(),
        artifact_type: None,
    })
}

/// The content type without parameters.
pub(super) fn content_type(answer: &Answer) -> Option<String> {
    let text = answer.header(CONTENT_TYPE)?;
    Some(
        text.split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase(),
    )
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Declared {
    media_type: Option<String>,
}

/// The media type on which header and document agree. A document that says something else than
/// its header could be read as two different things, and is refused.
fn agreed_media_type(header: Option<String>, bytes: &Bytes) -> Result<String, Problem> {
    let document: Declared = serde_json::from_slice(bytes)
        .map_err(|_| Problem::malformed("the manifest is not a JSON object"))?;
    let specific =
        header.filter(|kind| media_type::is_manifest(kind) || media_type::is_index(kind));
    match (
        specific,
        document.media_type.filter(|kind| !kind.is_empty()),
    ) {
        (Some(header), Some(own)) if header != own => {
            let own: String = own.chars().take(100).collect();
            Err(Problem::malformed(format!(
                "the manifest is {own:?} by itself but {header:?} by its header"
            )))
        }
        (Some(kind), _) | (None, Some(kind)) => Ok(kind),
        (None, None) => Err(Problem::malformed("the manifest has no media type")),
    }
}

/// For [`crate::hostile`]: a document with some content type, or an error's.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(content_type: &str, bytes: &Bytes) {
    let header = (!content_type.is_empty()).then(|| content_type.to_owned());
    match agreed_media_type(header, bytes) {
        Ok(kind) => assert!(!kind.is_empty()),
        Err(problem) => assert!(problem.to_string().len() < 4096 + content_type.len()),
    }
    let detail = super::Detail::from_document(bytes).to_string();
    assert!(!detail.contains(char::is_control) && detail.len() < 1024);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn header_and_document_must_agree_on_what_a_manifest_is() {
        let of = |header: Option<&str>, body: &'static str| {
            agreed_media_type(header.map(str::to_owned), &Bytes::from(body))
        };
        let oci = media_type::OCI_MANIFEST;
        assert_eq!(of(Some(oci), "{}").unwrap(), oci);
        assert_eq!(
            of(Some("application/json"), r#"{"mediaType":"x/y"}"#).unwrap(),
            "x/y"
        );
        assert!(
            of(
                Some(oci),
                r#"{"mediaType":"application/vnd.oci.image.index.v1+json"}"#
            )
            .is_err()
        );
        assert!(of(None, "{}").is_err());
        assert!(of(Some(oci), "[]").is_err());
    }
}

//! Who refers to a manifest: the referrers API, and the tag that stands in for it.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{ACCEPT, HeaderValue, LINK};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use url::Url;
use ztoc::Digest;

use super::auth::Scope;
use super::body::Body;
use super::descriptor::{Descriptor, media_type};
use super::error::{Problem, RegistryError};
use super::hosts::{Endpoint, Purpose};
use super::manifests::content_type;
use super::transport::{Answer, Call};
use super::{MAX_MANIFEST_SIZE, Reference, Registry};

const MAX_PAGES: usize = 32;
/// Most referrers of one manifest that are looked at.
const MAX_REFERRERS: usize = 4096;

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

/// The manifests of `artifact_type` that name `subject`.
pub(super) async fn list(
    registry: &Registry,
    reference: &Reference,
    subject: &Digest,
    artifact_type: &str,
) -> Result<Vec<Descriptor>, RegistryError> {
    let mut found = match by_api(registry, reference, subject, artifact_type).await {
        Err(error) if error.is_not_found() => by_tag(registry, reference, subject).await?,
        found => found?,
    };
    found.retain(|descriptor| descriptor.artifact_type.as_deref() == Some(artifact_type));
    Ok(found)
}

/// `sha256-<hex>`, the tag of the referrers tag schema.
fn referrers_tag(reference: &Reference, subject: &Digest) -> Reference {
    reference.with_tag(&format!("sha256-{}", subject.hex()))
}

async fn by_tag(
    registry: &Registry,
    reference: &Reference,
    subject: &Digest,
) -> Result<Vec<Descriptor>, RegistryError> {
    let tag = referrers_tag(reference, subject);
    let resolved = match registry.resolve(&tag).await {
        Ok(resolved) => resolved,
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    parse(&resolved.bytes)
        .map_err(|problem| registry.error(&tag, format!("referrers of {subject}"), problem))
}

async fn by_api(
    registry: &Registry,
    reference: &Reference,
    subject: &Digest,
    artifact_type: &str,
) -> Result<Vec<Descriptor>, RegistryError> {
    let mut attempts = registry
        .attempts(
            reference,
            Purpose::Resolve,
            format!("referrers of {subject}"),
        )
        .await?;
    loop {
        let endpoint = attempts.endpoint();
        let mut url = endpoint.url(reference.repository(), &format!("referrers/{subject}"));
        url.query_pairs_mut()
            .append_pair("artifactType", artifact_type);
        match attempts
            .limited(pages(registry, &endpoint, reference, url, artifact_type))
            .await
        {
            Ok(found) => return Ok(found),
            Err(problem) => attempts.failed(problem).await?,
        }
    }
}

async fn pages(
    registry: &Registry,
    endpoint: &Arc<Endpoint>,
    reference: &Reference,
    first: Url,
    artifact_type: &str,
) -> Result<Vec<Descriptor>, Problem> {
    let mut found = Vec::new();
    let mut next = Some(first);
    for _ in 0..MAX_PAGES {
        let Some(url) = next else {
            return Ok(found);
        };
        let answer = page(registry, endpoint, reference, url).await?;
        next = next_page(&answer, endpoint);
        let filtered = answer
            .header("oci-filters-applied")
            .is_some_and(|names| names.contains("artifactType"));
        let body = Body::new(answer.response, registry.transport().http.stall_timeout);
        let mut descriptors = parse(&body.read_all(MAX_MANIFEST_SIZE).await?)?;
        if filtered {
            // What a registry has filtered need not repeat the type.
            for descriptor in &mut descriptors {
                descriptor
                    .artifact_type
                    .get_or_insert_with(|| artifact_type.to_owned());
            }
        }
        found.append(&mut descriptors);
        found.truncate(MAX_REFERRERS);
    }
    Ok(found)
}

/// One page; [`Problem::NotFound`] from a registry without the API, whatever it answers instead.
async fn page(
    registry: &Registry,
    endpoint: &Arc<Endpoint>,
    reference: &Reference,
    url: Url,
) -> Result<Answer, Problem> {
    let scope = Scope {
        repository: reference.repository().to_owned(),
        push: false,
    };
    let call = Call::new(Method::GET, url, scope)
        .header(ACCEPT, HeaderValue::from_static(media_type::OCI_INDEX));
    let answer = registry.transport().send(endpoint, &call).await?;
    let absent = [
        StatusCode::BAD_REQUEST,
        StatusCode::METHOD_NOT_ALLOWED,
        StatusCode::NOT_IMPLEMENTED,
    ];
    if absent.contains(&answer.response.status()) {
        return Err(Problem::NotFound {
            detail: super::Detail::default(),
        });
    }
    let answer = answer.expect(&[StatusCode::OK]).await?;
    if content_type(&answer).as_deref() == Some(media_type::OCI_INDEX) {
        Ok(answer)
    } else {
        Err(Problem::NotFound {
            detail: super::Detail::default(),
        })
    }
}

/// The `next` link, if it stays on the same host.
fn next_page(answer: &Answer, endpoint: &Endpoint) -> Option<Url> {
    let links = answer.response.headers().get_all(LINK).iter();
    let mut links = links.filter_map(|value| value.to_str().ok());
    let next = links.find_map(|links| next_link(links, &answer.url))?;
    endpoint.owns(&next).then_some(next)
}

/// The `next` of the links in a header, as seen from `base`.
fn next_link(links: &str, base: &Url) -> Option<Url> {
    links.split(',').find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let next = parameters
            .split(';')
            .any(|parameter| matches!(parameter.trim(), "rel=next" | "rel=\"next\""));
        next.then(|| base.join(target).ok()).flatten()
    })
}

fn parse(bytes: &Bytes) -> Result<Vec<Descriptor>, Problem> {
    let index: Index = serde_json::from_slice(bytes)
        .map_err(|error| Problem::malformed(format!("the list of referrers: {error}")))?;
    Ok(index.manifests.into_iter().take(MAX_REFERRERS).collect())
}

/// Adds `descriptor` to the index under the referrers tag of `subject`.
pub(super) async fn push_tag(
    registry: &Registry,
    reference: &Reference,
    subject: &Digest,
    descriptor: &Descriptor,
) -> Result<(), RegistryError> {
    let tag = referrers_tag(reference, subject);
    let failure = |problem| registry.error(&tag, format!("referrers of {subject}"), problem);
    let mut index = match registry.resolve(&tag).await {
        Ok(resolved) => serde_json::from_slice(&resolved.bytes).map_err(|error| {
            failure(Problem::malformed(format!(
                "the list of referrers: {error}"
            )))
        })?,
        Err(error) if error.is_not_found() => json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_INDEX,
            "manifests": [],
        }),
        Err(error) => return Err(error),
    };
    let Some(manifests) = index["manifests"].as_array_mut() else {
        return Err(failure(Problem::malformed(
            "the list of referrers has no manifests",
        )));
    };
    let digest = descriptor.digest.to_string();
    if manifests.iter().any(|entry| entry["digest"] == *digest) {
        return Ok(());
    }
    manifests.push(json!(descriptor));
    let bytes = Bytes::from(index.to_string());
    registry
        .push_manifest(&tag, media_type::OCI_INDEX, bytes)
        .await
        .map(|_| ())
}

/// For [`crate::hostile`]: a page of referrers and its `Link`.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(link: &str, bytes: &Bytes) {
    if let Ok(base) = Url::parse("https://registry.test/v2/name/referrers/x") {
        let _ = next_link(link, &base);
    }
    if let Ok(found) = parse(bytes) {
        assert!(found.len() <= MAX_REFERRERS);
    }
}

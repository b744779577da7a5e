//! The distribution API, its token server, and the storage host.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::header::{HeaderName, LINK, LOCATION, WWW_AUTHENTICATE};
use serde_json::{Value, json};

use super::answer::Answer;
use super::server::Asked;
use super::state::{Auth, State, digest_of};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Answers a request to the registry.
pub(super) fn answer(state: &State, asked: &Asked) -> Answer {
    let path = &*asked.record.path;
    if path == "/token" {
        return token(state, asked);
    }
    let Some(rest) = path.strip_prefix("/v2/") else {
        return Answer::new(404);
    };
    let Some((repository, kind, name)) = split(rest) else {
        return Answer::new(if rest.is_empty() { 200 } else { 404 });
    };
    if let Some(challenge) = challenge(state, asked, repository) {
        return challenge;
    }
    match (&*asked.record.method, kind) {
        ("GET" | "HEAD", "manifests") => get_manifest(state, repository, name),
        ("GET" | "HEAD", "blobs") => get_blob(state, asked, repository, name),
        ("GET", "referrers") => referrers(state, asked, repository, name),
        ("POST", "blobs") => {
            let place = format!(
                "/v2/{repository}/blobs/uploads/{}?state=x",
                state.next_serial()
            );
            Answer::new(202).header(LOCATION, place)
        }
        ("PUT", "blobs") => put_blob(state, asked, repository),
        ("PUT", "manifests") => put_manifest(state, asked, repository, name),
        _ => Answer::new(405),
    }
}

/// Answers a request to the storage host: like an object store, it refuses credentials that are not its own.
pub(super) fn storage_answer(state: &State, asked: &Asked) -> Answer {
    let signature = parameter(&asked.record.query, "signature").unwrap_or_default();
    let good = state
        .signatures
        .lock()
        .get_mut(&signature)
        .is_some_and(|uses| {
            let good = *uses > 0;
            *uses = uses.saturating_sub(1);
            good
        });
    if asked.credentials.is_some() {
        return Answer::new(400).body(
            "application/xml",
            "<Error><Code>InvalidArgument</Code></Error>",
        );
    }
    if !good {
        return Answer::new(403).body(
            "application/xml",
            "<Error><Code>AccessDenied</Code></Error>",
        );
    }
    match split(asked.record.path.trim_start_matches('/')) {
        Some((repository, "blobs", digest)) => blob(state, asked, repository, digest),
        _ => Answer::new(404),
    }
}

/// `<repository>/<kind>/<name>`.
fn split(path: &str) -> Option<(&str, &str, &str)> {
    ["manifests", "blobs", "referrers"]
        .into_iter()
        .find_map(|kind| {
            let (repository, name) = path.split_once(&format!("/{kind}/"))?;
            Some((repository, kind, name))
        })
}

fn parameter(query: &str, name: &str) -> Option<String> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.find(|(key, _)| *key == name)?;
    Some(
        value
            .replace("%3A", ":")
            .replace("%2F", "/")
            .replace("%2B", "+"),
    )
}

fn error(status: u16, code: &str) -> Answer {
    let document = json!({"errors": [{"code": code, "message": "as scripted"}]});
    Answer::new(status).body("application/json", document.to_string())
}

fn challenge(state: &State, asked: &Asked, repository: &str) -> Option<Answer> {
    let push = matches!(&*asked.record.method, "PUT" | "POST" | "PATCH");
    let shown = asked.credentials.as_deref().unwrap_or_default();
    let challenge = match &state.settings.lock().auth {
        Auth::Open => return None,
        Auth::Basic { user, password } => {
            if shown == basic(user, password) {
                return None;
            }
            String::from("Basic realm=\"scripted\"")
        }
        Auth::Token { .. } => {
            let scope = format!(
                "repository:{repository}:{}",
                if push { "pull,push" } else { "pull" }
            );
            let granted = shown
                .strip_prefix("Bearer ")
                .and_then(|token| state.tokens.lock().get(token).cloned());
            let covers = |granted: &str| {
                granted
                    .split(' ')
                    .any(|one| one == scope || one == format!("{scope},push"))
            };
            if granted.is_some_and(|granted| covers(&granted)) {
                return None;
            }
            let realm = format!("http://{}/token", state.address);
            format!("Bearer realm=\"{realm}\",service=\"scripted\",scope=\"{scope}\"")
        }
    };
    Some(error(401, "UNAUTHORIZED").header(WWW_AUTHENTICATE, challenge))
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn token(state: &State, asked: &Asked) -> Answer {
    let Auth::Token {
        password,
        expires_in,
    } = state.settings.lock().auth.clone()
    else {
        return Answer::new(404);
    };
    let form = String::from_utf8_lossy(&asked.body).into_owned();
    let post = asked.record.method == "POST";
    let shown = asked.credentials.as_deref();
    let admitted = match &password {
        None => true,
        Some((_, password)) if post => parameter(&form, "refresh_token").as_ref() == Some(password),
        Some((user, password)) => shown == Some(&basic(user, password)),
    };
    if !admitted {
        return error(401, "UNAUTHORIZED");
    }
    let asked_for = if post { &form } else { &asked.record.query };
    let scope = parameter(asked_for, "scope")
        .unwrap_or_default()
        .replace("%2C", ",");
    let token = format!("token-{}", state.next_serial());
    state.tokens.lock().insert(token.clone(), scope);
    let document = json!({"token": token, "expires_in": expires_in});
    Answer::new(200).body("application/json", document.to_string())
}

fn get_manifest(state: &State, repository: &str, name: &str) -> Answer {
    match state.contents.lock().manifest(repository, name) {
        Some((digest, manifest)) => Answer::new(200)
            .header(CONTENT_DIGEST, digest)
            .body(&manifest.media_type, manifest.bytes),
        None => error(404, "MANIFEST_UNKNOWN"),
    }
}

fn get_blob(state: &State, asked: &Asked, repository: &str, digest: &str) -> Answer {
    let uses = state.settings.lock().redirect_uses;
    let known = state.contents.lock().blob(repository, digest).is_some();
    match uses.filter(|_| known && asked.record.method == "GET") {
        Some(uses) => {
            let signature = format!("secret-{}", state.next_serial());
            let place = format!(
                "http://{}/{repository}/blobs/{digest}?signature={signature}",
                state.storage
            );
            state.signatures.lock().insert(signature, uses);
            Answer::new(307).header(LOCATION, place)
        }
        None => blob(state, asked, repository, digest),
    }
}

fn blob(state: &State, asked: &Asked, repository: &str, digest: &str) -> Answer {
    match state.contents.lock().blob(repository, digest) {
        Some(bytes) => Answer::new(200)
            .body("application/octet-stream", bytes)
            .ranged(asked.record.range.as_deref()),
        None => error(404, "BLOB_UNKNOWN"),
    }
}

fn put_blob(state: &State, asked: &Asked, repository: &str) -> Answer {
    let digest = digest_of(&asked.body);
    if parameter(&asked.record.query, "digest").as_ref() != Some(&digest) {
        return error(400, "DIGEST_INVALID");
    }
    state
        .contents
        .lock()
        .put_blob(repository, asked.body.clone());
    Answer::new(201).header(LOCATION, format!("/v2/{repository}/blobs/{digest}"))
}

fn put_manifest(state: &State, asked: &Asked, repository: &str, name: &str) -> Answer {
    let document: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
    if !document.is_object() {
        return error(400, "MANIFEST_INVALID");
    }
    let tag = (!name.contains(':')).then_some(name);
    let bytes = Bytes::clone(&asked.body);
    let digest = state
        .contents
        .lock()
        .put_manifest(repository, tag, &asked.content_type, bytes);
    if tag.is_none() && name != digest {
        return error(400, "DIGEST_INVALID");
    }
    let answer = Answer::new(201).header(CONTENT_DIGEST, digest);
    match document["subject"]["digest"]
        .as_str()
        .filter(|_| state.settings.lock().referrers)
    {
        Some(subject) => answer.header(HeaderName::from_static("oci-subject"), subject),
        None => answer,
    }
}

fn referrers(state: &State, asked: &Asked, repository: &str, subject: &str) -> Answer {
    let (on, page_size) = {
        let settings = state.settings.lock();
        (settings.referrers, settings.page_size)
    };
    if !on {
        return error(404, "NOT_FOUND");
    }
    let start: usize = parameter(&asked.record.query, "from")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let all = state.contents.lock().referrers(repository, subject);
    let page: Vec<_> = all.iter().skip(start).take(page_size).collect();
    let document = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": page});
    let answer = Answer::new(200).body(OCI_INDEX, document.to_string());
    let next = start + page_size;
    if next < all.len() {
        return answer.header(
            LINK,
            format!("</v2/{repository}/referrers/{subject}?from={next}>; rel=\"next\""),
        );
    }
    answer
}

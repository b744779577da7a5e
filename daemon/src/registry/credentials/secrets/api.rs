//! The two calls of a cluster's API that are needed: list and watch image pull secrets.

use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Certificate, Client, Identity, redirect};
use serde::Deserialize;
use url::Url;

use super::known::{Metadata, Secret};
use super::kubeconfig::{Access, Login};
use crate::registry::body::Body;
use crate::registry::error::Problem;
use crate::registry::tls::{install, root_cause};
use crate::registry::transport::send_error;
use crate::registry::{RegistryConfig, proxy};

/// Secrets of one answer; each is 1 MiB at most, and larger by a third as base64.
const PAGE: usize = 32;
const MAX_PAGE: u64 = 64 << 20;
/// Largest line of a watch, which is one secret.
const MAX_LINE: usize = 4 << 20;
/// Pages of a list: more than anybody's secrets fill.
const MAX_PAGES: usize = 2000;
/// How long connecting and the head of an answer may take, and how long a list may say nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the server watches before it ends that by itself, and how long it may say nothing meanwhile.
const WATCH: Duration = Duration::from_secs(300);
const SILENCE: Duration = Duration::from_secs(330);

/// Which secrets, percent-encoded.
const SELECTOR: &str = "fieldSelector=type%3Dkubernetes.io%2Fdockerconfigjson";

/// A cluster's API.
pub(super) struct Api {
    client: Client,
    server: Url,
    authorization: Option<HeaderValue>,
}

/// A part of the list of all secrets.
#[derive(Deserialize)]
struct Page {
    metadata: PageMetadata,
    #[serde(default)]
    items: Vec<Secret>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    next: String,
}

/// What a watch tells.
pub(super) enum Event {
    /// The secret is new or changed.
    Put(Secret),
    /// The secret is gone.
    Gone(Secret),
    /// Nothing has changed up to this version.
    Bookmark(String),
    /// What was after the version asked for is forgotten: list again.
    Expired,
}

/// A watch under way.
pub(super) struct Watch {
    body: Body,
    line: BytesMut,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    object: serde_json::Value,
}

impl Api {
    /// A client of the API that `access` leads to. Blocks for reading the system's authorities.
    pub(super) fn new(access: &Access) -> Result<Self, Problem> {
        install();
        let wrong = |what: &str| Problem::Setup {
            detail: format!("the kubeconfig's {what} cannot be used"),
        };
        let builder = Client::builder().no_proxy();
        let builder = proxy::from_environment()?
            .into_iter()
            .fold(builder, reqwest::ClientBuilder::proxy);
        let mut builder = builder
            .user_agent(RegistryConfig::default().user_agent)
            .redirect(redirect::Policy::none())
            .connect_timeout(PATIENCE)
            .tcp_keepalive(PATIENCE)
            .tls_danger_accept_invalid_certs(access.skip_verify);
        if let Some(pem) = &access.authorities {
            let bundle = Certificate::from_pem_bundle(pem).map_err(|_| wrong("authority"))?;
            builder = builder.tls_certs_only(bundle);
        }
        if let Some(pem) = &access.identity {
            let identity = Identity::from_pem(pem).map_err(|_| wrong("client certificate"))?;
            builder = builder.identity(identity);
        }
        let client = builder.build().map_err(|error| Problem::Setup {
            detail: root_cause(&error),
        })?;
        Ok(Self {
            client,
            server: access.server.clone(),
            authorization: authorization(&access.login).map_err(|()| wrong("login"))?,
        })
    }

    /// Gives all image pull secrets of all namespaces to `take`, one after another. Answers from which version on to
    /// watch.
    pub(super) async fn list(&self, mut take: impl FnMut(&Secret)) -> Result<String, Problem> {
        let mut next = String::new();
        for _ in 0..MAX_PAGES {
            let query = match next.as_str() {
                "" => format!("{SELECTOR}&limit={PAGE}"),
                next => format!("{SELECTOR}&limit={PAGE}&continue={}", encoded(next)),
            };
            let body = self.get(&query, PATIENCE).await?.read_all(MAX_PAGE).await?;
            let page: Page = serde_json::from_slice(&body).map_err(|_| malformed())?;
            page.items.iter().for_each(&mut take);
            next = page.metadata.next;
            if next.is_empty() {
                return Ok(page.metadata.resource_version);
            }
        }
        Err(malformed())
    }

    /// What happens to them after `version`.
    pub(super) async fn watch(&self, version: &str) -> Result<Watch, Problem> {
        let query = format!(
            "{SELECTOR}&watch=true&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion={}",
            WATCH.as_secs(),
            encoded(version)
        );
        Ok(Watch {
            body: self.get(&query, SILENCE).await?,
            line: BytesMut::new(),
        })
    }

    async fn get(&self, query: &str, stall: Duration) -> Result<Body, Problem> {
        let mut url = self.server.clone();
        let path = format!("{}/api/v1/secrets", url.path().trim_end_matches('/'));
        url.set_path(&path);
        url.set_query(Some(query));
        let mut request = self.client.get(url);
        if let Some(header) = &self.authorization {
            request = request.header(AUTHORIZATION, header.clone());
        }
        let sent = tokio::time::timeout(PATIENCE, request.send()).await;
        let response = sent
            .map_err(|_| Problem::Timeout {
                awaited: "answer",
                limit: PATIENCE,
            })?
            .map_err(|error| send_error(&error))?;
        match response.status().as_u16() {
            200 => Ok(Body::new(response, stall)),
            status @ (401 | 403) => Err(Problem::Denied {
                status,
                detail: Default::default(),
                hint: "the user of the kubeconfig must be allowed to list and watch secrets of all namespaces",
            }),
            status => Err(Problem::Status {
                status,
                detail: Default::default(),
                retry_after: None,
            }),
        }
    }
}

impl Watch {
    /// The next event; `None` when the server has ended the watch.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, Problem> {
        loop {
            if let Some(end) = self.line.iter().position(|&byte| byte == b'\n') {
                let line = self.line.split_to(end);
                self.line.advance(1);
                if line.is_empty() {
                    continue;
                }
                if let Some(event) = event(&line)? {
                    return Ok(Some(event));
                }
                continue;
            }
            match self.body.chunk().await? {
                Some(chunk) if self.line.len() + chunk.len() > MAX_LINE => {
                    return Err(Problem::TooLarge {
                        limit: MAX_LINE as u64,
                    });
                }
                Some(chunk) => self.line.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }
}

/// `None` for what means nothing here.
fn event(line: &[u8]) -> Result<Option<Event>, Problem> {
    #[derive(Deserialize)]
    struct Marked {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Failure {
        #[serde(default)]
        code: u16,
    }
    let Line { kind, object } = serde_json::from_slice(line).map_err(|_| malformed())?;
    let secret = |object| serde_json::from_value(object).map_err(|_| malformed());
    Ok(match kind.as_str() {
        "ADDED" | "MODIFIED" => Some(Event::Put(secret(object)?)),
        "DELETED" => Some(Event::Gone(secret(object)?)),
        "BOOKMARK" => {
            let marked: Marked = serde_json::from_value(object).map_err(|_| malformed())?;
            Some(Event::Bookmark(marked.metadata.resource_version))
        }
        "ERROR" => match serde_json::from_value(object) {
            Ok(Failure { code: 410 }) => Some(Event::Expired),
            Ok(Failure { code }) => {
                return Err(Problem::Status {
                    status: code,
                    detail: Default::default(),
                    retry_after: None,
                });
            }
            Err(_) => return Err(malformed()),
        },
        _ => None,
    })
}

fn authorization(login: &Login) -> Result<Option<HeaderValue>, ()> {
    use base64::Engine as _;
    let text = match login {
        Login::None => return Ok(None),
        Login::Token(token) => format!("Bearer {token}"),
        Login::Password(user, password) => {
            let both = format!("{user}:{password}");
            format!(
                "Basic {}",
                base64::engine::general_purpose::STANDARD.encode(both)
            )
        }
    };
    let mut value = HeaderValue::from_str(&text).map_err(|_| ())?;
    // HTTP libraries write headers to the log at their lowest level.
    value.set_sensitive(true);
    Ok(Some(value))
}

fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

fn malformed() -> Problem {
    Problem::malformed("an answer is not that of a Kubernetes API")
}

/// For [`crate::hostile`]: some page and some line of a watch.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(page: &[u8], line: &[u8]) {
    let _ = serde_json::from_slice::<Page>(page);
    let _ = event(line);
}

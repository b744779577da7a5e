//! Authorization: anonymous, Basic, and Bearer tokens from a token server.
//!
//! One grant per host and scope is shared by all requests, renewed before it ends and when a registry
//! does not accept it any more. What a host once challenged with is remembered, so that the first
//! request to another of its repositories carries a token already.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lru::LruCache;
use parking_lot::Mutex;
use reqwest::header::{HeaderMap, HeaderValue};

use super::config::HttpConfig;
use super::credentials::{CredentialProvider, CredentialQuery, Credentials};
use super::error::Problem;
use super::flight::Flights;
use super::hosts::Endpoint;

mod challenge;
mod token;

#[cfg(any(test, fuzzing))]
pub(crate) use {challenge::probe, token::probe as probe_token};

use challenge::Challenge;
use token::TokenRequest;

const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// After this long credentials are asked of their source again.
const BASIC_LIFETIME: Duration = Duration::from_secs(15 * 60);

/// What a request wants to do in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Scope {
    pub(crate) repository: String,
    pub(crate) push: bool,
}

impl Scope {
    /// As a token server reads it.
    fn text(&self) -> String {
        let actions = if self.push { "pull,push" } else { "pull" };
        format!("repository:{}:{actions}", self.repository)
    }
}

/// Knows what to put into `Authorization`.
#[derive(Debug, Clone)]
pub(crate) struct Authorizer {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    http: HttpConfig,
    providers: Vec<Arc<dyn CredentialProvider>>,
    challenges: Mutex<LruCache<String, Challenge>>,
    grants: Mutex<LruCache<GrantKey, Grant>>,
    flights: Flights<GrantKey, Result<Option<HeaderValue>, Problem>>,
}

type GrantKey = (String, Scope);

#[derive(Debug, Clone)]
struct Grant {
    header: HeaderValue,
    expires: Instant,
}

impl Authorizer {
    pub(crate) fn new(http: HttpConfig, providers: Vec<Arc<dyn CredentialProvider>>) -> Self {
        Self {
            state: Arc::new(State {
                http,
                providers,
                challenges: Mutex::new(LruCache::new(REMEMBERED)),
                grants: Mutex::new(LruCache::new(REMEMBERED)),
                flights: Flights::new(),
            }),
        }
    }

    /// The header to begin with; `None` while the host has not asked for one.
    pub(crate) async fn header(
        &self,
        endpoint: &Arc<Endpoint>,
        scope: &Scope,
    ) -> Result<Option<HeaderValue>, Problem> {
        let challenge = self.state.challenges.lock().get(endpoint.key()).cloned();
        match challenge {
            Some(challenge) => self.grant(endpoint, scope, challenge, None).await,
            None => Ok(None),
        }
    }

    /// Another header after a 401 or 403 to a request with `refused`; `None` if there is nothing
    /// else to show.
    pub(crate) async fn renewed(
        &self,
        endpoint: &Arc<Endpoint>,
        scope: &Scope,
        answer: &HeaderMap,
        refused: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Problem> {
        let remembered = || self.state.challenges.lock().get(endpoint.key()).cloned();
        let Some(challenge) = Challenge::from_headers(answer).or_else(remembered) else {
            return Ok(None);
        };
        let kept = (endpoint.key().to_owned(), challenge.clone());
        self.state.challenges.lock().put(kept.0, kept.1);
        let header = self
            .grant(endpoint, scope, challenge, refused.cloned())
            .await?;
        Ok(header.filter(|header| Some(header) != refused))
    }

    async fn grant(
        &self,
        endpoint: &Arc<Endpoint>,
        scope: &Scope,
        challenge: Challenge,
        refused: Option<HeaderValue>,
    ) -> Result<Option<HeaderValue>, Problem> {
        let key = (endpoint.key().to_owned(), scope.clone());
        if let Some(header) = self.state.valid(&key, refused.as_ref()) {
            return Ok(Some(header));
        }
        let (state, endpoint) = (self.state.clone(), endpoint.clone());
        let start = || {
            let key = key.clone();
            async move {
                let grant = state.obtain(&endpoint, &key.1, &challenge).await?;
                let header = grant.as_ref().map(|grant| grant.header.clone());
                if let Some(grant) = grant {
                    state.grants.lock().put(key, grant);
                }
                Ok(header)
            }
        };
        self.state.flights.join(key.clone(), start).await
    }
}

impl State {
    fn valid(&self, key: &GrantKey, refused: Option<&HeaderValue>) -> Option<HeaderValue> {
        let mut grants = self.grants.lock();
        let grant = grants.get(key)?;
        (grant.expires > Instant::now() && Some(&grant.header) != refused)
            .then(|| grant.header.clone())
    }

    async fn obtain(
        &self,
        endpoint: &Endpoint,
        scope: &Scope,
        challenge: &Challenge,
    ) -> Result<Option<Grant>, Problem> {
        let credentials = self.credentials(endpoint, scope).await;
        match challenge {
            Challenge::Basic => Ok(credentials.as_ref().and_then(basic).map(|header| Grant {
                header,
                expires: Instant::now() + BASIC_LIFETIME,
            })),
            Challenge::Bearer {
                realm,
                service,
                scope: asked,
            } => {
                let request = TokenRequest {
                    realm,
                    service: service.as_deref(),
                    scopes: challenge::merged_scopes(scope, asked.as_deref()),
                    credentials: credentials.as_ref(),
                    encrypted_only: endpoint.is_encrypted(),
                };
                let token = request.send(&endpoint.client, &self.http).await?;
                Ok(Some(Grant {
                    header: token.header,
                    expires: Instant::now() + token.lifetime,
                }))
            }
        }
    }

    /// A source that fails is reported and passed over: the repository may be public.
    async fn credentials(&self, endpoint: &Endpoint, scope: &Scope) -> Option<Credentials> {
        for provider in &self.providers {
            let query = CredentialQuery {
                host: &endpoint.name,
                repository: &scope.repository,
                mirror: endpoint.is_mirror(),
            };
            match provider.credentials(query).await {
                Ok(Some(credentials)) => return Some(credentials),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(host = endpoint.name, %error, "credentials unavailable, going on without them");
                }
            }
        }
        None
    }
}

/// `Basic` for a user and password; identity tokens need a token server.
fn basic(credentials: &Credentials) -> Option<HeaderValue> {
    match credentials {
        Credentials::Password { user, password } => secret(&format!(
            "Basic {}",
            STANDARD.encode(format!("{user}:{password}"))
        )),
        Credentials::IdentityToken(_) => None,
    }
}

fn secret(text: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(text).ok()?;
    header.set_sensitive(true);
    Some(header)
}

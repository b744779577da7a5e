//! The exchange with a token server.
//!
//! Passwords go by `GET` with Basic, identity tokens by OAuth2 `POST`
//! (distribution's token and OAuth2 specifications).

use std::fmt;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{RequestBuilder, Response};
use serde::Deserialize;
use url::{Url, form_urlencoded};

use super::super::body::Body;
use super::super::config::HttpConfig;
use super::super::error::Problem;
use super::super::transport::send_error;
use super::{Credentials, basic, secret};

const MAX_ANSWER: u64 = 1 << 20;
/// By the specification, when the server does not say.
const DEFAULT_LIFETIME: u64 = 60;
const MAX_LIFETIME: u64 = 24 * 3600;
const CLIENT_ID: &str = "soci-snapshotter";

/// What a token server is asked.
#[derive(Debug)]
pub(super) struct TokenRequest<'a> {
    pub(super) realm: &'a Url,
    pub(super) service: Option<&'a str>,
    pub(super) scopes: Vec<String>,
    pub(super) credentials: Option<&'a Credentials>,
    /// The registry is spoken to over TLS: credentials must not travel with less.
    pub(super) encrypted_only: bool,
}

/// A token and for how long to use it.
pub(super) struct Token {
    pub(super) header: HeaderValue,
    pub(super) lifetime: Duration,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl TokenRequest<'_> {
    pub(super) async fn send(
        &self,
        client: &reqwest::Client,
        http: &HttpConfig,
    ) -> Result<Token, Problem> {
        if self.encrypted_only && self.credentials.is_some() && self.realm.scheme() != "https" {
            return Err(self.failure(
                "it is not encrypted but the registry is: credentials withheld",
                false,
            ));
        }
        let limit = http.dial_timeout + http.response_header_timeout;
        let sent = tokio::time::timeout(limit, self.build(client)?.send()).await;
        let response = sent
            .map_err(|_| self.failure("no answer in time", true))?
            .map_err(|error| self.failure(&send_error(&error).to_string(), true))?;
        self.read(response, http).await
    }

    fn build(&self, client: &reqwest::Client) -> Result<RequestBuilder, Problem> {
        if let Some(Credentials::IdentityToken(refresh)) = self.credentials {
            let mut form = form_urlencoded::Serializer::new(String::new());
            form.append_pair("grant_type", "refresh_token")
                .append_pair("client_id", CLIENT_ID)
                .append_pair("scope", &self.scopes.join(" "))
                .append_pair("refresh_token", refresh);
            if let Some(service) = self.service {
                form.append_pair("service", service);
            }
            let request = client.post(self.realm.clone()).body(form.finish());
            return Ok(request.header(CONTENT_TYPE, "application/x-www-form-urlencoded"));
        }
        let mut url = self.realm.clone();
        if let Some(service) = self.service {
            url.query_pairs_mut().append_pair("service", service);
        }
        for scope in &self.scopes {
            url.query_pairs_mut().append_pair("scope", scope);
        }
        let request = client.get(url);
        match self.credentials {
            Some(credentials) => {
                let header = basic(credentials)
                    .ok_or_else(|| self.failure("the credentials are malformed", false))?;
                Ok(request.header(AUTHORIZATION, header))
            }
            None => Ok(request),
        }
    }

    async fn read(&self, response: Response, http: &HttpConfig) -> Result<Token, Problem> {
        let status = response.status();
        if !status.is_success() {
            let transient = status.is_server_error() || status.as_u16() == 429;
            return Err(self.failure(&format!("status {}", status.as_u16()), transient));
        }
        let bytes = Body::new(response, http.stall_timeout)
            .read_all(MAX_ANSWER)
            .await
            .map_err(|problem| self.failure(&problem.to_string(), true))?;
        self.parse(&bytes)
    }

    fn parse(&self, bytes: &[u8]) -> Result<Token, Problem> {
        let answer: Answer = serde_json::from_slice(bytes)
            .map_err(|_| self.failure("its answer is no token", false))?;
        let token = answer
            .token
            .filter(|token| !token.is_empty())
            .or(answer.access_token);
        let header = token.and_then(|token| secret(&format!("Bearer {token}")));
        let seconds = answer
            .expires_in
            .unwrap_or(DEFAULT_LIFETIME)
            .min(MAX_LIFETIME);
        Ok(Token {
            header: header
                .ok_or_else(|| self.failure("its answer holds no usable token", false))?,
            lifetime: Duration::from_secs(seconds) * 9 / 10,
        })
    }

    fn failure(&self, detail: &str, transient: bool) -> Problem {
        Problem::Token {
            server: self.realm.host_str().unwrap_or_default().to_owned(),
            detail: detail.to_owned(),
            transient,
        }
    }
}

/// For [`crate::hostile`]: some answer.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(bytes: &[u8]) {
    let Ok(realm) = Url::parse("https://token.test/") else {
        return;
    };
    let request = TokenRequest {
        realm: &realm,
        service: None,
        scopes: Vec::new(),
        credentials: None,
        encrypted_only: true,
    };
    match request.parse(bytes) {
        Ok(token) => {
            assert!(token.lifetime <= Duration::from_secs(MAX_LIFETIME));
            assert!(token.header.is_sensitive());
        }
        // What may be secret is not in the message.
        Err(problem) => assert!(problem.to_string().len() < 200),
    }
}

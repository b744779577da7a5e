//! `$DOCKER_CONFIG/config.json` with its credential helpers.
//!
//! Read by hand: the published reader runs helpers with no time limit on the calling thread,
//! and matches keys by their exact text only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;

use super::{CredentialError, CredentialProvider, CredentialQuery, Credentials, exec};

/// Docker Hub's key, which is a URL of its first API.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
const MAX_FILE: u64 = 4 << 20;
const HELPER_PATIENCE: Duration = Duration::from_secs(20);
/// User name by which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// Docker's client configuration; read anew each time, since `docker login` may change it.
#[derive(Debug, Clone)]
pub struct DockerConfig {
    path: PathBuf,
    /// Where helpers are; `None` is the search path.
    helpers: Option<PathBuf>,
}

impl DockerConfig {
    /// The file at `path`.
    pub fn at(path: PathBuf) -> Self {
        Self {
            path,
            helpers: None,
        }
    }

    /// Looks for credential helpers in `dir` instead of along `PATH`.
    #[must_use]
    pub fn helpers_in(self, dir: &Path) -> Self {
        Self {
            helpers: Some(dir.to_owned()),
            ..self
        }
    }

    /// `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`; `None` without either variable.
    pub fn from_env() -> Option<Self> {
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
        let dir = std::env::var_os("DOCKER_CONFIG")
            .map(PathBuf::from)
            .or_else(home)?;
        Some(Self::at(dir.join("config.json")))
    }

    async fn read(&self) -> Result<Option<File>, CredentialError> {
        let file = match tokio::fs::File::open(&self.path).await {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.error(error.to_string())),
        };
        let mut bytes = Vec::new();
        let read = file.take(MAX_FILE).read_to_end(&mut bytes).await;
        read.map_err(|error| self.error(error.to_string()))?;
        // serde's texts may quote the file, which holds secrets.
        let parsed = serde_json::from_slice(&bytes).map_err(|error| {
            self.error(format!(
                "not a docker configuration (line {})",
                error.line()
            ))
        })?;
        Ok(Some(parsed))
    }

    fn error(&self, detail: String) -> CredentialError {
        CredentialError {
            source_name: self.path.display().to_string(),
            detail,
        }
    }
}

#[async_trait]
impl CredentialProvider for DockerConfig {
    async fn credentials(
        &self,
        query: CredentialQuery<'_>,
    ) -> Result<Option<Credentials>, CredentialError> {
        let Some(file) = self.read().await? else {
            return Ok(None);
        };
        let host = hostname(query.host);
        if let Some(helper) = file.helper(host) {
            return ask_helper(helper, self.helpers.as_deref(), server_key(host)).await;
        }
        match file.auth(host) {
            Some(auth) => auth
                .credentials()
                .map_err(|detail| self.error(format!("entry of {host}: {detail}"))),
            None => Ok(None),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

impl File {
    /// The host's own helper, else the general one.
    fn helper(&self, host: &str) -> Option<&str> {
        let own = self
            .cred_helpers
            .iter()
            .find(|(key, _)| hostname(key) == host);
        let general = Some(&self.creds_store).filter(|name| !name.is_empty());
        own.map(|(_, helper)| helper)
            .or(general)
            .map(String::as_str)
    }

    fn auth(&self, host: &str) -> Option<&Auth> {
        self.auths
            .iter()
            .find(|(key, _)| hostname(key) == host)
            .map(|(_, auth)| auth)
    }
}

/// The keys of a configuration, hosts with or without more, and what is to be shown there. Entries that are not what they
/// should be are left out, as is all of a text that is no configuration.
pub(super) fn logins(bytes: &[u8]) -> Vec<(String, Credentials)> {
    let file = serde_json::from_slice::<File>(bytes).ok();
    let entries = file.into_iter().flat_map(|file| file.auths);
    entries
        .filter_map(|(key, auth)| Some((key, auth.credentials().ok()??)))
        .collect()
}

/// For [`crate::hostile`]: some file, asked for some host.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(bytes: &[u8], host: &str) {
    if let Ok(file) = serde_json::from_slice::<File>(bytes) {
        let host = hostname(host);
        let _ = file.helper(host).map(|_| server_key(host));
        let _ = file.auth(host).map(Auth::credentials);
    }
}

impl Auth {
    fn credentials(&self) -> Result<Option<Credentials>, &'static str> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials::IdentityToken(self.identitytoken.clone())));
        }
        if !self.auth.is_empty() {
            return decode(&self.auth)
                .map(Some)
                .ok_or("its \"auth\" is not base64 of user:password");
        }
        Ok((!self.username.is_empty()).then(|| Credentials::Password {
            user: self.username.clone(),
            password: self.password.clone(),
        }))
    }
}

fn decode(auth: &str) -> Option<Credentials> {
    let padding =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let bytes = GeneralPurpose::new(&alphabet::STANDARD, padding)
        .decode(auth.trim())
        .ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Credentials::Password {
        user: user.to_owned(),
        // docker once padded with zeros
        password: password.trim_end_matches('\0').to_owned(),
    })
}

/// The host of a key: keys are hosts or URLs, and Docker Hub has several.
pub(super) fn hostname(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    match rest.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// What helpers know `host` by.
fn server_key(host: &str) -> &str {
    if host == "docker.io" {
        DOCKER_HUB_KEY
    } else {
        host
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Runs `docker-credential-<helper> get`.
async fn ask_helper(
    helper: &str,
    dir: Option<&Path>,
    server: &str,
) -> Result<Option<Credentials>, CredentialError> {
    let program = format!("docker-credential-{helper}");
    let error = |detail: String| CredentialError {
        source_name: program.clone(),
        detail,
    };
    if Path::new(&program).components().count() != 1 {
        return Err(error(String::from("not the name of a helper")));
    }
    let path = dir.map_or_else(|| PathBuf::from(&program), |dir| dir.join(&program));
    let arguments = [String::from("get")];
    let answered = exec::ask(&path, &arguments, &[], server.as_bytes(), HELPER_PATIENCE).await;
    let exec::Answer { success, output } = answered.map_err(error)?;
    if !success {
        // The protocol's way to say that it knows nothing of this server.
        return if output.starts_with(b"credentials not found") {
            Ok(None)
        } else {
            Err(error(String::from("failed; run it by hand to see why")))
        };
    }
    let answer: HelperAnswer = serde_json::from_slice(&output)
        .map_err(|_| error(String::from("its answer is not in the protocol")))?;
    Ok(answer.into_credentials())
}

impl HelperAnswer {
    fn into_credentials(self) -> Option<Credentials> {
        if self.secret.is_empty() {
            None
        } else if self.username == TOKEN_USER {
            Some(Credentials::IdentityToken(self.secret))
        } else {
            Some(Credentials::Password {
                user: self.username,
                password: self.secret,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    async fn look_up(config: &str, host: &str) -> Result<Option<Credentials>, CredentialError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, config).unwrap();
        let query = CredentialQuery {
            host,
            repository: "a",
            mirror: false,
        };
        DockerConfig::at(path).credentials(query).await
    }

    fn password(user: &str, password: &str) -> Credentials {
        Credentials::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        }
    }

    #[tokio::test]
    async fn entries_are_found_by_host_whatever_the_form_of_their_key() {
        let config = r#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"aHViOnB3"},
            "https://reg.example:5000/v2/":{"username":"u","password":"p"},
            "id.example":{"identitytoken":"tok","auth":"PHRva2VuPjo="}}}"#;
        assert_eq!(
            look_up(config, "docker.io").await.unwrap(),
            Some(password("hub", "pw"))
        );
        assert_eq!(
            look_up(config, "reg.example:5000").await.unwrap(),
            Some(password("u", "p"))
        );
        let token = Credentials::IdentityToken("tok".to_owned());
        assert_eq!(look_up(config, "id.example").await.unwrap(), Some(token));
        assert_eq!(look_up(config, "reg.example").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_broken_file_is_an_error_that_quotes_nothing_of_it() {
        let error = look_up(r#"{"auths":{"h":{"auth":"hunter2secret"#, "h")
            .await
            .unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
        let error = look_up(r#"{"auths":{"h":{"auth":"hunter2!secret"}}}"#, "h")
            .await
            .unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[tokio::test]
    async fn a_helper_that_is_not_there_is_named() {
        let config = r#"{"credHelpers":{"h.example":"surely-not-installed"}}"#;
        let error = look_up(config, "h.example").await.unwrap_err();
        assert!(
            error
                .to_string()
                .contains("docker-credential-surely-not-installed"),
            "{error}"
        );
        let error = look_up(r#"{"credsStore":"../../bin/sh"}"#, "h")
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains("not the name of a helper"),
            "{error}"
        );
    }
}

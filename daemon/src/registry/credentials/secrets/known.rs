//! The logins of a cluster's image pull secrets.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::registry::credentials::docker_config;
use crate::registry::credentials::image_pattern::ImagePattern;
use crate::registry::credentials::{CredentialQuery, Credentials};

/// Most bytes of logins kept, of all secrets together: some hundred thousand logins.
const MOST: usize = 16 << 20;
/// What a login takes beside its texts, in bytes.
const OVERHEAD: usize = 100;

/// Namespace and name.
pub(super) type SecretName = (String, String);

/// A secret as the API tells it.
#[derive(Deserialize)]
pub(super) struct Secret {
    pub(super) metadata: Metadata,
    #[serde(default)]
    data: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    pub(super) resource_version: String,
}

/// What is known of all secrets. In order, so that the choice between several does not change from start to start.
#[derive(Default)]
pub(super) struct Known {
    secrets: BTreeMap<SecretName, Vec<Login>>,
    /// What all of them take.
    bytes: usize,
}

struct Login {
    /// `host[:port][/path]`, with `*` in the host's parts.
    pattern: String,
    credentials: Credentials,
}

impl Secret {
    pub(super) fn name(&self) -> SecretName {
        let Metadata {
            name, namespace, ..
        } = &self.metadata;
        (namespace.clone(), name.clone())
    }

    /// None if it is not what its type says: others may be, and the kubelet passes over those as well.
    fn logins(&self) -> Vec<Login> {
        let text = self
            .data
            .as_ref()
            .and_then(|data| data.get(".dockerconfigjson"));
        let bytes = text.and_then(|text| STANDARD.decode(text.trim()).ok());
        let logins = bytes.map(|bytes| docker_config::logins(&bytes));
        let login = |(key, credentials): (String, Credentials)| Login {
            pattern: pattern(&key),
            credentials,
        };
        logins.into_iter().flatten().map(login).collect()
    }
}

impl Known {
    /// Takes over a secret as it is now. `false` if there is no room for it.
    pub(super) fn put(&mut self, secret: &Secret) -> bool {
        self.remove(&secret.name());
        let logins = secret.logins();
        let bytes = size(&logins);
        if self.bytes + bytes > MOST {
            return false;
        }
        if !logins.is_empty() {
            self.bytes += bytes;
            self.secrets.insert(secret.name(), logins);
        }
        true
    }

    pub(super) fn remove(&mut self, name: &SecretName) {
        let removed = self.secrets.remove(name);
        self.bytes -= removed.map_or(0, |logins| size(&logins));
    }

    /// How many secrets there are.
    pub(super) fn len(&self) -> usize {
        self.secrets.len()
    }

    /// Those of the longest key that matches, of the first secret by namespace and name.
    pub(super) fn find(&self, query: CredentialQuery<'_>) -> Option<Credentials> {
        let image = format!("{}/{}", query.host, query.repository);
        let mut found: Option<&Login> = None;
        for login in self.secrets.values().flatten() {
            let longer = found.is_none_or(|found| login.pattern.len() > found.pattern.len());
            if longer && ImagePattern::new(&login.pattern).matches(&image) {
                found = Some(login);
            }
        }
        found.map(|login| login.credentials.clone())
    }
}

fn size(logins: &[Login]) -> usize {
    let size = |login: &Login| {
        let secret = match &login.credentials {
            Credentials::Password { user, password } => user.len() + password.len(),
            Credentials::IdentityToken(token) => token.len(),
        };
        login.pattern.len() + secret + OVERHEAD
    };
    logins.iter().map(size).sum()
}

/// The pattern that a key of `auths` is. Keys may be URLs of a registry's API, and Docker Hub has several.
fn pattern(key: &str) -> String {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let path = path.trim_end_matches('/');
    let path = match path {
        "v1" | "v2" => "",
        path => path
            .strip_prefix("v1/")
            .or_else(|| path.strip_prefix("v2/"))
            .unwrap_or(path),
    };
    let host = docker_config::hostname(host);
    match path {
        "" => host.to_owned(),
        path => format!("{host}/{path}"),
    }
}

/// For [`crate::hostile`]: some secret, asked for some image.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(host: &str, repository: &str, bytes: &[u8]) {
    let mut known = Known::default();
    if let Ok(secret) = serde_json::from_slice::<Secret>(bytes) {
        known.put(&secret);
        let _ = known.find(CredentialQuery {
            host,
            repository,
            mirror: false,
        });
        known.remove(&secret.name());
        assert_eq!((known.len(), known.bytes), (0, 0));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn secret(namespace: &str, name: &str, auths: &serde_json::Value) -> Secret {
        let config = STANDARD.encode(json!({ "auths": auths }).to_string());
        let secret = json!({
            "metadata": {"name": name, "namespace": namespace},
            "data": {".dockerconfigjson": config},
        });
        serde_json::from_value(secret).unwrap()
    }

    fn user(known: &Known, host: &str, repository: &str) -> Option<String> {
        let found = known.find(CredentialQuery {
            host,
            repository,
            mirror: false,
        });
        found.map(|credentials| match credentials {
            Credentials::Password { user, .. } => user,
            Credentials::IdentityToken(token) => token,
        })
    }

    #[test]
    fn the_longest_key_that_matches_the_image_wins() {
        let mut known = Known::default();
        let login = |user: &str| json!({"username": user, "password": "p"});
        let auths = json!({
            "https://reg.example/v2/": login("general"),
            "reg.example/team": login("team"),
            "*.wild.example:5000": login("wild"),
            "https://index.docker.io/v1/": login("hub"),
        });
        assert!(known.put(&secret("b", "one", &auths)));
        for (host, repository, expected) in [
            ("reg.example", "other/app", Some("general")),
            ("reg.example", "team/app", Some("team")),
            ("reg.example:5000", "team/app", None),
            ("a.wild.example:5000", "x", Some("wild")),
            ("docker.io", "library/alpine", Some("hub")),
            ("elsewhere", "x", None),
        ] {
            assert_eq!(
                user(&known, host, repository).as_deref(),
                expected,
                "{host}/{repository}"
            );
        }
    }

    #[test]
    fn secrets_change_and_go_and_the_first_by_name_wins_among_equals() {
        let mut known = Known::default();
        let auths = |user: &str| json!({"reg.example": {"username": user, "password": "p"}});
        known.put(&secret("b", "x", &auths("late")));
        known.put(&secret("a", "x", &auths("early")));
        assert_eq!(user(&known, "reg.example", "i").as_deref(), Some("early"));
        known.put(&secret("a", "x", &auths("changed")));
        assert_eq!(user(&known, "reg.example", "i").as_deref(), Some("changed"));
        known.put(&secret("a", "x", &json!({})));
        assert_eq!(user(&known, "reg.example", "i").as_deref(), Some("late"));
        known.remove(&("b".to_owned(), "x".to_owned()));
        assert_eq!((known.len(), known.bytes), (0, 0));
    }

    #[test]
    fn what_is_no_docker_configuration_is_passed_over() {
        let mut known = Known::default();
        for data in [json!(null), json!({}), json!({".dockerconfigjson": "!"})] {
            let secret = json!({"metadata": {"name": "n"}, "data": data});
            assert!(known.put(&serde_json::from_value(secret).unwrap()));
        }
        assert_eq!(known.len(), 0);
    }

    #[test]
    fn there_is_a_limit_to_what_is_kept() {
        let mut known = Known::default();
        let login = |length| json!({"h": {"username": "u", "password": "p".repeat(length)}});
        let room = MOST - OVERHEAD - 2;
        assert!(!known.put(&secret("a", "too much", &login(room + 1))));
        assert!(known.put(&secret("a", "most", &login(room))));
        assert!(!known.put(&secret("a", "one more", &login(0))));
        assert!(known.put(&secret("a", "most", &login(1))));
        assert_eq!((known.len(), known.bytes), (1, OVERHEAD + 3));
    }
}

//! `WWW-Authenticate` as registries use it.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use url::Url;

use super::Scope;

/// Longest header looked at, in bytes.
const MAX_LENGTH: usize = 8 << 10;

/// How a registry wants to be convinced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token from the server at `realm`.
    Bearer {
        realm: Url,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// The best of an answer's challenges: Bearer before Basic; `None` if there is none we know.
    pub(super) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let texts = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok());
        let challenges: Vec<_> = texts
            .filter(|text| text.len() <= MAX_LENGTH)
            .flat_map(read)
            .collect();
        let bearer = challenges
            .iter()
            .find(|challenge| **challenge != Self::Basic);
        bearer.or_else(|| challenges.first()).cloned()
    }
}

fn read(text: &str) -> Vec<Challenge> {
    let challenges = http_auth::parse_challenges(text).unwrap_or_default();
    challenges.iter().filter_map(known).collect()
}

fn known(challenge: &http_auth::ChallengeRef<'_>) -> Option<Challenge> {
    if challenge.scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !challenge.scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let parameter = |name: &str| {
        let found = challenge
            .params
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found
            .map(|(_, value)| value.to_unescaped())
            .filter(|value| !value.is_empty())
    };
    let realm = Url::parse(&parameter("realm")?).ok()?;
    matches!(realm.scheme(), "http" | "https").then(|| Challenge::Bearer {
        realm,
        service: parameter("service"),
        scope: parameter("scope"),
    })
}

/// Our scope, and the registry's if it is about something else (a plugin, another repository).
pub(super) fn merged_scopes(ours: &Scope, asked: Option<&str>) -> Vec<String> {
    let mut scopes = vec![ours.text()];
    let same = format!("repository:{}:", ours.repository);
    let others = asked
        .unwrap_or_default()
        .split(' ')
        .filter(|scope| !scope.is_empty());
    scopes.extend(
        others
            .filter(|scope| !scope.starts_with(&same))
            .map(str::to_owned),
    );
    scopes
}

/// For [`crate::hostile`]: some header.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(header: &str) {
    let mut headers = HeaderMap::new();
    if let Ok(value) = header.parse() {
        headers.append(WWW_AUTHENTICATE, value);
    }
    if let Some(Challenge::Bearer { realm, scope, .. }) = Challenge::from_headers(&headers) {
        assert!(matches!(realm.scheme(), "http" | "https"));
        assert!(scope.is_none_or(|scope| scope.len() <= MAX_LENGTH));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn challenge(texts: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for text in texts {
            headers.append(WWW_AUTHENTICATE, text.parse().unwrap());
        }
        Challenge::from_headers(&headers)
    }

    #[test]
    fn bearer_is_preferred_wherever_it_stands() {
        let bearer = Challenge::Bearer {
            realm: Url::parse("https://auth.example/token").unwrap(),
            service: Some("reg".to_owned()),
            scope: Some("repository:a/b:pull".to_owned()),
        };
        let text = r#"Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull""#;
        assert_eq!(
            challenge(&["Basic realm=\"x\"", text]),
            Some(bearer.clone())
        );
        assert_eq!(
            challenge(&[&format!("{text}, Basic realm=x")]),
            Some(bearer)
        );
        assert_eq!(challenge(&["basic realm=x"]), Some(Challenge::Basic));
    }

    #[test]
    fn challenges_that_cannot_be_met_are_none() {
        for text in [
            "Bearer",
            "Bearer realm=\"file:///etc/passwd\"",
            "Negotiate",
            "\"",
            "Bearer realm=\"not a url\"",
        ] {
            assert_eq!(challenge(&[text]), None, "{text}");
        }
    }
}

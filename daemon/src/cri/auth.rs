//! `AuthConfig` of a pull request.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proto::runtime::v1::AuthConfig;

use crate::registry::{Credentials, Reference};

/// What `auth` says for `image`; `None` if that is nothing, or for another host.
pub(super) fn credentials(auth: &AuthConfig, image: &Reference) -> Option<Credentials> {
    if !auth.server_address.is_empty() && !is_host(&auth.server_address, image) {
        return None;
    }
    if !auth.identity_token.is_empty() {
        return Some(Credentials::IdentityToken(auth.identity_token.clone()));
    }
    if !auth.username.is_empty() {
        return Some(Credentials::Password {
            user: auth.username.clone(),
            password: auth.password.clone(),
        });
    }
    let decoded = STANDARD.decode(auth.auth.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    // Docker pads with zeros.
    let (user, password) = text.trim_end_matches('\0').split_once(':')?;
    Some(Credentials::Password {
        user: user.to_owned(),
        password: password.to_owned(),
    })
}

/// Whether `address`, a host or a URL, is the registry of `image`.
fn is_host(address: &str, image: &Reference) -> bool {
    let host = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or_default();
    let hub = image.host() == "docker.io" && host == "index.docker.io";
    hub || host == image.host() || host == image.api_host()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn password(user: &str, password: &str) -> Option<Credentials> {
        Some(Credentials::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }

    #[test]
    fn each_form_is_read_and_only_for_its_host() {
        let image: Reference = "reg.example:5000/team/app:1".parse().unwrap();
        let named = AuthConfig {
            username: String::from("u"),
            password: String::from("p"),
            ..AuthConfig::default()
        };
        assert_eq!(credentials(&named, &image), password("u", "p"));
        let encoded = AuthConfig {
            auth: STANDARD.encode("u:p:q\0\0"),
            ..AuthConfig::default()
        };
        assert_eq!(credentials(&encoded, &image), password("u", "p:q"));
        let token = AuthConfig {
            identity_token: String::from("t"),
            ..named.clone()
        };
        assert_eq!(
            credentials(&token, &image),
            Some(Credentials::IdentityToken(String::from("t")))
        );
        for nothing in [
            "",
            "%%%",
            &STANDARD.encode("no colon"),
            &STANDARD.encode([0xff, b':']),
        ] {
            let auth = AuthConfig {
                auth: nothing.to_owned(),
                ..AuthConfig::default()
            };
            assert_eq!(credentials(&auth, &image), None);
        }
        for (address, its) in [
            ("https://reg.example:5000", true),
            ("reg.example:5000/v2/", true),
            ("reg.example", false),
            ("https://other.example", false),
        ] {
            let auth = AuthConfig {
                server_address: address.to_owned(),
                ..named.clone()
            };
            assert_eq!(credentials(&auth, &image).is_some(), its, "{address}");
        }
        let hub = AuthConfig {
            server_address: String::from("https://index.docker.io/v1/"),
            ..named
        };
        assert!(credentials(&hub, &"alpine".parse().unwrap()).is_some());
    }
}

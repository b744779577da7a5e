//! No password, token or signature is ever written down: neither in an error nor in a log line of
//! ours or of a library, at any level.
#![allow(missing_docs, clippy::unwrap_used)]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use daemon::registry::{
    DockerConfig, HttpConfig, Reference, Registry, RegistryConfig, Share, media_type,
};
use futures::TryStreamExt as _;
use integration::registry::{Auth, Fault, Match, ScriptedRegistry};

use self::logged::Log;

#[path = "logged/log.rs"]
mod logged;

const PASSWORD: &str = "hunter2pass";
/// In what the scripted registry gives out: storage signatures and tokens.
const SIGNATURE: &str = "signature=";
const TOKEN: &str = "token-";

/// Uses a registry in every way that involves a secret, and returns the errors there were.
async fn exercise(registry: &ScriptedRegistry, client: &Registry) -> String {
    let image: Reference = format!("{}/a:v1", registry.host()).parse().unwrap();
    let digest = registry.put_blob("a", vec![7; 1000]).parse().unwrap();
    registry.put_manifest("a", Some("v1"), media_type::OCI_MANIFEST, "{}");
    let blob = client.blob(&image, &digest, 1000);
    let mut errors = String::new();
    for fault in [
        None,
        Some(Fault::status(403)),
        Some(Fault::Reset),
        Some(Fault::Corrupt),
        Some(Fault::status(500)),
    ] {
        if let Some(fault) = fault {
            registry.script(Match::path("/").turns(0..6), fault);
        }
        for result in [
            client.resolve(&image).await.map(drop),
            blob.read(0..10).await.map(drop),
            client.fetch(&image, &digest, 1000).await.map(drop),
            in_ranges(client, &image, &digest).await,
            client.push_blob(&image, vec![8; 10].into()).await,
        ] {
            errors +=
                &result.map_or_else(|error| format!("{error} {error:?}\n"), |()| String::new());
        }
    }
    errors
}

/// A whole pull; its error is of the same kind.
async fn in_ranges(
    client: &Registry,
    image: &Reference,
    digest: &ztoc::Digest,
) -> Result<(), daemon::registry::RegistryError> {
    let share = Share {
        chunk: Some(300),
        permits: Vec::new(),
        ahead: Arc::new(2.into()),
    };
    let pulled = client.download_in_ranges(image, digest, Some(1000), share);
    let pulled: io::Result<Vec<_>> = pulled.try_collect().await;
    pulled.map(drop).map_err(|error| {
        let inner = error.into_inner().unwrap();
        *inner.downcast().unwrap()
    })
}

#[tokio::test]
async fn no_secret_is_in_any_error_or_log_line() {
    let log = Log::default();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(log.clone())
        .with_ansi(false)
        .init();
    let dir = tempfile::tempdir().unwrap();
    let mut errors = String::new();
    for (auth, user) in [
        (
            Auth::Basic {
                user: "u".to_owned(),
                password: PASSWORD.to_owned(),
            },
            "username",
        ),
        (
            Auth::Token {
                password: Some(("u".to_owned(), PASSWORD.to_owned())),
                expires_in: 60,
            },
            "username",
        ),
        (
            Auth::Token {
                password: Some(("u".to_owned(), PASSWORD.to_owned())),
                expires_in: 60,
            },
            "identity",
        ),
    ] {
        let registry = ScriptedRegistry::start().await.unwrap();
        registry.set_auth(auth);
        registry.redirect_blobs(2);
        let path = dir.path().join("config.json");
        let entry = match user {
            "identity" => format!(r#"{{"identitytoken":"{PASSWORD}"}}"#),
            _ => format!(r#"{{"username":"u","password":"{PASSWORD}"}}"#),
        };
        std::fs::write(
            &path,
            format!(r#"{{"auths":{{"{}":{entry}}}}}"#, registry.host()),
        )
        .unwrap();
        let client = Registry::new(RegistryConfig {
            credentials: vec![Arc::new(DockerConfig::at(path))],
            http: HttpConfig {
                max_retries: 1,
                min_wait: Duration::from_millis(1),
                ..HttpConfig::default()
            },
            ..RegistryConfig::default()
        })
        .unwrap();
        errors += &exercise(&registry, &client).await;
        errors += &format!("{client:?}");
    }
    let log = log.text();
    assert!(
        errors.contains("500") && log.contains("/blobs/"),
        "nothing was exercised"
    );
    // base64 of "u:hunter2pass", as in Authorization.
    for secret in [PASSWORD, "dTpodW50ZXIycGFzcw", SIGNATURE, TOKEN] {
        for (place, text) in [("an error", &errors), ("the log", &log)] {
            let found = text.lines().find(|line| line.contains(secret));
            assert!(found.is_none(), "{secret:?} in {place}: {found:?}");
        }
    }
}

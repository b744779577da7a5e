use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use daemon::registry::{
    CredentialProvider as _, CredentialQuery, DockerConfig, FixedCredentials, KubeletProviders,
    Problem, RegistryConfig, media_type,
};
use integration::registry::{Auth, ScriptedRegistry};

use super::{client, image, pattern, quick};

fn with_user(text: &str) -> RegistryConfig {
    RegistryConfig {
        credentials: vec![Arc::new(FixedCredentials::parse(text).unwrap())],
        ..quick()
    }
}

fn basic() -> Auth {
    Auth::Basic {
        user: "u".to_owned(),
        password: "p:w".to_owned(),
    }
}

fn token(password: Option<(&str, &str)>) -> Auth {
    Auth::Token {
        password: password.map(|(user, password)| (user.to_owned(), password.to_owned())),
        expires_in: 300,
    }
}

async fn with_manifest(auth: Auth) -> ScriptedRegistry {
    let registry = ScriptedRegistry::start().await.unwrap();
    for repository in ["a/b", "c"] {
        registry.put_manifest(repository, Some("v1"), media_type::OCI_MANIFEST, "{}");
    }
    registry.set_auth(auth);
    registry
}

#[tokio::test]
async fn basic_credentials_are_shown_when_asked_for_and_from_then_on() {
    let registry = with_manifest(basic()).await;
    let client = client(with_user("u:p:w"));
    for _ in 0..3 {
        client.resolve(&image(&registry, "a/b:v1")).await.unwrap();
    }
    assert_eq!(registry.requests().len(), 4);
}

#[tokio::test]
async fn one_token_per_scope_is_shared_and_other_repositories_need_no_second_challenge() {
    let registry = with_manifest(token(Some(("u", "pw")))).await;
    let client = client(with_user("u:pw"));
    let reference = image(&registry, "a/b:v1");
    client.resolve(&reference).await.unwrap();
    let reads = (0..8).map(|_| client.resolve(&reference));
    assert!(
        futures::future::join_all(reads)
            .await
            .iter()
            .all(Result::is_ok)
    );
    assert_eq!(registry.count("GET", "/token"), 1);
    client.resolve(&image(&registry, "c:v1")).await.unwrap();
    assert_eq!(registry.count("GET", "/token"), 2);
    assert_eq!(registry.count("GET", "/v2/c/"), 1);
}

#[tokio::test]
async fn those_who_are_challenged_together_get_one_token() {
    let registry = with_manifest(token(None)).await;
    let client = client(quick());
    let reference = image(&registry, "a/b:v1");
    let reads = (0..8).map(|_| client.resolve(&reference));
    assert!(
        futures::future::join_all(reads)
            .await
            .iter()
            .all(Result::is_ok)
    );
    assert_eq!(registry.count("GET", "/token"), 1);
}

#[tokio::test]
async fn a_token_that_is_revoked_or_has_run_out_is_renewed() {
    let registry = with_manifest(token(None)).await;
    let client = client(quick());
    let reference = image(&registry, "a/b:v1");
    client.resolve(&reference).await.unwrap();
    registry.revoke_tokens();
    client.resolve(&reference).await.unwrap();
    assert_eq!(registry.count("GET", "/token"), 2);

    registry.set_auth(Auth::Token {
        password: None,
        expires_in: 0,
    });
    registry.revoke_tokens();
    client.resolve(&reference).await.unwrap();
    client.resolve(&reference).await.unwrap();
    assert_eq!(registry.count("GET", "/token"), 4);
}

#[tokio::test]
async fn wrong_credentials_are_refused_at_once_and_never_told() {
    for auth in [basic(), token(Some(("u", "right")))] {
        let registry = with_manifest(auth).await;
        let error = client(with_user("u:hunter2"))
            .resolve(&image(&registry, "a/b:v1"))
            .await
            .unwrap_err();
        assert!(registry.requests().len() <= 3);
        let text = format!("{error} {error:?}");
        assert!(
            !text.contains("hunter2") && !text.contains("aHVudGVyM"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn no_credentials_is_access_denied_with_a_hint() {
    let registry = with_manifest(basic()).await;
    let error = client(quick())
        .resolve(&image(&registry, "a/b:v1"))
        .await
        .unwrap_err();
    assert!(
        matches!(error.problem, Problem::Denied { status: 401, .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("check the credentials"),
        "{error}"
    );
}

#[tokio::test]
async fn pushing_gets_a_token_that_may_push() {
    let registry = with_manifest(token(Some(("u", "pw")))).await;
    let client = client(with_user("u:pw"));
    client.resolve(&image(&registry, "a/b:v1")).await.unwrap();
    client
        .push_blob(&image(&registry, "a/b"), pattern(100).into())
        .await
        .unwrap();
}

#[tokio::test]
async fn credentials_stay_with_the_registry_when_it_redirects() {
    let registry = with_manifest(basic()).await;
    let bytes = pattern(1000);
    let digest = registry.put_blob("a/b", bytes.clone()).parse().unwrap();
    registry.redirect_blobs(10);
    let client = client(with_user("u:p:w"));
    let blob = client.blob(&image(&registry, "a/b"), &digest, 1000);
    assert_eq!(blob.read(0..100).await.unwrap(), &bytes[..100]);
    assert_eq!(blob.read(100..200).await.unwrap(), &bytes[100..200]);
    let requests = registry.requests();
    let storage: Vec<_> = requests.iter().filter(|request| request.storage).collect();
    assert_eq!(storage.len(), 2);
    assert!(
        storage
            .iter()
            .all(|request| request.authorization.is_none())
    );
}

#[tokio::test]
async fn an_identity_token_of_the_docker_configuration_is_exchanged() {
    let registry = with_manifest(token(Some(("u", "refresh-me")))).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let config = format!(
        r#"{{"auths":{{"{}":{{"identitytoken":"refresh-me"}}}}}}"#,
        registry.host()
    );
    std::fs::write(&path, config).unwrap();
    let config = RegistryConfig {
        credentials: vec![Arc::new(DockerConfig::at(path))],
        ..quick()
    };
    client(config)
        .resolve(&image(&registry, "a/b:v1"))
        .await
        .unwrap();
    assert_eq!(registry.count("POST", "/token"), 1);
}

#[tokio::test]
async fn credentials_that_change_are_read_anew_once_the_old_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    for auth in [
        |password: &str| Auth::Basic {
            user: String::from("u"),
            password: password.to_owned(),
        },
        |password: &str| token(Some(("u", password))),
    ] {
        let registry = with_manifest(auth("old")).await;
        let write = |password: &str| {
            let user = format!(r#"{{"username":"u","password":"{password}"}}"#);
            let config = format!(r#"{{"auths":{{"{}":{user}}}}}"#, registry.host());
            std::fs::write(&path, config).unwrap();
        };
        write("old");
        let client = client(RegistryConfig {
            credentials: vec![Arc::new(DockerConfig::at(path.clone()))],
            ..quick()
        });
        let reference = image(&registry, "a/b:v1");
        client.resolve(&reference).await.unwrap();
        registry.set_auth(auth("new"));
        registry.revoke_tokens();
        assert!(client.resolve(&reference).await.is_err());
        write("new");
        client.resolve(&reference).await.unwrap();
    }
}

#[tokio::test]
async fn a_credential_helper_is_asked_by_its_protocol() {
    let registry = with_manifest(basic()).await;
    let dir = tempfile::tempdir().unwrap();
    let helper = dir.path().join("docker-credential-scripted");
    let script = format!(
        "#!/bin/sh\nread -r server\n[ \"$1 $server\" = 'get {}' ] || exit 1\necho '{{\"Username\":\"u\",\"Secret\":\"p:w\"}}'\n",
        registry.host()
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, r#"{"credsStore":"scripted"}"#).unwrap();
    let config = RegistryConfig {
        credentials: vec![Arc::new(DockerConfig::at(path).helpers_in(dir.path()))],
        ..quick()
    };
    client(config)
        .resolve(&image(&registry, "a/b:v1"))
        .await
        .unwrap();
}

/// A credential provider that logs each of its runs and answers with `auth`, kept for `kept`.
fn kubelet(dir: &Path, matched: &str, kept: &str, auth: &str) -> Arc<KubeletProviders> {
    let (program, log) = (dir.join("scripted-provider"), dir.join("runs"));
    let script = format!(
        "#!/bin/sh\nread -r request\necho \"$1 $FROM_CONFIG $request\" >>{}\necho '{}'\n",
        log.display(),
        format_args!(
            r#"{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Registry","cacheDuration":"{kept}","auth":{auth}}}"#
        ),
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = dir.join("providers.json");
    let text = serde_json::json!({
        "apiVersion": "kubelet.config.k8s.io/v1",
        "kind": "CredentialProviderConfig",
        "providers": [
            {"name": "not-matched", "matchImages": ["*.example"], "defaultCacheDuration": "1h",
             "apiVersion": "credentialprovider.kubelet.k8s.io/v1"},
            {"name": "scripted-provider", "matchImages": [matched], "defaultCacheDuration": "1h",
             "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "args": ["get"],
             "env": [{"name": "FROM_CONFIG", "value": "yes"}]},
        ],
    });
    std::fs::write(&config, text.to_string()).unwrap();
    Arc::new(KubeletProviders::new(config, dir.to_owned()))
}

fn query<'a>(host: &'a str, repository: &'a str) -> CredentialQuery<'a> {
    CredentialQuery {
        host,
        repository,
        mirror: false,
    }
}

#[tokio::test]
async fn a_credential_provider_of_the_kubelet_is_asked_by_its_protocol() {
    let registry = with_manifest(basic()).await;
    let host = registry.host();
    let dir = tempfile::tempdir().unwrap();
    let auth = format!(
        r#"{{"*":{{"username":"x","password":"y"}},"{host}/a":{{"username":"u","password":"p:w"}}}}"#
    );
    let provider = kubelet(dir.path(), &host, "1h", &auth);
    let config = RegistryConfig {
        credentials: vec![Arc::clone(&provider) as _],
        ..quick()
    };
    client(config)
        .resolve(&image(&registry, "a/b:v1"))
        .await
        .unwrap();
    let runs = std::fs::read_to_string(dir.path().join("runs")).unwrap();
    let request: serde_json::Value =
        serde_json::from_str(runs.strip_prefix("get yes ").unwrap()).unwrap();
    assert_eq!(request["kind"], "CredentialProviderRequest");
    assert_eq!(request["image"], format!("{host}/a/b"));
    // Kept for the registry: another repository needs no other run.
    provider.credentials(query(&host, "a/c")).await.unwrap();
    let again = std::fs::read_to_string(dir.path().join("runs")).unwrap();
    assert_eq!(again, runs);
    // Nobody is asked for what nobody matches.
    let none = provider.credentials(query("other.test", "a")).await;
    assert_eq!(none.unwrap(), None);
}

#[tokio::test]
async fn what_a_credential_provider_does_not_want_to_be_kept_is_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let auth = r#"{"*.test":{"username":"u","password":"secret-word"}}"#;
    let provider = kubelet(dir.path(), "*.test", "0s", auth);
    for _ in 0..2 {
        let known = provider.credentials(query("reg.test", "a")).await.unwrap();
        assert!(known.is_some());
    }
    let runs = std::fs::read_to_string(dir.path().join("runs")).unwrap();
    assert_eq!(runs.lines().count(), 2);
    let program = dir.path().join("scripted-provider");
    std::fs::write(&program, "#!/bin/sh\necho 'secret-word {'\n").unwrap();
    let failed = provider.credentials(query("reg.test", "a")).await;
    let failed = failed.unwrap_err().to_string();
    assert!(
        failed.contains("scripted-provider") && !failed.contains("secret-word"),
        "{failed}"
    );
}

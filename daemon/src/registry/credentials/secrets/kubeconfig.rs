//! How a cluster's API is reached: a kubeconfig, or what a pod is given.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use url::Url;

use crate::registry::credentials::CredentialError;
use crate::registry::credentials::exec::{self, Variable};

/// Largest file read, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// How long a program that knows a token may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// What every container of a pod has.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A cluster's API and what it is shown. Read anew before each use, since tokens and certificates are renewed.
#[derive(Clone)]
pub(super) struct Access {
    pub(super) server: Url,
    /// Authorities of its certificate, as PEM; the system's if there are none.
    pub(super) authorities: Option<Vec<u8>>,
    pub(super) skip_verify: bool,
    /// Certificate and key, as PEM.
    pub(super) identity: Option<Vec<u8>>,
    pub(super) login: Login,
}

/// What stands in `Authorization`.
#[derive(Clone)]
pub(super) enum Login {
    None,
    Token(String),
    Password(String, String),
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    #[serde(default)]
    user: Option<User>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    username: Option<String>,
    password: Option<String>,
    exec: Option<Exec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Exec {
    command: PathBuf,
    api_version: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
}

/// What a program answers: `ExecCredential`.
#[derive(Deserialize)]
struct Executed {
    status: Status,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
}

/// Where the kubeconfig is: at `path`, else by `$KUBECONFIG`, else in the home directory; `None`: we may be in a pod.
pub(super) fn find(path: &str) -> Option<PathBuf> {
    if !path.is_empty() {
        return Some(PathBuf::from(path));
    }
    let named = env::var_os("KUBECONFIG");
    let named = named.iter().flat_map(env::split_paths);
    let home = env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config"));
    named.chain(home).find(|path| path.is_file())
}

/// Reads the kubeconfig at `path`, and all it refers to, for its current context.
///
/// # Errors
/// A file is not there or not what it should be, or it wants what we cannot do. Nothing of a file is quoted.
pub(super) async fn read(path: &Path) -> Result<Access, CredentialError> {
    let bytes = read_file(path).await?;
    let file: File =
        serde_saphyr::from_slice(&bytes).map_err(|_| failed(path, "not a kubeconfig"))?;
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    access(file, dir).await.map_err(|error| match error {
        Wrong::Here(detail) => failed(path, detail),
        Wrong::Elsewhere(error) => error,
    })
}

/// What a pod is given: a token and an authority in files, the server in the environment.
pub(super) async fn of_pod() -> Result<Access, CredentialError> {
    let name = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let host = name("KUBERNETES_SERVICE_HOST");
    let (Some(host), Some(port)) = (host, name("KUBERNETES_SERVICE_PORT")) else {
        let detail = "there is none, by kubeconfig_path, $KUBECONFIG or in the home directory, and this is no pod";
        return Err(failed(Path::new("kubeconfig"), detail));
    };
    let host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host
    };
    let server = Url::parse(&format!("https://{host}:{port}"))
        .map_err(|_| failed(Path::new("KUBERNETES_SERVICE_HOST"), "not a host"))?;
    let dir = Path::new(SERVICE_ACCOUNT);
    Ok(Access {
        server,
        authorities: Some(read_file(&dir.join("ca.crt")).await?),
        skip_verify: false,
        identity: None,
        login: Login::Token(read_token(&dir.join("token")).await?),
    })
}

enum Wrong {
    /// In the kubeconfig itself.
    Here(&'static str),
    /// In what it refers to.
    Elsewhere(CredentialError),
}

async fn access(file: File, dir: &Path) -> Result<Access, Wrong> {
    let contexts = file.contexts.into_iter();
    let context = contexts
        .map(|named| (named.name, named.context))
        .find(|(name, _)| *name == file.current_context)
        .ok_or(Wrong::Here("its current context is not in it"))?
        .1;
    let mut clusters = file.clusters.into_iter();
    let cluster = clusters
        .find(|named| named.name == context.cluster)
        .ok_or(Wrong::Here(
            "the cluster of its current context is not in it",
        ))?
        .cluster;
    let mut users = file.users.into_iter();
    let user = users
        .find(|named| named.name == context.user)
        .and_then(|named| named.user)
        .unwrap_or_default();
    let server = Url::parse(&cluster.server).ok();
    let server = server.filter(|url| matches!(url.scheme(), "http" | "https"));
    let (login, mut identity) = login(&user, dir).await?;
    let certificate =
        text_or_file(user.client_certificate_data, user.client_certificate, dir).await?;
    let key = text_or_file(user.client_key_data, user.client_key, dir).await?;
    if let (None, Some(certificate), Some(key)) = (&identity, certificate, key) {
        identity = Some([certificate, key].join(&b'\n'));
    }
    Ok(Access {
        server: server.ok_or(Wrong::Here("its server is not a URL"))?,
        authorities: text_or_file(
            cluster.certificate_authority_data,
            cluster.certificate_authority,
            dir,
        )
        .await?,
        skip_verify: cluster.insecure_skip_tls_verify,
        identity,
        login,
    })
}

/// In the order in which Kubernetes' own client looks: a token, a password, a program.
async fn login(user: &User, dir: &Path) -> Result<(Login, Option<Vec<u8>>), Wrong> {
    if let Some(file) = &user.token_file {
        let token = read_token(&dir.join(file))
            .await
            .map_err(Wrong::Elsewhere)?;
        return Ok((Login::Token(token), None));
    }
    if let Some(token) = &user.token {
        return Ok((Login::Token(token.clone()), None));
    }
    if let (Some(user), Some(password)) = (&user.username, &user.password) {
        return Ok((Login::Password(user.clone(), password.clone()), None));
    }
    match &user.exec {
        Some(exec) => ask(exec, dir).await.map_err(Wrong::Elsewhere),
        None => Ok((Login::None, None)),
    }
}

/// Asks a program for a token or a certificate (`client.authentication.k8s.io`).
async fn ask(exec: &Exec, dir: &Path) -> Result<(Login, Option<Vec<u8>>), CredentialError> {
    let plain = exec.command.components().count() == 1;
    let program = if plain {
        exec.command.clone()
    } else {
        dir.join(&exec.command)
    };
    let info = json!({
        "kind": "ExecCredential",
        "apiVersion": exec.api_version,
        "spec": { "interactive": false },
    });
    let info = info.to_string();
    let variables = exec.env.iter().flatten().map(Variable::pair);
    let environment: Vec<_> = variables
        .chain([("KUBERNETES_EXEC_INFO", &*info)])
        .collect();
    let arguments = exec.args.as_deref().unwrap_or_default();
    let answer = exec::ask(&program, arguments, &environment, b"", PATIENCE).await;
    let answer = answer.map_err(|detail| failed(&program, detail))?;
    if !answer.success {
        return Err(failed(&program, "failed; run it by hand to see why"));
    }
    let not_understood = || failed(&program, "its answer is no ExecCredential");
    let executed: Executed =
        serde_json::from_slice(&answer.output).map_err(|_| not_understood())?;
    let Status {
        token,
        client_certificate_data,
        client_key_data,
    } = executed.status;
    let pem = client_certificate_data.zip(client_key_data);
    Ok((
        token.map_or(Login::None, Login::Token),
        pem.map(|(certificate, key)| format!("{certificate}\n{key}").into_bytes()),
    ))
}

async fn text_or_file(
    text: Option<String>,
    file: Option<PathBuf>,
    dir: &Path,
) -> Result<Option<Vec<u8>>, Wrong> {
    match (text, file) {
        (Some(text), _) => STANDARD
            .decode(text.trim())
            .map(Some)
            .map_err(|_| Wrong::Here("a certificate or key in it is not base64")),
        (None, Some(file)) => {
            let read = read_file(&dir.join(file)).await;
            read.map(Some).map_err(Wrong::Elsewhere)
        }
        (None, None) => Ok(None),
    }
}

async fn read_token(path: &Path) -> Result<String, CredentialError> {
    let token = String::from_utf8(read_file(path).await?).ok();
    let token = token.map(|token| token.trim().to_owned());
    token
        .filter(|token| !token.is_empty())
        .ok_or_else(|| failed(path, "no token in it"))
}

async fn read_file(path: &Path) -> Result<Vec<u8>, CredentialError> {
    let mut bytes = Vec::new();
    let read = match tokio::fs::File::open(path).await {
        Ok(file) => file.take(MAX_FILE).read_to_end(&mut bytes).await,
        Err(error) => Err(error),
    };
    read.map_err(|error| failed(path, error.to_string()))?;
    Ok(bytes)
}

fn failed(path: &Path, detail: impl Into<String>) -> CredentialError {
    CredentialError {
        source_name: path.display().to_string(),
        detail: detail.into(),
    }
}

/// For [`crate::hostile`]: some kubeconfig.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(bytes: &[u8]) {
    let _ = serde_saphyr::from_slice::<File>(bytes);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const CONFIG: &str = "
apiVersion: v1
kind: Config
current-context: here
contexts:
- context: {cluster: other, user: nobody}
  name: there
- context: {cluster: one, user: node}
  name: here
clusters:
- name: one
  cluster:
    server: https://api.example:6443
    certificate-authority-data: Y2VydGlmaWNhdGU=
users:
- name: node
  user:
";

    async fn read_text(text: &str, files: &[(&str, &str)]) -> Result<Access, CredentialError> {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, text).unwrap();
        read(&path).await
    }

    #[tokio::test]
    async fn the_current_context_is_followed_to_server_and_user() {
        let config = format!("{CONFIG}    tokenFile: token\n");
        let access = read_text(&config, &[("token", " secret\n")]).await.unwrap();
        assert_eq!(access.server.as_str(), "https://api.example:6443/");
        assert_eq!(access.authorities.unwrap(), b"certificate");
        assert!(matches!(access.login, Login::Token(token) if token == "secret"));

        let config = format!("{CONFIG}    client-certificate: cert\n    client-key-data: a2V5\n");
        let access = read_text(&config, &[("cert", "cert")]).await.unwrap();
        assert_eq!(access.identity.unwrap(), b"cert\nkey");
        assert!(matches!(access.login, Login::None));
    }

    #[tokio::test]
    async fn a_program_is_asked_for_a_token() {
        let exec = r#"    exec:
      apiVersion: client.authentication.k8s.io/v1
      command: /bin/sh
      args: ["-c", "echo \"{\\\"status\\\": {\\\"token\\\": \\\"$WORD\\\"}}\""]
      env: [{name: WORD, value: secret}]
"#;
        let access = read_text(&format!("{CONFIG}{exec}"), &[]).await.unwrap();
        assert!(matches!(access.login, Login::Token(token) if token == "secret"));
    }

    #[tokio::test]
    async fn what_is_wrong_is_told_and_no_secret_with_it() {
        for (text, said) in [
            ("token: [hunter2", "not a kubeconfig"),
            ("current-context: x", "current context"),
            (
                &format!("{CONFIG}    client-key-data: hunter2!\n"),
                "not base64",
            ),
            (
                &format!("{CONFIG}    tokenFile: gone\n"),
                "gone: No such file",
            ),
        ] {
            let error = read_text(text, &[]).await.err().unwrap().to_string();
            assert!(error.contains(said), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}

//! Image pull secrets of a cluster, from an API server that speaks as Kubernetes' does.
#![allow(clippy::unwrap_used)]

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use daemon::registry::{CredentialProvider as _, CredentialQuery, Credentials, PullSecrets};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use url::form_urlencoded;

use self::logged::Log;

#[path = "logged/log.rs"]
mod logged;

/// How long a change may take to be known.
const PATIENCE: Duration = Duration::from_secs(30);
const FIRST_TOKEN: &str = "token-of-the-node";
const NEXT_TOKEN: &str = "token-after-renewal";

/// A cluster's API: secrets, and what has happened to them.
#[derive(Clone)]
struct Cluster {
    address: String,
    state: Arc<Mutex<State>>,
    changed: broadcast::Sender<Change>,
}

#[derive(Default)]
struct State {
    secrets: Vec<Value>,
    events: Vec<Value>,
    token: &'static str,
    /// Events up to this one are forgotten.
    forgotten: usize,
    /// Queries of all calls that were allowed.
    calls: Vec<String>,
    refused: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Change {
    Event,
    /// The server ends all watches.
    End,
}

impl Cluster {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let cluster = Self {
            address: listener.local_addr().unwrap().to_string(),
            state: Arc::new(Mutex::new(State {
                token: FIRST_TOKEN,
                ..State::default()
            })),
            changed: broadcast::channel(64).0,
        };
        let serving = cluster.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serving = serving.clone();
                // A client that goes away is no failure.
                tokio::spawn(async move { serving.serve(stream).await.ok() });
            }
        });
        cluster
    }

    /// Something happens to the secret `name`, of a registry with the same name.
    fn happens(&self, kind: &str, name: &str, password: &str) {
        {
            let mut state = self.state.lock().unwrap();
            let version = state.events.len() + 1;
            let secret = secret(name, password, version);
            let named = |known: &Value| known["metadata"]["name"] == name;
            state.secrets.retain(|known| !named(known));
            if kind != "DELETED" {
                state.secrets.push(secret.clone());
            }
            state.events.push(json!({"type": kind, "object": secret}));
        }
        // Nobody may be watching.
        let _ = self.changed.send(Change::Event);
    }

    async fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            let head = String::from_utf8(head).unwrap();
            let path = head.split(' ').nth(1).unwrap();
            let (path, query) = path.split_once('?').unwrap();
            assert_eq!(path, "/k8s/api/v1/secrets");
            let of = |name: &str| {
                let mut pairs = form_urlencoded::parse(query.as_bytes());
                pairs
                    .find(|(key, _)| key == name)
                    .map(|(_, value)| value.into_owned())
            };
            assert_eq!(
                of("fieldSelector").unwrap(),
                "type=kubernetes.io/dockerconfigjson"
            );
            if !self.is_allowed(&head, query) {
                answer(&mut stream, "401 Unauthorized", "{}").await?;
            } else if of("watch").is_some() {
                let version = of("resourceVersion").unwrap().parse().unwrap();
                return self.watch(stream, version).await;
            } else {
                let from = of("continue").map_or(0, |next| next.parse().unwrap());
                let page = self.page(from, of("limit").unwrap().parse().unwrap());
                answer(&mut stream, "200 OK", &page.to_string()).await?;
            }
        }
    }

    fn is_allowed(&self, head: &str, query: &str) -> bool {
        let mut state = self.state.lock().unwrap();
        let header = format!("authorization: bearer {}\r\n", state.token);
        let allowed = head.to_ascii_lowercase().contains(&header);
        if allowed {
            state.calls.push(query.to_owned());
        } else {
            state.refused += 1;
        }
        allowed
    }

    fn page(&self, from: usize, limit: usize) -> Value {
        let state = self.state.lock().unwrap();
        let end = (from + limit).min(state.secrets.len());
        let next = if end < state.secrets.len() {
            end.to_string()
        } else {
            String::new()
        };
        json!({
            "kind": "SecretList",
            "metadata": {"resourceVersion": state.events.len().to_string(), "continue": next},
            "items": state.secrets[from..end],
        })
    }

    async fn watch(&self, mut stream: TcpStream, version: usize) -> io::Result<()> {
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await?;
        let mut changed = self.changed.subscribe();
        let mut next = version;
        loop {
            let (events, forgotten) = {
                let state = self.state.lock().unwrap();
                let events = state.events.get(next..).unwrap_or_default().to_vec();
                (events, next < state.forgotten)
            };
            if forgotten {
                let status = json!({"type": "ERROR", "object": {"kind": "Status", "code": 410}});
                chunk(&mut stream, &status).await?;
                return stream.write_all(b"0\r\n\r\n").await;
            }
            for event in events {
                chunk(&mut stream, &event).await?;
                next += 1;
            }
            let mark = json!({"metadata": {"resourceVersion": next.to_string()}});
            chunk(&mut stream, &json!({"type": "BOOKMARK", "object": mark})).await?;
            if changed.recv().await == Ok(Change::End) {
                return stream.write_all(b"0\r\n\r\n").await;
            }
        }
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().calls)
    }
}

async fn answer(stream: &mut TcpStream, status: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let text = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await
}

async fn chunk(stream: &mut TcpStream, event: &Value) -> io::Result<()> {
    let line = format!("{event}\n");
    let text = format!("{:x}\r\n{line}\r\n", line.len());
    stream.write_all(text.as_bytes()).await
}

fn secret(name: &str, password: &str, version: usize) -> Value {
    let login = json!({"username": "user", "password": password});
    let config = json!({"auths": {format!("{name}.example"): login}});
    json!({
        "metadata": {"name": name, "namespace": "team", "resourceVersion": version.to_string()},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": STANDARD.encode(config.to_string())},
    })
}

/// A directory with a kubeconfig for `cluster`, whose token is in a file.
fn kubeconfig(cluster: &Cluster) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let text = format!(
        "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
         clusters: [{{name: k, cluster: {{server: \"http://{}/k8s/\"}}}}]\n\
         users: [{{name: u, user: {{tokenFile: token}}}}]\n",
        cluster.address
    );
    std::fs::write(&path, text).unwrap();
    std::fs::write(dir.path().join("token"), FIRST_TOKEN).unwrap();
    (dir, path)
}

async fn password(secrets: &PullSecrets, name: &str) -> Option<String> {
    let query = CredentialQuery {
        host: &format!("{name}.example"),
        repository: "app",
        mirror: false,
    };
    match secrets.credentials(query).await.unwrap()? {
        Credentials::Password { password, .. } => Some(password),
        Credentials::IdentityToken(token) => Some(token),
    }
}

async fn until(secrets: &PullSecrets, name: &str, expected: Option<&str>) {
    let wait = async {
        while password(secrets, name).await.as_deref() != expected {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let done = tokio::time::timeout(PATIENCE, wait).await;
    done.unwrap_or_else(|_| panic!("{name} does not become {expected:?}"));
}

#[tokio::test]
async fn secrets_are_listed_then_followed_through_ends_of_watches_renewed_tokens_and_lost_history()
{
    let log = Log::default();
    let filter = tracing_subscriber::filter::LevelFilter::TRACE;
    let subscriber = tracing_subscriber::fmt().with_max_level(filter);
    subscriber.with_writer(log.clone()).with_ansi(false).init();

    let cluster = Cluster::start().await;
    // Three pages.
    for number in 0..70 {
        cluster.happens("ADDED", &format!("s{number}"), "hunter2-first");
    }
    let (dir, path) = kubeconfig(&cluster);
    let secrets = PullSecrets::start(path.to_str().unwrap());
    // The first look-up waits for the list.
    assert_eq!(
        password(&secrets, "s69").await.as_deref(),
        Some("hunter2-first")
    );
    assert_eq!(password(&secrets, "s70").await, None);

    cluster.happens("ADDED", "s70", "hunter2-first");
    until(&secrets, "s70", Some("hunter2-first")).await;
    cluster.happens("MODIFIED", "s70", "hunter2-changed");
    until(&secrets, "s70", Some("hunter2-changed")).await;
    cluster.happens("DELETED", "s0", "");
    until(&secrets, "s0", None).await;
    let calls = cluster.calls();
    let watches = |calls: &[String]| {
        calls
            .iter()
            .filter(|call| call.contains("watch=true"))
            .count()
    };
    assert_eq!((calls.len(), watches(&calls)), (4, 1), "{calls:#?}");

    // The watch ends, and the token is renewed meanwhile: nothing is listed again.
    cluster.state.lock().unwrap().token = NEXT_TOKEN;
    std::fs::write(dir.path().join("token"), NEXT_TOKEN).unwrap();
    cluster.changed.send(Change::End).unwrap();
    cluster.happens("MODIFIED", "s1", "hunter2-changed");
    until(&secrets, "s1", Some("hunter2-changed")).await;
    let calls = cluster.calls();
    assert_eq!((calls.len(), watches(&calls)), (1, 1), "{calls:#?}");
    assert!(calls[0].contains("resourceVersion=73"), "{calls:?}");

    // A token that is refused is tried until there is one that is not; what is known stays known.
    cluster.state.lock().unwrap().token = FIRST_TOKEN;
    cluster.changed.send(Change::End).unwrap();
    while cluster.state.lock().unwrap().refused == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(
        password(&secrets, "s1").await.as_deref(),
        Some("hunter2-changed")
    );
    // What happened in the meantime is forgotten.
    cluster.happens("DELETED", "s1", "");
    cluster.state.lock().unwrap().forgotten = 75;
    std::fs::write(dir.path().join("token"), FIRST_TOKEN).unwrap();
    until(&secrets, "s1", None).await;
    cluster.happens("ADDED", "s1", "hunter2-again");
    until(&secrets, "s1", Some("hunter2-again")).await;
    let calls = cluster.calls();
    assert_eq!((calls.len(), watches(&calls)), (5, 2), "{calls:#?}");

    drop(secrets);
    let log = log.text();
    assert!(
        log.contains("image pull secrets of the cluster are known"),
        "{log}"
    );
    let hidden = [
        "hunter2",
        FIRST_TOKEN,
        NEXT_TOKEN,
        &STANDARD.encode("user:hunter2-fir"),
    ];
    for secret in hidden {
        let found = log.lines().find(|line| line.contains(secret));
        assert!(found.is_none(), "{found:?}");
    }
}

#[tokio::test]
async fn without_an_api_nothing_is_known_and_nobody_waits_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kubeconfig");
    let secrets = PullSecrets::start(path.to_str().unwrap());
    let asked = tokio::time::timeout(PATIENCE, password(&secrets, "s")).await;
    assert_eq!(asked.unwrap(), None);
    // A server that is no API at all.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 16];
            let _ = stream.read(&mut head).await;
            let _ = answer(&mut stream, "200 OK", "[1, 2").await;
        }
    });
    let text = format!(
        "{{\"current-context\": \"c\", \"contexts\": [{{\"name\": \"c\", \"context\": {{\"cluster\": \"k\"}}}}],
         \"clusters\": [{{\"name\": \"k\", \"cluster\": {{\"server\": \"http://{address}\"}}}}]}}"
    );
    std::fs::write(&path, text).unwrap();
    let secrets = PullSecrets::start(path.to_str().unwrap());
    let asked = tokio::time::timeout(PATIENCE, password(&secrets, "s")).await;
    assert_eq!(asked.unwrap(), None);
}

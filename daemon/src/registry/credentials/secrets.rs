//! Image pull secrets of a Kubernetes cluster: listed once, then watched.
//!
//! A client of our own, since these are two calls: the crate `kube` would bring its own HTTP stack on `tower`, generated
//! types of all of Kubernetes, and minutes of building.

mod api;
mod known;
mod kubeconfig;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use self::api::{Api, Event};
use self::known::{Known, Secret};
use super::{CredentialError, CredentialProvider, CredentialQuery, Credentials};
use crate::registry::error::Problem;

/// How long a look-up waits for the first list, which is under way when a daemon has just been started.
const FIRST_LIST: Duration = Duration::from_secs(5);
/// Time between tries: from this, doubled each time, to the other.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Least time between two sessions, should a server end each watch at once.
const BREATH: Duration = Duration::from_secs(1);
/// A kubeconfig that is not there yet, since the node is just being set up, is looked for this often.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// The logins of all secrets of type `kubernetes.io/dockerconfigjson`, kept up to date by a task that ends with this value.
/// They are kept in memory only.
pub struct PullSecrets {
    known: Arc<RwLock<Known>>,
    /// Whether the first list has come, or could not be had.
    tried: watch::Receiver<bool>,
    _task: AbortOnDropHandle<()>,
}

impl PullSecrets {
    /// Those of the cluster that the kubeconfig at `path` leads to; empty: by the usual rules. Within a runtime.
    pub fn start(path: &str) -> Self {
        let known = Arc::default();
        let (first, tried) = watch::channel(false);
        let follower = Follower {
            path: path.to_owned(),
            known: Arc::clone(&known),
            first,
            version: None,
            told: None,
        };
        Self {
            known,
            tried,
            _task: AbortOnDropHandle::new(tokio::spawn(follower.run())),
        }
    }
}

#[async_trait]
impl CredentialProvider for PullSecrets {
    async fn credentials(
        &self,
        query: CredentialQuery<'_>,
    ) -> Result<Option<Credentials>, CredentialError> {
        let mut tried = self.tried.clone();
        // Without the list nothing is known, which is the answer then.
        let _ = tokio::time::timeout(FIRST_LIST, tried.wait_for(|tried| *tried)).await;
        Ok(self.known.read().find(query))
    }
}

impl fmt::Debug for PullSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullSecrets").finish_non_exhaustive()
    }
}

/// Follows the API.
struct Follower {
    path: String,
    known: Arc<RwLock<Known>>,
    first: watch::Sender<bool>,
    /// What is known is of this version; `None`: nothing is, or too little.
    version: Option<String>,
    /// The failure that was logged last.
    told: Option<String>,
}

impl Follower {
    async fn run(mut self) {
        let mut wait = FIRST_WAIT;
        loop {
            let before = self.version.clone();
            let ended = self.session().await;
            self.first.send_replace(true);
            match ended {
                Ok(()) => {
                    wait = FIRST_WAIT;
                    tokio::time::sleep(BREATH).await;
                }
                Err(error) => {
                    let failed_at_once = before == self.version;
                    self.tell(&error);
                    if !failed_at_once {
                        wait = FIRST_WAIT;
                    }
                    let jitter = Duration::from_millis(fastrand::u64(0..250));
                    tokio::time::sleep(wait + jitter).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }

    /// Lists if need be, then watches until the server ends that. Who we are is read anew each time.
    async fn session(&mut self) -> Result<(), CredentialError> {
        let access = match kubeconfig::find(&self.path) {
            Some(path) => {
                self.wait_for(&path).await;
                kubeconfig::read(&path).await?
            }
            None => kubeconfig::of_pod().await?,
        };
        let server = access.server.clone();
        let failed = |problem: Problem| CredentialError {
            source_name: format!("Kubernetes API {server}"),
            detail: problem.to_string(),
        };
        let api = tokio::task::spawn_blocking(move || Api::new(&access)).await;
        let api = api
            .map_err(|error| failed(Problem::malformed(error.to_string())))?
            .map_err(&failed)?;
        let version = match &self.version {
            Some(version) => version.clone(),
            None => self.list(&api).await.map_err(&failed)?,
        };
        self.watch(&api, &version).await.map_err(&failed)
    }

    /// Waits until there is a file at `path`.
    async fn wait_for(&mut self, path: &Path) {
        while tokio::fs::metadata(path).await.is_err() {
            let error = CredentialError {
                source_name: path.display().to_string(),
                detail: String::from("not there yet"),
            };
            self.tell(&error);
            self.first.send_replace(true);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn list(&mut self, api: &Api) -> Result<String, Problem> {
        let mut known = Known::default();
        let mut left_out = 0;
        let version = api
            .list(|secret| left_out += usize::from(!known.put(secret)))
            .await?;
        tracing::info!(
            secrets = known.len(),
            left_out,
            "image pull secrets of the cluster are known"
        );
        *self.known.write() = known;
        self.told = None;
        self.version = Some(version.clone());
        self.first.send_replace(true);
        Ok(version)
    }

    async fn watch(&mut self, api: &Api, version: &str) -> Result<(), Problem> {
        let mut watch = match api.watch(version).await {
            // Some servers say so in the status.
            Err(Problem::Status { status: 410, .. }) => {
                self.version = None;
                return Ok(());
            }
            watch => watch?,
        };
        loop {
            let next = watch.next().await;
            match next.inspect_err(|error| self.doubt(error))? {
                None => return Ok(()),
                Some(Event::Put(secret)) => self.put(&secret),
                Some(Event::Gone(secret)) => {
                    self.known.write().remove(&secret.name());
                    self.reached(secret.metadata.resource_version);
                }
                Some(Event::Bookmark(version)) => self.reached(version),
                Some(Event::Expired) => {
                    self.version = None;
                    return Ok(());
                }
            }
        }
    }

    /// What was not understood is lost: the list tells it again.
    fn doubt(&mut self, error: &Problem) {
        if !matches!(error, Problem::Interrupted { .. } | Problem::Timeout { .. }) {
            self.version = None;
        }
    }

    fn put(&mut self, secret: &Secret) {
        if !self.known.write().put(secret) {
            tracing::warn!("there are too many image pull secrets: one is left out");
        }
        self.reached(secret.metadata.resource_version.clone());
    }

    fn reached(&mut self, version: String) {
        if !version.is_empty() {
            self.version = Some(version);
        }
    }

    /// Logs a failure, unless it is the last one again.
    fn tell(&mut self, error: &CredentialError) {
        let text = error.to_string();
        if self.told.as_ref() != Some(&text) {
            tracing::warn!(
                error = text,
                "image pull secrets of the cluster cannot be had, trying on"
            );
            self.told = Some(text);
        }
    }
}

/// For [`crate::hostile`]: some secret, page, line of a watch and kubeconfig, asked for some image.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(host: &str, repository: &str, bytes: &[u8]) {
    known::probe(host, repository, bytes);
    api::probe(bytes, bytes);
    kubeconfig::probe(bytes);
}

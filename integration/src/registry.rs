//! A registry in this process whose failures are written in a script.
//!
//! It keeps everything in memory and serves the distribution API on a loopback port: manifests, blobs with
//! ranges, referrers, pushes, Basic and token authorization, and blobs redirected to a storage host (a
//! second port) whose signed URLs run out. A [`Fault`] strikes the requests that its [`Match`] chooses; every
//! request is recorded.

mod answer;
mod api;
mod fault;
mod server;
mod state;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::runtime::{self, Runtime};
use tokio::task::JoinHandle;

pub use fault::{Fault, Match};
pub use state::{Auth, Recorded};

use state::State;

/// A running registry; it ends when dropped.
#[derive(Debug)]
pub struct ScriptedRegistry {
    address: SocketAddr,
    state: Arc<State>,
    tasks: Vec<JoinHandle<()>>,
}

impl ScriptedRegistry {
    /// Starts an empty registry without authorization, with the referrers API.
    pub async fn start() -> std::io::Result<Self> {
        let api = TcpListener::bind("127.0.0.1:0").await?;
        let storage = TcpListener::bind("127.0.0.1:0").await?;
        let address = api.local_addr()?;
        let state = Arc::new(State::new(address, storage.local_addr()?));
        let tasks = vec![
            tokio::spawn(server::serve(api, state.clone(), api::answer)),
            tokio::spawn(server::serve(storage, state.clone(), api::storage_answer)),
        ];
        Ok(Self {
            address,
            state,
            tasks,
        })
    }

    /// Starts one on a runtime of its own, for tests that have none. The registry ends with it.
    pub fn start_apart() -> std::io::Result<(Runtime, Self)> {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let registry = runtime.block_on(Self::start())?;
        Ok((runtime, registry))
    }

    /// `127.0.0.1:<port>`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Puts a blob into `repository` and returns its digest.
    pub fn put_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> String {
        self.state
            .contents
            .lock()
            .put_blob(repository, bytes.into())
    }

    /// Puts a manifest into `repository`, under `tag` too if there is one, and returns its digest.
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> String {
        let mut contents = self.state.contents.lock();
        contents.put_manifest(repository, tag, media_type, bytes.into())
    }

    /// The bytes of a blob or manifest, by digest.
    pub fn content(&self, repository: &str, digest: &str) -> Option<Bytes> {
        self.state.contents.lock().content(repository, digest)
    }

    /// The digest that `tag` points at.
    pub fn tagged(&self, repository: &str, tag: &str) -> Option<String> {
        self.state.contents.lock().tagged(repository, tag)
    }

    /// Whether there is a referrers API.
    pub fn set_referrers(&self, on: bool) {
        self.state.settings.lock().referrers = on;
    }

    /// How many referrers are on one page of the referrers API.
    pub fn set_page_size(&self, size: usize) {
        self.state.settings.lock().page_size = size;
    }

    /// Which authorization is wanted.
    pub fn set_auth(&self, auth: Auth) {
        self.state.settings.lock().auth = auth;
    }

    /// Redirects reads of blobs to the storage host, by URLs that are good for `uses` requests.
    pub fn redirect_blobs(&self, uses: u32) {
        self.state.settings.lock().redirect_uses = Some(uses);
    }

    /// Makes all tokens given so far invalid.
    pub fn revoke_tokens(&self) {
        self.state.tokens.lock().clear();
    }

    /// Adds a fault to the script. The first fault that matches a request strikes.
    pub fn script(&self, chosen: Match, fault: Fault) {
        self.state.script.lock().push(chosen, fault);
    }

    /// Takes all faults out of the script.
    pub fn clear_script(&self) {
        self.state.script.lock().clear();
    }

    /// What has been asked so far, in order.
    pub fn requests(&self) -> Vec<Recorded> {
        self.state.requests.lock().clone()
    }

    /// How many requests so far had `method` and a path that contains `part`.
    pub fn count(&self, method: &str, part: &str) -> usize {
        let requests = self.state.requests.lock();
        let counted = requests
            .iter()
            .filter(|request| request.method == method && request.path.contains(part));
        counted.count()
    }
}

impl Drop for ScriptedRegistry {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

//! What the registry holds, wants and has been asked.

use std::collections::HashMap;
use std::net::SocketAddr;

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::fault::Script;

/// Which authorization is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Auth {
    /// None.
    #[default]
    Open,
    /// User and password with every request.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A token from the registry's own token server, which gives one to anybody when there is no password,
    /// else for user and password or for the password as a refresh token.
    Token {
        /// User and password.
        password: Option<(String, String)>,
        /// `expires_in` of the tokens, in seconds.
        expires_in: u64,
    },
}

/// One request, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The method.
    pub method: String,
    /// The path without query.
    pub path: String,
    /// The query, empty if there is none.
    pub query: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// The scheme of `Authorization`, if there is one.
    pub authorization: Option<String>,
    /// The `User-Agent` header.
    pub user_agent: Option<String>,
    /// It came to the storage host.
    pub storage: bool,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) address: SocketAddr,
    pub(super) storage: SocketAddr,
    pub(super) contents: Mutex<Contents>,
    pub(super) settings: Mutex<Settings>,
    pub(super) script: Mutex<Script>,
    pub(super) requests: Mutex<Vec<Recorded>>,
    /// Valid tokens with their scope.
    pub(super) tokens: Mutex<HashMap<String, String>>,
    /// Signatures of storage URLs and how often they may still be used.
    pub(super) signatures: Mutex<HashMap<String, u32>>,
    pub(super) serial: Mutex<u64>,
}

#[derive(Debug)]
pub(super) struct Settings {
    pub(super) referrers: bool,
    pub(super) page_size: usize,
    pub(super) auth: Auth,
    pub(super) redirect_uses: Option<u32>,
}

impl State {
    pub(super) fn new(address: SocketAddr, storage: SocketAddr) -> Self {
        Self {
            address,
            storage,
            contents: Mutex::default(),
            settings: Mutex::new(Settings {
                referrers: true,
                page_size: 100,
                auth: Auth::Open,
                redirect_uses: None,
            }),
            script: Mutex::default(),
            requests: Mutex::default(),
            tokens: Mutex::default(),
            signatures: Mutex::default(),
            serial: Mutex::new(0),
        }
    }

    /// A number never given before.
    pub(super) fn next_serial(&self) -> u64 {
        let mut serial = self.serial.lock();
        *serial += 1;
        *serial
    }
}

/// Repositories by name.
#[derive(Debug, Default)]
pub(super) struct Contents {
    repositories: HashMap<String, Repository>,
}

#[derive(Debug, Default)]
struct Repository {
    blobs: HashMap<String, Bytes>,
    manifests: HashMap<String, Manifest>,
    tags: HashMap<String, String>,
    /// Digests of manifests in the order they came.
    order: Vec<String>,
}

#[derive(Debug, Clone)]
pub(super) struct Manifest {
    pub(super) media_type: String,
    pub(super) bytes: Bytes,
}

/// `sha256:<hex>` of `bytes`.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

impl Contents {
    fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }

    pub(super) fn put_blob(&mut self, repository: &str, bytes: Bytes) -> String {
        let digest = digest_of(&bytes);
        self.repository(repository)
            .blobs
            .insert(digest.clone(), bytes);
        digest
    }

    pub(super) fn put_manifest(
        &mut self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: Bytes,
    ) -> String {
        let digest = digest_of(&bytes);
        let manifest = Manifest {
            media_type: media_type.to_owned(),
            bytes,
        };
        let repository = self.repository(repository);
        if repository
            .manifests
            .insert(digest.clone(), manifest)
            .is_none()
        {
            repository.order.push(digest.clone());
        }
        if let Some(tag) = tag {
            repository.tags.insert(tag.to_owned(), digest.clone());
        }
        digest
    }

    pub(super) fn blob(&self, repository: &str, digest: &str) -> Option<Bytes> {
        self.repositories
            .get(repository)?
            .blobs
            .get(digest)
            .cloned()
    }

    /// A manifest by digest or tag, with its digest.
    pub(super) fn manifest(&self, repository: &str, name: &str) -> Option<(String, Manifest)> {
        let repository = self.repositories.get(repository)?;
        let digest = repository.tags.get(name).map_or(name, String::as_str);
        let manifest = repository.manifests.get(digest)?;
        Some((digest.to_owned(), manifest.clone()))
    }

    pub(super) fn content(&self, repository: &str, digest: &str) -> Option<Bytes> {
        let manifest = || {
            self.manifest(repository, digest)
                .map(|(_, manifest)| manifest.bytes)
        };
        self.blob(repository, digest).or_else(manifest)
    }

    pub(super) fn tagged(&self, repository: &str, tag: &str) -> Option<String> {
        self.repositories.get(repository)?.tags.get(tag).cloned()
    }

    /// Descriptors of the manifests whose subject is `subject`.
    pub(super) fn referrers(&self, repository: &str, subject: &str) -> Vec<Value> {
        let Some(repository) = self.repositories.get(repository) else {
            return Vec::new();
        };
        let manifests = repository.order.iter().filter_map(|digest| {
            let manifest = &repository.manifests[digest];
            let document: Value = serde_json::from_slice(&manifest.bytes).ok()?;
            let refers = document["subject"]["digest"] == *subject;
            refers.then(|| descriptor(digest, manifest, &document))
        });
        manifests.collect()
    }
}

fn descriptor(digest: &str, manifest: &Manifest, document: &Value) -> Value {
    let own = &document["artifactType"];
    let artifact_type = if own.is_string() {
        own
    } else {
        &document["config"]["mediaType"]
    };
    json!({
        "mediaType": manifest.media_type,
        "digest": digest,
        "size": manifest.bytes.len(),
        "artifactType": artifact_type,
    })
}

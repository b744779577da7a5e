//! Credentials that the kubelet gave for its images.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use lru::LruCache;
use parking_lot::Mutex;

use super::kept::{Kept, Line};
use crate::registry::{
    CredentialError, CredentialProvider, CredentialQuery, Credentials, Reference,
};

/// Repositories whose credentials are kept; the one that was used longest ago goes first.
const MOST: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// What pulls were allowed with. Clones share it. `Debug` shows no secret.
#[derive(Clone)]
pub struct Keychain {
    shared: Arc<Shared>,
}

struct Shared {
    entries: Mutex<LruCache<Repository, Entry>>,
    kept: Kept,
    /// One writer at a time, so that the newest state is written last.
    writing: Mutex<()>,
}

/// Host and repository.
type Repository = (String, String);

#[derive(Clone)]
struct Entry {
    credentials: Credentials,
    /// Ids of the images that were pulled with them, by reference.
    images: BTreeMap<String, String>,
}

/// What to put back if a pull fails.
pub(super) struct Before {
    repository: Repository,
    tried: Credentials,
    entry: Option<Entry>,
}

impl Keychain {
    /// What an earlier daemon kept at `path`, where this one keeps it too. Blocks.
    pub fn open(path: &Path) -> Self {
        let kept = Kept::new(path);
        let mut entries = LruCache::new(MOST);
        for line in kept.read() {
            let credentials = match line.user.as_str() {
                "" => Credentials::IdentityToken(line.secret),
                _ => Credentials::Password {
                    user: line.user,
                    password: line.secret,
                },
            };
            let entry = Entry {
                credentials,
                images: line.images.into_iter().collect(),
            };
            entries.put((line.host, line.repository), entry);
        }
        Self {
            shared: Arc::new(Shared {
                entries: Mutex::new(entries),
                kept,
                writing: Mutex::new(()),
            }),
        }
    }

    /// A pull of `image` begins: its layers are asked for before it is known whether it is allowed.
    pub(super) fn begin(&self, image: &Reference, credentials: Credentials) -> Before {
        let repository = key(image);
        let mut entries = self.shared.entries.lock();
        let before = entries.get(&repository).cloned();
        let images = before.as_ref().map(|entry| entry.images.clone());
        let entry = Entry {
            credentials: credentials.clone(),
            images: images.unwrap_or_default(),
        };
        entries.put(repository.clone(), entry);
        Before {
            repository,
            tried: credentials,
            entry: before,
        }
    }

    /// The pull has failed: earlier credentials are not given up for those.
    pub(super) fn failed(&self, before: Before) {
        let mut entries = self.shared.entries.lock();
        let tried = entries.peek(&before.repository);
        if tried.is_none_or(|entry| entry.credentials != before.tried) {
            return;
        }
        match before.entry {
            Some(entry) => entries.put(before.repository, entry),
            None => entries.pop(&before.repository),
        };
    }

    /// The pull has brought the image `id`.
    pub(super) async fn pulled(&self, image: &Reference, id: &str) {
        {
            let mut entries = self.shared.entries.lock();
            let Some(entry) = entries.get_mut(&key(image)) else {
                return;
            };
            entry.images.insert(image.to_string(), id.to_owned());
        }
        self.write().await;
    }

    /// The image is removed, which is named by a reference or its id; all its references go with it.
    pub(super) async fn removed(&self, image: &str) {
        let reference = image.parse::<Reference>().map(|image| image.to_string());
        {
            let mut entries = self.shared.entries.lock();
            let named = |(name, id): (&String, &String)| {
                let is_it = *id == image || reference.as_ref().is_ok_and(|image| image == name);
                is_it.then(|| id.clone())
            };
            let ids = entries.iter().flat_map(|(_, entry)| entry.images.iter());
            let ids: Vec<String> = ids.filter_map(named).collect();
            let mut unused = Vec::new();
            for (repository, entry) in entries.iter_mut() {
                let before = entry.images.len();
                entry.images.retain(|_, id| !ids.contains(id));
                if before > 0 && entry.images.is_empty() {
                    unused.push(repository.clone());
                }
            }
            for repository in unused {
                entries.pop(&repository);
            }
        }
        self.write().await;
    }

    async fn write(&self) {
        let shared = Arc::clone(&self.shared);
        let written = tokio::task::spawn_blocking(move || shared.write()).await;
        if let Ok(Err(error)) = written {
            tracing::warn!(%error, "credentials are not kept for the next daemon");
        }
    }
}

impl Shared {
    fn write(&self) -> std::io::Result<()> {
        let _one = self.writing.lock();
        let lines: Vec<Line> = self.entries.lock().iter().filter_map(line).collect();
        self.kept.write(&lines)
    }
}

/// What no image was pulled with is not kept.
fn line((repository, entry): (&Repository, &Entry)) -> Option<Line> {
    let (user, secret) = match &entry.credentials {
        Credentials::Password { user, password } => (user.clone(), password.clone()),
        Credentials::IdentityToken(token) => (String::new(), token.clone()),
    };
    (!entry.images.is_empty()).then(|| Line {
        host: repository.0.clone(),
        repository: repository.1.clone(),
        user,
        secret,
        images: entry.images.clone().into_iter().collect(),
    })
}

fn key(image: &Reference) -> Repository {
    (image.host().to_owned(), image.repository().to_owned())
}

#[async_trait]
impl CredentialProvider for Keychain {
    async fn credentials(
        &self,
        query: CredentialQuery<'_>,
    ) -> Result<Option<Credentials>, CredentialError> {
        // Given for the registry, they are not for its mirrors.
        if query.mirror {
            return Ok(None);
        }
        let repository = (query.host.to_owned(), query.repository.to_owned());
        let mut entries = self.shared.entries.lock();
        Ok(entries
            .get(&repository)
            .map(|entry| entry.credentials.clone()))
    }
}

impl fmt::Debug for Keychain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keychain").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn password(password: &str) -> Credentials {
        Credentials::Password {
            user: String::from("u"),
            password: password.to_owned(),
        }
    }

    async fn known(keychain: &Keychain, image: &Reference) -> Option<Credentials> {
        let query = CredentialQuery {
            host: image.host(),
            repository: image.repository(),
            mirror: false,
        };
        keychain.credentials(query).await.unwrap()
    }

    #[tokio::test]
    async fn credentials_live_as_long_as_an_image_that_was_pulled_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials");
        let (one, two): (Reference, Reference) = (
            "reg.example/app:1".parse().unwrap(),
            "reg.example/app:2".parse().unwrap(),
        );
        let keychain = Keychain::open(&file);
        keychain.begin(&one, password("right"));
        assert_eq!(known(&keychain, &one).await, Some(password("right")));
        assert!(!file.exists(), "nothing is pulled yet");
        keychain.pulled(&one, "sha256:1").await;
        keychain.begin(&two, password("right"));
        keychain.pulled(&two, "sha256:2").await;
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let next = Keychain::open(&file);
        assert_eq!(known(&next, &one).await, Some(password("right")));
        next.removed("sha256:1").await;
        assert_eq!(known(&next, &one).await, Some(password("right")));
        next.removed("reg.example/app:2").await;
        assert_eq!(known(&next, &one).await, None);
        assert!(!file.exists());
    }

    #[tokio::test]
    async fn a_pull_that_is_refused_does_not_replace_what_an_earlier_one_was_allowed_with() {
        let dir = tempfile::tempdir().unwrap();
        let keychain = Keychain::open(&dir.path().join("credentials"));
        let image: Reference = "reg.example/app:1".parse().unwrap();
        keychain.begin(&image, password("right"));
        keychain.pulled(&image, "sha256:1").await;
        let before = keychain.begin(&image, password("wrong"));
        assert_eq!(known(&keychain, &image).await, Some(password("wrong")));
        keychain.failed(before);
        assert_eq!(known(&keychain, &image).await, Some(password("right")));

        let other: Reference = "reg.example/other:1".parse().unwrap();
        let before = keychain.begin(&other, password("wrong"));
        keychain.failed(before);
        assert_eq!(known(&keychain, &other).await, None);
    }

    #[tokio::test]
    async fn mirrors_get_none_and_damage_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials");
        for text in ["", "{", "[{\"host\": 1}]"] {
            std::fs::write(&file, text).unwrap();
            let keychain = Keychain::open(&file);
            let image: Reference = "reg.example/app:1".parse().unwrap();
            keychain.begin(&image, password("right"));
            let query = CredentialQuery {
                host: "reg.example",
                repository: "app",
                mirror: true,
            };
            assert_eq!(keychain.credentials(query).await.unwrap(), None);
            assert!(!format!("{keychain:?}").contains("right"));
        }
    }
}

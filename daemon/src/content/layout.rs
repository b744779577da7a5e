//! The `soci` content store: a directory in OCI layout form.
//!
//! The daemon and the CLI use it at the same time: content appears by renaming a finished file, a
//! file being written is locked by its writer, and `index.json` is changed under a lock file.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use ztoc::Digest;

use super::{Content, ContentReader, ContentStore, Labels, StoreError, StoreErrorKind};
use crate::registry::{Descriptor, media_type};

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// Largest `index.json` read, in bytes.
const MAX_INDEX: u64 = 64 << 20;

/// `<root>/content`: `oci-layout`, `index.json` (the manifests stored), `blobs/sha256/<hex>`, `ingest/`
/// (files being written). Has no labels.
#[derive(Debug, Clone)]
pub struct OciLayoutStore {
    root: Arc<Path>,
}

impl OciLayoutStore {
    /// Opens the store at `root`: makes what is missing, removes files that a writer left unfinished.
    /// Blocks on file I/O.
    pub fn open_at(root: &Path) -> Result<Self, StoreError> {
        let store = Self { root: root.into() };
        let prepare = || {
            fs::create_dir_all(store.blobs())?;
            fs::create_dir_all(store.ingest())?;
            if !root.join("oci-layout").exists() {
                store.write(&root.join("oci-layout"), LAYOUT)?;
            }
            store.change_index(|_| ())?;
            store.sweep()
        };
        prepare().map_err(|error: io::Error| store.error("open", error))?;
        Ok(store)
    }

    fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    fn ingest(&self) -> PathBuf {
        self.root.join("ingest")
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    fn error(&self, digest: impl ToString, kind: impl Into<StoreErrorKind>) -> StoreError {
        StoreError {
            store: self.root.display().to_string(),
            digest: digest.to_string(),
            kind: kind.into(),
        }
    }

    /// Removes unfinished files, unless their writer still holds its lock.
    fn sweep(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.ingest())? {
            let path = entry?.path();
            let Ok(file) = File::open(&path) else {
                continue;
            };
            if file.try_lock().is_ok() {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Makes `path` hold `bytes`, durably and at once.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = NamedTempFile::new_in(self.ingest())?;
        file.as_file().lock()?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        match path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }

    fn store(&self, descriptor: &Descriptor, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(&descriptor.digest);
        let stored = fs::metadata(&path).is_ok_and(|meta| meta.len() == bytes.len() as u64);
        if !stored {
            self.write(&path, bytes)?;
        }
        let kind = &descriptor.media_type;
        if media_type::is_manifest(kind) || media_type::is_index(kind) {
            self.change_index(|manifests| {
                manifests.retain(|entry| !names(entry, &descriptor.digest));
                manifests.push(json!(descriptor));
            })?;
        }
        Ok(())
    }

    fn remove(&self, digest: &Digest) -> io::Result<bool> {
        self.change_index(|manifests| manifests.retain(|entry| !names(entry, digest)))?;
        match fs::remove_file(self.path(digest)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Changes the list of manifests in `index.json`, alone.
    fn change_index(&self, change: impl FnOnce(&mut Vec<Value>)) -> io::Result<()> {
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.root.join(".index.lock"))?;
        lock.lock()?;
        let path = self.root.join("index.json");
        let old = read_index(&path)?;
        let mut manifests = old.clone().unwrap_or_default();
        change(&mut manifests);
        if old.as_ref() != Some(&manifests) {
            let index = json!({"schemaVersion": 2, "manifests": manifests});
            self.write(&path, index.to_string().as_bytes())?;
        }
        Ok(())
    }

    fn read(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, StoreError> {
        let file = match File::open(self.path(digest)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.error(digest, error)),
        };
        let size = file
            .metadata()
            .map_err(|error| self.error(digest, error))?
            .len();
        if size > limit {
            return Err(self.error(digest, StoreErrorKind::TooLarge { size, limit }));
        }
        let mut bytes = Vec::new();
        let read = file.take(limit).read_to_end(&mut bytes);
        read.map_err(|error| self.error(digest, error))?;
        if Digest::of(&bytes) == *digest {
            return Ok(Some(bytes.into()));
        }
        // Removed, so that it is fetched and stored anew.
        self.remove(digest)
            .map_err(|error| self.error(digest, error))?;
        Err(self.error(digest, StoreErrorKind::Corrupt))
    }

    fn contents(&self) -> io::Result<Vec<Content>> {
        let mut contents = Vec::new();
        for entry in fs::read_dir(self.blobs())? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(digest) = name
                .to_str()
                .and_then(|hex| format!("sha256:{hex}").parse().ok())
            else {
                continue;
            };
            match entry.metadata() {
                Ok(meta) => contents.push(Content {
                    digest,
                    size: meta.len(),
                    labels: Labels::new(),
                }),
                // Deleted in the meantime.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(contents)
    }

    /// Runs `work` on a thread for blocking work; it runs to its end even if nobody waits any more.
    async fn blocking<T: Send + 'static>(
        &self,
        about: impl ToString,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.unwrap_or_else(|error| Err(self.error(about, io::Error::other(error))))
    }
}

fn names(entry: &Value, digest: &Digest) -> bool {
    entry["digest"] == digest.to_string()
}

/// The manifests listed; `None` without a file, or with one that nobody can read: it is only a list
/// of what is stored anyway.
fn read_index(path: &Path) -> io::Result<Option<Vec<Value>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(MAX_INDEX).read_to_end(&mut text)?;
    let mut index: Value = serde_json::from_slice(&text).unwrap_or_default();
    Ok(match index["manifests"].take() {
        Value::Array(manifests) => Some(manifests),
        _ => None,
    })
}

#[async_trait]
impl ContentStore for OciLayoutStore {
    async fn get(&self, digest: &Digest, limit: u64) -> Result<Option<Bytes>, StoreError> {
        let digest = *digest;
        self.blocking(digest, move |store| store.read(&digest, limit))
            .await
    }

    async fn put(
        &self,
        descriptor: &Descriptor,
        bytes: Bytes,
        _labels: &Labels,
    ) -> Result<(), StoreError> {
        let descriptor = descriptor.clone();
        self.blocking(descriptor.digest, move |store| {
            if Digest::of(&bytes) != descriptor.digest {
                return Err(store.error(descriptor.digest, StoreErrorKind::Corrupt));
            }
            let stored = store.store(&descriptor, &bytes);
            stored.map_err(|error| store.error(descriptor.digest, error))
        })
        .await
    }

    async fn open(&self, digest: &Digest) -> Result<Option<ContentReader>, StoreError> {
        let file = match tokio::fs::File::open(self.path(digest)).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.error(digest, error)),
        };
        let meta = file
            .metadata()
            .await
            .map_err(|error| self.error(digest, error))?;
        Ok(Some(ContentReader {
            size: meta.len(),
            bytes: Box::pin(file),
        }))
    }

    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        match tokio::fs::metadata(self.path(digest)).await {
            Ok(meta) => Ok(Some(meta.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error(digest, error)),
        }
    }

    async fn delete(&self, digest: &Digest) -> Result<bool, StoreError> {
        let digest = *digest;
        self.blocking(digest, move |store| {
            store
                .remove(&digest)
                .map_err(|error| store.error(digest, error))
        })
        .await
    }

    async fn label(&self, _digest: &Digest, _labels: &Labels) -> Result<(), StoreError> {
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Content>, StoreError> {
        self.blocking("list", |store| {
            store.contents().map_err(|error| store.error("list", error))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn store() -> (tempfile::TempDir, OciLayoutStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = OciLayoutStore::open_at(&dir.path().join("content")).unwrap();
        (dir, store)
    }

    async fn put(store: &OciLayoutStore, kind: &str, bytes: &'static [u8]) -> Digest {
        let descriptor = Descriptor::of(kind, bytes);
        store
            .put(&descriptor, Bytes::from(bytes), &Labels::new())
            .await
            .unwrap();
        descriptor.digest
    }

    fn listed(store: &OciLayoutStore) -> Vec<Value> {
        read_index(&store.root.join("index.json")).unwrap().unwrap()
    }

    #[tokio::test]
    async fn what_is_put_is_a_blob_of_the_oci_layout_and_comes_back() {
        let (_dir, store) = store();
        let digest = put(&store, media_type::OCTET_STREAM, b"ztoc").await;
        assert_eq!(
            fs::read(store.root.join("blobs/sha256").join(digest.hex())).unwrap(),
            b"ztoc"
        );
        let layout: Value =
            serde_json::from_slice(&fs::read(store.root.join("oci-layout")).unwrap()).unwrap();
        assert_eq!(layout["imageLayoutVersion"], "1.0.0");
        assert_eq!(store.get(&digest, 4).await.unwrap().unwrap(), "ztoc");
        assert_eq!(store.size(&digest).await.unwrap(), Some(4));
        assert_eq!(store.list().await.unwrap().len(), 1);
        assert!(listed(&store).is_empty());
        assert!(store.delete(&digest).await.unwrap());
        assert!(!store.delete(&digest).await.unwrap());
        assert_eq!(store.get(&digest, 4).await.unwrap(), None);
    }

    #[tokio::test]
    async fn manifests_are_listed_once_in_the_index() {
        let (_dir, store) = store();
        let digest = put(&store, media_type::OCI_MANIFEST, b"{}").await;
        put(&store, media_type::OCI_MANIFEST, b"{}").await;
        let entries = listed(&store);
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0]["digest"], digest.to_string());
        store.delete(&digest).await.unwrap();
        assert!(listed(&store).is_empty());
    }

    #[tokio::test]
    async fn content_that_rotted_is_an_error_once_and_then_gone() {
        let (_dir, store) = store();
        let digest = put(&store, media_type::OCTET_STREAM, b"ztoc").await;
        fs::write(store.path(&digest), b"ZTOC").unwrap();
        let error = store.get(&digest, 100).await.unwrap_err();
        assert!(matches!(error.kind, StoreErrorKind::Corrupt), "{error}");
        assert_eq!(store.get(&digest, 100).await.unwrap(), None);
    }

    #[tokio::test]
    async fn wrong_or_too_much_content_is_refused() {
        let (_dir, store) = store();
        let descriptor = Descriptor::of(media_type::OCTET_STREAM, b"right");
        let error = store
            .put(&descriptor, Bytes::from("wrong"), &Labels::new())
            .await
            .unwrap_err();
        assert!(matches!(error.kind, StoreErrorKind::Corrupt));
        let digest = put(&store, media_type::OCTET_STREAM, b"four").await;
        let error = store.get(&digest, 3).await.unwrap_err();
        assert!(matches!(
            error.kind,
            StoreErrorKind::TooLarge { size: 4, limit: 3 }
        ));
    }

    #[tokio::test]
    async fn opening_removes_unfinished_files_but_not_those_being_written() {
        let (dir, store) = store();
        let left = store.ingest().join("left");
        let busy = store.ingest().join("busy");
        fs::write(&left, b"x").unwrap();
        let writer = File::create(&busy).unwrap();
        writer.lock().unwrap();
        OciLayoutStore::open_at(&dir.path().join("content")).unwrap();
        assert!(!left.exists() && busy.exists());
    }

    #[tokio::test]
    async fn an_unreadable_index_does_not_make_the_store_unusable() {
        let (dir, store) = store();
        fs::write(store.root.join("index.json"), b"{broken").unwrap();
        let again = OciLayoutStore::open_at(&dir.path().join("content")).unwrap();
        put(&again, media_type::OCI_MANIFEST, b"{}").await;
        assert_eq!(listed(&again).len(), 1);
    }
}

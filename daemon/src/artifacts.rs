//! What the `soci` CLI remembers about the artifacts it made: which index belongs to which image, which zTOC
//! to which layer.
//!
//! One small JSON file per artifact under `<root>/artifacts/`, written whole and moved into place:
//! several commands may run at once, and none waits for another. Only the CLI reads them, and all
//! can be rebuilt from the artifacts themselves.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use ztoc::Digest;
use ztoc::index::{IndexVersion, Platform};

/// A record larger than this is not ours.
const MAX_RECORD_SIZE: u64 = 1 << 20;

/// The records of one root directory.
#[derive(Debug, Clone)]
pub struct Artifacts {
    dir: PathBuf,
}

/// One artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// sha256 of the artifact.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
    /// When it was made, in nanoseconds since 1970. Nanoseconds, because the newest index wins.
    pub created_at: i64,
    /// What it is.
    #[serde(flatten)]
    pub kind: ArtifactKind,
}

/// What an artifact is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ArtifactKind {
    /// A SOCI index, and the images it was made for.
    Index {
        /// 1 or 2.
        #[serde(with = "version_number")]
        version: IndexVersion,
        /// Several images may share an index: its bytes depend on the layers only (v2).
        images: Vec<IndexedImage>,
    },
    /// A compact index, and the images it was made for.
    CompactIndex {
        /// As of a SOCI index.
        images: Vec<IndexedImage>,
    },
    /// A compact zTOC.
    CompactZtoc {
        /// The layer it describes.
        layer: Digest,
        /// The span size it was made with.
        span_size: u64,
    },
    /// A zTOC.
    Ztoc {
        /// The layer it describes.
        layer: Digest,
        /// The span size it was made with.
        span_size: u64,
    },
    /// A list of spans to be fetched first.
    Prefetch {
        /// The layer whose spans they are.
        layer: Digest,
        /// How many spans.
        spans: u64,
    },
}

/// An image that an index was made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexedImage {
    /// What the image's name pointed at: a manifest or an image index.
    pub target: Digest,
    /// The platform's image manifest.
    pub manifest: Digest,
    /// The platform.
    pub platform: Platform,
}

/// A record could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("artifact records: {}", path.display())]
pub struct ArtifactsError {
    path: PathBuf,
    source: io::Error,
}

impl Artifacts {
    /// The records under `root`; the directory is made if need be, readable by its owner only.
    pub fn open(root: &Path) -> Result<Self, ArtifactsError> {
        let dir = root.join("artifacts");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(failed(&dir))?;
        Ok(Self { dir })
    }

    /// Adds a record. A new record of an index takes over the images of the old one.
    pub fn put(&self, artifact: &Artifact) -> Result<(), ArtifactsError> {
        let lock_path = self.dir.join("lock");
        let _lock = lock(&lock_path).map_err(failed(&lock_path))?;
        let mut artifact = artifact.clone();
        if let Some(earlier) = self.get(&artifact.digest)? {
            artifact.adopt_images(earlier);
        }
        let path = self.path(&artifact.digest);
        self.write(&path, &artifact).map_err(failed(&path))
    }

    fn write(&self, path: &Path, artifact: &Artifact) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        serde_json::to_writer(&mut file, artifact)?;
        file.flush()?;
        file.persist(path)?;
        Ok(())
    }

    /// The record of an artifact. One that is damaged counts as absent.
    pub fn get(&self, digest: &Digest) -> Result<Option<Artifact>, ArtifactsError> {
        let path = self.path(digest);
        match read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map_err(failed(&path)),
        }
    }

    /// All records, newest first.
    pub fn list(&self) -> Result<Vec<Artifact>, ArtifactsError> {
        let mut all = Vec::new();
        for file in fs::read_dir(&self.dir).map_err(failed(&self.dir))? {
            let path = file.map_err(failed(&self.dir))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                // Removed by another command meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => all.extend(other.map_err(failed(&path))?),
            }
        }
        all.sort_by_key(|it| std::cmp::Reverse((it.created_at, it.digest)));
        Ok(all)
    }

    /// Removes a record; whether there was one.
    pub fn remove(&self, digest: &Digest) -> Result<bool, ArtifactsError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed(&path)(error)),
        }
    }

    /// The zTOC made for `layer` with `span_size`; the newest if there are several.
    pub fn ztoc_of(
        &self,
        layer: &Digest,
        span_size: u64,
    ) -> Result<Option<Artifact>, ArtifactsError> {
        let wanted = ArtifactKind::Ztoc {
            layer: *layer,
            span_size,
        };
        self.of_kind(&wanted)
    }

    /// The newest artifact that is exactly this.
    pub fn of_kind(&self, kind: &ArtifactKind) -> Result<Option<Artifact>, ArtifactsError> {
        Ok(self.list()?.into_iter().find(|it| it.kind == *kind))
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(format!("{}.json", digest.hex()))
    }
}

impl ArtifactKind {
    /// The images that an index of either form was made for; none of what is no index.
    pub fn images(&self) -> &[IndexedImage] {
        match self {
            Self::Index { images, .. } | Self::CompactIndex { images } => images,
            Self::CompactZtoc { .. } | Self::Ztoc { .. } | Self::Prefetch { .. } => &[],
        }
    }

    /// Whether it is an index of either form.
    pub fn is_index(&self) -> bool {
        matches!(self, Self::Index { .. } | Self::CompactIndex { .. })
    }
}

impl Artifact {
    fn adopt_images(&mut self, earlier: Self) {
        use ArtifactKind::{CompactIndex, Index};
        let ((Index { images, .. }, Index { images: old, .. })
        | (CompactIndex { images }, CompactIndex { images: old })) = (&mut self.kind, earlier.kind)
        else {
            return;
        };
        let missing: Vec<_> = old.into_iter().filter(|it| !images.contains(it)).collect();
        images.extend(missing);
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> ArtifactsError {
    let path = path.to_owned();
    move |source| ArtifactsError {
        path: path.clone(),
        source,
    }
}

fn lock(path: &Path) -> io::Result<Flock<fs::File>> {
    let file = fs::File::create(path)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

fn read(path: &Path) -> io::Result<Option<Artifact>> {
    if fs::metadata(path)?.len() > MAX_RECORD_SIZE {
        return Ok(None);
    }
    Ok(serde_json::from_slice(&fs::read(path)?).ok())
}

mod version_number {
    use super::*;
    use serde::{Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(
        version: &IndexVersion,
        out: S,
    ) -> Result<S::Ok, S::Error> {
        out.serialize_u8(match version {
            IndexVersion::V1 => 1,
            IndexVersion::V2 => 2,
        })
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<IndexVersion, D::Error> {
        match u8::deserialize(from)? {
            1 => Ok(IndexVersion::V1),
            2 => Ok(IndexVersion::V2),
            other => Err(D::Error::custom(format_args!("index version {other}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn index(images: &[u8], created_at: i64) -> Artifact {
        Artifact {
            digest: Digest::of(b"index"),
            size: 5,
            created_at,
            kind: ArtifactKind::Index {
                version: IndexVersion::V2,
                images: images.iter().map(|byte| image(*byte)).collect(),
            },
        }
    }

    fn image(byte: u8) -> IndexedImage {
        IndexedImage {
            target: Digest::of(&[byte]),
            manifest: Digest::of(&[byte, 1]),
            platform: Platform::new("linux", "amd64", ""),
        }
    }

    #[test]
    fn an_index_shared_by_two_images_is_remembered_for_both() {
        let root = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(root.path()).unwrap();
        artifacts.put(&index(&[1], 10)).unwrap();
        artifacts.put(&index(&[2], 20)).unwrap();
        let found = artifacts.get(&Digest::of(b"index")).unwrap().unwrap();
        assert_eq!(found, index(&[2, 1], 20));
    }

    #[test]
    fn a_ztoc_is_found_by_layer_and_span_size_and_the_newest_comes_first() {
        let root = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(root.path()).unwrap();
        let layer = Digest::of(b"layer");
        let ztoc = |name: &[u8], span_size, created_at| Artifact {
            digest: Digest::of(name),
            size: 1,
            created_at,
            kind: ArtifactKind::Ztoc { layer, span_size },
        };
        for artifact in [ztoc(b"a", 1, 1), ztoc(b"b", 2, 2), ztoc(b"c", 1, 3)] {
            artifacts.put(&artifact).unwrap();
        }
        let found = artifacts.ztoc_of(&layer, 1).unwrap();
        assert_eq!(found, Some(ztoc(b"c", 1, 3)));
        assert_eq!(artifacts.ztoc_of(&layer, 9).unwrap(), None);
        let listed: Vec<_> = artifacts
            .list()
            .unwrap()
            .iter()
            .map(|it| it.created_at)
            .collect();
        assert_eq!(listed, [3, 2, 1]);
        assert!(artifacts.remove(&Digest::of(b"c")).unwrap());
        assert!(!artifacts.remove(&Digest::of(b"c")).unwrap());
    }

    #[test]
    fn a_damaged_record_hides_only_itself() {
        let root = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(root.path()).unwrap();
        artifacts.put(&index(&[1], 10)).unwrap();
        let damaged = Digest::of(b"damaged");
        fs::write(artifacts.path(&damaged), b"{\"digest\":").unwrap();
        assert_eq!(artifacts.list().unwrap(), [index(&[1], 10)]);
        assert_eq!(artifacts.get(&damaged).unwrap(), None);
    }
}

//! OCI image layouts: a directory, or a tar of one, with `oci-layout`, `index.json` and
//! `blobs/sha256/<hex>`.
//!
//! A layout is read where it lies: of a tar only the headers are read to find the blobs. Names that are
//! none of the three are passed over, so nothing a tar says can lead outside.

mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use ztoc::Digest;
use ztoc::index::{DocumentError, ImageIndex, MAX_DOCUMENT_SIZE};

pub use writer::{LayoutFormat, LayoutWriter};

/// More members than any image has; a tar above it is refused.
const MAX_MEMBERS: usize = 100_000;
const VERSION_FILE: &str = "oci-layout";
const INDEX_FILE: &str = "index.json";
const VERSION: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// A layout that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("OCI layout {}: {problem}", path.display())]
pub struct LayoutError {
    /// The directory or tar.
    pub path: PathBuf,
    /// What is wrong.
    pub problem: LayoutProblem,
}

/// What is wrong with a layout.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutProblem {
    /// No such file or directory, or it cannot be used.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A compressed tar.
    #[error("is compressed; decompress it first")]
    Compressed,
    /// A `docker save` archive of the old form.
    #[error(
        "is a docker-save archive, not an OCI layout; convert it first, for example with skopeo"
    )]
    DockerSave,
    /// `index.json` is missing.
    #[error("has no {INDEX_FILE}")]
    NoIndex,
    /// `index.json` is no image index.
    #[error("{INDEX_FILE} is unusable: {}", chain(_0))]
    Index(#[from] DocumentError),
    /// A blob is not what its name says.
    #[error("blob {digest} hashes to {actual}")]
    Corrupt {
        /// Its name.
        digest: Digest,
        /// Its content.
        actual: Digest,
    },
    /// A blob is larger than what it is read as may be.
    #[error("blob {digest} has {size} bytes, more than the {limit} accepted")]
    TooLarge {
        /// The blob.
        digest: Digest,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A tar with more members than an image has.
    #[error("more than {MAX_MEMBERS} members")]
    TooManyMembers,
    /// The output exists and is something else.
    #[error("exists and is not an OCI layout; not overwritten")]
    NotALayout,
}

fn chain(error: &DocumentError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// A layout opened for reading.
#[derive(Debug)]
pub struct Layout {
    path: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Directory,
    /// Position and size of each blob within the tar, and of `index.json`.
    Archive {
        blobs: BTreeMap<Digest, (u64, u64)>,
        index: (u64, u64),
    },
}

/// A blob opened for reading from its start.
#[derive(Debug)]
pub struct LayoutBlob {
    /// Size in bytes.
    pub size: u64,
    file: io::Take<File>,
}

impl Read for LayoutBlob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

impl Layout {
    /// Opens a layout directory or tar.
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        let place = Self::find(path).map_err(|problem| LayoutError {
            path: path.to_owned(),
            problem,
        })?;
        Ok(Self {
            path: path.to_owned(),
            place,
        })
    }

    fn find(path: &Path) -> Result<Place, LayoutProblem> {
        if !path.metadata()?.is_dir() {
            return scan(File::open(path)?);
        }
        if path.join(INDEX_FILE).is_file() {
            Ok(Place::Directory)
        } else if path.join("manifest.json").is_file() {
            Err(LayoutProblem::DockerSave)
        } else {
            Err(LayoutProblem::NoIndex)
        }
    }

    /// `index.json`.
    pub fn index(&self) -> Result<ImageIndex, LayoutError> {
        self.wrap(self.read_index())
    }

    fn read_index(&self) -> Result<ImageIndex, LayoutProblem> {
        let file = match &self.place {
            Place::Directory => File::open(self.path.join(INDEX_FILE))?.take(u64::MAX),
            Place::Archive { index, .. } => self.section(*index)?,
        };
        let mut bytes = Vec::new();
        file.take(MAX_DOCUMENT_SIZE as u64 + 1)
            .read_to_end(&mut bytes)?;
        Ok(ImageIndex::parse(&bytes)?)
    }

    /// Whether there is such a blob.
    pub fn has(&self, digest: &Digest) -> bool {
        match &self.place {
            Place::Directory => self.blob_path(digest).is_file(),
            Place::Archive { blobs, .. } => blobs.contains_key(digest),
        }
    }

    /// The file that holds a blob, and where in it the blob begins. `None` if it is not there.
    pub fn locate(&self, digest: &Digest) -> Option<(PathBuf, u64)> {
        match &self.place {
            Place::Directory => {
                Some((self.blob_path(digest), 0)).filter(|(path, _)| path.is_file())
            }
            Place::Archive { blobs, .. } => {
                let (start, _) = blobs.get(digest)?;
                Some((self.path.clone(), *start))
            }
        }
    }

    /// Opens a blob; its bytes are not verified. `None` if it is not there.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<LayoutBlob>, LayoutError> {
        self.wrap(self.find_blob(digest))
    }

    fn find_blob(&self, digest: &Digest) -> Result<Option<LayoutBlob>, LayoutProblem> {
        let (file, size) = match &self.place {
            Place::Directory => {
                let file = match File::open(self.blob_path(digest)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    other => other?,
                };
                let size = file.metadata()?.len();
                (file.take(size), size)
            }
            Place::Archive { blobs, .. } => match blobs.get(digest) {
                Some(section) => (self.section(*section)?, section.1),
                None => return Ok(None),
            },
        };
        Ok(Some(LayoutBlob { size, file }))
    }

    /// A whole blob, verified. `None` if it is not there.
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, LayoutError> {
        let Some(mut blob) = self.open_blob(digest)? else {
            return Ok(None);
        };
        self.wrap(read_verified(&mut blob, digest, limit)).map(Some)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path.join("blobs/sha256").join(digest.hex())
    }

    fn section(&self, (start, size): (u64, u64)) -> io::Result<io::Take<File>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(start))?;
        Ok(file.take(size))
    }

    fn wrap<T>(&self, result: Result<T, LayoutProblem>) -> Result<T, LayoutError> {
        result.map_err(|problem| LayoutError {
            path: self.path.clone(),
            problem,
        })
    }
}

fn read_verified(
    blob: &mut LayoutBlob,
    digest: &Digest,
    limit: u64,
) -> Result<Vec<u8>, LayoutProblem> {
    if blob.size > limit {
        return Err(LayoutProblem::TooLarge {
            digest: *digest,
            size: blob.size,
            limit,
        });
    }
    let mut bytes = Vec::new();
    blob.read_to_end(&mut bytes)?;
    match Digest::of(&bytes) {
        actual if actual != *digest => Err(LayoutProblem::Corrupt {
            digest: *digest,
            actual,
        }),
        _ => Ok(bytes),
    }
}

fn scan(mut file: impl Read + Seek) -> Result<Place, LayoutProblem> {
    let mut magic = Vec::new();
    Read::by_ref(&mut file).take(4).read_to_end(&mut magic)?;
    if magic.starts_with(&[0x1f, 0x8b]) || magic == [0x28, 0xb5, 0x2f, 0xfd] {
        return Err(LayoutProblem::Compressed);
    }
    file.rewind()?;
    let (mut blobs, mut index, mut docker) = (BTreeMap::new(), None, false);
    let mut archive = tar::Archive::new(file);
    for (count, member) in archive.entries_with_seek()?.enumerate() {
        if count >= MAX_MEMBERS {
            return Err(LayoutProblem::TooManyMembers);
        }
        let member = member?;
        if !member.header().entry_type().is_file() {
            continue;
        }
        let section = (member.raw_file_position(), member.size());
        match member_name(&member.path_bytes()) {
            MemberName::Index => index = Some(section),
            MemberName::Blob(digest) => _ = blobs.insert(digest, section),
            MemberName::DockerManifest => docker = true,
            MemberName::Other => {}
        }
    }
    match index {
        Some(index) => Ok(Place::Archive { blobs, index }),
        None if docker => Err(LayoutProblem::DockerSave),
        None => Err(LayoutProblem::NoIndex),
    }
}

enum MemberName {
    Index,
    Blob(Digest),
    DockerManifest,
    Other,
}

fn member_name(name: &[u8]) -> MemberName {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    let Ok(name) = std::str::from_utf8(name) else {
        return MemberName::Other;
    };
    match name {
        INDEX_FILE => MemberName::Index,
        "manifest.json" => MemberName::DockerManifest,
        _ => name
            .strip_prefix("blobs/sha256/")
            .and_then(|hex| format!("sha256:{hex}").parse().ok())
            .map_or(MemberName::Other, MemberName::Blob),
    }
}

/// For [`crate::hostile`]: some tar.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(tar: &[u8]) {
    if let Ok(Place::Archive { blobs, index }) = scan(io::Cursor::new(tar)) {
        assert!(blobs.len() <= MAX_MEMBERS);
        // Sizes may be anything; reading ends where the file does.
        let section = |(start, size): (u64, u64)| {
            let within = |at: u64| usize::try_from(at).map_or(tar.len(), |at| at.min(tar.len()));
            &tar[within(start)..within(start.saturating_add(size))]
        };
        let _ = ImageIndex::parse(section(index));
    }
}

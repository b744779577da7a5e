//! Writes a layout beside its destination and moves it into place when it is whole.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tempfile::{NamedTempFile, TempDir};
use ztoc::Digest;
use ztoc::index::ImageIndex;

use super::{INDEX_FILE, LayoutError, LayoutProblem, VERSION, VERSION_FILE};

/// The form a layout is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayoutFormat {
    /// A tar.
    Archive,
    /// A directory.
    Directory,
}

/// A layout being written. Dropped before [`LayoutWriter::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct LayoutWriter {
    destination: PathBuf,
    target: Target,
}

enum Target {
    Directory(TempDir),
    Archive(Box<tar::Builder<BufWriter<NamedTempFile>>>),
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Directory(_) => "Directory",
            Self::Archive(_) => "Archive",
        })
    }
}

impl LayoutWriter {
    /// Starts a layout with this `index.json`. An existing layout at `destination` will be
    /// replaced; anything else there is an error.
    pub fn create(
        destination: &Path,
        format: LayoutFormat,
        index: &ImageIndex,
    ) -> Result<Self, LayoutError> {
        let target =
            start(destination, format, &index.encode()).map_err(|problem| LayoutError {
                path: destination.to_owned(),
                problem,
            })?;
        Ok(Self {
            destination: destination.to_owned(),
            target,
        })
    }

    /// Adds a blob of `size` bytes and checks that it hashes to `digest`. Each blob once.
    pub fn add_blob(
        &mut self,
        digest: &Digest,
        size: u64,
        bytes: impl Read,
    ) -> Result<(), LayoutError> {
        let mut hashed = Hashing {
            inner: bytes.take(size),
            hash: Sha256::new(),
        };
        let added = match &mut self.target {
            Target::Directory(dir) => write_file(
                &dir.path().join("blobs/sha256").join(digest.hex()),
                &mut hashed,
            ),
            Target::Archive(builder) => {
                let name = format!("blobs/sha256/{}", digest.hex());
                append(builder, &name, size, &mut hashed)
            }
        };
        let added: Result<(), LayoutProblem> = added.map_err(Into::into);
        let actual = Digest::from_bytes(hashed.hash.finalize().into());
        let checked = added.and_then(|()| {
            if actual == *digest {
                Ok(())
            } else {
                Err(LayoutProblem::Corrupt {
                    digest: *digest,
                    actual,
                })
            }
        });
        checked.map_err(|problem| self.error(problem))
    }

    /// Moves the layout into place.
    pub fn finish(self) -> Result<(), LayoutError> {
        let destination = self.destination;
        let moved = match self.target {
            Target::Directory(dir) => replace_directory(dir, &destination),
            Target::Archive(builder) => finish_archive(*builder, &destination),
        };
        moved.map_err(|error| LayoutError {
            path: destination,
            problem: error.into(),
        })
    }

    fn error(&self, problem: LayoutProblem) -> LayoutError {
        LayoutError {
            path: self.destination.clone(),
            problem,
        }
    }
}

fn start(destination: &Path, format: LayoutFormat, index: &[u8]) -> Result<Target, LayoutProblem> {
    check_replaceable(destination, format)?;
    let parent = match destination.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent)?;
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix(".soci-");
    Ok(match format {
        LayoutFormat::Directory => {
            let dir = builder.tempdir_in(parent)?;
            fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
            fs::create_dir_all(dir.path().join("blobs/sha256"))?;
            write_file(&dir.path().join(VERSION_FILE), VERSION)?;
            write_file(&dir.path().join(INDEX_FILE), index)?;
            Target::Directory(dir)
        }
        LayoutFormat::Archive => {
            let file = builder
                .permissions(Permissions::from_mode(0o644))
                .tempfile_in(parent)?;
            let mut tar = tar::Builder::new(BufWriter::with_capacity(1 << 20, file));
            append(&mut tar, VERSION_FILE, VERSION.len() as u64, VERSION)?;
            append(&mut tar, INDEX_FILE, index.len() as u64, index)?;
            Target::Archive(Box::new(tar))
        }
    })
}

fn check_replaceable(destination: &Path, format: LayoutFormat) -> Result<(), LayoutProblem> {
    let Ok(metadata) = fs::symlink_metadata(destination) else {
        return Ok(());
    };
    let replaceable = match format {
        LayoutFormat::Archive => metadata.is_file(),
        LayoutFormat::Directory => {
            metadata.is_dir()
                && (destination.join(VERSION_FILE).is_file()
                    || destination.join(INDEX_FILE).is_file()
                    || fs::read_dir(destination)?.next().is_none())
        }
    };
    if replaceable {
        Ok(())
    } else {
        Err(LayoutProblem::NotALayout)
    }
}

fn write_file(path: &Path, mut bytes: impl Read) -> io::Result<()> {
    io::copy(&mut bytes, &mut File::create(path)?)?;
    Ok(())
}

/// Members carry no time and no owner: the same image is the same tar.
fn append(
    tar: &mut tar::Builder<impl Write>,
    name: &str,
    size: u64,
    bytes: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, name, bytes)
}

fn finish_archive(
    builder: tar::Builder<BufWriter<NamedTempFile>>,
    destination: &Path,
) -> io::Result<()> {
    let writer = builder.into_inner()?;
    let file = writer
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    file.persist(destination)?;
    Ok(())
}

fn replace_directory(dir: TempDir, destination: &Path) -> io::Result<()> {
    let mut old = dir.path().as_os_str().to_owned();
    old.push(".old");
    let had_old = fs::symlink_metadata(destination).is_ok();
    if had_old {
        fs::rename(destination, &old)?;
    }
    // From here on the directory has another name: nothing is left for the guard to remove.
    fs::rename(dir.keep(), destination)?;
    if had_old {
        fs::remove_dir_all(&old)?;
    }
    Ok(())
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

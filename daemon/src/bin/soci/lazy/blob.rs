//! Layers as files: read in ranges, or made here of a blob that has no zTOC.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use daemon::layer::{BlobSource, FetchError};
use sha2::{Digest as _, Sha256};
use ztoc::builder::{self, BuildOptions};
use ztoc::index::{BUILD_TOOL, Descriptor, LayerKind, layer_kind};
use ztoc::{CompressedOffset, Compression, Digest, SpanSize};

use crate::progress::Bar;

/// A blob in a file.
pub(super) struct FileSource {
    file: Arc<File>,
    start: u64,
}

impl FileSource {
    /// The blob that begins at `start`.
    pub(super) fn open(path: &Path, start: u64) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let file = Arc::new(file);
        Ok(Self { file, start })
    }
}

#[async_trait]
impl BlobSource for FileSource {
    async fn fetch(&self, range: Range<CompressedOffset>) -> Result<Bytes, FetchError> {
        let (file, at) = (
            Arc::clone(&self.file),
            self.start.saturating_add(range.start.0),
        );
        let read = tokio::task::spawn_blocking(move || {
            let length = usize::try_from(range.end.0 - range.start.0).map_err(io::Error::other)?;
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, at)?;
            io::Result::Ok(bytes)
        });
        let read = read.await.map_err(io::Error::other).and_then(|read| read);
        read.map(Bytes::from).map_err(|error| FetchError {
            detail: format!("the layer's file cannot be read: {error}"),
        })
    }
}

/// A layer indexed here.
pub(super) struct BuiltLayer {
    pub(super) ztoc: Digest,
    pub(super) bytes: Bytes,
}

impl BuiltLayer {
    /// Where the blob of a layer that was indexed here is kept.
    pub(super) fn path(state: &Path, layer: &Digest) -> PathBuf {
        state.join("blobs").join(layer.hex())
    }

    /// Copies the blob to `path` and indexes it. A zstd layer is kept uncompressed: zTOCs know no other way.
    pub(super) fn make(
        layer: &Descriptor,
        blob: Box<dyn Read + Send>,
        path: &Path,
        span_size: SpanSize,
        bar: &Bar,
    ) -> Result<Self> {
        let kind = layer_kind(&layer.media_type);
        let compression = match kind {
            LayerKind::Tar(compression) => compression,
            LayerKind::Unsupported if layer.media_type.ends_with("zstd") => {
                Compression::Uncompressed
            }
            _ => bail!("{:?} is no layer that can be read", layer.media_type),
        };
        let parent = path.parent().context("a blob lies in a directory")?;
        fs::create_dir_all(parent)?;
        let mut file = tempfile::NamedTempFile::new_in(parent)?;
        let mut hashed = Hashed {
            blob,
            sum: Sha256::new(),
            bar,
        };
        if kind == LayerKind::Unsupported {
            let mut plain = zstd::stream::read::Decoder::new(&mut hashed)?;
            io::copy(&mut plain, &mut file)?;
        } else {
            io::copy(&mut hashed, &mut file)?;
        }
        // Whatever lies behind the last frame belongs to the blob.
        io::copy(&mut hashed, &mut io::sink())?;
        let actual: Digest = format!("sha256:{}", hex(&hashed.sum.finalize())).parse()?;
        ensure!(actual == layer.digest, "the bytes hash to {actual}");
        file.flush()?;
        let options = BuildOptions {
            span_size,
            build_tool: BUILD_TOOL.to_owned(),
        };
        let reader = BufReader::with_capacity(1 << 20, file.reopen()?);
        let built = builder::build(compression, reader, &options).context("cannot be indexed")?;
        file.persist(path)?;
        let bytes = Bytes::from(built.ztoc.encode());
        Ok(Self {
            ztoc: Digest::of(&bytes),
            bytes,
        })
    }
}

struct Hashed<'a> {
    blob: Box<dyn Read + Send>,
    sum: Sha256,
    bar: &'a Bar,
}

impl Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.blob.read(buffer)?;
        self.sum.update(&buffer[..read]);
        self.bar.advance(read as u64);
        Ok(read)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

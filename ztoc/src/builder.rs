//! Builds a zTOC in one pass over a layer blob.
//!
//! The calling thread inflates; another one hashes what is plain (diff ID, gzip's checksums) and scans the tar;
//! the blob is read, and hashed as it is (as a whole and by spans), by whichever is ahead. Bounded queues between them carry pieces of a
//! quarter of a megabyte, so that memory is bounded too: by a few of these, the part of a deflate block that is being
//! read, the checkpoints and the table of contents.

mod ahead;
mod compact;
mod compressed;
mod gunzip;
pub(crate) mod input;
mod lent;
mod output;
mod pipeline;
mod plain;
mod rolling;

use std::io::Read;
use std::sync::{Mutex, MutexGuard, PoisonError};

use self::compact::BuiltSpans;
use crate::compact::{self as compact_ztoc, CompactError};
use crate::digest::Digest;
use crate::error::{DecodeError, GzipError, InflateError, SpansError};
use crate::gzip;
use crate::tar::TarError;
use crate::unit::SpanSize;
use crate::ztoc::{Compression, Ztoc};

/// What to build.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Wanted size of a span.
    pub span_size: SpanSize,
    /// Goes into the zTOC; the original writes `AWS SOCI CLI v0.2`.
    pub build_tool: String,
}

/// What one pass over a layer found.
#[derive(Debug)]
pub struct Built {
    /// The zTOC.
    pub ztoc: Ztoc,
    /// sha256 of the blob as read.
    pub layer_digest: Digest,
    /// sha256 of the uncompressed tar, including padding behind the end of the archive.
    pub diff_id: Digest,
    /// The spans of the compact zTOC, if it was asked for.
    compact: Option<BuiltSpans>,
}

impl Built {
    /// The bytes of the compact zTOC; `None` if it was not asked for.
    ///
    /// # Errors
    ///
    /// The layer has more entries or longer texts than a compact zTOC may have.
    pub fn encode_compact(&self) -> Option<Result<Vec<u8>, CompactError>> {
        let built = self.compact.as_ref()?;
        let spans = self.ztoc.spans();
        Some(compact_ztoc::encode(&compact_ztoc::Parts {
            layer: self.layer_digest,
            toc: self.ztoc.toc(),
            spans: &built.spans,
            span_size: built.span_size,
            compression: spans.compression(),
            compressed_size: spans.compressed_size(),
            uncompressed_size: spans.uncompressed_size(),
        }))
    }
}

/// Why no zTOC could be built. Offsets are positions in the layer blob.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Reading the layer failed.
    #[error("cannot read the layer")]
    Read(#[from] std::io::Error),
    /// The layer is compressed in another way than stated.
    #[error("the layer is {found}, not {expected}")]
    Format {
        /// What was asked for.
        expected: LayerFormat,
        /// What the layer begins like.
        found: LayerFormat,
    },
    /// The layer is zstd-compressed: zTOCs cannot describe that.
    #[error(
        "the layer is zstd-compressed: not supported, zTOCs exist for gzip and plain tar layers"
    )]
    Zstd,
    /// The layer is empty.
    #[error("the layer is empty")]
    Empty,
    /// The blob ends within a gzip member.
    #[error("the layer is cut off: its gzip stream does not end within its {0} bytes")]
    CutOff(u64),
    /// A gzip member's header is malformed.
    #[error("gzip member at offset {at}: {source}")]
    Header {
        /// Where the member begins.
        at: u64,
        /// What is wrong.
        source: GzipError,
    },
    /// Something other than zeros or a further member follows the gzip stream.
    #[error("garbage behind the end of the gzip stream at offset {0}")]
    Garbage(u64),
    /// The deflate stream is corrupt.
    #[error("the layer is corrupt near offset {at}: {source}")]
    Deflate {
        /// About where.
        at: u64,
        /// What is wrong.
        source: InflateError,
    },
    /// A gzip member does not have the content that its trailer states.
    #[error(
        "the layer is corrupt: checksum or length of the gzip member that ends at uncompressed offset {0} is wrong"
    )]
    Checksum(u64),
    /// The content is no tar that can become a layer.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A span would be longer than [`crate::SpanTable::MAX_SPAN_LEN`].
    #[error("cannot divide the layer: {0}")]
    Spans(#[from] SpansError),
    /// The zTOC would exceed [`Ztoc::MAX_ENCODED_LEN`].
    #[error(
        "the zTOC would exceed {} bytes: choose a larger span size",
        Ztoc::MAX_ENCODED_LEN
    )]
    TooLarge,
    /// The members of the tar contradict each other.
    #[error("cannot describe the layer: {0}")]
    Toc(DecodeError),
}

/// What a layer blob is, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerFormat {
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
    /// Anything else: a plain tar, if it is a layer at all.
    Plain,
}

impl std::fmt::Display for LayerFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip-compressed",
            Self::Zstd => "zstd-compressed",
            Self::Plain => "uncompressed",
        })
    }
}

/// Bytes that [`sniff`] needs.
pub const SNIFF_LEN: usize = 4;

/// Tells a layer's format from its first [`SNIFF_LEN`] bytes (or fewer, if it has no more).
pub fn sniff(head: &[u8]) -> LayerFormat {
    match head {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => LayerFormat::Zstd,
        // A frame that decoders skip, of which a layer may begin with one.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => LayerFormat::Zstd,
        [a, b, ..] if [*a, *b] == gzip::MAGIC => LayerFormat::Gzip,
        _ => LayerFormat::Plain,
    }
}

/// Reads the whole layer from `layer`. Memory is bounded by a few megabytes, the checkpoints and the
/// table of contents. Starts a thread, which ends before it returns.
///
/// `layer` is read once, from its first byte to its last and by one thread at a time, so that it may be a pipe or a download:
/// for a layer that is being pulled, give it a reader that waits for the next chunk, and run
/// this on a thread of its own. An error of the reader is [`BuildError::Read`]. It is read a little ahead, so that any error is
/// told only once it has returned from the read it is at.
///
/// ```
/// use std::io::{self, Read};
/// use std::sync::mpsc::{Receiver, sync_channel};
/// use ztoc::builder::{self, BuildOptions};
///
/// struct Chunks(Receiver<Vec<u8>>, io::Cursor<Vec<u8>>);
///
/// impl Read for Chunks {
///     fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
///         while self.1.position() == self.1.get_ref().len() as u64 {
///             match self.0.recv() {
///                 Ok(chunk) => self.1 = io::Cursor::new(chunk),
///                 Err(_) => return Ok(0),
///             }
///         }
///         self.1.read(into)
///     }
/// }
///
/// # let tar = vec![0; 1024];
/// let (download, chunks) = sync_channel(4);
/// let build = std::thread::spawn(move || {
///     let options = BuildOptions { span_size: ztoc::SpanSize::DEFAULT, build_tool: String::new() };
///     let layer = Chunks(chunks, io::Cursor::default());
///     builder::build(ztoc::Compression::Uncompressed, layer, &options)
/// });
/// for chunk in tar.chunks(100) {
///     download.send(chunk.to_vec())?;
/// }
/// drop(download);
/// let built = build.join().expect("it does not panic")?;
/// assert_eq!(built.diff_id, ztoc::Digest::of(&tar));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// The layer cannot be read, is not what `compression` says, is corrupt or cut off, is no tar, or
/// exceeds a limit.
pub fn build(
    compression: Compression,
    layer: impl Read + Send,
    options: &BuildOptions,
) -> Result<Built, BuildError> {
    pipeline::build(compression, layer, options, None)
}

/// Like [`build`], and finds in the same pass what a compact zTOC with spans of about `compact` bytes needs: see
/// [`Built::encode_compact`]. Another thread looks for its checkpoints; memory for an eighth of a span more is
/// needed.
///
/// # Errors
///
/// As [`build`].
pub fn build_both(
    compression: Compression,
    layer: impl Read + Send,
    options: &BuildOptions,
    compact: SpanSize,
) -> Result<Built, BuildError> {
    pipeline::build(compression, layer, options, Some(compact))
}

/// What is behind the locks of a build is whole between any two calls; a panic is told when its thread is joined.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

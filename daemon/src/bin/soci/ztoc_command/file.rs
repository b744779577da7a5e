//! `soci ztoc get-file`: one file of a layer, from the spans that hold it.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use daemon::artifacts::ArtifactKind;
use ztoc::toc::{Extent, FileData};
use ztoc::unit::ByteLen;
use ztoc::{
    CompressedSpan, Entry, EntryKind, SpanBuffer, SpanId, SpanTable, Toc, UncompressedOffset,
};

use super::ZtocSource;
use crate::blobs::Blobs;
use crate::member::{components, link_target};
use crate::options::Globals;

/// The kernel gives up after as many links.
const MAX_LINKS: usize = 40;
/// A map of a sparse file is some lines of digits.
const MAX_SPARSE_MAP: u64 = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Digest of a zTOC, or a file
    #[arg(value_name = "DIGEST|FILE")]
    ztoc: String,
    /// Path of the file within the layer
    path: String,
    /// The layer blob; needed with a zTOC file
    #[arg(long, value_name = "LAYER-FILE")]
    layer: Option<PathBuf>,
    /// Where the content goes [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) async fn run(globals: &Globals, arguments: Arguments) -> Result<()> {
    let source = ZtocSource::find(globals, &arguments.ztoc).await?;
    let (toc, spans) = source.decode().await?.into_parts();
    let entry = find(&toc, &arguments.path)
        .with_context(|| format!("{} in zTOC {}", arguments.path, source.name))?
        .clone();
    let first = spans.covering(whole_of(&entry)).start;
    let start = if first.0 < spans.count() {
        spans.compressed(first).start.0
    } else {
        0
    };
    let layer = open_layer(arguments.layer.as_deref(), &source, start).await?;
    let copy = move || {
        let mut out: Box<dyn Write> = match &arguments.output {
            Some(path) => Box::new(
                File::create(path).with_context(|| format!("cannot write {}", path.display()))?,
            ),
            None => Box::new(BufWriter::new(io::stdout())),
        };
        let mut content = Content {
            spans: &spans,
            layer: LayerReader::new(layer, start),
            buffer: SpanBuffer::default(),
        };
        content.copy(&entry, &mut out)?;
        Ok(out.flush()?)
    };
    tokio::task::spawn_blocking(copy).await?
}

/// The layer's bytes from `start` on.
pub(super) async fn open_layer(
    file: Option<&Path>,
    source: &ZtocSource,
    start: u64,
) -> Result<Box<dyn Read + Send>> {
    if let Some(path) = file {
        let open = || {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(start))?;
            io::Result::Ok(file)
        };
        let file = open().with_context(|| format!("cannot read layer {}", path.display()))?;
        return Ok(Box::new(file));
    }
    let record = source.record.as_ref().map(|record| &record.kind);
    let layer = match record {
        Some(ArtifactKind::Ztoc { layer, .. } | ArtifactKind::CompactZtoc { layer, .. }) => {
            Some(layer)
        }
        _ => None,
    };
    let (Some(session), Some(layer)) = (&source.session, layer) else {
        bail!(
            "which layer zTOC {} describes is not recorded here: give --layer",
            source.name
        );
    };
    let blobs = Blobs::Containerd(session.containerd.clone());
    blobs.reader(layer, start).await
}

/// Where an entry's data lies, without the end of a sparse file that is all holes.
fn whole_of(entry: &Entry) -> Range<UncompressedOffset> {
    let start = match entry.data() {
        FileData::Contiguous(range) | FileData::MapInArchive(range) => range.start,
        FileData::Sparse(extents) => extents.first().map_or(entry.offset, |it| it.tar_offset),
    };
    start..UncompressedOffset(start.0.saturating_add(1))
}

/// The regular file at `path`, through links within the layer. Of members of one name the last
/// counts.
fn find<'t>(toc: &'t Toc, path: &str) -> Result<&'t Entry> {
    let mut wanted = components(path.as_bytes());
    for _ in 0..MAX_LINKS {
        let entry = (toc.entries().iter().rev())
            .find(|entry| components(&entry.name) == wanted)
            .context("no such file")?;
        match entry.kind {
            EntryKind::Regular => return Ok(entry),
            EntryKind::HardLink => wanted = components(&entry.link),
            EntryKind::SymLink => wanted = link_target(&wanted, &entry.link),
            kind => bail!("not a regular file but {kind:?}"),
        }
    }
    bail!("too many links")
}

/// Reads uncompressed ranges of a layer in ascending order.
struct Content<'a> {
    spans: &'a SpanTable,
    layer: LayerReader,
    buffer: SpanBuffer,
}

impl Content<'_> {
    fn copy(&mut self, entry: &Entry, out: &mut dyn Write) -> Result<()> {
        match entry.data() {
            FileData::Contiguous(range) => self.copy_range(range, out),
            FileData::Sparse(extents) => self.copy_sparse(&extents, entry.size, out),
            FileData::MapInArchive(range) => {
                ensure!(
                    range.byte_len() <= MAX_SPARSE_MAP,
                    "the map of the sparse file is too large"
                );
                let mut map = Vec::new();
                self.copy_range(range, &mut map)?;
                let extents = entry.sparse_1_0(&map)?;
                self.copy_sparse(&extents, entry.size, out)
            }
        }
    }

    fn copy_sparse(&mut self, extents: &[Extent], size: u64, out: &mut dyn Write) -> Result<()> {
        let mut position = 0_u64;
        for extent in extents {
            write_zeros(extent.file_offset.saturating_sub(position), out)?;
            let end = extent.tar_offset.0.saturating_add(extent.len);
            self.copy_range(extent.tar_offset..UncompressedOffset(end), out)?;
            position = extent.file_offset.saturating_add(extent.len);
        }
        Ok(write_zeros(size.saturating_sub(position), out)?)
    }

    fn copy_range(&mut self, range: Range<UncompressedOffset>, out: &mut dyn Write) -> Result<()> {
        let covering = self.spans.covering(range.clone());
        for id in (covering.start.0..covering.end.0).map(SpanId) {
            let whole = self.spans.uncompressed(id);
            let bytes = self
                .layer
                .read(self.spans.compressed(id).start.0..self.spans.compressed(id).end.0)?;
            let verified = CompressedSpan::new(id, bytes)
                .verify(self.spans)
                .context("the layer does not belong to the zTOC")?;
            let plain = verified.inflate(&mut self.buffer)?;
            let from = range.start.max(whole.start).0 - whole.start.0;
            let to = range.end.min(whole.end).0 - whole.start.0;
            let part = plain.get(usize::try_from(from)?..usize::try_from(to)?);
            out.write_all(part.context("the span is too short")?)?;
        }
        Ok(())
    }
}

fn write_zeros(count: u64, out: &mut dyn Write) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(count), out).map(|_| ())
}

/// Ranges of a stream; each begins at or before the end of the one before, or beyond.
pub(super) struct LayerReader {
    layer: Box<dyn Read + Send>,
    position: u64,
    /// The range read last, which ends at `position`.
    last: Vec<u8>,
}

impl LayerReader {
    /// Ranges of `layer`, which begins at `position` of the blob.
    pub(super) fn new(layer: Box<dyn Read + Send>, position: u64) -> Self {
        Self {
            layer,
            position,
            last: Vec::new(),
        }
    }

    pub(super) fn read(&mut self, range: Range<u64>) -> Result<&[u8]> {
        let kept_from = self.position.saturating_sub(self.last.len() as u64);
        if range.start < self.position {
            ensure!(
                range.start >= kept_from,
                "the spans of the zTOC are out of order"
            );
            let drop = usize::try_from(range.start - kept_from)?;
            self.last.drain(..drop);
            let keep = usize::try_from(range.end - range.start)?.min(self.last.len());
            ensure!(
                keep == self.last.len(),
                "the spans of the zTOC are out of order"
            );
        } else {
            let gap = range.start - self.position;
            io::copy(
                &mut Read::by_ref(&mut self.layer).take(gap),
                &mut io::sink(),
            )?;
            self.last.clear();
            self.position = range.start;
        }
        let missing = range.end.saturating_sub(self.position);
        let read = Read::by_ref(&mut self.layer)
            .take(missing)
            .read_to_end(&mut self.last)?;
        ensure!(read as u64 == missing, "the layer ends early");
        self.position = range.end;
        Ok(&self.last)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ranges_that_overlap_repeat_or_leave_gaps_are_read_from_a_stream() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut reader = LayerReader {
            layer: Box::new(io::Cursor::new(bytes.clone())),
            position: 0,
            last: Vec::new(),
        };
        for range in [0..10, 9..20, 9..20, 20..21, 100..120, 119..256] {
            let expected = &bytes[range.start..range.end];
            assert_eq!(
                reader.read(range.start as u64..range.end as u64).unwrap(),
                expected
            );
        }
        assert!(reader.read(255..300).is_err());
        assert!(reader.read(0..1).is_err());
    }
}

//! Layers of the corpus, cut into spans.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use ztoc::inflate::{self, Cursor, Stop, Tables};

/// Bytes of a window.
pub(crate) const WINDOW: usize = 32768;

/// A compressed layer in memory with what it decodes to.
pub(crate) struct Layer {
    pub(crate) name: String,
    /// Raw DEFLATE, without the gzip header.
    pub(crate) stream: Vec<u8>,
    /// The tar, behind a window of zeros.
    tar: Vec<u8>,
    /// Where blocks start: bit of the stream, byte of the tar.
    blocks: Vec<(u64, usize)>,
}

/// A span: between two blocks.
#[derive(Clone, Copy)]
pub(crate) struct Span<'a> {
    /// The stream from the span's first byte on.
    pub(crate) input: &'a [u8],
    /// Bit of the first byte where it starts, and bit of the input where it ends.
    pub(crate) bits: (u8, u64),
    /// The 32 KiB before it.
    pub(crate) window: &'a [u8],
    /// What it decodes to.
    pub(crate) content: &'a [u8],
}

impl Layer {
    /// Reads `DIR/NAME.COMPRESSOR.gz` and `DIR/NAME.tar`.
    pub(crate) fn load(dir: &Path, name: &str, compressor: &str) -> Result<Self> {
        let read = |suffix: &str| {
            let path = dir.join(format!("{name}.{suffix}"));
            fs::read(&path).with_context(|| format!("reading {}", path.display()))
        };
        let gzip = read(&format!("{compressor}.gz"))?;
        ensure!(
            gzip[..4] == [0x1f, 0x8b, 8, 0],
            "{name}: a gzip header with options"
        );
        let mut tar = vec![0; WINDOW];
        tar.append(&mut read("tar")?);
        let stream = gzip[10..].to_vec();
        let blocks = blocks(&stream, &tar).with_context(|| name.to_owned())?;
        Ok(Self {
            name: name.to_owned(),
            stream,
            tar,
            blocks,
        })
    }

    /// Spans of at least `size` bytes, but for the last; `count` of them at most, spread
    /// over the layer.
    pub(crate) fn spans(&self, size: usize, count: usize) -> Vec<Span<'_>> {
        let mut starts: Vec<(u64, usize)> = Vec::new();
        for &block in &self.blocks {
            if starts.last().is_none_or(|last| block.1 >= last.1 + size) {
                starts.push(block);
            }
        }
        // The first has no window, the last may be short.
        let spans = starts.len().saturating_sub(2);
        let taken = (0..count.min(spans)).map(|index| 1 + index * spans / count.min(spans));
        taken
            .map(|index| self.span(starts[index], starts[index + 1]))
            .collect()
    }

    fn span(&self, start: (u64, usize), end: (u64, usize)) -> Span<'_> {
        let first = (start.0 / 8) as usize;
        let last = end.0.div_ceil(8) as usize;
        Span {
            input: &self.stream[first..last],
            bits: ((start.0 % 8) as u8, end.0 - first as u64 * 8),
            window: &self.tar[start.1 - WINDOW..start.1],
            content: &self.tar[start.1..end.1],
        }
    }
}

/// Decodes a stream and compares it with `tar`.
fn blocks(stream: &[u8], tar: &[u8]) -> Result<Vec<(u64, usize)>> {
    let (mut tables, mut cursor) = (Tables::new(), Cursor::at_bit(0));
    let mut out = vec![0; tar.len() + 1];
    let (mut pos, mut blocks) = (WINDOW, vec![(0, WINDOW)]);
    let end = out.len();
    loop {
        let (stop, new) = inflate::run_block(&mut tables, stream, &mut cursor, &mut out, pos, end)?;
        pos = new;
        match stop {
            Stop::BlockEnd => blocks.push((cursor.bit(), pos)),
            Stop::StreamEnd => break,
            _ => anyhow::bail!("{stop:?} at {pos}"),
        }
    }
    ensure!(out[..pos] == *tar, "decodes to something else");
    Ok(blocks)
}

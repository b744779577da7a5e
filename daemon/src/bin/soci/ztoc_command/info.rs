//! `soci ztoc info`.

use std::io::Write;

use anyhow::Result;
use serde::Serialize;
use ztoc::{Digest, Entry, SpanId, SpanTable, UncompressedOffset};

use super::ZtocSource;
use crate::layers::AnyZtoc;

/// Keys and their order are the original's.
#[derive(Debug, Serialize)]
struct Info {
    version: String,
    build_tool: String,
    size: u64,
    span_size: u64,
    num_spans: u32,
    num_files: usize,
    num_multi_span_files: usize,
    /// Only of a compact zTOC.
    #[serde(skip_serializing_if = "Option::is_none")]
    compact: Option<CompactInfo>,
    files: Vec<FileInfo>,
}

/// What only a compact zTOC says.
#[derive(Debug, Serialize)]
struct CompactInfo {
    layer: Digest,
    /// Bytes that a mount needs.
    head_size: usize,
}

impl CompactInfo {
    fn of(ztoc: &AnyZtoc) -> Option<Self> {
        match ztoc {
            AnyZtoc::Ztoc(_) => None,
            AnyZtoc::Compact(compact) => Some(Self {
                layer: compact.layer,
                head_size: compact.head_len,
            }),
        }
    }
}

/// Version and build tool.
fn names(ztoc: &AnyZtoc) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match ztoc {
        AnyZtoc::Ztoc(ztoc) => (text(ztoc.version()), text(ztoc.build_tool())),
        AnyZtoc::Compact(_) => (String::from("compact 1"), String::new()),
    }
}

#[derive(Debug, Serialize)]
struct FileInfo {
    filename: String,
    offset: u64,
    size: u64,
    r#type: &'static str,
    start_span: u32,
    end_span: u32,
}

pub(super) async fn run(source: ZtocSource) -> Result<()> {
    let ztoc = source.decode().await?;
    let (version, build_tool) = names(&ztoc);
    let compact = CompactInfo::of(&ztoc);
    let (toc, spans) = ztoc.into_parts();
    let files: Vec<_> = toc
        .entries()
        .iter()
        .map(|entry| file_info(entry, &spans))
        .collect();
    let info = Info {
        version,
        build_tool,
        size: source.bytes.len() as u64,
        span_size: spans.span_size().map_or(0, ztoc::SpanSize::bytes),
        num_spans: spans.count(),
        num_files: files.len(),
        num_multi_span_files: files
            .iter()
            .filter(|it| it.start_span != it.end_span)
            .count(),
        compact,
        files,
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    serde_json::to_writer_pretty(&mut out, &info).map_err(std::io::Error::from)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

fn file_info(entry: &Entry, spans: &SpanTable) -> FileInfo {
    let last_span = spans.count().saturating_sub(1);
    let span_at = |offset: u64| {
        let byte = UncompressedOffset(offset)..UncompressedOffset(offset.saturating_add(1));
        let covering = spans.covering(byte);
        let SpanId(start) = covering.start;
        if covering.is_empty() {
            last_span
        } else {
            start
        }
    };
    let offset = entry.offset.0;
    let last_byte = offset.saturating_add(entry.size.saturating_sub(1));
    FileInfo {
        filename: String::from_utf8_lossy(&entry.name).into_owned(),
        offset,
        size: entry.size,
        r#type: entry.kind.text(),
        start_span: span_at(offset),
        end_span: span_at(last_byte),
    }
}

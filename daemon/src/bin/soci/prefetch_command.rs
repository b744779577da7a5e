//! `soci prefetch`: the lists of spans that are fetched first.

use std::io::Write;

use anyhow::{Context, Result};
use clap::Subcommand;
use daemon::artifacts::{Artifact, ArtifactKind};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use ztoc::Digest;
use ztoc::index::{MAX_DOCUMENT_SIZE, Prefetch};

use crate::index::age;
use crate::options::Globals;
use crate::session::Session;
use crate::table;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List prefetch artifacts, newest first
    #[command(visible_alias = "ls")]
    List,
    /// Show a prefetch artifact
    Info {
        /// Digest of the artifact
        digest: Digest,
    },
}

pub(crate) async fn run(globals: &Globals, command: Command) -> Result<()> {
    let session = Session::open(globals)?;
    match command {
        Command::List => list(&session, globals.json),
        Command::Info { digest } => info(&session, &digest, globals.json).await,
    }
}

fn list(session: &Session, as_json: bool) -> Result<()> {
    let all = session.artifacts.list()?.into_iter();
    let lists = all.filter_map(|artifact| match artifact.kind {
        ArtifactKind::Prefetch { layer, spans } => Some((artifact, layer, spans)),
        _ => None,
    });
    if as_json {
        let rows: Vec<_> = lists
            .map(|(artifact, layer, spans)| {
                json!({
                    "Digest": artifact.digest,
                    "LayerDigest": layer,
                    "TotalSpans": spans,
                    "CreatedAt": timestamp(artifact.created_at),
                })
            })
            .collect();
        return table::print_json(&rows);
    }
    let rows: Vec<_> = lists
        .map(|(artifact, layer, spans)| {
            let (digest, created) = (artifact.digest.to_string(), age(artifact.created_at));
            [digest, layer.to_string(), spans.to_string(), created]
        })
        .collect();
    Ok(table::print(
        ["DIGEST", "LAYER DIGEST", "SPANS", "CREATED"],
        &rows,
    )?)
}

async fn info(session: &Session, digest: &Digest, as_json: bool) -> Result<()> {
    let store = session.store(&session.containerd)?;
    let bytes = store.get(digest, MAX_DOCUMENT_SIZE as u64).await?;
    let bytes = bytes.with_context(|| {
        format!(
            "prefetch artifact {digest}: not found in the content store; see soci prefetch list"
        )
    })?;
    let list = Prefetch::parse(&bytes).with_context(|| digest.to_string())?;
    let record = session.artifacts.get(digest)?;
    let (layer, created) = match &record {
        Some(Artifact {
            kind: ArtifactKind::Prefetch { layer, .. },
            created_at,
            ..
        }) => (layer.to_string(), timestamp(*created_at)),
        _ => (String::new(), String::new()),
    };
    if as_json {
        let spans = list.ranges().iter().map(|range| {
            let (start, end) = (range.spans.start.0, range.spans.end.0 - 1);
            json!({"start_span": start, "end_span": end, "priority": range.priority})
        });
        return table::print_json(&json!({
            "digest": digest,
            "version": list.version(),
            "layer_digest": layer,
            "size": bytes.len(),
            "created_at": created,
            "prefetch_spans": spans.collect::<Vec<_>>(),
            "total_spans": list.span_count(),
        }));
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "Digest: {digest}")?;
    writeln!(out, "Version: {}", list.version())?;
    writeln!(out, "Span Ranges: {}", list.ranges().len())?;
    writeln!(out, "Layer Digest: {layer}")?;
    writeln!(out, "Size: {}", bytes.len())?;
    writeln!(out, "Created: {created}")?;
    writeln!(out, "\nPrefetch Spans:")?;
    for range in list.ranges() {
        let (start, end) = (range.spans.start.0, range.spans.end.0 - 1);
        let count = end - start + 1;
        writeln!(
            out,
            "  {start}-{end} ({count} spans, priority {})",
            range.priority
        )?;
    }
    Ok(writeln!(out, "\nTotal Spans: {}", list.span_count())?)
}

fn timestamp(nanos: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanos.into());
    time.ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_default()
}

//! `soci ztoc verify`: whether a zTOC tells the truth about its layer.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;
use ztoc::builder::{self, BuildOptions};
use ztoc::{CompressedSpan, Digest, SpanBuffer, SpanSize, SpanTable, Toc};

use super::ZtocSource;
use super::file::{LayerReader, open_layer};
use crate::layers::AnyZtoc;
use crate::options::Globals;
use crate::progress::Progress;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Digest of a zTOC, or a file
    #[arg(value_name = "DIGEST|FILE")]
    ztoc: String,
    /// The layer blob; needed with a zTOC file
    #[arg(long, value_name = "LAYER-FILE")]
    layer: Option<PathBuf>,
}

pub(super) async fn run(globals: &Globals, arguments: Arguments) -> Result<()> {
    let source = ZtocSource::find(globals, &arguments.ztoc).await?;
    let ztoc = source.decode().await?;
    let named = match &ztoc {
        AnyZtoc::Ztoc(_) => None,
        AnyZtoc::Compact(compact) => Some(compact.layer),
    };
    let (toc, table) = ztoc.into_parts();
    let layer = arguments.layer.as_deref();
    let spans_of = open_layer(layer, &source, 0).await?;
    let members_of = open_layer(layer, &source, 0).await?;
    let (spans, files) = (table.count(), toc.entries().len());
    let check = move || {
        check_spans(&table, LayerReader::new(spans_of, 0))?;
        check_members(&toc, &table, named, members_of)
    };
    let checked = tokio::task::spawn_blocking(check).await?;
    checked.with_context(|| format!("zTOC {}", source.name))?;
    Progress::new(globals.json).result(
        &format!(
            "zTOC {}: {spans} spans and {files} entries are those of the layer",
            source.name
        ),
        &json!({"event": "verified", "ztoc": source.name, "spans": spans, "files": files}),
    );
    Ok(())
}

/// Every span has its digest and inflates to its length.
fn check_spans(table: &SpanTable, mut layer: LayerReader) -> Result<()> {
    let mut buffer = SpanBuffer::default();
    for id in table.ids() {
        let range = table.compressed(id);
        let bytes = layer.read(range.start.0..range.end.0)?;
        let verified = CompressedSpan::new(id, bytes).verify(table);
        let verified = verified.context("the layer does not belong to the zTOC")?;
        verified
            .inflate(&mut buffer)
            .with_context(|| format!("checkpoint of span {id}"))?;
    }
    Ok(())
}

/// The table of contents is what the layer's tar says. Digests of spans do not vouch for it.
fn check_members(
    toc: &Toc,
    spans: &SpanTable,
    named: Option<Digest>,
    layer: Box<dyn std::io::Read + Send>,
) -> Result<()> {
    let options = BuildOptions {
        span_size: spans.span_size().unwrap_or(SpanSize::DEFAULT),
        build_tool: String::new(),
    };
    let built = builder::build(spans.compression(), layer, &options);
    let built = built.context("the layer cannot be read as a tar")?;
    if let Some(named) = named.filter(|named| *named != built.layer_digest) {
        bail!("it is for layer {named}; do not use this zTOC for another");
    }
    let (listed, real) = (toc.entries(), built.ztoc.toc().entries());
    for (listed, real) in listed.iter().zip(real) {
        if listed != real {
            let name = crate::paint::printable(&listed.name);
            bail!("the entry of {name} is not what the layer says; do not use this zTOC");
        }
    }
    if listed.len() != real.len() {
        bail!(
            "{} entries are listed, and the layer has {}; do not use this zTOC",
            listed.len(),
            real.len()
        );
    }
    Ok(())
}

//! `soci ztoc build` and `soci ztoc compact`: a layer file in, a zTOC out.

use std::fs::{File, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use ztoc::builder::{self, BuildOptions, Built};
use ztoc::compact::{self, InMemory};
use ztoc::index::BUILD_TOOL;
use ztoc::{Compression, Digest, SpanSize};

use crate::options::span_size;
use crate::progress::{Bar, Progress};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Layer blob: a tar, plain or gzip; - is standard input
    #[arg(value_name = "LAYER-FILE")]
    layer: PathBuf,
    /// Where the zTOC goes; - is standard output
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Uncompressed bytes between checkpoints
    #[arg(long, default_value = "4194304", value_parser = span_size,
        allow_hyphen_values = true, value_name = "BYTES")]
    span_size: SpanSize,
    /// Name written into the zTOC; zTOCs are identical only under the same name
    #[arg(long, default_value = BUILD_TOOL, value_name = "NAME")]
    build_tool: String,
}

#[derive(Debug, Args)]
pub(crate) struct CompactArguments {
    /// Layer blob: a tar, plain or gzip; - is standard input
    #[arg(value_name = "LAYER-FILE")]
    layer: PathBuf,
    /// Where the compact zTOC goes; - is standard output
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Uncompressed bytes between checkpoints
    #[arg(long, default_value = "1048576", value_parser = span_size,
        allow_hyphen_values = true, value_name = "BYTES")]
    span_size: SpanSize,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    tokio::task::spawn_blocking(move || build(&arguments)).await?
}

pub(crate) async fn run_compact(arguments: CompactArguments) -> Result<()> {
    tokio::task::spawn_blocking(move || build_compact(&arguments)).await?
}

fn build(arguments: &Arguments) -> Result<()> {
    let options = BuildOptions {
        span_size: arguments.span_size,
        build_tool: arguments.build_tool.clone(),
    };
    let built = read(&arguments.layer, &options, None)?;
    let spans = built.ztoc.spans().count();
    let bytes = built.ztoc.encode();
    report("ztoc", &built, &bytes, &arguments.output, spans)
}

fn build_compact(arguments: &CompactArguments) -> Result<()> {
    let options = BuildOptions {
        span_size: SpanSize::DEFAULT,
        build_tool: BUILD_TOOL.to_owned(),
    };
    let built = read(&arguments.layer, &options, Some(arguments.span_size))?;
    let bytes = built.encode_compact().context("it was not asked for")??;
    let compact = compact::decode(&bytes, Arc::new(InMemory::new(bytes.clone())))?;
    let output = &arguments.output;
    report(
        "compact ztoc",
        &built,
        &bytes,
        output,
        compact.spans.count(),
    )
}

/// Writes the output and says what it is.
fn report(form: &str, built: &Built, bytes: &[u8], output: &Path, spans: u32) -> Result<()> {
    write(output, bytes).with_context(|| format!("cannot write {}", output.display()))?;
    let (layer, digest) = (built.layer_digest, Digest::of(bytes));
    let size = bytes.len();
    let report = format!("layer {layer} -> {form} {digest}\nsize {size}\nspans {spans}\n");
    if is_dash(output) {
        io::stderr().write_all(report.as_bytes())?;
    } else {
        io::stdout().write_all(report.as_bytes())?;
    }
    Ok(())
}

fn read(path: &Path, options: &BuildOptions, compact: Option<SpanSize>) -> Result<Built> {
    read_layer(path, options, compact).with_context(|| format!("layer {}", path.display()))
}

fn read_layer(path: &Path, options: &BuildOptions, compact: Option<SpanSize>) -> Result<Built> {
    let (layer, size): (Box<dyn Read + Send>, u64) = if is_dash(path) {
        (Box::new(io::stdin()), 0)
    } else {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        (Box::new(file), size)
    };
    let bar = Progress::new(false).bytes("index", size);
    let mut layer = BufReader::with_capacity(
        1 << 20,
        Counted {
            layer,
            bar: bar.clone(),
        },
    );
    let compression = compression_of(layer.fill_buf()?)?;
    let built = match compact {
        Some(compact) => builder::build_both(compression, layer, options, compact),
        None => builder::build(compression, layer, options),
    };
    bar.done();
    Ok(built?)
}

/// A layer file has no media type: its first bytes have to do.
fn compression_of(start: &[u8]) -> Result<Compression> {
    match start {
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            bail!("is compressed with zstd, for which there are no zTOCs")
        }
        [] => bail!("is empty"),
        _ => Ok(Compression::Uncompressed),
    }
}

fn is_dash(path: &Path) -> bool {
    path == Path::new("-")
}

/// A file appears whole or not at all.
fn write(output: &Path, bytes: &[u8]) -> Result<()> {
    if is_dash(output) {
        return Ok(io::stdout().write_all(bytes)?);
    }
    let parent = match output.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(parent)?;
    file.write_all(bytes)?;
    file.persist(output)?;
    Ok(())
}

struct Counted<R> {
    layer: R,
    bar: Bar,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.layer.read(buffer)?;
        self.bar.advance(read as u64);
        Ok(read)
    }
}

//! `soci ztoc build`: a layer file in, a zTOC out.

use std::fs::{File, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use ztoc::builder::{self, BuildOptions, Built};
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

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    tokio::task::spawn_blocking(move || build(&arguments)).await?
}

fn build(arguments: &Arguments) -> Result<()> {
    let name = arguments.layer.display();
    let built = read(arguments).with_context(|| format!("layer {name}"))?;
    let bytes = built.ztoc.encode();
    let output = &arguments.output;
    write(output, &bytes).with_context(|| format!("cannot write {}", output.display()))?;
    let digest = Digest::of(&bytes);
    let report = format!(
        "layer {} -> ztoc {digest}\nsize {}\nspans {}\n",
        built.layer_digest,
        bytes.len(),
        built.ztoc.spans().count()
    );
    if is_dash(output) {
        io::stderr().write_all(report.as_bytes())?;
    } else {
        io::stdout().write_all(report.as_bytes())?;
    }
    Ok(())
}

fn read(arguments: &Arguments) -> Result<Built> {
    let (layer, size): (Box<dyn Read>, u64) = if is_dash(&arguments.layer) {
        (Box::new(io::stdin()), 0)
    } else {
        let file = File::open(&arguments.layer)?;
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
    let options = BuildOptions {
        span_size: arguments.span_size,
        build_tool: arguments.build_tool.clone(),
    };
    let built = builder::build(compression, layer, &options);
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

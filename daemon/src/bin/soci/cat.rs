//! `soci cat`: one file out of an image, with the fewest bytes.

use std::io::{IsTerminal, Write};
use std::sync::Arc;

use anyhow::{Result, bail};
use clap::Args;
use daemon::layer::Lane;
use fuse::{Origin, View};
use tokio::sync::oneshot;

use crate::lazy::{ImageArguments, LazyImage, Opened, State, view_layers};
use crate::options::Globals;
use crate::paint::bytes;
use crate::progress::Progress;

/// Bytes of one read.
const STEP: u32 = 1 << 20;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    image: ImageArguments,
    /// The file, as a container would see it
    path: String,
    /// Say on standard error how much was fetched
    #[arg(long)]
    stats: bool,
}

pub(crate) async fn run(globals: &Globals, arguments: &Arguments) -> Result<()> {
    let state = State::open(None)?;
    let progress = Progress::new(globals.json);
    let image = LazyImage::find(
        &arguments.image.image,
        &arguments.image.options,
        state.path(),
        false,
        progress.clone(),
    )
    .await?;
    let (opened, view, origin) = find(&image, &arguments.path).await?;
    if origin.kind != "reg" {
        bail!(
            "{}: is no regular file but {:?}",
            arguments.path,
            origin.kind
        );
    }
    copy(&opened, &view, &origin).await?;
    if arguments.stats {
        let (requests, fetched) = image.fetched();
        progress.note(&format!(
            "{} read from {} of {} layers: {} of layer data in {requests} requests",
            bytes(origin.size),
            opened.len(),
            image.layers(),
            bytes(fetched)
        ));
    }
    image.stop().await;
    Ok(())
}

/// Opens layers from the top down until one has the file: zTOCs below it are not needed.
async fn find(image: &LazyImage, path: &str) -> Result<(Opened, View, Origin)> {
    let mut opened = Opened::new();
    for number in (0..image.layers()).rev() {
        opened.insert(number, image.open(number).await?);
        // A hard link into a lower layer can only be followed with that layer.
        let complete = number == 0 || !opened.values().any(|layer| layer.tree().links_below());
        if !complete {
            continue;
        }
        let view = View::new(view_layers(&opened), false);
        if let Some((_, origin)) = view.explain(path.as_bytes()) {
            return Ok((opened, view, origin));
        }
    }
    bail!("{path}: no layer of {} has such a file", image.name)
}

async fn copy(opened: &Opened, view: &View, origin: &Origin) -> Result<()> {
    let layer = opened.values().nth(origin.layer).map(Arc::clone);
    if let Some(layer) = layer.filter(|_| origin.contiguous && origin.size > 0) {
        // All at once: neighbouring spans become one request.
        let end = origin.data.end.0.min(layer.spans().uncompressed_size());
        let range = origin.data.start..ztoc::UncompressedOffset(end);
        layer.request(layer.spans().covering(range), Lane::Demand);
    }
    let mut out = std::io::stdout().lock();
    let (mut position, mut last) = (0, b'\n');
    while position < origin.size {
        let (sender, receiver) = oneshot::channel();
        view.read_file(origin.ino, position, STEP, move |outcome| {
            // A reader that went away needs no answer.
            let _ = sender.send(outcome.map(<[u8]>::to_vec));
        });
        let part = match receiver.await? {
            Ok(part) if part.is_empty() => bail!("the file ends early"),
            Ok(part) => part,
            Err(error) => bail!("cannot be read: {error}; --debug tells more"),
        };
        out.write_all(&part)?;
        position += part.len() as u64;
        last = part.last().copied().unwrap_or(last);
    }
    if last != b'\n' && out.is_terminal() {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

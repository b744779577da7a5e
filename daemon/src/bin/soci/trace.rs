//! `soci trace`: what a workload reads, in order, to be prefetched by its next start.

mod contained;
mod run;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use proto::spanshot::control::v1 as api;
use serde_json::json;

use crate::control_client::Control;
use crate::lazy::ImageOptions;
use crate::options::Globals;
use crate::paint::printable;
use crate::progress::Progress;
use crate::trace_file::{TraceFile, TraceRead};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The view by number, mount point, image, or container. With a command: an image in a registry, or
    /// an OCI layout
    #[arg(value_name = "VIEW|IMAGE|CONTAINER")]
    view: String,
    /// Where the record goes; `soci create --prefetch-from` reads it
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Begin the record now, instead of when the view was mounted, and end it at Ctrl-C or after --for.
    /// What the kernel has in its cache is not read again, and so not recorded
    #[arg(long, conflicts_with = "command")]
    restart: bool,
    /// End the record, and the command, after this time
    #[arg(long = "for", value_parser = crate::duration::parse, value_name = "TIME")]
    time: Option<Duration>,
    #[command(flatten)]
    image: ImageOptions,
    /// Run this in the image, mounted for it alone: without containerd, with the environment, user and
    /// directory of the image's configuration and this machine's network
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(crate) async fn run(globals: &Globals, arguments: &Arguments) -> Result<()> {
    let progress = Progress::new(globals.json);
    let trace = if arguments.command.is_empty() {
        running(globals, arguments, &progress).await?
    } else {
        let (image, command) = (&arguments.view, &arguments.command);
        let options = &arguments.image;
        run::record(image, options, command, arguments.time, &progress).await?
    };
    let (count, complete) = (trace.reads.len(), trace.complete);
    let output = &arguments.output;
    let text = serde_json::to_vec_pretty(&trace)?;
    std::fs::write(output, text).with_context(|| format!("cannot write {}", output.display()))?;
    progress.result(
        &format!("{count} reads recorded in {}", output.display()),
        &json!({"event": "recorded", "reads": count, "complete": complete}),
    );
    if !complete {
        progress.note("soci: warning: the record was full; later reads are not in it");
    }
    Ok(())
}

/// What is read of a view of the running daemon.
async fn running(
    globals: &Globals,
    arguments: &Arguments,
    progress: &Progress,
) -> Result<TraceFile> {
    let mut control = Control::new(globals);
    let view = control.find(&arguments.view).await?.view.id;
    if arguments.restart {
        let outcome = control
            .client
            .restart_record(api::ViewRequest { view })
            .await;
        control.answer(outcome)?;
    }
    if arguments.restart || arguments.time.is_some() {
        progress.note("recording; Ctrl-C ends it");
        let time = arguments.time.unwrap_or(Duration::MAX);
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    }
    let outcome = control.client.reads(api::ViewRequest { view }).await;
    let record = control.answer(outcome)?;
    let reads: Vec<TraceRead> = record.reads.iter().filter_map(read).collect();
    Ok(TraceFile::new(record.images, record.left_out == 0, reads))
}

fn read(read: &api::Read) -> Option<TraceRead> {
    Some(TraceRead {
        at_us: read.at_micros,
        layer: read.layer.parse().ok()?,
        start: read.layer_start,
        end: read.layer_end,
        path: printable(&read.path),
    })
}

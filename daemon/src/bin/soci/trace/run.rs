//! A command run in an image, to record what it reads.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use daemon::control::read_messages;

use super::contained::{self, ProcessConfig};
use crate::lazy::{ImageOptions, LazyImage, State};
use crate::mount::{Mounted, ensure_root};
use crate::progress::Progress;
use crate::trace_file::TraceFile;

/// Runs `command` in the image `name`, for at most `time`, and answers what it read of the image.
pub(super) async fn record(
    name: &str,
    options: &ImageOptions,
    command: &[OsString],
    time: Option<Duration>,
    progress: &Progress,
) -> Result<TraceFile> {
    ensure_root()?;
    let state = State::open(None)?;
    let image = LazyImage::find(name, options, state.path(), true, progress.clone()).await?;
    let config = ProcessConfig::parse(&image.config().await?)?;
    let opened = image.open_all().await?;
    let root = state.path().join("root");
    std::fs::create_dir(&root)?;
    let mounted = Mounted::of(&opened, &root, state.path(), true).await?;
    let ended = run(&root, &config, command, time, progress).await;
    let layers: Vec<_> = opened.into_values().collect();
    let image_name = image.name.clone();
    let trace = tokio::task::spawn_blocking(move || {
        let inside = mounted.session.inspection();
        let record = inside.accesses.record();
        let messages = read_messages(&inside.view, &layers, &record.reads);
        let reads = messages.iter().filter_map(super::read).collect();
        TraceFile::new(vec![image_name], record.left_out == 0, reads)
    })
    .await;
    image.stop().await;
    ended?;
    Ok(trace?)
}

async fn run(
    root: &Path,
    config: &ProcessConfig,
    command: &[OsString],
    time: Option<Duration>,
    progress: &Progress,
) -> Result<()> {
    let mut child = contained::start(root, config, command)?;
    let status = tokio::select! {
        status = child.wait() => Some(status.context("cannot wait for the command")?),
        () = tokio::time::sleep(time.unwrap_or(Duration::MAX)) => None,
        _ = tokio::signal::ctrl_c() => None,
    };
    match status {
        Some(status) if !status.success() => {
            progress.note(&format!("soci: warning: the command ended with {status}"));
        }
        Some(_) => {}
        None => child.kill().await.context("cannot end the command")?,
    }
    Ok(())
}

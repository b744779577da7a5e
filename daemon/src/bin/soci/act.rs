//! `soci drain`, `verify`, `gc`, `fetch`: acting on the running daemon.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use proto::containerd::services::snapshots::v1 as snapshots;
use proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use proto::spanshot::control::v1 as api;
use serde_json::json;

use crate::control_client::{Control, channel};
use crate::options::Globals;
use crate::paint::{bytes, printable};
use crate::progress::Progress;

/// How often is asked how far it is.
const INTERVAL: Duration = Duration::from_millis(200);
/// Without a span more for so long, nothing is coming any more.
const STALLED: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct Views {
    /// Views by number, mount point, image, or container [default: all]
    #[arg(value_name = "VIEW|IMAGE|CONTAINER")]
    views: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Fetch {
    /// The view by number, mount point, image, or container
    #[arg(value_name = "VIEW|IMAGE|CONTAINER")]
    view: String,
    /// Paths of files
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<String>,
}

async fn chosen(control: &mut Control, names: &[String]) -> Result<Vec<api::View>> {
    if names.is_empty() {
        return control.views().await;
    }
    let mut views = Vec::new();
    for name in names {
        views.push(control.find(name).await?.view);
    }
    Ok(views)
}

/// Fetches all that is missing and waits for it: from then on no registry is needed.
pub(crate) async fn drain(globals: &Globals, arguments: &Views) -> Result<()> {
    let mut control = Control::new(globals);
    let progress = Progress::new(globals.json);
    for view in chosen(&mut control, &arguments.views).await? {
        let fetched = fetch(&mut control, view.id, Vec::new()).await?;
        let bar = progress.spinner(&format!("view {}", view.id));
        let outcome = wait(&mut control, view.id, |left| {
            bar.message(&format!("{left} spans to come"))
        })
        .await;
        bar.done();
        outcome.with_context(|| format!("view {}", view.id))?;
        progress.result(
            &format!(
                "view {}: complete, {} spans fetched",
                view.id, fetched.missing
            ),
            &json!({"event": "drained", "view": view.id, "fetched_spans": fetched.missing}),
        );
    }
    Ok(())
}

async fn fetch(
    control: &mut Control,
    view: u64,
    paths: Vec<Vec<u8>>,
) -> Result<api::FetchResponse> {
    let outcome = control
        .client
        .fetch(api::FetchRequest { view, paths })
        .await;
    control.answer(outcome)
}

/// Waits until all spans of the view are here.
async fn wait(control: &mut Control, view: u64, tell: impl Fn(u64)) -> Result<()> {
    let (mut last, mut moved) = (u64::MAX, tokio::time::Instant::now());
    loop {
        let outcome = control.client.spans(api::ViewRequest { view }).await;
        let layers = control.answer(outcome)?.layers;
        let states = layers.iter().flat_map(|layer| &layer.states);
        let (mut absent, mut flying) = (0_u64, 0_u64);
        for state in states {
            absent += u64::from(*state == 0);
            flying += u64::from(*state == 1);
        }
        let left = absent + flying;
        if left == 0 {
            return Ok(());
        }
        if left != last {
            (last, moved) = (left, tokio::time::Instant::now());
        }
        // A span that failed is absent again, and nobody is getting it.
        if flying == 0 || moved.elapsed() > STALLED {
            bail!(
                "{left} spans could not be fetched; the snapshotter's log tells why. Run this again when the registry answers"
            );
        }
        tell(left);
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Has the spans of some files fetched.
pub(crate) async fn fetch_files(globals: &Globals, arguments: &Fetch) -> Result<()> {
    let mut control = Control::new(globals);
    let view = control.find(&arguments.view).await?.view.id;
    let paths = arguments.paths.iter().map(|path| path.as_bytes().to_vec());
    let fetched = fetch(&mut control, view, paths.collect()).await?;
    Progress::new(globals.json).result(
        &format!("view {view}: {} spans are being fetched", fetched.missing),
        &json!({"event": "fetching", "view": view, "spans": fetched.missing}),
    );
    let unknown: Vec<_> = fetched
        .unknown_paths
        .iter()
        .map(|path| printable(path))
        .collect();
    if !unknown.is_empty() {
        bail!("no lazy layer of the view has {}", unknown.join(", "));
    }
    Ok(())
}

/// Compares what is here with its checksums.
pub(crate) async fn verify(globals: &Globals, arguments: &Views) -> Result<()> {
    let mut control = Control::new(globals);
    let progress = Progress::new(globals.json);
    let mut wrong = 0;
    for view in chosen(&mut control, &arguments.views).await? {
        let bar = progress.spinner(&format!("verify view {}", view.id));
        let outcome = control
            .client
            .verify(api::ViewRequest { view: view.id })
            .await;
        bar.done();
        let found = control.answer(outcome)?;
        wrong += found.wrong;
        progress.result(
            &format!(
                "view {}: {} spans with {} are right, {} are wrong",
                view.id,
                found.checked - found.wrong,
                bytes(found.bytes),
                found.wrong
            ),
            &json!({
                "event": "verified", "view": view.id, "spans": found.checked,
                "bytes": found.bytes, "wrong": found.wrong,
            }),
        );
    }
    if wrong > 0 {
        bail!(
            "{wrong} cached spans were wrong, and are fetched again when they are read; check the disk"
        );
    }
    Ok(())
}

/// Removes what no snapshot needs.
pub(crate) async fn gc(globals: &Globals) -> Result<()> {
    let address = &globals.snapshotter_address;
    let mut client = SnapshotsClient::new(channel(address.clone()));
    let cleaned = client.cleanup(snapshots::CleanupRequest::default()).await;
    cleaned
        .map_err(|status| anyhow::anyhow!("{}", status.message()))
        .with_context(|| {
            format!(
                "the snapshotter at {} could not clean up",
                address.display()
            )
        })?;
    Progress::new(globals.json).result("cleaned up", &json!({"event": "cleaned"}));
    Ok(())
}

//! The two runs.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::command::run;
use integration::host::ON_DEMAND;
use integration::{Containerd, DockerRegistry, Scratch, Snapshotter, Soci};

use crate::report::{Outcome, Report, progress};
use crate::workload::{Workload, publish};

const CONTAINER: &str = "demo";

/// What still runs after the measurements.
#[derive(Debug)]
pub(crate) struct Stage {
    containerd: Containerd,
    snapshotter: Snapshotter,
    registry: DockerRegistry,
    workload: Workload,
}

/// Runs the image after a full pull, then lazily, each on a containerd that has never seen it.
pub(crate) fn both(scratch: &Scratch) -> Result<(Stage, Report)> {
    progress("starting a registry");
    let registry = DockerRegistry::start(scratch)?;
    let workload = publish(scratch, &registry)?;

    progress("full pull with overlayfs, then run");
    let full = {
        let containerd = Containerd::start_as(scratch, "full")?;
        let ctr = containerd.ctr();
        let pull = [
            "images",
            "pull",
            "--plain-http",
            "--snapshotter",
            "overlayfs",
            &workload.reference,
        ];
        let mut pull_command = ctr.command();
        pull_command.args(pull);
        measure(
            &registry,
            &mut pull_command,
            &mut start_command(&containerd, "overlayfs", &workload),
        )?
    };

    progress("lazy pull with soci, then run");
    let containerd = Containerd::start_as(scratch, "lazy")?;
    let snapshotter = Snapshotter::start(scratch, &containerd, ON_DEMAND)?;
    let mut pull = Soci::with(scratch, &containerd)?.command()?;
    pull.args(["rpull", "--plain-http", &workload.reference]);
    let lazy = measure(
        &registry,
        &mut pull,
        &mut start_command(&containerd, "soci", &workload),
    )?;
    // Its snapshot is there until the container is deleted, and so is its view.
    let fuse_mounts = snapshotter.fuse_mounts()?.len();
    containerd
        .ctr()
        .call(&["containers", "delete", CONTAINER])?;
    ensure!(
        full.output == lazy.output,
        "the container printed {:?} after a full pull, {:?} lazily",
        full.output,
        lazy.output
    );

    let report = Report {
        image_bytes: workload.bytes,
        layers: workload.layers,
        full,
        lazy,
        fuse_mounts,
    };
    Ok((
        Stage {
            containerd,
            snapshotter,
            registry,
            workload,
        },
        report,
    ))
}

fn start_command(containerd: &Containerd, snapshotter: &str, workload: &Workload) -> Command {
    let mut start = containerd.ctr().command();
    start.args([
        "run",
        "--snapshotter",
        snapshotter,
        &workload.reference,
        CONTAINER,
    ]);
    start
}

fn measure(registry: &DockerRegistry, pull: &mut Command, start: &mut Command) -> Result<Outcome> {
    drop_caches()?;
    let before = registry.traffic()?;
    let clock = Instant::now();
    run(pull).context("pull")?;
    let pulled = clock.elapsed();
    let (ready, output) = run_until_ready(start, clock).context("run")?;
    let traffic = registry.traffic()?.since(before);
    Ok(Outcome {
        pull: pulled,
        start: ready - pulled,
        fetched_bytes: traffic.bytes,
        registry_requests: traffic.requests,
        output,
    })
}

/// Runs `command` to its end; when it printed its first line, and all it printed.
fn run_until_ready(command: &mut Command, clock: Instant) -> Result<(Duration, String)> {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut output = String::new();
    let mut stdout = BufReader::new(child.stdout.take().context("standard output is a pipe")?);
    stdout.read_line(&mut output)?;
    let ready = clock.elapsed();
    stdout.read_to_string(&mut output)?;
    let rest = child.wait_with_output()?;
    let errors = String::from_utf8_lossy(&rest.stderr);
    ensure!(
        rest.status.success(),
        "{command:?}: {}\n{errors}",
        rest.status
    );
    Ok((ready, output.trim_end().to_owned()))
}

/// So that neither run finds in memory what the one before it read, the registry's files above all.
fn drop_caches() -> Result<()> {
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the page cache")
}

impl Stage {
    /// Leaves everything running; how to go on with it.
    pub(crate) fn keep(self, scratch: Scratch) -> String {
        let ctr = self.containerd.ctr();
        let dir = scratch.path().to_owned();
        let mut text = String::new();
        let reference = &self.workload.reference;
        let ctr_line = format!(
            "ctr --address {} --namespace {}",
            self.containerd.socket().display(),
            ctr.namespace()
        );
        let _ = write!(
            text,
            "still running, in {dir}:
  registry      {registry}, image {reference}
  containerd    {ctr_line} ...
  snapshotter   process {pid}, log {dir}/soci/daemon.log
run it again:
  {ctr_line} run --rm --snapshotter soci {reference} again
a shell in it:
  {ctr_line} run --rm --tty --snapshotter soci {reference} shell /bin/bash
end and remove everything:
  scripts/demo --clean {dir}",
            dir = dir.display(),
            registry = self.registry.host(),
            pid = self.snapshotter.pid(),
        );
        // Their ends are what the guards are for.
        std::mem::forget(self);
        scratch.keep();
        text
    }
}

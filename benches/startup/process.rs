//! What processes and directories took.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use procfs::process::Process;
use walkdir::WalkDir;

/// CPU time of a process and of its children that were waited for.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let stat = process(pid)?.stat()?;
    seconds(stat.utime + stat.stime + u64::try_from(stat.cutime + stat.cstime).unwrap_or(0))
}

/// CPU time of this process's children that were waited for: of commands that it ran.
pub(crate) fn children_cpu() -> Result<Duration> {
    let stat = Process::myself()?.stat()?;
    seconds(u64::try_from(stat.cutime + stat.cstime).unwrap_or(0))
}

#[expect(clippy::cast_precision_loss, reason = "ticks of hours are exact")]
fn seconds(ticks: u64) -> Result<Duration> {
    let per_second = procfs::ticks_per_second();
    let seconds = ticks as f64 / per_second as f64;
    Duration::try_from_secs_f64(seconds).context("no CPU time")
}

/// The most memory that a process has had resident, in bytes.
pub(crate) fn peak_memory(pid: u32) -> Result<u64> {
    Ok(process(pid)?.status()?.vmhwm.context("no VmHWM")? * 1024)
}

fn process(pid: u32) -> Result<Process> {
    Ok(Process::new(i32::try_from(pid)?)?)
}

/// What the files in `dir` take on disk, holes left out, mounts not entered.
pub(crate) fn disk(dir: &Path) -> u64 {
    let entries = WalkDir::new(dir)
        .same_file_system(true)
        .into_iter()
        .flatten();
    let blocks = entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.blocks());
    blocks.sum::<u64>() * 512
}

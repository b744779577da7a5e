//! What processes and directories took.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use procfs::process::{Process, all_processes};
use walkdir::WalkDir;

/// CPU time of a process and of its children that were waited for.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let stat = process(pid)?.stat()?;
    seconds(stat.utime + stat.stime + u64::try_from(stat.cutime + stat.cstime).unwrap_or(0))
}

/// What a process started and what that started, as far as they still run: a snapshotter may leave the work to others.
pub(crate) fn descendants(pid: u32) -> Result<BTreeSet<u32>> {
    let parents: Vec<_> = all_processes()?
        .flatten()
        .filter_map(|process| process.stat().ok())
        .filter_map(|stat| {
            Some((
                u32::try_from(stat.pid).ok()?,
                u32::try_from(stat.ppid).ok()?,
            ))
        })
        .collect();
    let mut family = BTreeSet::from([pid]);
    loop {
        let known = family.len();
        let children = parents.iter().filter(|(_, parent)| family.contains(parent));
        let children: Vec<_> = children.map(|(child, _)| *child).collect();
        family.extend(children);
        if family.len() == known {
            family.remove(&pid);
            return Ok(family);
        }
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_a_process_started_is_found_through_what_started_it() {
        let mut shell = Command::new("sh");
        // Each shell waits for another: parent, child, grandchild.
        shell.args(["-c", "sh -c 'sh -c \"echo; read x\"; true'; true"]);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut parent = shell.spawn().unwrap();
        // Once it says something, the grandchild is there.
        let mut said = [0];
        parent
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut said)
            .unwrap();
        let found = descendants(parent.id()).unwrap();
        drop(parent.stdin.take());
        parent.wait().unwrap();
        assert!(!found.contains(&parent.id()));
        assert_eq!(found.len(), 2, "{found:?}");
    }
}

//! A private directory for one test or one demo, and the proof that nothing outlives it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::{Process, all_processes};

/// A private directory; removed with everything mounted or running in it when dropped.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    /// A new directory in the system's temporary directory. The path is short: it holds sockets,
    /// whose paths end at 107 bytes.
    pub fn new() -> Result<Self> {
        Self::within(&std::env::temp_dir())
    }

    /// A new directory in `parent`.
    pub fn within(parent: &Path) -> Result<Self> {
        fs::create_dir_all(parent)?;
        let dir = tempfile::Builder::new()
            .prefix("spanshot-")
            .tempdir_in(parent)?;
        Ok(Self { dir: dir.keep() })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// A subdirectory, made if need be.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// An error that lists every mount below the directory and every process that names it.
    pub fn assert_clean(&self) -> Result<()> {
        let mounts = mounts_below(&self.dir)?;
        let processes: Vec<_> = processes_naming(&self.dir)?
            .iter()
            .map(|process| process.cmdline().unwrap_or_default().join(" "))
            .collect();
        ensure!(
            mounts.is_empty() && processes.is_empty(),
            "left behind: mounts {mounts:#?}, processes {processes:#?}"
        );
        Ok(())
    }

    /// Leaves everything as it is; the directory's path.
    pub fn keep(self) -> PathBuf {
        let dir = self.dir.clone();
        std::mem::forget(self);
        dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = sweep(&self.dir) {
            eprintln!("cannot clean up {}: {error:#}", self.dir.display());
        }
    }
}

/// The mount points below `dir`, newest first.
pub fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<_> = Process::myself()?
        .mountinfo()?
        .into_iter()
        .map(|mount| mount.mount_point)
        .filter(|point| point.starts_with(dir))
        .collect();
    found.reverse();
    Ok(found)
}

/// Ends every process that was started with `dir` on its command line, and their descendants (the
/// processes of containers know nothing of the directory); unmounts everything below it; removes
/// it. For when orderly ends were cut short: with nothing left to do it does nothing.
pub fn sweep(dir: &Path) -> Result<()> {
    let mut doomed = processes_naming(dir)?
        .iter()
        .map(|process| process.pid)
        .collect();
    add_descendants(&mut doomed)?;
    end(&doomed);
    for point in mounts_below(dir)? {
        umount2(&point, MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", point.display()))?;
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn processes_naming(dir: &Path) -> Result<Vec<Process>> {
    let dir = dir.to_string_lossy().into_owned();
    let names_dir = |process: &Process| {
        let arguments = process.cmdline().unwrap_or_default();
        arguments.iter().any(|argument| argument.contains(&dir))
    };
    let own = std::process::id();
    Ok(all_processes()?
        .filter_map(Result::ok)
        .filter(|process| i64::from(process.pid) != i64::from(own) && names_dir(process))
        .collect())
}

/// Adds every process whose parent is in `pids`, and theirs. (By parent ids: not every kernel lists
/// a task's children.)
fn add_descendants(pids: &mut BTreeSet<i32>) -> Result<()> {
    let stats: Vec<_> = all_processes()?
        .flatten()
        .filter_map(|process| process.stat().ok())
        .collect();
    loop {
        let before = pids.len();
        for stat in &stats {
            if pids.contains(&stat.ppid) {
                pids.insert(stat.pid);
            }
        }
        if pids.len() == before {
            return Ok(());
        }
    }
}

fn end(pids: &BTreeSet<i32>) {
    for (signal, patience) in [
        (Signal::SIGTERM, Duration::from_secs(5)),
        (Signal::SIGKILL, Duration::from_secs(5)),
    ] {
        let running = || pids.iter().filter(|pid| is_running(**pid));
        running().for_each(|pid| {
            let _ = kill(Pid::from_raw(*pid), signal);
        });
        let start = Instant::now();
        while running().next().is_some() && start.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Whether the process runs. A zombie has ended; its parent just has not looked yet.
pub fn is_running(pid: i32) -> bool {
    Process::new(pid)
        .and_then(|process| process.stat())
        .is_ok_and(|stat| stat.state != 'Z')
}

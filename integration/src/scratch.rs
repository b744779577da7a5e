//! A private directory for one test or one demo, and the proof that nothing outlives it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use procfs::process::{Process, all_processes};

use crate::link;

/// Those of this process, for [`interrupt`].
static LIVE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
/// What the names of all of them begin with.
const PREFIX: &str = "spanshot-";
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

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
            .prefix(PREFIX)
            .tempdir_in(parent)?
            .keep();
        LIVE.lock().insert(dir.clone());
        Ok(Self { dir })
    }

    /// Its name, which no other has.
    pub fn name(&self) -> String {
        name(&self.dir)
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
        LIVE.lock().remove(&dir);
        std::mem::forget(self);
        dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = sweep(&self.dir) {
            eprintln!("cannot clean up {}: {error:#}", self.dir.display());
        }
        LIVE.lock().remove(&self.dir);
    }
}

/// Cleans up all of this process's scratch directories, from a thread beside those that work in
/// them, after which the process must end. Nothing more is started once this has begun.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::SeqCst);
    let live = LIVE.lock().clone();
    for dir in live.iter().rev() {
        // Twice: something may just have been starting.
        if let Err(error) = sweep(dir).or_else(|_| sweep(dir)) {
            eprintln!("cannot clean up {}: {error:#}", dir.display());
        }
    }
}

/// From now on a Ctrl-C, or any other polite request to end, cleans up before it ends us.
pub fn clean_up_on_signals() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut signals = Vec::new();
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ] {
        let _guard = runtime.enter();
        signals.push(signal(kind)?);
    }
    std::thread::spawn(move || {
        runtime.block_on(async {
            let any = signals.iter_mut().map(|signal| Box::pin(signal.recv()));
            futures::future::select_all(any).await;
        });
        eprintln!("interrupted: cleaning up");
        interrupt();
        std::process::exit(130);
    });
    Ok(())
}

/// An error if everything is being cleaned up.
pub fn check_not_interrupted() -> Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::SeqCst), "interrupted");
    Ok(())
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
/// it. For when orderly ends were cut short. `dir` must be a scratch directory, of any process.
pub fn sweep(dir: &Path) -> Result<()> {
    ensure!(
        name(dir).starts_with(PREFIX),
        "{} is not a directory of ours",
        dir.display()
    );
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
    remove_namespace(&name(dir));
    link::remove(&name(dir));
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn name(dir: &Path) -> String {
    dir.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Removes what runc leaves behind of a namespace of containerd's: directories of its state and of
/// cgroups (v1 and v2). What is in use or not there stays as it is.
fn remove_namespace(namespace: &str) {
    let _ = fs::remove_dir_all(Path::new("/run/containerd/runc").join(namespace));
    let cgroups = Path::new("/sys/fs/cgroup");
    let controllers = fs::read_dir(cgroups)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    for root in controllers.chain([cgroups.to_owned()]) {
        let dir = root.join(namespace);
        for container in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(container.path());
        }
        let _ = fs::remove_dir(dir);
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

//! A program that runs beside the test.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::{tail, until};
use crate::scratch::check_not_interrupted;

/// How long a service may take to end after it was asked to.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running program whose output goes to a file; stopped when dropped.
#[derive(Debug)]
pub struct Service {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Service {
    /// Starts `command`, standard output and error appended to `log`. It gets a process group of
    /// its own: a Ctrl-C at the terminal reaches only us, and we end it in order.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        check_not_interrupted()?;
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open log {}", log.display()))?;
        let child = command
            .stdin(std::process::Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_owned(),
        })
    }

    /// Waits until `ready` holds; an error with the end of the log if the program ends before, or
    /// if 30 seconds pass.
    pub fn wait_ready(&mut self, mut ready: impl FnMut() -> bool) -> Result<()> {
        let (name, child) = (&self.name, &mut self.child);
        let outcome = until(&format!("{name} is ready"), Duration::from_secs(30), || {
            if let Some(status) = child.try_wait()? {
                bail!("{name} ended: {status}");
            }
            Ok(ready().then_some(()))
        });
        outcome.with_context(|| tail(&self.log()))
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends `signal` and waits for the end, then kills. Does nothing to a program that has ended.
    pub fn stop(&mut self, signal: Signal) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        let pid = i32::try_from(self.child.id()).context("process id")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot signal {}", self.name))?;
        let start = Instant::now();
        while self.is_running() {
            if start.elapsed() > PATIENCE {
                self.child.kill()?;
                self.child.wait()?;
                bail!(
                    "{} did not end within {PATIENCE:?} of {signal}; killed",
                    self.name
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Ends it at once, with no chance to tidy up.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Err(error) = self.stop(Signal::SIGTERM) {
            eprintln!("{error:#}");
        }
        if std::thread::panicking() {
            // Without what containerd and the registry say of every plugin and every request.
            let is_news = |line: &&str| {
                !line.contains("level=info") && !line.contains("\"response completed\"")
            };
            let log = self.log();
            let news: Vec<_> = log.lines().filter(is_news).collect();
            eprintln!(
                "--- end of the log of {}\n{}",
                self.name,
                tail(&news.join("\n"))
            );
        }
    }
}

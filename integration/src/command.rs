//! Running programs, with errors that say what was run and what it said.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::scratch::check_not_interrupted;

/// A command that reads nothing.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// Runs to the end; the standard output if it succeeded.
pub fn run(command: &mut Command) -> Result<String> {
    let output = finish(command)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    bail!("{}", describe(command, &output));
}

/// Runs to the end; the standard error if it failed, an error if it succeeded.
pub fn fail(command: &mut Command) -> Result<String> {
    let output = finish(command)?;
    if output.status.success() {
        bail!("should have failed: {}", describe(command, &output));
    }
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Runs to the end, whatever the end is.
pub fn finish(command: &mut Command) -> Result<Output> {
    check_not_interrupted()?;
    command
        .output()
        .with_context(|| format!("cannot run {command:?}"))
}

fn describe(command: &Command, output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    format!(
        "{command:?}: {}\n{}{}",
        output.status,
        tail(&out),
        tail(&err)
    )
}

/// The last lines of a log, enough to see what went wrong.
pub fn tail(text: &str) -> String {
    const LINES: usize = 40;
    let lines: Vec<_> = text.lines().collect();
    let from = lines.len().saturating_sub(LINES);
    lines[from..]
        .iter()
        .map(|line| format!("{line}\n"))
        .collect()
}

/// Asks `ready` again and again until it answers, at most for `limit`.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if start.elapsed() > limit {
            return Err(anyhow!("{what}: not within {limit:?}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The number in the environment variable `name`, else `default`: how long a test is to go on.
///
/// # Panics
/// Something else is there.
pub fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| {
        let number = text.parse();
        number.unwrap_or_else(|_| panic!("{name} is no number: {text}"))
    })
}

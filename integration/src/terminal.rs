//! Programs on a terminal: a pseudo terminal made by `script(1)`.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use parking_lot::Mutex;

use crate::command::{command, until};

/// A program whose input, output and errors are a terminal of 120 columns. Ended when dropped.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Runs `program` with its environment and `setting`, assignments of a shell.
    pub fn run(program: &Command, setting: &str) -> Result<Self> {
        let words = std::iter::once(program.get_program()).chain(program.get_args());
        let words: Vec<_> = words.map(|word| quoted(&word.to_string_lossy())).collect();
        let line = format!("stty cols 120 rows 40; {setting} exec {}", words.join(" "));
        let mut script = command("script");
        script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        script.env("TERM", "xterm").env_remove("NO_COLOR");
        // Which shell it is shall not depend on who tests. What it runs replaces it: Ctrl-C is for the program alone.
        script.env("SHELL", "/bin/sh");
        script.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = script.spawn().context("cannot run script(1)")?;
        let mut output = child.stdout.take().context("no output")?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut piece) {
                kept.lock().extend_from_slice(&piece[..length]);
            }
        });
        Ok(Self { child, seen })
    }

    /// All that has been shown so far, with what moves the cursor.
    pub fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock()).into_owned()
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) -> Result<()> {
        let keyboard = self.child.stdin.as_mut().context("no input")?;
        keyboard.write_all(keys.as_bytes())?;
        Ok(keyboard.flush()?)
    }

    /// Waits until the program has ended; all it has shown, and its exit code.
    pub fn wait(&mut self) -> Result<(String, Option<i32>)> {
        let status = until("the program ends", Duration::from_secs(60), || {
            Ok(self.child.try_wait()?)
        });
        let status = status.with_context(|| self.seen())?;
        // What was in the pipe is read by the other thread, soon.
        let mut last = None;
        until("its output ends", Duration::from_secs(10), || {
            let length = self.seen.lock().len();
            Ok((last.replace(length) == Some(length)).then_some(()))
        })?;
        Ok((self.seen(), status.code()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

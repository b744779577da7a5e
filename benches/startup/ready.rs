//! A container that is started, and the moment when it is ready.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::workload::Ready;

/// How often a port is asked, or output looked for.
const POLL: Duration = Duration::from_millis(2);
/// Longest time to become ready.
const PATIENCE: Duration = Duration::from_secs(900);

/// A started container whose output is read.
pub(crate) struct Started {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Started {
    /// Runs `command`, whose container prints to the file `output` as the shim writes it. containerd's client has a way of its
    /// own, through pipes that it opens once the task is there: what a short task prints before that is lost.
    pub(crate) fn run(command: &mut Command, output: &Path) -> Result<Self> {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (send, lines) = channel();
        let mut out = child.stdout.take().context("a pipe")?;
        let err = child.stderr.take().context("a pipe")?;
        let said = send.clone();
        thread::spawn(move || {
            let lines = BufReader::new(err).lines().map_while(Result::ok);
            lines.map_while(|line| said.send(line).ok()).for_each(drop);
        });
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        thread::spawn(move || {
            let _ = io::copy(&mut out, &mut io::sink());
            end.store(true, Ordering::Release);
        });
        let output = output.to_owned();
        thread::spawn(move || follow(&output, &ended, &send));
        Ok(Self {
            child,
            lines,
            seen: Vec::new(),
        })
    }

    /// Waits until it is ready.
    pub(crate) fn wait(&mut self, ready: &Ready) -> Result<()> {
        let start = Instant::now();
        while !self.is_ready(ready)? {
            ensure!(
                start.elapsed() < PATIENCE,
                "not ready within {PATIENCE:?}:\n{}",
                self.output()
            );
        }
        Ok(())
    }

    fn is_ready(&mut self, ready: &Ready) -> Result<bool> {
        match ready {
            Ready::Line(text) => self.next_line(text),
            Ready::Exit(_) => self.has_exited(),
            Ready::Port(port) => self.ask(|| connect(*port).is_some()),
            Ready::Http(port) => self.ask(|| answers(*port)),
        }
    }

    fn next_line(&mut self, wanted: &str) -> Result<bool> {
        match self.lines.recv_timeout(Duration::from_secs(1)) {
            Ok(line) => {
                let found = line.contains(wanted);
                self.seen.push(line);
                Ok(found)
            }
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait()?;
                bail!(
                    "it ended, {status}, and never printed {wanted:?}:\n{}",
                    self.output()
                )
            }
        }
    }

    fn has_exited(&mut self) -> Result<bool> {
        let Some(status) = self.child.try_wait()? else {
            thread::sleep(POLL);
            return Ok(false);
        };
        ensure!(status.success(), "{status}:\n{}", self.output());
        Ok(true)
    }

    fn ask(&mut self, is_ready: impl Fn() -> bool) -> Result<bool> {
        if is_ready() {
            return Ok(true);
        }
        if let Some(status) = self.child.try_wait()? {
            bail!("it ended before it was ready: {status}\n{}", self.output());
        }
        thread::sleep(POLL);
        Ok(false)
    }

    /// Waits at most `limit` for its end; when that was.
    pub(crate) fn ended_within(&mut self, limit: Duration) -> Result<Option<Instant>> {
        let start = Instant::now();
        loop {
            if self.child.try_wait()?.is_some() {
                return Ok(Some(Instant::now()));
            }
            if start.elapsed() > limit {
                return Ok(None);
            }
            thread::sleep(POLL);
        }
    }

    /// Waits for its end, which has been brought about.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.child.wait()?;
        Ok(())
    }

    fn output(&mut self) -> String {
        self.seen.extend(self.lines.try_iter());
        self.seen.join("\n")
    }
}

/// Sends the lines of a file, which may not be there yet, until `ended` says that no more come.
fn follow(path: &Path, ended: &AtomicBool, send: &Sender<String>) {
    let (mut file, mut text) = (None, Vec::new());
    loop {
        let is_last = ended.load(Ordering::Acquire);
        file = file.or_else(|| File::open(path).ok());
        if let Some(file) = &mut file {
            let _ = file.read_to_end(&mut text);
        }
        let mut lines = text.split_inclusive(|byte| *byte == b'\n');
        let whole = |line: &&[u8]| is_last || line.ends_with(b"\n");
        let mut taken = 0;
        for line in lines.by_ref().take_while(whole) {
            taken += line.len();
            let line = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
            if send.send(line).is_err() {
                return;
            }
        }
        text.drain(..taken);
        if is_last {
            return;
        }
        thread::sleep(POLL);
    }
}

fn connect(port: u16) -> Option<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()
}

fn answers(port: u16) -> bool {
    let ask = || -> Option<bool> {
        let mut stream = connect(port)?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        stream
            .write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
            .ok()?;
        let mut head = [0; 12];
        stream.read_exact(&mut head).ok()?;
        Some(head.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}

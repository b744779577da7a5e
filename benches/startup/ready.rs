//! A container that is started, and the moment when it is ready.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::workload::Ready;

/// How often a port is asked.
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
    /// Runs `command`, which prints what the container prints.
    pub(crate) fn run(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (send, lines) = channel();
        let out = child.stdout.take().context("a pipe")?;
        let err = child.stderr.take().context("a pipe")?;
        let pipes: [Box<dyn Read + Send>; 2] = [Box::new(out), Box::new(err)];
        for pipe in pipes {
            let send = send.clone();
            thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    if send.send(line).is_err() {
                        break;
                    }
                }
            });
        }
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
                bail!("it ended and never printed {wanted:?}:\n{}", self.output())
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

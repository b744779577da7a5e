//! The daemon and the CLI under test.

use std::fs;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::binaries::binary;
use crate::command::command;
use crate::containerd::Containerd;
use crate::distribution::free_port;
use crate::manager::Manager;
use crate::scratch::Scratch;
use crate::service::Service;

/// Stands for containerd's socket in a configuration.
pub const CONTAINERD: &str = "{containerd}";

/// Our daemon with a private root.
#[derive(Debug)]
pub struct Snapshotter {
    service: Service,
    dir: PathBuf,
    socket: PathBuf,
    metrics: u16,
    manager: Option<Arc<Manager>>,
}

impl Snapshotter {
    /// Starts it below `scratch` for `containerd`, with its root in `root` below that and the lines
    /// of `config` (TOML, top-level keys first) after those that every test needs. [`CONTAINERD`] in it is replaced.
    pub fn start(scratch: &Scratch, containerd: &Containerd, config: &str) -> Result<Self> {
        Self::start_under(None, scratch, containerd, config)
    }

    /// Starts it as a service of `manager`.
    pub fn start_under(
        manager: Option<Arc<Manager>>,
        scratch: &Scratch,
        containerd: &Containerd,
        config: &str,
    ) -> Result<Self> {
        let (dir, metrics) = Self::configure(scratch, containerd, config)?;
        Self::start_again(&dir, &containerd.snapshotter_socket(), metrics, manager)
    }

    /// Starts it by the command that `wrap` makes of its own.
    pub fn start_wrapped(
        wrap: &(dyn Fn(&Command) -> Command + '_),
        scratch: &Scratch,
        containerd: &Containerd,
        config: &str,
    ) -> Result<Self> {
        let (dir, metrics) = Self::configure(scratch, containerd, config)?;
        let socket = containerd.snapshotter_socket();
        let mut daemon = wrap(&daemon(&dir, &socket)?);
        Self::wait_for(&mut daemon, &dir, &socket, metrics, None)
    }

    /// Its directory, with a configuration, and its port for metrics.
    fn configure(
        scratch: &Scratch,
        containerd: &Containerd,
        config: &str,
    ) -> Result<(PathBuf, u16)> {
        let metrics = free_port()?;
        let dir = scratch.dir("soci")?;
        write_config(&dir, metrics, containerd, config)?;
        Ok((dir, metrics))
    }

    /// Gives it another configuration, which holds from its next start on.
    pub fn configure_anew(&self, containerd: &Containerd, config: &str) -> Result<()> {
        write_config(&self.dir, self.metrics, containerd, config)
    }

    /// Stops it with `signal` and starts it again on the same root.
    pub fn restart(mut self, signal: Signal) -> Result<Self> {
        self.service.stop(signal)?;
        self.start_after_end()
    }

    /// Starts it again when it has ended.
    pub fn start_after_end(self) -> Result<Self> {
        let (dir, socket, metrics) = (self.dir.clone(), self.socket.clone(), self.metrics);
        let manager = self.manager.clone();
        drop(self);
        Self::start_again(&dir, &socket, metrics, manager)
    }

    /// Like [`Self::restart`], and says how long the new process took until it listened.
    pub fn end_and_start(mut self, signal: Signal) -> Result<(Self, Duration)> {
        self.service.stop(signal)?;
        let start = Instant::now();
        let started = self.start_after_end()?;
        Ok((started, start.elapsed()))
    }

    fn start_again(
        dir: &Path,
        socket: &Path,
        metrics: u16,
        manager: Option<Arc<Manager>>,
    ) -> Result<Self> {
        let mut daemon = daemon(dir, socket)?;
        if let Some(manager) = &manager {
            daemon = manager.command(&daemon)?;
        }
        Self::wait_for(&mut daemon, dir, socket, metrics, manager)
    }

    fn wait_for(
        daemon: &mut Command,
        dir: &Path,
        socket: &Path,
        metrics: u16,
        manager: Option<Arc<Manager>>,
    ) -> Result<Self> {
        let service = Service::start("snapshotter", daemon, &dir.join("daemon.log"))?;
        let (dir, socket) = (dir.to_owned(), socket.to_owned());
        let mut snapshotter = Self {
            service,
            dir,
            socket: socket.clone(),
            metrics,
            manager,
        };
        snapshotter
            .service
            .wait_ready(|| UnixStream::connect(&socket).is_ok())?;
        if let Some(manager) = &snapshotter.manager {
            manager.started();
        }
        Ok(snapshotter)
    }

    /// Its root directory.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.service.log()
    }

    /// The process id of the holder of its descriptors, if there is one.
    pub fn holder(&self) -> Result<Option<i32>> {
        let root = self.root().display().to_string();
        let is_holder = |process: &procfs::process::Process| {
            let arguments = process.cmdline().unwrap_or_default();
            arguments.iter().any(|argument| argument == "holder") && arguments.contains(&root)
        };
        let mut processes = procfs::process::all_processes()?.filter_map(Result::ok);
        Ok(processes.find(is_holder).map(|process| process.pid))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.service.pid()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.service.is_running()
    }

    /// Stops it.
    pub fn stop(&mut self, signal: Signal) -> Result<()> {
        self.service.stop(signal)
    }

    /// The metrics page.
    pub fn metrics(&self) -> Result<String> {
        use std::io::{Read, Write};
        let mut stream = TcpStream::connect(("127.0.0.1", self.metrics))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page)
    }

    /// The port of the metrics page, on loopback.
    pub fn metrics_port(&self) -> u16 {
        self.metrics
    }

    /// How many layers it has directories for.
    pub fn layers(&self) -> Result<Vec<String>> {
        let dir = self.root().join("layers");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    /// Mount points of FUSE views below its root.
    pub fn fuse_mounts(&self) -> Result<Vec<PathBuf>> {
        let root = self.root();
        let mounts = procfs::process::Process::myself()?.mountinfo()?;
        let is_ours = |mount: &procfs::process::MountInfo| {
            mount.fs_type.starts_with("fuse") && mount.mount_point.starts_with(&root)
        };
        Ok(mounts
            .into_iter()
            .filter(is_ours)
            .map(|mount| mount.mount_point)
            .collect())
    }
}

/// The configuration file in `dir`: what every test needs, and `config`.
fn write_config(dir: &Path, metrics: u16, containerd: &Containerd, config: &str) -> Result<()> {
    let head = format!("metrics_address = \"127.0.0.1:{metrics}\"\n");
    let store = match config.contains("[content_store]") {
        true => String::new(),
        false => {
            format!("\n[content_store]\ntype = \"soci\"\ncontainerd_address = \"{CONTAINERD}\"\n")
        }
    };
    let socket = containerd.socket().display().to_string();
    let text = format!("{head}{config}{store}").replace(CONTAINERD, &socket);
    fs::write(dir.join("config.toml"), text)?;
    Ok(())
}

/// The command that starts the daemon in `dir`.
fn daemon(dir: &Path, socket: &Path) -> Result<Command> {
    let mut daemon = command(binary("soci-snapshotter-grpc")?);
    daemon.arg("--address").arg(socket);
    daemon.arg("--config").arg(dir.join("config.toml"));
    daemon.arg("--root").arg(dir.join("root"));
    daemon.args(["--log-level", "info"]);
    Ok(daemon)
}

/// The `soci` command, with a root of its own.
#[derive(Debug, Clone)]
pub struct Soci {
    root: PathBuf,
    containerd: Option<(PathBuf, String)>,
    /// Where our daemon listens, or would.
    snapshotter: PathBuf,
}

impl Soci {
    /// One that has no containerd to talk to.
    pub fn alone(scratch: &Scratch) -> Result<Self> {
        Ok(Self {
            root: scratch.dir("soci-cli")?,
            containerd: None,
            snapshotter: PathBuf::from("/nonexistent/soci.sock"),
        })
    }

    /// One that talks to `containerd`.
    pub fn with(scratch: &Scratch, containerd: &Containerd) -> Result<Self> {
        let namespace = containerd.ctr().namespace().to_owned();
        Ok(Self {
            root: scratch.dir("soci-cli")?,
            containerd: Some((containerd.socket(), namespace)),
            snapshotter: containerd.snapshotter_socket(),
        })
    }

    /// This one, asking the daemon at `socket`.
    pub fn asking(self, socket: &Path) -> Self {
        let snapshotter = socket.to_owned();
        Self {
            snapshotter,
            ..self
        }
    }

    /// The same, with its root named `name`.
    pub fn with_root(scratch: &Scratch, containerd: &Containerd, name: &str) -> Result<Self> {
        Ok(Self {
            root: scratch.dir("soci-roots")?.join(name),
            ..Self::with(scratch, containerd)?
        })
    }

    /// `soci`, ready for its subcommand.
    pub fn command(&self) -> Result<Command> {
        let mut soci = command(binary("soci")?);
        soci.arg("--root").arg(&self.root);
        soci.arg("--snapshotter-address").arg(&self.snapshotter);
        match &self.containerd {
            Some((socket, namespace)) => {
                soci.arg("--address")
                    .arg(socket)
                    .args(["--namespace", namespace]);
            }
            None => {
                soci.args(["--address", "/nonexistent/containerd.sock"]);
            }
        }
        Ok(soci)
    }

    /// Runs `soci` with `arguments`; its standard output.
    pub fn call(&self, arguments: &[&str]) -> Result<String> {
        crate::command::run(self.command()?.args(arguments))
    }

    /// Makes `image` ready to run lazily.
    pub fn rpull(&self, image: &str) -> Result<String> {
        self.call(&["rpull", "--plain-http", image])
    }
}

//! The ways to start a container that are compared.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use integration::command::{command, run};
use integration::service::Service;
use integration::{Containerd, Scratch, Soci, binaries};

/// One way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// containerd's own pull and overlayfs.
    Overlayfs,
    /// Ours, lazily.
    Lazy,
    /// Ours, lazily, and nothing that was not asked for: what a start needs.
    OnDemand,
    /// The same by zTOCs, without compact ones.
    Ztocs,
    /// Ours, every layer pulled and unpacked.
    FullPull,
    /// The original's daemon in place of ours, lazily.
    Original,
    /// A second start with ours, everything local that the first one read, page cache dropped.
    Warm,
}

impl Mode {
    /// All of them, as tables order them.
    pub(crate) const ALL: [Self; 7] = [
        Self::Overlayfs,
        Self::FullPull,
        Self::Lazy,
        Self::OnDemand,
        Self::Ztocs,
        Self::Original,
        Self::Warm,
    ];

    /// A word for tables and the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Overlayfs => "overlayfs",
            Self::Lazy => "lazy",
            Self::OnDemand => "on-demand",
            Self::Ztocs => "ztocs",
            Self::FullPull => "full-pull",
            Self::Original => "original",
            Self::Warm => "warm",
        }
    }

    /// The mode of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// Whose first start is measured; [`Self::Warm`] is the second start of [`Self::Lazy`].
    pub(crate) fn is_first_start(self) -> bool {
        self != Self::Warm
    }

    /// The snapshotter as containerd knows it.
    pub(crate) fn snapshotter(self) -> &'static str {
        match self {
            Self::Overlayfs => "overlayfs",
            _ => "soci",
        }
    }

    fn configuration(self) -> &'static str {
        match self {
            Self::OnDemand => "[background_fetch]\ndisable = true\n",
            Self::Ztocs => {
                "[background_fetch]\ndisable = true\n[pull_modes.compact]\nenable = false\n"
            }
            Self::FullPull => {
                "[pull_modes.soci_v2]\nenable = false\n[pull_modes.parallel_pull_unpack]\nenable = true\n\
                 max_concurrent_downloads_per_image = 8\nmax_concurrent_unpacks_per_image = 4\n\
                 concurrent_download_chunk_size = \"8mb\"\ndiscard_unpacked_layers = true\n"
            }
            _ => "",
        }
    }
}

/// Where peers are that this machine may have.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peers {
    /// A directory with the original's `soci-snapshotter-grpc`.
    pub(crate) original: Option<PathBuf>,
}

impl Peers {
    /// Why `mode` cannot be measured here; `None` if it can.
    pub(crate) fn missing(&self, mode: Mode) -> Option<String> {
        let original = self
            .original
            .as_ref()
            .map(|dir| dir.join("soci-snapshotter-grpc"));
        match (mode, original) {
            (Mode::Original, None) => {
                Some("the original's daemon is not installed: --original DIR names it".to_owned())
            }
            (Mode::Original, Some(binary)) if !binary.is_file() => {
                Some(format!("{} is not there", binary.display()))
            }
            _ => None,
        }
    }

    fn daemon(&self, mode: Mode) -> Result<PathBuf> {
        match (mode, &self.original) {
            (Mode::Original, Some(dir)) => Ok(dir.join("soci-snapshotter-grpc")),
            _ => binaries::binary("soci-snapshotter-grpc"),
        }
    }
}

/// containerd, and the snapshotter behind it if the mode has one.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) containerd: Containerd,
    pub(crate) daemon: Option<Service>,
    pub(crate) mode: Mode,
    soci: Soci,
}

impl Node {
    /// Starts both with empty roots below `scratch`.
    pub(crate) fn start(scratch: &Scratch, mode: Mode, peers: &Peers) -> Result<Self> {
        let containerd = Containerd::start(scratch)?;
        let daemon = match mode {
            Mode::Overlayfs => None,
            _ => Some(daemon(scratch, &containerd, mode, &peers.daemon(mode)?)?),
        };
        let soci = Soci::with(scratch, &containerd)?;
        Ok(Self {
            containerd,
            daemon,
            mode,
            soci,
        })
    }

    /// The command that pulls `reference`.
    pub(crate) fn pull(&self, reference: &str) -> Result<Command> {
        if self.mode == Mode::Overlayfs {
            let mut pull = self.containerd.ctr().command();
            pull.args([
                "images",
                "pull",
                "--plain-http",
                "--snapshotter",
                "overlayfs",
                reference,
            ]);
            return Ok(pull);
        }
        let mut pull = self.soci.command()?;
        pull.args(["rpull", "--plain-http", reference]);
        Ok(pull)
    }

    /// Removes the container `id`, which has ended.
    pub(crate) fn delete(&self, id: &str) -> Result<()> {
        let ctr = self.containerd.ctr();
        // A task that was attached to is gone with its end, one that was killed is not.
        let _ =
            integration::command::finish(ctr.command().args(["tasks", "delete", "--force", id]));
        run(ctr.command().args(["containers", "delete", id]))?;
        Ok(())
    }
}

fn daemon(
    scratch: &Scratch,
    containerd: &Containerd,
    mode: Mode,
    binary: &Path,
) -> Result<Service> {
    let dir = scratch.dir("soci")?;
    let config = dir.join("config.toml");
    let store = format!(
        "[content_store]\ntype = \"soci\"\ncontainerd_address = \"{}\"\n",
        containerd.socket().display()
    );
    std::fs::write(&config, format!("{}{store}", mode.configuration()))?;
    let mut daemon = command(binary);
    daemon.arg("--address").arg(containerd.snapshotter_socket());
    daemon
        .arg("--config")
        .arg(&config)
        .arg("--root")
        .arg(dir.join("root"));
    let mut service = Service::start("snapshotter", &mut daemon, &dir.join("daemon.log"))?;
    let socket = containerd.snapshotter_socket();
    service
        .wait_ready(|| std::os::unix::net::UnixStream::connect(&socket).is_ok())
        .with_context(|| format!("cannot start {}", binary.display()))?;
    Ok(service)
}

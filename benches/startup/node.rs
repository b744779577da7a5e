//! A node that a sample is taken on: containerd, and the snapshotter behind it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use integration::command::{finish, run};
use integration::service::Service;
use integration::{Containerd, Scratch, Soci};

use crate::front::Front;
use crate::mode::Mode;
use crate::nydus;
use crate::peers::{self, Peers, ctr_remote, soci};

/// containerd, and the snapshotter behind it if the mode has one.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) containerd: Containerd,
    pub(crate) daemon: Option<Service>,
    pub(crate) mode: Mode,
    soci: Soci,
    /// What containers print.
    outputs: PathBuf,
}

impl Node {
    /// Starts both with empty roots below `scratch`.
    pub(crate) fn start(
        scratch: &Scratch,
        mode: Mode,
        peers: &Peers,
        front: Option<&Front>,
    ) -> Result<Self> {
        let containerd = Containerd::start(scratch)?;
        let daemon = match mode {
            Mode::Overlayfs => None,
            _ => {
                let mut command = peers.daemon(mode)?;
                if let (Mode::Soci04, Some(front)) = (mode, front) {
                    front.trust(&mut command);
                }
                Some(daemon(scratch, &containerd, mode, command)?)
            }
        };
        let soci = Soci::with(scratch, &containerd)?;
        Ok(Self {
            containerd,
            daemon,
            mode,
            soci,
            outputs: scratch.dir("outputs")?,
        })
    }

    /// Where the container `id` prints to.
    pub(crate) fn output(&self, id: &str) -> PathBuf {
        self.outputs.join(id)
    }

    /// The command that pulls `reference`.
    pub(crate) fn pull(&self, reference: &str) -> Result<Command> {
        let snapshotter = ["--snapshotter", self.mode.snapshotter()];
        let mut pull = match self.mode {
            Mode::Overlayfs | Mode::Nydus | Mode::NydusZran => {
                let mut ctr = self.containerd.ctr().command();
                ctr.args(["images", "pull"]).args(snapshotter);
                ctr
            }
            Mode::Stargz => {
                let mut ctr = ctr_remote(&self.containerd)?;
                ctr.args(["images", "rpull"]).args(snapshotter);
                ctr
            }
            Mode::Soci04 => {
                let mut soci = soci(&self.containerd)?;
                soci.args(["image", "rpull"]);
                soci
            }
            _ => {
                let mut soci = self.soci.command()?;
                soci.arg("rpull");
                soci
            }
        };
        pull.args(["--plain-http", reference]);
        Ok(pull)
    }

    /// Removes the container `id`, which has ended.
    pub(crate) fn delete(&self, id: &str) -> Result<()> {
        let ctr = self.containerd.ctr();
        // A task that was attached to is gone with its end, one that was killed is not.
        let _ = finish(ctr.command().args(["tasks", "delete", "--force", id]));
        run(ctr.command().args(["containers", "delete", id]))?;
        Ok(())
    }
}

fn daemon(
    scratch: &Scratch,
    containerd: &Containerd,
    mode: Mode,
    mut daemon: Command,
) -> Result<Service> {
    let dir = scratch.dir("soci")?;
    let config = dir.join("config.toml");
    fs::write(&config, configuration(containerd, mode))?;
    daemon.arg("--address").arg(containerd.snapshotter_socket());
    daemon.arg("--config").arg(&config);
    daemon.arg("--root").arg(dir.join("root"));
    if matches!(mode, Mode::Nydus | Mode::NydusZran) {
        nydus::configure(&mut daemon, &dir, &peers::nydusd()?)?;
    }
    let mut service = Service::start("snapshotter", &mut daemon, &dir.join("daemon.log"))?;
    let socket = containerd.snapshotter_socket();
    service
        .wait_ready(|| UnixStream::connect(&socket).is_ok())
        .with_context(|| format!("cannot start {daemon:?}"))?;
    Ok(service)
}

/// Those of other projects run with their defaults.
fn configuration(containerd: &Containerd, mode: Mode) -> String {
    match mode {
        Mode::Soci04 | Mode::Stargz => return String::new(),
        Mode::Nydus | Mode::NydusZran => return nydus::SNAPSHOTTER_CONFIGURATION.to_owned(),
        _ => (),
    }
    let socket = containerd.socket();
    format!(
        "{}[content_store]\ntype = \"soci\"\ncontainerd_address = \"{}\"\n",
        mode.configuration(),
        socket.display()
    )
}

//! A private containerd.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command::{command, finish, run};
use crate::ctr::Ctr;
use crate::scratch::Scratch;
use crate::service::Service;

/// A containerd with private roots, whose proxy plugin `soci` is the snapshotter that listens on
/// [`Containerd::snapshotter_socket`]. CRI is off unless asked for.
#[derive(Debug)]
pub struct Containerd {
    service: Service,
    dir: PathBuf,
    namespace: String,
}

impl Containerd {
    /// Starts it below `scratch` and waits until it answers. Does not wait for the snapshotter:
    /// containerd connects to it when it is first asked for.
    pub fn start(scratch: &Scratch) -> Result<Self> {
        Self::start_as(scratch, "containerd")
    }

    /// Starts one of several, in the directory `name` of `scratch`.
    pub fn start_as(scratch: &Scratch, name: &str) -> Result<Self> {
        Self::start_with(scratch, name, NO_CRI)
    }

    /// Starts one as a node of Kubernetes has it: CRI with our snapshotter, and with annotations. `pause` is the image
    /// of pods.
    pub fn start_for_pods(scratch: &Scratch, pause: &str) -> Result<Self> {
        let dir = scratch.dir("containerd")?;
        network(&dir.join("cni"))?;
        Self::start_with(scratch, "containerd", &cri(&dir, pause)?)
    }

    fn start_with(scratch: &Scratch, name: &str, more: &str) -> Result<Self> {
        let dir = scratch.dir(name)?;
        let config = dir.join("config.toml");
        fs::write(&config, configuration(&dir, scratch, more)?)?;
        let mut containerd = command("containerd");
        containerd.arg("--config").arg(&config);
        let service = Service::start("containerd", &mut containerd, &dir.join("containerd.log"))?;
        let mut containerd = Self {
            service,
            dir,
            namespace: scratch.name(),
        };
        let ctr = containerd.ctr();
        containerd
            .service
            .wait_ready(|| run(ctr.command().arg("version")).is_ok())?;
        Ok(containerd)
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.service.pid()
    }

    /// Its own socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("containerd.sock")
    }

    /// Where it looks for the snapshotter.
    pub fn snapshotter_socket(&self) -> PathBuf {
        snapshotter_socket(&self.dir)
    }

    /// A client in the namespace named after the scratch directory: runc's state and cgroups lie
    /// outside of it, named by namespace and container.
    pub fn ctr(&self) -> Ctr {
        Ctr::new(&self.socket(), &self.namespace)
    }

    /// The directory of a blob store of containerd's: `blobs/sha256/<hex>`.
    pub fn content(&self) -> PathBuf {
        self.dir.join("root/io.containerd.content.v1.content")
    }
}

/// Major and minor version of the containerd that is installed.
pub fn version() -> Result<(u32, u32)> {
    let line = run(command("containerd").arg("--version"))?;
    let number = |word: &str| {
        let (major, rest) = word.trim_start_matches('v').split_once('.')?;
        let minor = rest.split('.').next()?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    line.split_whitespace()
        .find_map(number)
        .with_context(|| format!("no version in {line}"))
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for container in self.ctr().containers().unwrap_or_default() {
            // One that has no task makes the first fail, one already gone both: nothing is lost.
            let _ = finish(
                self.ctr()
                    .command()
                    .args(["tasks", "delete", "--force", &container]),
            );
            let _ = finish(
                self.ctr()
                    .command()
                    .args(["containers", "delete", &container]),
            );
        }
    }
}

fn snapshotter_socket(dir: &Path) -> PathBuf {
    dir.join("soci.sock")
}

const NO_CRI: &str = r#"version = 2
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
"#;

/// For CRI from 2.0 on: what stands under the old names is lost when containerd migrates it. Transfers tell CRI's snapshotter
/// nothing.
fn cri_since_2(dir: &Path, pause: &str) -> String {
    let dir = dir.display();
    format!(
        r#"version = 3
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "soci"
  disable_snapshot_annotations = false
  use_local_image_pull = true
  stats_collect_period = 1
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    conf_dir = "{dir}/cni"
    bin_dir = "{dir}/cni"
[plugins."io.containerd.grpc.v1.cri"]
  disable_tcp_service = true
[plugins."io.containerd.nri.v1.nri"]
  disable = true
"#
    )
}

/// A network for pods, in which nothing is but an address that nobody reaches.
fn network(dir: &Path) -> Result<()> {
    const PLUGIN: &str = r#"#!/bin/sh
case "$CNI_COMMAND" in
    VERSION) echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}' ;;
    ADD) echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "'"$CNI_NETNS"'"}],
        "ips": [{"address": "192.0.2.2/24", "interface": 0}]}' ;;
esac
"#;
    let network = r#"{"cniVersion": "1.0.0", "name": "none", "plugins": [{"type": "nothing"}]}"#;
    fs::create_dir_all(dir)?;
    fs::write(dir.join("10-none.conflist"), network)?;
    // containerd asks for the other one by itself.
    for name in ["nothing", "loopback"] {
        let plugin = dir.join(name);
        fs::write(&plugin, PLUGIN)?;
        fs::set_permissions(&plugin, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// For CRI. Sizes are asked of snapshotters each second.
fn cri(dir: &Path, pause: &str) -> Result<String> {
    if version()? >= (2, 0) {
        return Ok(cri_since_2(dir, pause));
    }
    let dir = dir.display();
    Ok(format!(
        r#"version = 2
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  stats_collect_period = 1
  restrict_oom_score_adj = true
  disable_tcp_service = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "soci"
    disable_snapshot_annotations = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{dir}/cni"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
"#
    ))
}

/// For `ctr`, which asks containerd itself to pull from 2.0 on. It tells a snapshotter of what it pulls from 2.1 on.
const TRANSFER: &str = r#"[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "overlayfs"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "soci"
"#;
/// The first version to tell.
pub const TELLS: (u32, u32) = (2, 1);

fn configuration(dir: &Path, scratch: &Scratch, more: &str) -> Result<String> {
    let transfer = if version()? >= TELLS { TRANSFER } else { "" };
    let snapshotter = snapshotter_socket(dir);
    let soci = scratch.path().join("soci/root");
    let (dir, snapshotter, soci) = (dir.display(), snapshotter.display(), soci.display());
    Ok(format!(
        r#"root = "{dir}/root"
state = "{dir}/state"
{more}{transfer}[grpc]
  address = "{dir}/containerd.sock"
[proxy_plugins.soci]
  type = "snapshot"
  address = "{snapshotter}"
  capabilities = ["remap-ids", "multi-remap-ids"]
  [proxy_plugins.soci.exports]
    root = "{soci}"
    enable_remote_snapshot_annotations = "true"
"#
    ))
}

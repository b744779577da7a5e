//! A private containerd.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::command::{command, finish, run};
use crate::ctr::Ctr;
use crate::scratch::Scratch;
use crate::service::Service;

/// A containerd with private roots, whose proxy plugin `soci` is the snapshotter that listens on
/// [`Containerd::snapshotter_socket`]. CRI is off: Debian's 1.6 sends no annotations through it.
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
        let dir = scratch.dir(name)?;
        let config = dir.join("config.toml");
        fs::write(&config, configuration(&dir))?;
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

fn configuration(dir: &Path) -> String {
    let snapshotter = snapshotter_socket(dir);
    let (dir, snapshotter) = (dir.display(), snapshotter.display());
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{dir}/containerd.sock"
[proxy_plugins.soci]
  type = "snapshot"
  address = "{snapshotter}"
"#
    )
}

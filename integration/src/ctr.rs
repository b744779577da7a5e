//! containerd's own client.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount, umount};
use serde::Deserialize;

use crate::command::{command, run, until};
use crate::scratch::Scratch;

/// Longest time to make a snapshot that containerd takes for garbage at first.
const PATIENCE: Duration = Duration::from_secs(10);

/// `ctr` in one namespace of one containerd.
#[derive(Debug, Clone)]
pub struct Ctr {
    socket: PathBuf,
    namespace: String,
}

/// A container that runs to its end.
#[derive(Debug, Clone)]
pub struct Run<'a> {
    /// Snapshotter: `overlayfs` or `soci`.
    pub snapshotter: &'a str,
    /// Image reference.
    pub image: &'a str,
    /// Container id.
    pub id: &'a str,
    /// Program and arguments; the image's own if empty.
    pub arguments: Vec<&'a str>,
}

impl<'a> Run<'a> {
    /// A shell with busybox's or dash's `sh -c script`, through us.
    pub fn shell(image: &'a str, id: &'a str, script: &'a str) -> Self {
        Self {
            snapshotter: "soci",
            image,
            id,
            arguments: vec!["/bin/sh", "-c", script],
        }
    }
}

/// One mount of a snapshot, as the snapshotter gave it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SnapshotMount {
    /// `overlay` or `bind`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Source.
    pub source: PathBuf,
    /// Options.
    #[serde(default)]
    pub options: Vec<String>,
}

/// A mounted snapshot; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    point: PathBuf,
}

impl Ctr {
    /// A client of the containerd at `socket`.
    pub fn new(socket: &Path, namespace: &str) -> Self {
        Self {
            socket: socket.to_owned(),
            namespace: namespace.to_owned(),
        }
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// `ctr`, ready for its subcommand.
    pub fn command(&self) -> Command {
        let mut ctr = command("ctr");
        ctr.arg("--address")
            .arg(&self.socket)
            .args(["--namespace", &self.namespace]);
        ctr
    }

    /// Runs `ctr` with `arguments`; its standard output.
    pub fn call(&self, arguments: &[&str]) -> Result<String> {
        run(self.command().args(arguments))
    }

    /// containerd's own full pull, over plain HTTP.
    pub fn pull(&self, snapshotter: &str, image: &str) -> Result<()> {
        self.call(&[
            "images",
            "pull",
            "--plain-http",
            "--snapshotter",
            snapshotter,
            image,
        ])?;
        Ok(())
    }

    /// A container that is run, waited for and removed; its standard output.
    pub fn run(&self, container: Run<'_>) -> Result<String> {
        run(&mut self.run_command(container))
    }

    /// [`Self::run`], with all that it prints written to `log` by the shim. Without, `ctr` reads it from a pipe that it
    /// opens beside starting the container: of one that ends at once while the machine is busy it can miss everything.
    pub fn run_logged(&self, container: Run<'_>, log: &Path) -> Result<String> {
        let uri = format!("--log-uri=file://{}", log.display());
        run(&mut self.run_with(&[&uri], container))?;
        fs::read_to_string(log).with_context(|| format!("reading {}", log.display()))
    }

    /// The command that runs, waits for and removes a container.
    pub fn run_command(&self, container: Run<'_>) -> Command {
        self.run_with(&[], container)
    }

    fn run_with(&self, options: &[&str], container: Run<'_>) -> Command {
        let mut ctr = self.command();
        ctr.args(["run", "--rm", "--snapshotter", container.snapshotter]);
        ctr.args(options)
            .args([container.image, container.id])
            .args(container.arguments);
        ctr
    }

    /// Ids of all containers.
    pub fn containers(&self) -> Result<Vec<String>> {
        self.list(&["containers", "list", "--quiet"])
    }

    /// Names of all images.
    pub fn images(&self) -> Result<Vec<String>> {
        self.list(&["images", "list", "--quiet"])
    }

    /// Keys of all snapshots.
    pub fn snapshots(&self, snapshotter: &str) -> Result<Vec<String>> {
        let table = self.call(&["snapshots", "--snapshotter", snapshotter, "list"])?;
        let key = |line: &str| line.split_whitespace().next().map(str::to_owned);
        Ok(table.lines().skip(1).filter_map(key).collect())
    }

    /// Whether containerd gets through to a snapshotter, which it does not try for a while after it was
    /// refused. Asked by what reaches the snapshotter in any case: a list of nothing does not.
    pub fn reaches(&self, snapshotter: &str) -> bool {
        const PROBE: &str = "probe";
        let prepare = ["snapshots", "--snapshotter", snapshotter, "prepare", PROBE];
        // Of an earlier probe that was cut short.
        let _ = self.unname_snapshot(snapshotter, PROBE);
        self.call(&prepare).is_ok() && self.unname_snapshot(snapshotter, PROBE).is_ok()
    }

    /// Removes an image and waits until everything only it held has been collected.
    pub fn remove_image(&self, image: &str) -> Result<()> {
        self.call(&["images", "remove", image])?;
        self.collect()
    }

    /// Prepares a writable snapshot `key` on top of `parent`.
    pub fn prepare(&self, snapshotter: &str, key: &str, parent: &str) -> Result<SnapshotMount> {
        self.snapshot("prepare", snapshotter, key, parent)
    }

    /// Opens a read-only snapshot `key` of `parent`.
    pub fn view(&self, snapshotter: &str, key: &str, parent: &str) -> Result<SnapshotMount> {
        self.snapshot("view", snapshotter, key, parent)
    }

    /// Removes a snapshot and waits until the snapshotter has been told.
    pub fn remove_snapshot(&self, snapshotter: &str, key: &str) -> Result<()> {
        self.unname_snapshot(snapshotter, key)?;
        self.collect()
    }

    /// Has containerd forget the name of a snapshot, which it tells the snapshotter when it next collects garbage.
    fn unname_snapshot(&self, snapshotter: &str, key: &str) -> Result<()> {
        self.call(&["snapshots", "--snapshotter", snapshotter, "remove", key])?;
        Ok(())
    }

    /// Has containerd collect all garbage that there is when this is called.
    ///
    /// What is removed while a collection is under way is not seen by it, yet whoever waits is told at its end, and nothing
    /// starts another. So the second one counts.
    pub fn collect(&self) -> Result<()> {
        for _ in 0..2 {
            let lease = self.call(&["leases", "create"])?;
            self.call(&["leases", "delete", "--sync", lease.trim()])?;
        }
        Ok(())
    }

    fn list(&self, arguments: &[&str]) -> Result<Vec<String>> {
        Ok(self.call(arguments)?.lines().map(str::to_owned).collect())
    }

    fn snapshot(
        &self,
        what: &str,
        snapshotter: &str,
        key: &str,
        parent: &str,
    ) -> Result<SnapshotMount> {
        let snapshots = ["snapshots", "--snapshotter", snapshotter];
        let attempt = || {
            let make = [what, "--mounts", key, parent];
            let json = run(self.command().args(snapshots).args(make))?;
            // Or it is garbage as soon as containerd looks: nothing refers to it. ctr does so by
            // itself for `prepare` only.
            let root = ["label", key, "containerd.io/gc.root=test"];
            match run(self.command().args(snapshots).args(root)) {
                // It looked in between.
                Err(error) if format!("{error}").contains("does not exist") => Ok(None),
                rooted => rooted.map(|_| Some(json)),
            }
        };
        let json = until("a snapshot outlives its birth", PATIENCE, attempt)?;
        let mut mounts: Vec<SnapshotMount> =
            serde_json::from_str(&json).with_context(|| format!("ctr printed {json}"))?;
        anyhow::ensure!(mounts.len() == 1, "{key}: {} mounts", mounts.len());
        Ok(mounts.remove(0))
    }
}

impl SnapshotMount {
    /// Mounts it in a new directory `name` of `scratch`, as containerd would.
    pub fn mount(&self, scratch: &Scratch, name: &str) -> Result<Mounted> {
        let point = scratch.dir(name)?;
        let is_flag = |option: &&String| matches!(option.as_str(), "ro" | "rw" | "bind" | "rbind");
        let (flags, data): (Vec<&String>, Vec<&String>) = self.options.iter().partition(is_flag);
        let data = data
            .into_iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(",");
        let mut bits = MsFlags::empty();
        for flag in flags {
            bits |= match flag.as_str() {
                "ro" => MsFlags::MS_RDONLY,
                "bind" => MsFlags::MS_BIND,
                "rbind" => MsFlags::MS_BIND | MsFlags::MS_REC,
                _ => MsFlags::empty(),
            };
        }
        mount(
            Some(&self.source),
            &point,
            Some(self.kind.as_str()),
            bits,
            Some(data.as_str()),
        )
        .with_context(|| format!("cannot mount {self:?}"))?;
        Ok(Mounted { point })
    }
}

impl Mounted {
    /// Where.
    pub fn path(&self) -> &Path {
        &self.point
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = umount(&self.point) {
            eprintln!("cannot unmount {}: {error}", self.point.display());
        }
    }
}

//! What many containers and many images cost the daemon.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::busybox::noise;
use crate::command::{run as call, until};
use crate::host::{Host, Published};

/// Bytes of the file that each container reads.
const FILE: usize = 1 << 20;
/// How long a container may take to have read it.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is started.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Containers of one image.
    pub containers: usize,
    /// Images with a container each.
    pub images: usize,
}

/// What the daemon takes at one moment.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// Memory of its own, in KiB: neither files nor what other processes share.
    pub memory_kib: u64,
    /// Threads.
    pub threads: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// FUSE mounts on the machine.
    pub mounts: u64,
}

/// The cost as it grew.
#[derive(Debug, Clone, Copy, Default)]
pub struct Growth {
    /// Nothing has been pulled.
    pub idle: Cost,
    /// One container runs.
    pub one: Cost,
    /// All containers of one image run.
    pub containers: Cost,
    /// One container of each image runs besides.
    pub images: Cost,
}

/// Starts what `plan` says on a machine of its own, which must be clean afterwards. Each container reads a file and
/// waits.
///
/// # Errors
/// Something could not be started, or a container did not read what was packed.
pub fn measure(plan: Plan) -> Result<Growth> {
    let host = Host::start("")?;
    let mut growth = Growth {
        idle: cost(&host)?,
        ..Growth::default()
    };
    let mut running = Vec::new();
    let shared = publish(&host, "shared")?;
    for number in 0..plan.containers {
        running.push(start(&host, &shared, &format!("same-{number}"))?);
        if number == 0 {
            growth.one = cost(&host)?;
        }
    }
    growth.containers = cost(&host)?;
    let images: Result<Vec<Published>> = (0..plan.images)
        .map(|number| publish(&host, &format!("image-{number}")))
        .collect();
    for (number, image) in images?.iter().enumerate() {
        running.push(start(&host, image, &format!("own-{number}"))?);
    }
    growth.images = cost(&host)?;
    for id in running {
        let _ = host.ctr().call(&["tasks", "kill", "--signal", "KILL", &id]);
        until("a container ends", PATIENCE, || {
            Ok(host.ctr().call(&["tasks", "delete", "--force", &id]).ok())
        })?;
        host.ctr().call(&["containers", "delete", &id])?;
    }
    host.finish()?;
    Ok(growth)
}

/// An image with a file of its own, named after it, pulled.
fn publish(host: &Host, name: &str) -> Result<Published> {
    let mut content = noise(FILE);
    content.extend_from_slice(name.as_bytes());
    let published = host.publish_files(name, &[("file", &content)])?;
    host.soci()?.rpull(&published.reference)?;
    Ok(published)
}

fn start(host: &Host, image: &Published, id: &str) -> Result<String> {
    let script = "wc -c </file >/read; exec sleep 100000";
    let mut command = host.ctr().command();
    command.args(["run", "--detach", "--snapshotter", "soci"]);
    command.args([image.reference.as_str(), id, "/bin/sh", "-c", script]);
    call(command.stdin(Stdio::null()))?;
    let read = until("a container has read its file", PATIENCE, || {
        let look = ["tasks", "exec", "--exec-id", "look", id, "cat", "/read"];
        let read = host.ctr().call(&look).unwrap_or_default();
        Ok((!read.is_empty()).then_some(read))
    })?;
    let bytes: usize = read.trim().parse().context("wc")?;
    ensure!(bytes > FILE, "{id} has read {bytes} bytes");
    Ok(id.to_owned())
}

fn cost(host: &Host) -> Result<Cost> {
    let pid = host.snapshotter.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next());
        number
            .with_context(|| format!("no {name}"))?
            .parse()
            .context("a number")
    };
    Ok(Cost {
        memory_kib: field("RssAnon:")?,
        threads: field("Threads:")?,
        descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64,
        mounts: host.snapshotter.fuse_mounts()?.len() as u64,
    })
}

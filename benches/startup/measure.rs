//! One sample.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use integration::command::{run, tail};
use integration::link::Link;
use integration::{DockerRegistry, Scratch};
use procfs::process::Process;

use crate::front::Front;
use crate::images::Published;
use crate::mode::Mode;
use crate::node::Node;
use crate::peers::Peers;
use crate::process;
use crate::ready::Started;
use crate::sample::{LinkShape, Sample};
use crate::workload::{Ready, Workload};

/// One start of a workload that is to be measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start<'a> {
    pub(crate) workload: &'a Workload,
    pub(crate) reference: &'a str,
    pub(crate) mode: Mode,
    pub(crate) round: usize,
    /// Whether it is started a second time.
    pub(crate) again: bool,
}

/// How often bytes on the link are noted.
const TICK: Duration = Duration::from_millis(20);

/// Where samples are taken.
pub(crate) struct Place<'a> {
    pub(crate) registry: &'a DockerRegistry,
    /// In front of it for who insists on HTTPS.
    pub(crate) front: Option<&'a Front>,
    pub(crate) link: Option<&'a Link>,
    pub(crate) shape: LinkShape,
    pub(crate) work_dir: &'a Path,
    pub(crate) peers: &'a Peers,
}

impl Place<'_> {
    /// What `mode` pulls, at the registry as it asks for it.
    pub(crate) fn reference(&self, image: &Published, mode: Mode) -> String {
        let reference = image.reference(self.registry, mode.form());
        match (mode, self.front) {
            (Mode::Soci04, Some(front)) => {
                reference.replacen(&self.registry.host(), &front.host(), 1)
            }
            _ => reference,
        }
    }

    /// Pulls and starts an image on an empty node, then starts it again.
    pub(crate) fn sample(&self, wanted: Start<'_>) -> Result<Sample> {
        let scratch = Scratch::within(self.work_dir)?;
        let node = Node::start(&scratch, wanted.mode, self.peers, self.front)?;
        let sample = self.sample_on(&node, &scratch, wanted);
        sample.map_err(|error| match &node.daemon {
            Some(daemon) => {
                let log = tail(&daemon.log());
                anyhow!("{error:#}\nthe snapshotter's log ends with\n{log}")
            }
            None => error,
        })
    }

    fn sample_on(&self, node: &Node, scratch: &Scratch, wanted: Start<'_>) -> Result<Sample> {
        let Start { workload, .. } = wanted;
        drop_caches()?;
        let before = self.registry.traffic()?;
        let of_commands = process::children_cpu()?;
        let clock = Instant::now();
        let timeline = Timeline::start(self.link, clock);
        run(&mut node.pull(wanted.reference)?).context("pull")?;
        let pulled = clock.elapsed();
        let at_pulled = self.registry.log_length();
        let of_pull = process::children_cpu()?.saturating_sub(of_commands);
        create(node, wanted, "first")?;
        let created = clock.elapsed();
        let mut started = start(node, "first")?;
        started.wait(&workload.ready)?;
        let ready = clock.elapsed();
        let traffic = self.registry.traffic()?.since(before);
        let of_pull_bytes = self.registry.traffic_until(at_pulled).since(before).bytes;
        let fuse_mounts = fuse_mounts(scratch)?;
        let complete = finish(node, started, workload, "first", clock)?;
        let timeline = timeline.stop();
        let (cpu, peak_memory_bytes) = took(node)?;
        let disk_bytes = process::disk(scratch.path());
        node.delete("first")?;
        let second = wanted.again.then(|| second(node, wanted)).transpose()?;
        Ok(Sample {
            workload: workload.name.clone(),
            link: self.shape,
            mode: wanted.mode.name().to_owned(),
            round: wanted.round,
            pull_s: pulled.as_secs_f64(),
            create_s: (created - pulled).as_secs_f64(),
            start_s: (ready - created).as_secs_f64(),
            ready_s: ready.as_secs_f64(),
            complete_s: complete.as_secs_f64(),
            second_s: second.map(|second| second.as_secs_f64()),
            pull_bytes: Some(of_pull_bytes),
            fuse_mounts: Some(fuse_mounts),
            bytes: traffic.bytes,
            requests: traffic.requests,
            cpu_s: (cpu + of_pull).as_secs_f64(),
            peak_memory_bytes,
            disk_bytes,
            timeline,
        })
    }
}

/// Starts it again, with nothing in the page cache; how long that took.
fn second(node: &Node, wanted: Start<'_>) -> Result<Duration> {
    drop_caches()?;
    let clock = Instant::now();
    create(node, wanted, "second")?;
    let mut started = start(node, "second")?;
    started.wait(&wanted.workload.ready)?;
    let took = clock.elapsed();
    finish(node, started, wanted.workload, "second", clock)?;
    node.delete("second")?;
    Ok(took)
}

fn create(node: &Node, wanted: Start<'_>, id: &str) -> Result<()> {
    let Start {
        workload,
        reference,
        mode,
        ..
    } = wanted;
    let mut create = node.containerd.ctr().command();
    create.args(["containers", "create", "--snapshotter", mode.snapshotter()]);
    if workload.ready.port().is_some() {
        create.arg("--net-host");
    }
    // Or ctr takes the command's options for its own.
    run(create.args(["--", reference, id]).args(&workload.command)).context("create")?;
    Ok(())
}

fn start(node: &Node, id: &str) -> Result<Started> {
    let output = node.output(id);
    let mut start = node.containerd.ctr().command();
    start.args(["tasks", "start", "--log-uri"]);
    start.arg(format!("file://{}", output.display())).arg(id);
    Started::run(&mut start, &output).context("start")
}

/// Waits for the workload's end, which of a service is brought about; when that was.
fn finish(
    node: &Node,
    mut started: Started,
    workload: &Workload,
    id: &str,
    clock: Instant,
) -> Result<Duration> {
    let ready = clock.elapsed();
    let patience = match workload.ready {
        _ if workload.is_service() => Duration::ZERO,
        Ready::Exit(_) => Duration::MAX,
        _ => Duration::from_secs(10),
    };
    if let Some(ended) = started.ended_within(patience)? {
        return Ok(ended.duration_since(clock));
    }
    let kill = ["tasks", "kill", "--signal", "SIGKILL", id];
    run(node.containerd.ctr().command().args(kill)).context("end")?;
    started.finish()?;
    Ok(ready)
}

fn took(node: &Node) -> Result<(Duration, u64)> {
    let containerd = node.containerd.pid();
    let cpu = process::cpu(containerd)?;
    let Some(daemon) = &node.daemon else {
        return Ok((cpu, process::peak_memory(containerd)?));
    };
    let mut cpu = cpu + process::cpu(daemon.pid())?;
    let mut memory = process::peak_memory(daemon.pid())?;
    for helper in process::descendants(daemon.pid())? {
        // One that has just ended counts among what its parent waited for.
        cpu += process::cpu(helper).unwrap_or_default();
        memory += process::peak_memory(helper).unwrap_or_default();
    }
    Ok((cpu, memory))
}

/// How many file systems below `scratch` are served by FUSE.
fn fuse_mounts(scratch: &Scratch) -> Result<usize> {
    let mounts = Process::myself()?.mountinfo()?;
    let served = mounts.into_iter().filter(|mount| {
        mount.fs_type.starts_with("fuse") && mount.mount_point.starts_with(scratch.path())
    });
    Ok(served.count())
}

fn drop_caches() -> Result<()> {
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the page cache")
}

/// Every so many points of `noted` that few enough are left for a plot, and the last; milliseconds.
fn thinned(noted: Vec<(f64, u64)>) -> Vec<(f64, u64)> {
    const MOST: usize = 100;
    let (step, last) = (noted.len() / MOST + 1, noted.len().saturating_sub(1));
    let kept = noted.into_iter().enumerate();
    let kept = kept.filter(|(at, _)| at.is_multiple_of(step) || *at == last);
    kept.map(|(_, (time, bytes))| ((time * 1e3).round() / 1e3, bytes))
        .collect()
}

/// Bytes that came through a link, noted while it runs.
struct Timeline {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Vec<(f64, u64)>>,
}

impl Timeline {
    fn start(link: Option<&Link>, clock: Instant) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let passed = link.map(Link::passed);
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let Some(passed) = passed else {
                return Vec::new();
            };
            let zero = passed.load(Ordering::Relaxed);
            let mut noted: Vec<(f64, u64)> = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let bytes = passed.load(Ordering::Relaxed) - zero;
                if noted.last().is_none_or(|&(_, last)| last != bytes) {
                    noted.push((clock.elapsed().as_secs_f64(), bytes));
                }
                thread::sleep(TICK);
            }
            noted
        });
        Self { stop, thread }
    }

    fn stop(self) -> Vec<(f64, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        thinned(self.thread.join().unwrap_or_default())
    }
}

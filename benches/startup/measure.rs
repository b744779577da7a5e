//! One sample.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use integration::command::{run, tail};
use integration::link::Link;
use integration::{DockerRegistry, Scratch};

use crate::mode::Mode;
use crate::node::Node;
use crate::peers::Peers;
use crate::process;
use crate::ready::Started;
use crate::sample::{LinkShape, Sample};
use crate::workload::{Ready, Workload};

/// How often bytes on the link are noted.
const TICK: Duration = Duration::from_millis(20);

/// Where samples are taken.
pub(crate) struct Place<'a> {
    pub(crate) registry: &'a DockerRegistry,
    pub(crate) link: Option<&'a Link>,
    pub(crate) shape: LinkShape,
    pub(crate) work_dir: &'a Path,
    pub(crate) peers: &'a Peers,
}

impl Place<'_> {
    /// Pulls and starts `reference` on an empty node, then starts it again.
    pub(crate) fn sample(
        &self,
        workload: &Workload,
        reference: &str,
        mode: Mode,
        round: usize,
    ) -> Result<Sample> {
        let scratch = Scratch::within(self.work_dir)?;
        let node = Node::start(&scratch, mode, self.peers)?;
        let sample = self.sample_on(&node, &scratch, workload, reference, round);
        sample.with_context(|| {
            let log = node.daemon.as_ref().map(|daemon| tail(&daemon.log()));
            log.map_or_else(String::new, |log| {
                format!("the snapshotter's log ends with\n{log}")
            })
        })
    }

    fn sample_on(
        &self,
        node: &Node,
        scratch: &Scratch,
        workload: &Workload,
        reference: &str,
        round: usize,
    ) -> Result<Sample> {
        let mode = node.mode;
        drop_caches()?;
        let before = self.registry.traffic()?;
        let of_commands = process::children_cpu()?;
        let clock = Instant::now();
        let timeline = Timeline::start(self.link, clock);
        run(&mut node.pull(reference)?).context("pull")?;
        let pulled = clock.elapsed();
        let of_pull = process::children_cpu()?.saturating_sub(of_commands);
        create(node, mode, workload, reference, "first")?;
        let created = clock.elapsed();
        let mut started = start(node, "first")?;
        started.wait(&workload.ready)?;
        let ready = clock.elapsed();
        let traffic = self.registry.traffic()?.since(before);
        let complete = finish(node, started, workload, "first", clock)?;
        let timeline = timeline.stop();
        let (cpu, peak_memory_bytes) = took(node)?;
        let disk_bytes = process::disk(scratch.path());
        node.delete("first")?;

        drop_caches()?;
        let again = Instant::now();
        create(node, mode, workload, reference, "second")?;
        let mut started = start(node, "second")?;
        started.wait(&workload.ready)?;
        let second = again.elapsed();
        finish(node, started, workload, "second", again)?;
        node.delete("second")?;
        Ok(Sample {
            workload: workload.name.clone(),
            link: self.shape,
            mode: mode.name().to_owned(),
            round,
            pull_s: pulled.as_secs_f64(),
            create_s: (created - pulled).as_secs_f64(),
            start_s: (ready - created).as_secs_f64(),
            ready_s: ready.as_secs_f64(),
            complete_s: complete.as_secs_f64(),
            second_s: second.as_secs_f64(),
            bytes: traffic.bytes,
            requests: traffic.requests,
            cpu_s: (cpu + of_pull).as_secs_f64(),
            peak_memory_bytes,
            disk_bytes,
            timeline,
        })
    }
}

fn create(node: &Node, mode: Mode, workload: &Workload, reference: &str, id: &str) -> Result<()> {
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
    Started::run(node.containerd.ctr().command().args(["tasks", "start", id])).context("start")
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
    // One that listens, or tells that it is ready, does not end by itself.
    let patience = match workload.ready {
        Ready::Port(_) | Ready::Http(_) => Duration::ZERO,
        Ready::Line(_) => Duration::from_secs(10),
        Ready::Exit(_) => Duration::MAX,
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
    let mut cpu = process::cpu(containerd)?;
    let mut watched = containerd;
    if let Some(daemon) = &node.daemon {
        cpu += process::cpu(daemon.pid())?;
        watched = daemon.pid();
    }
    Ok((cpu, process::peak_memory(watched)?))
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

//! Containers that read while their daemon is killed, again and again.
//!
//! Each view is of an image of its own. One reader process (see [`reader`]) reads all of them in every way
//! there is, and a few real containers read theirs with programs that are executed from it. Everything read
//! is compared with what was packed.

pub mod reader;

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use self::reader::Tally;
use crate::busybox::noise;
use crate::command::{command, until};
use crate::ctr::Mounted;
use crate::host::{Host, ON_DEMAND, Published};

/// What a container runs: it reads the file and the programs it does that with.
const LOOP: &str = "while sleep 0.05; do if sha256sum -c /sums >/dev/null 2>&1; then echo ok >>/log; \
    else echo FAILED >>/log; fi; done";
/// How long the first reads may take, and the last.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How often the daemon is killed; each fifth time it is asked to end instead, as in an upgrade.
    pub kills: usize,
    /// Mounted views.
    pub views: usize,
    /// How many of them are read by a container as well.
    pub containers: usize,
    /// The program with the reader in it: `soak`.
    pub reader: PathBuf,
    /// Decides the pauses.
    pub seed: u64,
}

/// What came out.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Times the daemon was ended.
    pub kills: usize,
    /// Reads, by the reader process and in containers.
    pub reads: u64,
    /// Reads that failed.
    pub failed: u64,
    /// Reads that gave wrong bytes.
    pub wrong: u64,
    /// From the start of each new daemon to the moment it listens, which is after it serves all views.
    pub restarts: Vec<Duration>,
    /// The longest that one read took, in milliseconds.
    pub slowest_ms: u64,
}

impl Outcome {
    /// The time that `percent` of the restarts did not exceed, in milliseconds.
    pub fn restart_ms(&self, percent: usize) -> u128 {
        let mut sorted = self.restarts.clone();
        sorted.sort_unstable();
        let last = sorted.len().saturating_sub(1);
        let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(at.min(last)).map_or(0, Duration::as_millis)
    }

    /// The one line that says it all.
    pub fn line(&self) -> String {
        format!(
            "soak: kills={} failed_reads={} wrong_reads={} restart_p99_ms={}",
            self.kills,
            self.failed,
            self.wrong,
            self.restart_ms(99)
        )
    }
}

/// Does what `plan` says on a machine of its own, which must be clean afterwards. `progress` is told how
/// often the daemon has been ended.
///
/// # Errors
/// Something could not be set up, or a daemon did not come back; failed reads are no error here.
pub fn run(plan: &Plan, mut progress: impl FnMut(usize)) -> Result<Outcome> {
    let mut host = Host::start(ON_DEMAND)?;
    let ground = Ground::prepare(&host, plan)?;
    let mut reader = Reader::start(plan, &ground)?;
    let mut outcome = Outcome::default();
    let mut random = plan.seed;
    let views = host.snapshotter.fuse_mounts()?;
    ensure!(views.len() == plan.views, "{} views", views.len());
    while outcome.kills < plan.kills {
        std::thread::sleep(Duration::from_millis(50 + next(&mut random) % 350));
        let signal = match outcome.kills % 5 {
            4 => Signal::SIGTERM,
            _ => Signal::SIGKILL,
        };
        let (snapshotter, took) = host.snapshotter.end_and_start(signal)?;
        host.snapshotter = snapshotter;
        outcome.restarts.push(took);
        outcome.kills += 1;
        progress(outcome.kills);
        if let Some(status) = reader.child.try_wait()? {
            anyhow::bail!("the reader is dead: {status}");
        }
        ensure!(
            host.snapshotter.fuse_mounts()? == views,
            "views were mounted anew or lost"
        );
    }
    outcome.count(&reader.finish()?);
    for id in &ground.containers {
        outcome.count(&ground.look_at(&host, id)?);
    }
    ground.leave(&host)?;
    host.finish()?;
    Ok(outcome)
}

impl Outcome {
    fn count(&mut self, tally: &Tally) {
        self.reads += tally.reads;
        self.failed += tally.failed;
        self.wrong += tally.wrong;
        self.slowest_ms = self.slowest_ms.max(tally.slowest_ms);
    }
}

/// What is mounted and running.
struct Ground {
    /// Snapshots and where they are mounted.
    mounted: Vec<(String, Mounted)>,
    /// The original files of each, in the same order.
    originals: Vec<PathBuf>,
    containers: Vec<String>,
}

impl Ground {
    fn prepare(host: &Host, plan: &Plan) -> Result<Self> {
        let mut ground = Self {
            mounted: Vec::new(),
            originals: Vec::new(),
            containers: Vec::new(),
        };
        for number in 0..plan.views {
            let original = host.scratch.dir(&format!("originals/{number}"))?;
            let published = publish(host, number, &original)?;
            host.soci()?.rpull(&published.reference)?;
            if number < plan.containers {
                ground.contain(host, number, &published)?;
            }
            let key = format!("read-{number}");
            let mounts = host
                .ctr()
                .prepare("soci", &key, &published.image.chain_id())?;
            let mounted = mounts.mount(&host.scratch, &format!("mounted/{number}"))?;
            ground.mounted.push((key, mounted));
            ground.originals.push(original);
        }
        Ok(ground)
    }

    fn contain(&mut self, host: &Host, number: usize, published: &Published) -> Result<()> {
        let id = format!("loop-{number}");
        let (ctr, image) = (host.ctr(), published.reference.as_str());
        ctr.call(&[
            "run",
            "--detach",
            "--snapshotter",
            "soci",
            image,
            &id,
            "/bin/sh",
            "-c",
            LOOP,
        ])?;
        self.containers.push(id);
        Ok(())
    }

    /// What the container with this id has read, after one more read.
    fn look_at(&self, host: &Host, id: &str) -> Result<Tally> {
        let ctr = host.ctr();
        let log = || ctr.call(&["tasks", "exec", "--exec-id", "look", id, "cat", "/log"]);
        let before = until("the container answers", PATIENCE, || Ok(log().ok()))?;
        let log = until("the container reads on", PATIENCE, || {
            Ok(log().ok().filter(|log| log.len() > before.len()))
        })?;
        let failed = log.lines().filter(|line| *line != "ok").count();
        Ok(Tally {
            reads: log.lines().count().try_into()?,
            failed: failed.try_into()?,
            ..Tally::default()
        })
    }

    fn leave(self, host: &Host) -> Result<()> {
        for (key, mounted) in self.mounted {
            drop(mounted);
            host.ctr().remove_snapshot("soci", &key)?;
        }
        Ok(())
    }
}

/// An image with files that no other has, whose originals go to `original`.
fn publish(host: &Host, number: usize, original: &Path) -> Result<Published> {
    // The first is large enough that something is always being fetched.
    let size = match number {
        0 => 24 << 20,
        _ => (512 << 10) + number * 1000,
    };
    let mut data = noise(size);
    let key = u8::try_from(number % 256)?;
    data.iter_mut().for_each(|byte| *byte ^= key);
    fs::write(original.join("data"), &data)?;
    fs::create_dir_all(original.join("bin"))?;
    fs::copy("/bin/busybox", original.join("bin/busybox"))?;
    let programs = fs::read("/bin/busybox")?;
    let sums = format!(
        "{}  /data\n{}  /bin/busybox\n",
        crate::host::sha256_hex(&data),
        crate::host::sha256_hex(&programs)
    );
    let files: [(&str, &[u8]); 2] = [("data", &data), ("sums", sums.as_bytes())];
    host.publish_files(&format!("soak-{number}"), &files)
}

/// The reader process.
struct Reader {
    child: Child,
}

impl Reader {
    fn start(plan: &Plan, ground: &Ground) -> Result<Self> {
        let mut reader: Command = command(&plan.reader);
        reader.arg("read").arg(plan.seed.to_string());
        for ((_, mounted), original) in ground.mounted.iter().zip(&ground.originals) {
            reader.arg(mounted.path()).arg(original);
        }
        let child = reader
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", plan.reader.display()))?;
        Ok(Self { child })
    }

    /// Stops it after one more read of each view.
    fn finish(&mut self) -> Result<Tally> {
        drop(self.child.stdin.take());
        let start = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(start.elapsed() < PATIENCE, "a read hangs");
            std::thread::sleep(Duration::from_millis(10));
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "the reader is dead: {status}");
        let mut line = String::new();
        if let Some(output) = &mut self.child.stdout {
            output.read_to_string(&mut line)?;
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The next number of a xorshift generator.
fn next(state: &mut u64) -> u64 {
    *state |= 1;
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

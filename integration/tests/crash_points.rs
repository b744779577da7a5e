//! The daemon is killed in the middle of preparing, committing, removing and pulling, at random moments. What
//! it was doing can be done again, and in the end nothing is left: no directory, mount, descriptor or file.
//!
//! `SPANSHOT_CRASH_POINTS` says how often.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use integration::busybox::noise;
use integration::command::{number, until};
use integration::host::{Host, Published, small_layers};
use integration::scratch::mounts_below;
use nix::sys::signal::Signal;

const POINTS: u64 = 8;
const SOON: Duration = Duration::from_secs(60);
/// No call may take longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whole layers in several pieces, so that there are more moments in the middle of something.
const CONFIG: &str = "[background_fetch]
disable = true
[pull_modes.parallel_pull_unpack]
max_concurrent_downloads = 4
max_concurrent_downloads_per_image = 4
concurrent_download_chunk_size = \"256kb\"
";

struct Ground {
    host: Host,
    lazy: Published,
    whole: Published,
    random: u64,
}

impl Ground {
    fn start() -> Self {
        let host = Host::start(CONFIG).unwrap();
        let content = noise(3 << 20);
        let files: [(&str, &[u8]); 3] = [
            ("one", &content),
            ("two", &content[1000..900_000]),
            ("three", b"3"),
        ];
        let lazy = host.publish_files("lazy", &files).unwrap();
        let layout = host.layout("whole").unwrap();
        let layers = small_layers(&layout, &files).unwrap();
        let whole = host
            .publish_layers("whole", &layout, &layers, None)
            .unwrap();
        Self {
            host,
            lazy,
            whole,
            random: 0x2545_f491_4f6c_dd1d,
        }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }

    /// Kills the daemon a random moment after `call` has begun, and starts it again.
    fn kill_within(mut self, limit_ms: u64, call: &mut std::process::Command) -> Self {
        let mut call = call
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(self.below(limit_ms)));
        self.host = self.host.restart_snapshotter(Signal::SIGKILL).unwrap();
        // It may have succeeded or failed, but it ends.
        until("the call ends", PATIENCE, || Ok(call.try_wait()?.map(drop)))
            .inspect_err(|_| end(&mut call))
            .unwrap();
        self
    }

    fn pull(self, lazily: bool) -> Self {
        let reference = self.image(lazily).reference.clone();
        let soci = self.host.soci().unwrap();
        let mut call = soci.command().unwrap();
        call.args(["rpull", "--plain-http", &reference]);
        let ground = self.kill_within(600, &mut call);
        ground.host.soci().unwrap().rpull(&reference).unwrap();
        ground
    }

    fn image(&self, lazily: bool) -> &Published {
        match lazily {
            true => &self.lazy,
            false => &self.whole,
        }
    }

    /// A snapshot on the image that is written to and committed, with a kill in each of these calls.
    fn commit(mut self, number: u64, lazily: bool) -> Self {
        let (key, name) = (format!("key-{number}"), format!("name-{number}"));
        let chain = self.image(lazily).image.chain_id();
        let snapshots = |host: &Host, arguments: &[&str]| {
            let mut call = host.ctr().command();
            call.args(["snapshots", "--snapshotter", "soci"]);
            call.args(arguments);
            call
        };
        let mut prepare = snapshots(&self.host, &["prepare", &key, &chain]);
        self = self.kill_within(60, &mut prepare);
        if !self.has(&key) {
            self.host.ctr().prepare("soci", &key, &chain).unwrap();
        }
        let mut commit = snapshots(&self.host, &["commit", &name, &key]);
        self = self.kill_within(60, &mut commit);
        if !self.has(&name) {
            let commit = |host: &Host| snapshots(host, &["commit", &name, &key]).status().unwrap();
            if !commit(&self.host).success() {
                // Killed when it was done here and containerd had not noted it: containerd forgets the
                // key, and collects what we have under a name that it never heard of.
                assert!(!self.has(&key), "only what is done cannot be done again");
                let _ = snapshots(&self.host, &["remove", &key]).status().unwrap();
                self.host.ctr().prepare("soci", &key, &chain).unwrap();
                assert!(commit(&self.host).success());
            }
        }
        assert!(self.has(&name) && !self.has(&key), "it is committed");
        let mut remove = snapshots(&self.host, &["remove", &name]);
        self = self.kill_within(60, &mut remove);
        if self.has(&name) {
            self.host.ctr().remove_snapshot("soci", &name).unwrap();
        }
        assert!(!self.has(&name));
        self
    }

    fn has(&self, key: &str) -> bool {
        let listed = self.host.ctr().snapshots("soci").unwrap();
        listed
            .iter()
            .any(|line| line.split_whitespace().next() == Some(key))
    }

    fn remove_image(self, lazily: bool) -> Self {
        let reference = self.image(lazily).reference.clone();
        let mut call = self.host.ctr().command();
        call.args(["images", "remove", "--sync", &reference]);
        let ground = self.kill_within(150, &mut call);
        if ground
            .host
            .ctr()
            .images()
            .unwrap()
            .iter()
            .any(|line| line.contains(&reference))
        {
            ground.host.ctr().remove_image(&reference).unwrap();
        }
        ground
    }

    /// Descriptors of the daemon once it does nothing any more.
    fn descriptors(&self) -> usize {
        let pid = self.host.snapshotter.pid();
        fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
    }
}

fn end(call: &mut Child) {
    let _ = call.kill();
    let _ = call.wait();
}

/// Every file and directory below `root`, without what is kept on purpose: artifacts (for `soci gc`), and the
/// socket of a holder that may have views to keep again.
fn everything(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries.map(|entry| entry.unwrap()) {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                pending.push(path.clone());
            }
            let below = path.strip_prefix(root).unwrap().to_owned();
            if !below.starts_with("content") && below != Path::new("holder.sock") {
                found.insert(below);
            }
        }
    }
    found
}

#[test]
fn a_daemon_killed_at_any_point_leaves_nothing_that_the_next_does_not_sweep() {
    let points = number("SPANSHOT_CRASH_POINTS", POINTS);
    let mut ground = Ground::start();
    let root = ground.host.snapshotter.root();
    let (before, descriptors) = (everything(&root), ground.descriptors());
    for number in 0..points {
        let lazily = number % 2 == 0;
        ground = ground.pull(lazily);
        ground = ground.commit(number, lazily);
        let image = ground.image(lazily).reference.clone();
        let id = format!("run-{number}");
        let script = "sha256sum /one";
        let run = integration::ctr::Run::shell(&image, &id, script);
        let printed = ground.host.ctr().run(run).unwrap();
        let digest = integration::host::sha256_hex(&noise(3 << 20));
        assert_eq!(printed, format!("{digest}  /one\n"));
        ground = ground.remove_image(lazily);
    }
    // What a kill left is swept at the start; what was pulled and then removed, by containerd's collector.
    ground.host = ground.host.restart_snapshotter(Signal::SIGTERM).unwrap();
    until("nothing is left", SOON, || {
        let left: Vec<_> = everything(&root).difference(&before).cloned().collect();
        let mounts = mounts_below(&root)?;
        let clean = left.is_empty() && mounts.is_empty();
        if !clean {
            eprintln!("left: {left:?} {mounts:?}");
        }
        Ok(clean.then_some(()))
    })
    .unwrap();
    // Connections of containerd's come and go.
    until("no descriptor is left", SOON, || {
        Ok((ground.descriptors() <= descriptors + 3).then_some(()))
    })
    .unwrap();
    ground.host.finish().unwrap();
}

//! Random reads, bursts, faults of the registry, evictions, damage on disk, kills and restarts, through a real
//! mount, against the same image unpacked by containerd.
//!
//! `SPANSHOT_MODEL_STEPS` and `SPANSHOT_MODEL_SEED` make it longer and other.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use integration::busybox::noise;
use integration::command::{number, until};
use integration::ctr::Mounted;
use integration::host::{Host, Indexing};
use integration::push::put;
use integration::registry::{Fault, Match, ScriptedRegistry};
use integration::walk::{allocated, assert_same, walk};
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::signal::Signal;

/// Small enough a cache that spans go all the time, and a client that gives up soon.
const CONFIG: &str = "[background_fetch]
disable = true
[layer_cache]
max_size = \"2mb\"
[http]
MaxRetries = 2
MinWaitMsec = 5
MaxWaitMsec = 20
ResponseHeaderTimeoutMsec = 1000
[blob]
max_retries = 2
min_wait_msec = 5
max_wait_msec = 20
fetching_timeout_sec = 5
";
const STEPS: u64 = 70;
/// All layers have more bytes than this.
const LAYERS_SIZE: u64 = 5 << 20;
const KEY: &str = "model";
/// No failure may last as long.
const SOON: Duration = Duration::from_secs(30);

/// A xorshift generator.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

/// Layers that add, replace, hide and link. Directories that a tar only implies get any time, so none is.
fn layers() -> Vec<Vec<u8>> {
    let content = |seed: u64, size: u64| {
        let mut bytes = noise(usize::try_from(size).unwrap());
        bytes.iter_mut().for_each(|byte| *byte ^= seed as u8);
        bytes
    };
    let mut random = Random(99);
    let mut layer = |names: &[&str]| {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, seed) in names.iter().zip(1..) {
            let mut header = tar::Header::new_gnu();
            header.set_mtime(1_600_000_000);
            if let Some((name, target)) = name.split_once(" -> ") {
                header.set_entry_type(tar::EntryType::Link);
                header.set_size(0);
                header.set_mode(0o644);
                tar.append_link(&mut header, name, target).unwrap();
                continue;
            }
            if name.ends_with('/') {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                header.set_mode(0o755);
                tar.append_data(&mut header, name, &b""[..]).unwrap();
                continue;
            }
            let size = match *name {
                "large" => 4 << 20,
                name if name.contains(".wh.") || name.contains("empty") => 0,
                _ => 1 + random.below(300_000),
            };
            header.set_size(size);
            header.set_mode(0o600 + seed as u32 % 8);
            tar.append_data(&mut header, name, &*content(seed, size))
                .unwrap();
        }
        tar.into_inner().unwrap()
    };
    vec![
        layer(&[
            "./",
            "a/",
            "b/",
            "b/deep/",
            "b/deep/er/",
            "large",
            "a/one",
            "a/two",
            "a/empty",
            "b/three",
            "b/deep/er/four",
            "five",
        ]),
        layer(&[
            "./",
            "a/",
            "b/",
            "c/",
            "a/two",
            "b/.wh.three",
            "c/six",
            "c/seven -> c/six",
            ".wh.five",
        ]),
        layer(&[
            "./",
            "a/",
            "b/",
            "b/deep/",
            "b/deep/.wh..wh..opq",
            "b/deep/eight",
            "nine",
            "a/ten -> nine",
        ]),
    ]
}

/// The image unpacked, and what a reader asks of it.
struct Original {
    root: PathBuf,
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Original {
    fn of(root: &Path) -> Self {
        let mut files = Vec::new();
        let mut pending = vec![PathBuf::new()];
        while let Some(dir) = pending.pop() {
            for entry in fs::read_dir(root.join(&dir)).unwrap() {
                let entry = entry.unwrap();
                let path = dir.join(entry.file_name());
                if entry.file_type().unwrap().is_dir() {
                    pending.push(path);
                } else {
                    files.push((path.clone(), fs::read(root.join(path)).unwrap()));
                }
            }
        }
        files.sort();
        Self {
            root: root.to_owned(),
            files,
        }
    }
}

/// Where reads go, and whether they may fail just now.
struct Readers {
    original: Original,
    mounted: PathBuf,
    /// What was asked while faults were scripted may fail.
    faulty: AtomicBool,
    reads: AtomicU64,
    failed: AtomicU64,
}

impl Readers {
    fn read(&self, path: &Path, range: std::ops::Range<usize>) -> io::Result<Vec<u8>> {
        let file = File::open(self.mounted.join(path))?;
        // Else only the first read would reach the daemon.
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        let mut bytes = vec![0; range.len()];
        file.read_exact_at(&mut bytes, range.start as u64)?;
        Ok(bytes)
    }

    /// One read of some part of some file, which is right, or fails and may.
    fn one(&self, random: &mut Random) {
        let files = &self.original.files;
        let (path, content) = &files[random.below(files.len() as u64) as usize];
        let start = random.below(content.len() as u64 + 1);
        let length = random.below((content.len() as u64 - start).min(400_000) + 1);
        let range = start as usize..(start + length) as usize;
        let excused = self.faulty.load(Ordering::SeqCst);
        self.reads.fetch_add(1, Ordering::Relaxed);
        match self.read(path, range.clone()) {
            Ok(bytes) => assert!(bytes == content[range], "{} is wrong", path.display()),
            Err(error) => {
                let is_io = error.raw_os_error() == Some(Errno::EIO as i32);
                let excused = excused || self.faulty.load(Ordering::SeqCst);
                assert!(is_io && excused, "{}: {error}", path.display());
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Reads from several threads while something happens.
    fn burst(self: &Arc<Self>, random: &mut Random, happens: impl FnOnce()) {
        let threads: Vec<_> = (0..6)
            .map(|_| {
                let (this, mut random) = (Arc::clone(self), Random(random.below(u64::MAX) | 1));
                thread::spawn(move || (0..15).for_each(|_| this.one(&mut random)))
            })
            .collect();
        happens();
        for thread in threads {
            thread.join().unwrap();
        }
    }
}

/// The machine.
struct World {
    host: Host,
    registry: ScriptedRegistry,
    _runtime: tokio::runtime::Runtime,
    readers: Arc<Readers>,
    digests: Vec<String>,
    mounted: Mounted,
    original: Mounted,
    kills: u64,
}

impl World {
    fn start() -> Self {
        let host = Host::start(CONFIG).unwrap();
        let (runtime, registry) = ScriptedRegistry::start_apart().unwrap();
        let layout = host.layout("model").unwrap();
        let layers: Vec<_> = layers()
            .iter()
            .map(|tar| layout.add_gzip_layer(tar).unwrap())
            .collect();
        let image = layout.add_image(&layers, &["sh"], "latest").unwrap();
        let layout = host
            .index(&layout, "model-indexed", Indexing::default())
            .unwrap();
        let reference = put(&layout, &registry, "model").unwrap();
        host.soci().unwrap().rpull(&reference).unwrap();
        let ctr = host.ctr();
        let chain = image.chain_id();
        let lazy = ctr.prepare("soci", KEY, &chain).unwrap();
        let mounted = lazy.mount(&host.scratch, "lazy").unwrap();
        ctr.pull("overlayfs", &reference).unwrap();
        let plain = ctr.prepare("overlayfs", KEY, &chain).unwrap();
        let original = plain.mount(&host.scratch, "plain").unwrap();
        assert_eq!(
            host.snapshotter.fuse_mounts().unwrap().len(),
            1,
            "it is lazy"
        );
        Self {
            readers: Arc::new(Readers {
                original: Original::of(original.path()),
                mounted: mounted.path().to_owned(),
                faulty: AtomicBool::new(false),
                reads: AtomicU64::new(0),
                failed: AtomicU64::new(0),
            }),
            digests: layers.iter().map(|layer| layer.digest.clone()).collect(),
            host,
            registry,
            _runtime: runtime,
            mounted,
            original,
            kills: 0,
        }
    }

    fn step(mut self, random: &mut Random) -> Self {
        match random.below(12) {
            0..3 => (0..10).for_each(|_| self.readers.one(random)),
            3..6 => self.readers.burst(random, || {}),
            6 | 7 => self.strike(random),
            8 => {
                self.strike(random);
                self.readers.burst(random, || {});
                self.heal();
            }
            9 => self.heal(),
            10 => return self.kill_under_load(random),
            _ => return self.damage(random),
        }
        self
    }

    /// The next requests for layers go wrong.
    fn strike(&mut self, random: &mut Random) {
        self.readers.faulty.store(true, Ordering::SeqCst);
        let fault = match random.below(6) {
            0 => Fault::status(503),
            1 => Fault::status(404),
            2 => Fault::Short(1000),
            3 => Fault::Corrupt,
            4 => Fault::StallBody(3000),
            _ => Fault::Reset,
        };
        let from = u32::try_from(random.below(3)).unwrap();
        let turns = from..from + 1 + u32::try_from(random.below(4)).unwrap();
        self.registry
            .script(Match::path("/blobs/").turns(turns), fault);
    }

    /// What was begun under a fault may end under it for a while, but not for ever.
    fn heal(&mut self) {
        self.registry.clear_script();
        for (path, content) in &self.readers.original.files {
            let healed = until("a failure passes", SOON, || {
                let read = self.readers.read(path, 0..content.len());
                Ok(read.is_ok_and(|bytes| bytes == *content).then_some(()))
            });
            healed.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
        self.readers.faulty.store(false, Ordering::SeqCst);
    }

    fn kill_under_load(mut self, random: &mut Random) -> Self {
        self.heal();
        let signal = [Signal::SIGKILL, Signal::SIGTERM][random.below(2) as usize];
        let readers = Arc::clone(&self.readers);
        let mut restarted = None;
        let host = self.host;
        readers.burst(random, || {
            restarted = Some(host.restart_snapshotter(signal).unwrap());
        });
        self.host = restarted.unwrap();
        self.kills += 1;
        self
    }

    /// While no daemon runs, a bit flips, or the end of a file is lost.
    fn damage(mut self, random: &mut Random) -> Self {
        self.heal();
        self.host.snapshotter.stop(Signal::SIGKILL).unwrap();
        let digest = &self.digests[random.below(self.digests.len() as u64) as usize];
        let dir = self.host.snapshotter.root().join("layers");
        let dir = dir.join(digest.replace("sha256:", ""));
        let name = ["data", "data", "map"][random.below(3) as usize];
        let file = File::options().read(true).write(true).open(dir.join(name));
        let file = file.unwrap();
        let size = file.metadata().unwrap().len();
        if random.below(4) == 0 {
            file.set_len(random.below(size + 1)).unwrap();
        } else if size > 0 {
            let (at, mut byte) = (random.below(size), [0]);
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        }
        self.host = self.host.restart_snapshotter(Signal::SIGKILL).unwrap();
        self.kills += 1;
        self
    }

    /// The trees are the same, with all their metadata.
    fn assert_same_names(&self) {
        // The root itself is the snapshot's own directory, as old as the snapshot.
        let [expected, actual] = [self.original.path(), self.mounted.path()].map(|root| {
            let mut tree = walk(root).unwrap();
            tree.retain(|path, _| !path.as_os_str().is_empty());
            tree
        });
        assert!(expected.len() > 10);
        assert_same(&expected, &actual);
    }

    fn finish(mut self) {
        self.heal();
        self.assert_same_names();
        assert!(self.readers.original.root.exists());
        let ctr = self.host.ctr();
        let host = self.host;
        drop((self.mounted, self.original));
        ctr.remove_snapshot("soci", KEY).unwrap();
        ctr.remove_snapshot("overlayfs", KEY).unwrap();
        host.finish().unwrap();
    }
}

#[test]
fn whatever_happens_a_mount_gives_the_bytes_of_the_unpacked_image_or_fails_for_now() {
    let steps = number("SPANSHOT_MODEL_STEPS", STEPS);
    let seed = number("SPANSHOT_MODEL_SEED", 7);
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut world = World::start();
    world.assert_same_names();
    for _ in 0..steps {
        world = world.step(&mut random);
    }
    let reads = world.readers.reads.load(Ordering::Relaxed);
    let failed = world.readers.failed.load(Ordering::Relaxed);
    println!(
        "{steps} steps, {reads} reads, {failed} failed as they may, {} kills",
        world.kills
    );
    assert!(reads > steps * 5 && failed < reads / 2 && world.kills > steps / 20);
    let cached = allocated(&world.host.snapshotter.root().join("layers")).unwrap();
    assert!(
        cached < LAYERS_SIZE * 3 / 4,
        "{cached} bytes: nothing has been evicted"
    );
    world.finish();
}

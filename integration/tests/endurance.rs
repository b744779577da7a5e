//! Load, and what a machine does to a daemon: outages, failing disks, little memory, signals, crowds, churn.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use integration::busybox::noise;
use integration::command::{command, fail, number, run, until};
use integration::containerd::Containerd;
use integration::ctr::Run;
use integration::distribution::DockerRegistry;
use integration::host::{
    Host, IMPATIENT, Indexing, ON_DEMAND, Published, sha256_hex, small_layers,
};
use integration::push::put;
use integration::registry::{Fault, Match, ScriptedRegistry};
use integration::scratch::Scratch;
use integration::snapshotter::Snapshotter;
use integration::walk::allocated;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SOON: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

/// Reads past the page cache, so that the daemon is asked.
fn read_anew(path: &Path) -> std::io::Result<Vec<u8>> {
    let opened = File::open(path)?;
    posix_fadvise(&opened, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    fs::read(path)
}

/// Mounts the image for `key`; the view that serves it.
fn view(host: &Host, published: &Published, key: &str) -> PathBuf {
    host.soci().unwrap().rpull(&published.reference).unwrap();
    let chain = published.image.chain_id();
    host.ctr().prepare("soci", key, &chain).unwrap();
    host.snapshotter.fuse_mounts().unwrap().pop().unwrap()
}

fn descriptors(snapshotter: &Snapshotter) -> usize {
    let dir = format!("/proc/{}/fd", snapshotter.pid());
    fs::read_dir(dir).unwrap().count()
}

/// A number of the daemon's in /proc, in kilobytes or threads.
fn status(snapshotter: &Snapshotter, field: &str) -> u64 {
    let path = format!("/proc/{}/status", snapshotter.pid());
    let text = fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let value = line.unwrap().trim_start_matches(':').split_whitespace();
    value.into_iter().next().unwrap().parse().unwrap()
}

#[test]
fn while_the_registry_is_down_what_is_here_is_read_and_the_rest_as_soon_as_it_is_back() {
    let outage = Duration::from_secs(number("SPANSHOT_OUTAGE_SECONDS", 6));
    let mut host = Host::start(IMPATIENT).unwrap();
    let (_runtime, registry) = ScriptedRegistry::start_apart().unwrap();
    let (here, there) = (noise(MIB), noise(MIB + 4096)[4096..].to_vec());
    let layout = host.layout("outage").unwrap();
    let layers = small_layers(&layout, &[("here", &here), ("there", &there)]).unwrap();
    let image = layout.add_image(&layers, &["sh"], "latest").unwrap();
    let layout = host
        .index(&layout, "outage-indexed", Indexing::default())
        .unwrap();
    let reference = put(&layout, &registry, "outage").unwrap();
    let published = Published {
        reference,
        image,
        layout,
    };
    let view = view(&host, &published, "kept");
    assert!(read_anew(&view.join("here")).unwrap() == here);

    registry.script(Match::path("/blobs/"), Fault::Reset);
    let start = Instant::now();
    let mut failed = 0;
    while start.elapsed() < outage || failed < 3 {
        assert!(read_anew(&view.join("here")).unwrap() == here);
        let missing = read_anew(&view.join("there"));
        assert_eq!(missing.unwrap_err().raw_os_error(), Some(5));
        failed += 1;
        if failed == 2 {
            host = host.restart_snapshotter(Signal::SIGKILL).unwrap();
        }
        thread::sleep(Duration::from_millis(100));
    }
    registry.clear_script();
    let back = Instant::now();
    until("the rest is read", SOON, || {
        Ok(read_anew(&view.join("there"))
            .ok()
            .filter(|read| *read == there))
    })
    .unwrap();
    // No failure is kept for longer than seconds.
    assert!(
        back.elapsed() < Duration::from_secs(15),
        "{:?}",
        back.elapsed()
    );
    host.ctr().remove_snapshot("soci", "kept").unwrap();
    host.finish().unwrap();
}

/// A disk that can be broken: a file system on a loop device, whose file lies on a tmpfs.
struct Disk {
    below: PathBuf,
    mounted: PathBuf,
}

impl Disk {
    fn below(scratch: &Scratch) -> Self {
        let below = scratch.dir("disk").unwrap();
        let mounted = scratch.dir("soci/root").unwrap();
        let file = below.join("image");
        let tmpfs = ["-t", "tmpfs", "-o", "size=48m", "none"];
        run(command("mount").args(tmpfs).arg(&below)).unwrap();
        File::create(&file).unwrap().set_len(40 << 20).unwrap();
        run(command("mkfs.ext4").arg("-q").arg(&file)).unwrap();
        let how = ["-o", "loop,errors=remount-ro"];
        run(command("mount").args(how).arg(&file).arg(&mounted)).unwrap();
        Self { below, mounted }
    }

    /// From now on nothing can be read or written: the file is gone, and there is no room for it.
    fn fails(&self) {
        run(command("sync").arg("-f").arg(&self.mounted)).unwrap();
        let file = File::options().write(true).open(self.below.join("image"));
        file.unwrap().set_len(0).unwrap();
        let mut dd = command("dd");
        dd.args(["if=/dev/zero", "bs=64k"])
            .arg(format!("of={}", self.below.join("filler").display()));
        fail(&mut dd).unwrap();
    }

    fn remove(&self) {
        for dir in [&self.mounted, &self.below] {
            nix::mount::umount2(dir, nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
    }
}

#[test]
fn a_disk_that_fails_under_mounted_views_fails_no_read_that_the_registry_can_answer() {
    let scratch = Scratch::new().unwrap();
    let disk = Disk::below(&scratch);
    let registry = DockerRegistry::start(&scratch).unwrap();
    let containerd = Containerd::start(&scratch).unwrap();
    let snapshotter = Snapshotter::start(&scratch, &containerd, IMPATIENT).unwrap();
    let mut host = Host {
        containerd,
        snapshotter,
        registry,
        scratch,
    };
    let (cached, cold) = (noise(3 * MIB), noise(2 * MIB + 512)[512..].to_vec());
    let files: [(&str, &[u8]); 2] = [("cached", &cached), ("cold", &cold)];
    let published = host.publish_files("disk", &files).unwrap();
    let view = view(&host, &published, "kept");
    assert!(read_anew(&view.join("cached")).unwrap() == cached);

    disk.fails();
    for layer in host.snapshotter.layers().unwrap() {
        let data = disk.mounted.join("layers").join(layer).join("data");
        if let Ok(data) = File::open(data) {
            // Else the kernel would answer from memory.
            posix_fadvise(&data, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
        }
    }
    for _ in 0..3 {
        assert!(read_anew(&view.join("cached")).unwrap() == cached);
        assert!(read_anew(&view.join("cold")).unwrap() == cold);
    }
    // Something that has to be written down fails, and says why.
    let chain = published.image.chain_id();
    let mut attempts = 0..;
    let refused = until("the disk is known to fail", SOON, || {
        let key = format!("new-{}", attempts.next().unwrap_or(0));
        let mut prepare = host.ctr().command();
        prepare.args(["snapshots", "--snapshotter", "soci"]);
        prepare.args(["prepare", &key, &chain]);
        Ok(fail(&mut prepare).ok())
    });
    let refused = refused.unwrap();
    assert!(
        refused.contains("I/O error")
            || refused.contains("Input/output error")
            || refused.contains("Read-only file system"),
        "{refused}"
    );
    assert!(host.snapshotter.is_running());
    assert!(read_anew(&view.join("cold")).unwrap() == cold);
    host.snapshotter.stop(Signal::SIGINT).unwrap();
    drop(host.containerd);
    disk.remove();
}

/// A group of processes that may use so much memory.
struct MemoryGroup(PathBuf);

impl MemoryGroup {
    fn new(bytes: usize) -> Self {
        let first = Path::new("/sys/fs/cgroup/memory");
        let (root, limit) = match first.exists() {
            true => (first, "memory.limit_in_bytes"),
            false => (Path::new("/sys/fs/cgroup"), "memory.max"),
        };
        let dir = root.join(format!("spanshot-test-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(limit), bytes.to_string()).unwrap();
        Self(dir)
    }

    /// The command, started in this group.
    fn within(&self, original: &Command) -> Command {
        let mut wrapped = command("sh");
        wrapped.args(["-c", r#"echo $$ > "$0" && exec "$@""#]);
        wrapped.arg(self.0.join("cgroup.procs"));
        wrapped
            .arg(original.get_program())
            .args(original.get_args());
        wrapped
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn with_little_memory_reads_of_much_are_right_and_the_daemon_lives() {
    // Less than the layer has, and the daemon's own pages have to be in it as well.
    let group = MemoryGroup::new(96 * MIB);
    let scratch = Scratch::new().unwrap();
    let registry = DockerRegistry::start(&scratch).unwrap();
    let containerd = Containerd::start(&scratch).unwrap();
    let wrap = |original: &Command| group.within(original);
    let snapshotter = Snapshotter::start_wrapped(&wrap, &scratch, &containerd, ON_DEMAND).unwrap();
    let mut host = Host {
        containerd,
        snapshotter,
        registry,
        scratch,
    };
    let pid = host.snapshotter.pid();
    let content = noise(128 * MIB);
    let published = host.publish_files("large", &[("large", &content)]).unwrap();
    let path = view(&host, &published, "kept").join("large");
    thread::scope(|scope| {
        for reader in 0..16 {
            let (path, content) = (&path, &content);
            scope.spawn(move || {
                let file = File::open(path).unwrap();
                let mut buffer = vec![0; MIB];
                for step in 0..32 {
                    let at = (reader * 37 + step * 8 + reader * step) % 128 * MIB;
                    file.read_exact_at(&mut buffer, at as u64).unwrap();
                    assert!(buffer == content[at..at + MIB], "at {at}");
                }
            });
        }
    });
    assert!(host.snapshotter.is_running());
    assert_eq!(host.snapshotter.pid(), pid);
    host.ctr().remove_snapshot("soci", "kept").unwrap();
    host.finish().unwrap();
}

#[test]
fn a_thousand_readers_at_once_get_their_bytes_and_leave_nothing() {
    const READERS: usize = 1000;
    const PIECE: usize = 16 << 10;
    let host = Host::start(ON_DEMAND).unwrap();
    let content = noise(READERS * PIECE);
    let published = host.publish_files("crowd", &[("file", &content)]).unwrap();
    let path = view(&host, &published, "kept").join("file");
    let before = descriptors(&host.snapshotter);
    let begin = std::sync::Barrier::new(READERS);
    thread::scope(|scope| {
        for reader in 0..READERS {
            let (path, content, begin) = (&path, &content, &begin);
            let work = move || {
                // Neighbours in time are no neighbours in the file.
                let at = reader * 389 % READERS * PIECE;
                let file = File::open(path).unwrap();
                let mut piece = vec![0; PIECE];
                begin.wait();
                file.read_exact_at(&mut piece, at as u64).unwrap();
                assert!(piece == content[at..at + PIECE], "reader {reader}");
            };
            let thread = thread::Builder::new().stack_size(128 << 10);
            thread.spawn_scoped(scope, work).unwrap();
        }
    });
    // A reader costs no thread and no descriptor.
    assert!(status(&host.snapshotter, "Threads") < 200);
    // What stays for a while are connections to the registry.
    let after = descriptors(&host.snapshotter);
    assert!(after < before + 128, "{before} {after}");
    host.ctr().remove_snapshot("soci", "kept").unwrap();
    host.finish().unwrap();
}

#[test]
fn images_that_come_and_go_leave_no_layer_view_or_descriptor_and_no_memory() {
    let rounds = number("SPANSHOT_CHURN_ROUNDS", 6);
    let host = Host::start(ON_DEMAND).unwrap();
    let images: Vec<_> = (0..4)
        .map(|image| {
            let content = noise(MIB + image * 1000)[image * 8..].to_vec();
            let files: [(&str, &[u8]); 1] = [("file", &content)];
            let published = host.publish_files(&format!("churn-{image}"), &files);
            (published.unwrap().reference, sha256_hex(&content))
        })
        .collect();
    // Descriptors and kilobytes of memory after each round.
    let mut taken: Vec<(usize, u64)> = Vec::new();
    for round in 0..rounds {
        thread::scope(|scope| {
            for (number, (reference, digest)) in images.iter().enumerate() {
                let host = &host;
                scope.spawn(move || {
                    host.soci().unwrap().rpull(reference).unwrap();
                    let id = format!("churn-{round}-{number}");
                    let log = host.scratch.path().join(&id);
                    let run = Run::shell(reference, &id, "sha256sum /file");
                    let printed = host.ctr().run_logged(run, &log);
                    assert_eq!(printed.unwrap(), format!("{digest}  /file\n"));
                    host.ctr().remove_image(reference).unwrap();
                });
            }
        });
        until("the views are gone", SOON, || {
            Ok(host.snapshotter.fuse_mounts()?.is_empty().then_some(()))
        })
        .unwrap();
        taken.push((
            descriptors(&host.snapshotter),
            status(&host.snapshotter, "VmRSS"),
        ));
    }
    println!("{taken:?}");
    // The first rounds fill what is kept for the next ones: buffers, connections, arenas.
    let (half, last) = (taken[taken.len() / 2], taken[taken.len() - 1]);
    assert!(last.0 <= half.0 + 8, "descriptors: {taken:?}");
    assert!(last.1 <= half.1 + (16 << 10), "kilobytes: {taken:?}");
    // What was pulled a moment ago is kept for seconds, in case that it is wanted again.
    let host = host.restart_snapshotter(Signal::SIGTERM).unwrap();
    until("the layers are gone", SOON, || {
        Ok(host.snapshotter.layers()?.is_empty().then_some(()))
    })
    .unwrap();
    host.finish().unwrap();
}

#[test]
fn signals_that_mean_nothing_to_the_daemon_do_not_end_it() {
    let mut host = Host::start(ON_DEMAND).unwrap();
    let content = noise(2 * MIB);
    let published = host
        .publish_files("signals", &[("file", &content)])
        .unwrap();
    let file = view(&host, &published, "kept").join("file");
    let holder = host.snapshotter.holder().unwrap().unwrap();
    for signal in [Signal::SIGHUP, Signal::SIGPIPE, Signal::SIGWINCH] {
        let pid = i32::try_from(host.snapshotter.pid()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
        thread::sleep(Duration::from_millis(200));
        assert!(host.snapshotter.is_running(), "{signal}");
        assert_eq!(host.snapshotter.holder().unwrap(), Some(holder), "{signal}");
        assert!(read_anew(&file).unwrap() == content, "{signal}");
    }
    host.ctr().remove_snapshot("soci", "kept").unwrap();
    host.finish().unwrap();
}

#[test]
fn a_smaller_cache_in_the_configuration_holds_from_sighup_on() {
    let mut host = Host::start(ON_DEMAND).unwrap();
    let content = noise(16 * MIB);
    let published = host.publish_files("reload", &[("file", &content)]).unwrap();
    let file = view(&host, &published, "kept").join("file");
    assert!(read_anew(&file).unwrap() == content);
    let layers = host.snapshotter.root().join("layers");
    assert!(allocated(&layers).unwrap() > 12 << 20);
    let config = host.scratch.path().join("soci/config.toml");
    let text = fs::read_to_string(&config).unwrap();
    let hang_up = |host: &Host| {
        let pid = i32::try_from(host.snapshotter.pid()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGHUP).unwrap();
    };
    // What is malformed changes nothing, and ends nothing.
    fs::write(&config, "[layer_cache]\nmax_size = 1").unwrap();
    hang_up(&host);
    until("it is refused", Duration::from_secs(20), || {
        let log = host.snapshotter.log();
        Ok(log
            .contains("the configuration stays as it is")
            .then_some(()))
    })
    .unwrap();
    fs::write(
        &config,
        format!("{text}\n[layer_cache]\nmax_size = \"4mb\"\n"),
    )
    .unwrap();
    hang_up(&host);
    until("the cache shrinks", Duration::from_secs(20), || {
        Ok((allocated(&layers).unwrap() < 8 << 20).then_some(()))
    })
    .unwrap();
    assert!(host.snapshotter.is_running());
    assert!(read_anew(&file).unwrap() == content);
    host.ctr().remove_snapshot("soci", "kept").unwrap();
    host.finish().unwrap();
}

//! The daemon is killed, upgraded or asked to leave, or the machine goes down.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use integration::busybox::noise;
use integration::command::{run, until};
use integration::containerd::Containerd;
use integration::ctr::{Mounted, Run};
use integration::distribution::DockerRegistry;
use integration::host::{Host, Indexing, ON_DEMAND, Published, small_layers};
use integration::manager::Manager;
use integration::push::put;
use integration::registry::{Fault, Match, ScriptedRegistry};
use integration::scratch::{Scratch, is_running, mounts_below};
use integration::snapshotter::Snapshotter;
use integration::soak::{self, Plan};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long something that happens beside the test may take.
const SOON: Duration = Duration::from_secs(30);
/// Size of the file that images here have.
const SIZE: usize = 700_000;

/// A machine with a mounted image.
struct Ground {
    host: Host,
    published: Vec<Published>,
    mounted: Vec<Mounted>,
}

impl Ground {
    fn start() -> Self {
        Self::on(Host::start(ON_DEMAND).unwrap(), 1)
    }

    /// So many images, each mounted once.
    fn on(host: Host, images: usize) -> Self {
        let mut ground = Self {
            host,
            published: Vec::new(),
            mounted: Vec::new(),
        };
        for number in 0..images {
            let name = format!("image-{number}");
            let files: [(&str, &[u8]); 1] = [("file", &file(number))];
            let published = ground.host.publish_files(&name, &files).unwrap();
            let soci = ground.host.soci().unwrap();
            soci.rpull(&published.reference).unwrap();
            ground.published.push(published);
            ground.mount(&format!("kept-{number}"), number);
        }
        ground
    }

    /// One more snapshot of an image, mounted.
    fn mount(&mut self, key: &str, image: usize) {
        let chain = self.published[image].image.chain_id();
        let mounts = self.host.ctr().prepare("soci", key, &chain).unwrap();
        self.mounted
            .push(mounts.mount(&self.host.scratch, key).unwrap());
    }

    fn read(&self, mounted: usize) -> std::io::Result<Vec<u8>> {
        fs::read(self.mounted[mounted].path().join("file"))
    }

    /// Reads past the page cache, so that the daemon is asked.
    fn read_anew(&self, mounted: usize) -> std::io::Result<Vec<u8>> {
        let path = self.mounted[mounted].path().join("file");
        let opened = fs::File::open(&path)?;
        let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        nix::fcntl::posix_fadvise(&opened, 0, 0, advice)?;
        fs::read(path)
    }

    fn restart(mut self, signal: Signal) -> Self {
        self.host = self.host.restart_snapshotter(signal).unwrap();
        self
    }

    /// The daemon is killed, something happens, and it starts again.
    fn kill_and(mut self, happens: impl FnOnce(&Self)) -> Self {
        self.host.snapshotter.stop(Signal::SIGKILL).unwrap();
        happens(&self);
        self.restart(Signal::SIGKILL)
    }

    fn views(&self) -> Vec<PathBuf> {
        self.host.snapshotter.fuse_mounts().unwrap()
    }

    fn layer(&self, image: usize) -> PathBuf {
        let digest = &self.published[image].image.layers.last().unwrap().digest;
        let root = self.host.snapshotter.root();
        root.join("layers").join(digest.replace("sha256:", ""))
    }

    fn finish(self) {
        drop(self.mounted);
        self.host.finish().unwrap();
    }
}

fn file(number: usize) -> Vec<u8> {
    let mut file = noise(SIZE + number);
    file[0] = u8::try_from(number).unwrap();
    file
}

fn kill_holder(snapshotter: &Snapshotter) -> i32 {
    let holder = snapshotter.holder().unwrap().expect("there is a holder");
    kill(Pid::from_raw(holder), Signal::SIGKILL).unwrap();
    until("the holder is dead", SOON, || {
        Ok((!is_running(holder)).then_some(()))
    })
    .unwrap();
    holder
}

#[test]
fn containers_do_not_notice_that_the_daemon_is_killed_again_and_again() {
    let plan = Plan {
        kills: 12,
        views: 20,
        containers: 3,
        reader: env!("CARGO_BIN_EXE_soak").into(),
        seed: 7,
    };
    let outcome = soak::run(&plan, |_| {}).unwrap();
    println!("{outcome:?}");
    assert_eq!((outcome.failed, outcome.wrong), (0, 0), "{outcome:?}");
    assert_eq!(outcome.kills, 12);
    // Each view was read between any two kills, by and large.
    assert!(outcome.reads > 12 * 20, "{outcome:?}");
    // Of twelve on a machine that does other things too, at least one start is undisturbed.
    assert!(outcome.restart_ms(0) < 500, "{outcome:?}");
}

#[test]
fn snapshots_find_their_views_after_a_restart_and_views_go_with_the_last_snapshot() {
    let mut ground = Ground::start();
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let before = ground.views();
        ground = ground.restart(signal);
        assert_eq!(ground.views(), before);
        assert_eq!(ground.read_anew(0).unwrap(), file(0));
        ground.mount(signal.as_str(), 0);
        assert_eq!(
            ground.views(),
            before,
            "the same view serves a new snapshot"
        );
    }
    let ctr = ground.host.ctr();
    for key in ["SIGTERM", "SIGKILL", "kept-0"] {
        assert_eq!(ground.views().len(), 1);
        drop(ground.mounted.pop());
        ctr.remove_snapshot("soci", key).unwrap();
    }
    until("the view is gone", SOON, || {
        Ok(ground.views().is_empty().then_some(()))
    })
    .unwrap();
    // The record and the mount point go when it is unmounted.
    let views = ground.host.snapshotter.root().join("views");
    until("there is no mount point, no record", SOON, || {
        Ok((fs::read_dir(&views)?.count() == 0).then_some(()))
    })
    .unwrap();
    ground.finish();
}

#[test]
fn reads_that_wait_for_the_registry_wait_on_through_planned_restarts() {
    const ROUNDS: usize = 8;
    const FILES: usize = 6;
    let mut host = Host::start(ON_DEMAND).unwrap();
    let (_runtime, registry) = ScriptedRegistry::start_apart().unwrap();
    let names = (0..FILES).map(|number| format!("file-{number}"));
    let names: Vec<_> = names.collect();
    let contents: Vec<_> = (0..FILES).map(file).collect();
    let files = names.iter().zip(&contents);
    let files: Vec<_> = files.map(|(name, content)| (&**name, &**content)).collect();
    let layout = host.layout("waits").unwrap();
    let layers = small_layers(&layout, &files).unwrap();
    let image = layout.add_image(&layers, &["sh"], "latest").unwrap();
    let indexed = host.index(&layout, "waits-indexed", Indexing::default());
    let reference = put(&indexed.unwrap(), &registry, "waits").unwrap();
    host.soci().unwrap().rpull(&reference).unwrap();
    let mounts = host.ctr().prepare("soci", "waits", &image.chain_id());
    let mounted = mounts.unwrap().mount(&host.scratch, "waits").unwrap();
    // The kernel learns that nobody wants to know of a closed file. Else a program started by this process, which has the
    // readers' files until its exec(2) closes them, would wait for the daemon that it is to be.
    let first = fs::read(mounted.path().join(&names[0])).unwrap();
    assert!(first == contents[0]);
    registry.script(Match::path("/blobs/"), Fault::Stall);
    let asked = registry.requests().len();
    let readers: Vec<_> = names
        .iter()
        .map(|name| (name.clone(), mounted.path().join(name)))
        .map(|(name, path)| (name, thread::spawn(move || fs::read(path))))
        .collect();
    for round in 0..ROUNDS {
        // Each daemon takes the reads and asks for them before it is to end.
        until("the registry is asked", SOON, || {
            Ok((registry.requests().len() > asked + round).then_some(()))
        })
        .unwrap();
        host = host.restart_snapshotter(Signal::SIGTERM).unwrap();
    }
    registry.clear_script();
    host = host.restart_snapshotter(Signal::SIGTERM).unwrap();
    for ((name, reader), content) in readers.into_iter().zip(&contents) {
        let read = reader.join().unwrap();
        assert!(read.unwrap_or_else(|error| panic!("{name}: {error}")) == *content);
    }
    drop(mounted);
    host.finish().unwrap();
}

#[test]
fn a_restart_needs_no_registry() {
    let mut ground = Ground::start();
    assert_eq!(ground.read(0).unwrap(), file(0));
    let image = ground.published[0].reference.clone();
    let script = "sha256sum /file";
    let ctr = ground.host.ctr();
    let digest = ctr.run(Run::shell(&image, "before", script)).unwrap();
    ground.host.registry.stop().unwrap();
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT] {
        let is_upgrade = signal != Signal::SIGINT;
        if !is_upgrade {
            ground.mounted.clear();
        }
        ground = ground.restart(signal);
        if is_upgrade {
            assert_eq!(ground.read_anew(0).unwrap(), file(0));
        }
        let id = format!("after-{signal}");
        let again = ground.host.ctr().run(Run::shell(&image, &id, script));
        assert_eq!(again.unwrap(), digest);
    }
    ground.finish();
}

#[test]
fn after_a_reboot_everything_is_mounted_again_on_demand_without_a_registry() {
    let mut ground = Ground::start();
    assert_eq!(ground.read(0).unwrap(), file(0));
    ground.host.registry.stop().unwrap();
    ground.mounted.clear();
    ground = ground.kill_and(|ground| {
        // What a machine forgets when it goes down: processes and mounts.
        kill_holder(&ground.host.snapshotter);
        for view in ground.views() {
            umount2(&view, MntFlags::MNT_DETACH).unwrap();
        }
    });
    assert_eq!(ground.views(), Vec::<PathBuf>::new());
    let views = ground.host.snapshotter.root().join("views");
    assert_eq!(fs::read_dir(views).unwrap().count(), 0);
    let mounts = [
        "snapshots",
        "--snapshotter",
        "soci",
        "mounts",
        "/mnt",
        "kept-0",
    ];
    let asked = ground.host.ctr().call(&mounts).unwrap();
    let view = ground.views().remove(0);
    assert!(asked.contains(view.to_str().unwrap()), "{asked}");
    assert_eq!(fs::read(view.join("file")).unwrap(), file(0));
    ground.finish();
}

#[test]
fn a_view_whose_layer_is_gone_is_taken_off_and_the_others_live_on() {
    let ground = Ground::on(Host::start(ON_DEMAND).unwrap(), 2);
    assert_eq!(ground.views().len(), 2);
    let ground = ground.kill_and(|ground| fs::remove_dir_all(ground.layer(0)).unwrap());
    assert_eq!(ground.views().len(), 1);
    assert!(ground.read_anew(0).is_err(), "an error, and no wait");
    assert_eq!(ground.read_anew(1).unwrap(), file(1));
    let log = ground.host.snapshotter.log();
    assert!(log.contains("cannot be adopted and is taken off"), "{log}");
    assert!(log.contains("is not stored here"), "{log}");
    ground.finish();
}

#[test]
fn a_view_that_a_newer_version_mounted_is_refused_with_what_to_do() {
    let ground = Ground::start();
    let record = |ground: &Ground| ground.views()[0].with_extension("json");
    let ground = ground.kill_and(|ground| {
        let text = fs::read_to_string(record(ground)).unwrap();
        let newer = text.replace("\"version\": 1,", "\"version\": 999,");
        assert_ne!(newer, text);
        fs::write(record(ground), newer).unwrap();
    });
    assert_eq!(ground.views(), Vec::<PathBuf>::new());
    let log = ground.host.snapshotter.log();
    assert!(log.contains("record version 999"), "{log}");
    ground.finish();
}

/// Connections of FUSE that the process has.
fn fuse_descriptors(process: i32) -> usize {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{process}/fd")) else {
        return 0;
    };
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    targets
        .filter(|target| target == Path::new("/dev/fuse"))
        .count()
}

#[test]
fn a_holder_that_dies_is_replaced_and_containers_still_survive_the_daemon() {
    let ground = Ground::on(Host::start(ON_DEMAND).unwrap(), 2);
    let dead = kill_holder(&ground.host.snapshotter);
    until("another holder has both descriptors", SOON, || {
        let holder = ground.host.snapshotter.holder()?;
        Ok(holder.filter(|holder| *holder != dead && fuse_descriptors(*holder) == 2))
    })
    .unwrap();
    let views = ground.views();
    let ground = ground.restart(Signal::SIGKILL);
    assert_eq!(ground.views(), views);
    for number in 0..2 {
        assert_eq!(ground.read_anew(number).unwrap(), file(number));
    }
    ground.finish();
}

#[test]
fn without_a_holder_a_crash_is_an_error_and_not_a_wait() {
    let ground = Ground::start();
    let ground = ground.kill_and(|ground| {
        kill_holder(&ground.host.snapshotter);
        assert!(ground.read_anew(0).is_err());
    });
    assert_eq!(ground.views(), Vec::<PathBuf>::new());
    let log = ground.host.snapshotter.log();
    assert!(log.contains("nobody kept its descriptor"), "{log}");
    let image = &ground.published[0].reference;
    let again = ground.host.ctr().run(Run::shell(image, "again", "echo up"));
    assert_eq!(again.unwrap(), "up\n");
    ground.finish();
}

#[test]
fn everything_a_stopped_daemon_left_can_be_unmounted() {
    let mut ground = Ground::start();
    ground.host.snapshotter.stop(Signal::SIGTERM).unwrap();
    assert_eq!(ground.views().len(), 1, "stopping leaves what is mounted");
    let root = ground.host.snapshotter.root();
    let unmount = || {
        let binary = integration::binaries::binary("soci-snapshotter-grpc").unwrap();
        let mut command = integration::command::command(binary);
        command.arg("--root").arg(&root).arg("unmount");
        run(&mut command)
    };
    assert_eq!(unmount().unwrap(), "1 views unmounted\n");
    assert_eq!(ground.views(), Vec::<PathBuf>::new());
    assert_eq!(ground.host.snapshotter.holder().unwrap(), None);
    assert_eq!(unmount().unwrap(), "0 views unmounted\n");
    assert!(ground.read_anew(0).is_err());
    ground = ground.restart(Signal::SIGTERM);
    let refused = unmount().unwrap_err();
    assert!(refused.to_string().contains("another daemon"), "{refused}");
    ground.finish();
}

#[test]
fn a_service_manager_with_a_store_keeps_the_views_and_no_holder_is_needed() {
    let scratch = Scratch::new().unwrap();
    let registry = DockerRegistry::start(&scratch).unwrap();
    let containerd = Containerd::start(&scratch).unwrap();
    let manager = Arc::new(Manager::start(&scratch).unwrap());
    let under = Some(Arc::clone(&manager));
    let snapshotter = Snapshotter::start_under(under, &scratch, &containerd, ON_DEMAND).unwrap();
    let host = Host {
        containerd,
        snapshotter,
        registry,
        scratch,
    };
    let mut ground = Ground::on(host, 2);
    let views = ground.views();
    assert_eq!(manager.names(), ["view-1", "view-2"]);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        ground = ground.restart(signal);
        assert_eq!(ground.views(), views);
        for number in 0..2 {
            assert_eq!(ground.read_anew(number).unwrap(), file(number));
        }
        assert_eq!(ground.host.snapshotter.holder().unwrap(), None);
    }
    ground.mounted.clear();
    ground.host.ctr().remove_snapshot("soci", "kept-0").unwrap();
    until("the manager keeps only the other", SOON, || {
        Ok((manager.names() == ["view-2"]).then_some(()))
    })
    .unwrap();
    ground.finish();
}

#[test]
fn what_a_daemon_killed_in_the_middle_left_is_swept_by_the_next() {
    let mut ground = Ground::start();
    ground.mounted.clear();
    let root = ground.host.snapshotter.root();
    let litter = |path: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "half").unwrap();
    };
    ground = ground.kill_and(|_| {
        litter("layers/.new-abc/ztoc");
        litter("snapshotter/snapshots/4711/fs/half");
        litter("views/77.new");
        litter("views/78.json");
        fs::create_dir(root.join("views/79")).unwrap();
    });
    let paths = [
        "layers/.new-abc",
        "snapshotter/snapshots/4711",
        "views/77.new",
        "views/78.json",
        "views/79",
    ];
    until("it is swept", SOON, || {
        let left = paths.iter().filter(|path| root.join(path).exists());
        Ok((left.count() == 0).then_some(()))
    })
    .unwrap();
    let descriptors = |ground: &Ground| {
        let pid = ground.host.snapshotter.pid();
        fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
    };
    let before = (descriptors(&ground), mounts(&root));
    for _ in 0..3 {
        ground = ground.restart(Signal::SIGKILL);
    }
    // Connections of containerd's come and go.
    let after = (descriptors(&ground), mounts(&root));
    assert!(after.0 <= before.0 + 3, "{before:?} {after:?}");
    assert_eq!(after.1, before.1);
    ground.finish();
}

fn mounts(root: &Path) -> usize {
    mounts_below(root).unwrap().len()
}

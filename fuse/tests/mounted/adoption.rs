//! A view outlives the process that serves it.

use std::fs::{self, File};
use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fuse::content::{LayerContent, ReadReply};
use fuse::{KernelOffer, Layer, LayerTree, MountOptions, Session, View};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use tempfile::TempDir;
use ztoc::UncompressedOffset;

use crate::layer::{Member, archive, layer, toc};

const MOUNTPOINT: &str = "FUSE_TEST_MOUNTPOINT";
const SOCKET: &str = "FUSE_TEST_SOCKET";

fn data() -> Vec<u8> {
    (0..3_000_000u32).map(|at| (at >> 7) as u8).collect()
}

fn tar() -> Vec<u8> {
    let mut members = vec![Member::file("here", "here"), Member::directory("d/")];
    members.extend((0..3000).map(|number| Member::file(format!("d/{number}"), number.to_string())));
    members.push(Member::file("away", data()));
    archive(&members)
}

/// Keeps what is read of the last file, or lets it fail, and says that it was asked for.
struct Hoarder {
    tar: Vec<u8>,
    away: u64,
    kept: Option<Mutex<Vec<ReadReply>>>,
    parent: UnixDatagram,
}

impl LayerContent for Hoarder {
    fn read(&self, range: Range<UncompressedOffset>, reply: ReadReply) {
        if range.start.0 >= self.away {
            match &self.kept {
                Some(kept) => kept.lock().unwrap().push(reply),
                None => drop(reply),
            }
            self.parent.send(b"asked").unwrap();
        } else {
            reply.data(&self.tar[range.start.0 as usize..range.end.0 as usize]);
        }
    }
}

#[test]
#[ignore = "the process that the tests below start and kill"]
fn server() {
    let (mountpoint, parent) = orders();
    let session = hoarding(&mountpoint, &parent, true);
    serve(&session, &parent);
}

#[test]
#[ignore = "a process that is about to end"]
fn leaving_server() {
    let (mountpoint, parent) = orders();
    let session = hoarding(&mountpoint, &parent, false);
    session.withhold_failures();
    serve(&session, &parent);
}

/// Reads of the last file wait, or fail at once.
fn hoarding(mountpoint: &Path, parent: &UnixDatagram, keeps: bool) -> Session {
    let tar = tar();
    let toc = toc(&tar);
    let away = toc.entries().last().unwrap().offset.0;
    let content = Hoarder {
        tar,
        away,
        kept: keeps.then(Mutex::default),
        parent: parent.try_clone().unwrap(),
    };
    let layer = Layer {
        tree: Arc::new(LayerTree::new(&toc)),
        content: Arc::new(content),
    };
    let options = MountOptions::new("/");
    let view = View::new(vec![layer], false);
    fuse::mount(view, mountpoint, &options).unwrap()
}

/// The server process, and what it gave away.
pub(crate) struct Served {
    server: Child,
    pub(crate) device: OwnedFd,
    pub(crate) offer: KernelOffer,
    socket: UnixDatagram,
    pub(crate) directory: TempDir,
}

/// What a server process is to do, by the environment it was started in: where to mount, and whom to tell.
pub(crate) fn orders() -> (PathBuf, UnixDatagram) {
    let mountpoint = std::env::var(MOUNTPOINT).unwrap();
    let parent = UnixDatagram::unbound().unwrap();
    parent.connect(std::env::var(SOCKET).unwrap()).unwrap();
    (mountpoint.into(), parent)
}

/// Gives the parent what it needs to go on with `session`, and serves.
pub(crate) fn serve(session: &Session, parent: &UnixDatagram) {
    let offer = session.offer().to_string();
    let descriptors = [session.descriptor().as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let text = [IoSlice::new(offer.as_bytes())];
    let flags = MsgFlags::empty();
    sendmsg::<()>(parent.as_raw_fd(), &text, &rights, flags, None).unwrap();
    thread::sleep(Duration::from_secs(60));
}

impl Served {
    fn start() -> Self {
        Self::by("adoption::server")
    }

    /// Served by a process that runs the test `server`.
    pub(crate) fn by(server: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let (mountpoint, socket) = (
            directory.path().join("view"),
            directory.path().join("socket"),
        );
        fs::create_dir(&mountpoint).unwrap();
        let ours = UnixDatagram::bind(&socket).unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let server = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", server, "--ignored"])
            .env(MOUNTPOINT, &mountpoint)
            .env(SOCKET, &socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (device, offer) = receive(&ours);
        Self {
            server,
            device,
            offer,
            socket: ours,
            directory,
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("view")
    }

    pub(crate) fn kill(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }

    fn adopt(&self) -> fuse::Session {
        let device = self.device.try_clone().unwrap();
        let view = View::new(vec![layer(&tar())], false);
        let options = MountOptions::new("/");
        fuse::adopt(view, &self.path(), device, self.offer, &options).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = fuse::detach(&self.path());
    }
}

fn receive(socket: &UnixDatagram) -> (OwnedFd, KernelOffer) {
    let mut text = [0; 100];
    let mut room = nix::cmsg_space!([RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut text)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut room), flags).unwrap();
    let Some(ControlMessageOwned::ScmRights(descriptors)) = message.cmsgs().unwrap().next() else {
        panic!("no descriptor was sent");
    };
    let length = message.bytes;
    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows it.
    #[allow(unsafe_code)]
    let device = unsafe { OwnedFd::from_raw_fd(descriptors[0]) };
    let offer = std::str::from_utf8(&text[..length])
        .unwrap()
        .parse()
        .unwrap();
    (device, offer)
}

#[test]
fn a_reader_that_waits_for_a_killed_process_is_answered_by_the_next() {
    waits_and_is_answered(Served::start());
}

#[test]
fn a_reader_whose_read_fails_as_the_process_ends_is_answered_by_the_next() {
    waits_and_is_answered(Served::by("adoption::leaving_server"));
}

fn waits_and_is_answered(mut served: Served) {
    let path = served.path();
    let opened = File::open(path.join("here")).unwrap();
    let reader = thread::spawn({
        let path = path.join("away");
        move || fs::read(path)
    });
    let mut asked = [0; 5];
    served.socket.recv(&mut asked).unwrap();
    served.kill();
    let asker = thread::spawn({
        let path = path.join("d/17");
        move || fs::read(path)
    });
    thread::sleep(Duration::from_millis(100));
    assert!(
        !reader.is_finished() && !asker.is_finished(),
        "they wait, and do not fail"
    );
    let started = Instant::now();
    let session = served.adopt();
    assert!(reader.join().unwrap().unwrap() == data());
    assert_eq!(asker.join().unwrap().unwrap(), b"17");
    assert!(started.elapsed() < Duration::from_secs(30));
    assert_eq!(std::io::read_to_string(opened).unwrap(), "here");
    assert!(session.is_alive());
}

#[test]
fn what_the_kernel_knows_of_the_first_process_holds_for_the_second() {
    let mut served = Served::start();
    let path = served.path();
    let before: Vec<_> = fs::read_dir(path.join("d"))
        .unwrap()
        .take(1500)
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    served.kill();
    let session = served.adopt();
    for name in &before {
        assert_eq!(
            fs::read_to_string(path.join("d").join(name)).unwrap(),
            *name
        );
    }
    assert_eq!(fs::read_dir(path.join("d")).unwrap().count(), 3000);
    drop(session);
    assert!(
        fs::read_dir(&path).unwrap().next().is_none(),
        "the mount ends with its session"
    );
}

//! The daemon's side of the holder process.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};
use parking_lot::Mutex;

use super::Keep;
use crate::view::rights::{receive, send};

/// Name of the socket in the root directory.
const SOCKET: &str = "holder.sock";
/// How long the holder may take to answer. It does nothing but answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time between two attempts to start a holder anew when one has died.
const REVIVE_AFTER: Duration = Duration::from_secs(1);

/// A holder process, started when there is something to hold. One that dies is replaced.
#[derive(Debug)]
pub struct HolderClient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    /// Reaches the socket however long the path of the root is.
    directory: File,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    link: Option<UnixStream>,
    /// The process behind it, if this daemon started it.
    holder: Option<Child>,
    /// The connection that is watched for the holder's end.
    watched: Option<UnixStream>,
    /// Which watch counts; earlier ones end.
    watch: u64,
    /// What is to be kept: a new holder is given all of it.
    wanted: BTreeMap<String, OwnedFd>,
    ended: bool,
}

impl HolderClient {
    /// The holder of the daemon at `root`, an existing directory.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn new(root: &Path) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                root: root.to_owned(),
                directory: File::open(root)?,
                state: Mutex::default(),
            }),
        })
    }
}

impl Drop for HolderClient {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.ended = true;
        if let Some(watched) = &state.watched {
            // Its thread ends with this value.
            let _ = watched.shutdown(Shutdown::Both);
        }
    }
}

impl Keep for HolderClient {
    fn keep(&self, name: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let copy = descriptor.try_clone_to_owned()?;
        state.wanted.insert(name.to_owned(), copy);
        if let Some(link) = &state.link {
            match ask(link, &format!("keep {name}"), Some(descriptor)) {
                Err(error) if is_gone(&error) => {}
                answered => return answered,
            }
        }
        self.shared.link(&mut state)
    }

    fn forget(&self, name: &str) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let forgotten = state.wanted.remove(name);
        match &state.link {
            // One that has died has forgotten as well.
            Some(link) if forgotten.is_some() => ask(link, &format!("forget {name}"), None),
            _ => Ok(()),
        }
    }

    fn kept(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let mut state = self.shared.state.lock();
        let Some(link) = self.shared.connect()? else {
            return Ok(Vec::new());
        };
        send(&link, "list", None)?;
        let mut kept = Vec::new();
        loop {
            match receive(&link)?.ok_or(io::ErrorKind::UnexpectedEof)? {
                (name, Some(descriptor)) => kept.push((name, descriptor)),
                (text, None) => {
                    verdict(&text)?;
                    break;
                }
            }
        }
        for (name, descriptor) in &kept {
            state.wanted.insert(name.clone(), descriptor.try_clone()?);
        }
        self.shared.attach(&mut state, link)?;
        Ok(kept)
    }

    fn end(&self) {
        let mut state = self.shared.state.lock();
        state.ended = true;
        state.wanted.clear();
        if let Some(link) = state.link.take()
            && ask(&link, "quit", None).is_ok()
        {
            // It closes its end when it is gone.
            let _ = receive(&link);
            reap(&mut state);
        }
        let _ = fs::remove_file(self.shared.root.join(SOCKET));
    }
}

impl Shared {
    /// Gives everything wanted to the holder there is, or to a new one.
    fn link(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        let link = match self.connect()? {
            Some(link) => link,
            None => self.start(state)?,
        };
        for (name, descriptor) in &state.wanted {
            ask(&link, &format!("keep {name}"), Some(descriptor.as_fd()))?;
        }
        self.attach(state, link)
    }

    /// Uses `link` from now on, and watches over the process behind it.
    fn attach(self: &Arc<Self>, state: &mut State, link: UnixStream) -> io::Result<()> {
        let watched = self.connect()?.ok_or(io::ErrorKind::NotConnected)?;
        watched.set_read_timeout(None)?;
        let this = Arc::downgrade(self);
        state.watch += 1;
        state.watched = Some(watched.try_clone()?);
        let number = state.watch;
        thread::Builder::new()
            .name("holder-watch".to_owned())
            .spawn(move || watch(&watched, &this, number))?;
        state.link = Some(link);
        Ok(())
    }

    fn address(&self) -> io::Result<UnixAddr> {
        let directory = self.directory.as_raw_fd();
        let path = format!("/proc/self/fd/{directory}/{SOCKET}");
        Ok(UnixAddr::new(path.as_str())?)
    }

    /// A connection to the holder, if one is there.
    fn connect(&self) -> io::Result<Option<UnixStream>> {
        let socket = packet_socket()?;
        match connect(socket.as_raw_fd(), &self.address()?) {
            Ok(()) => {}
            Err(Errno::ENOENT | Errno::ECONNREFUSED) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        let stream = UnixStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Some(stream))
    }

    /// Starts a holder. It gets the listening socket, so that nobody waits for it to listen.
    fn start(&self, state: &mut State) -> io::Result<UnixStream> {
        // A dead holder's; it would be in the way.
        match fs::remove_file(self.root.join(SOCKET)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listening = packet_socket()?;
        bind(listening.as_raw_fd(), &self.address()?)?;
        fs::set_permissions(self.root.join(SOCKET), Permissions::from_mode(0o600))?;
        listen(&listening, Backlog::new(16)?)?;
        // This program, even if its file was replaced by an upgrade.
        let holder = Command::new("/proc/self/exe")
            .arg0("soci-snapshotter-grpc")
            .arg("holder")
            .arg("--root")
            .arg(&self.root)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(listening))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        tracing::debug!(pid = holder.id(), "holder process started");
        state.holder = Some(holder);
        self.connect()?
            .ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
    }
}

/// Waits for the holder's end, and then has another one started.
fn watch(watched: &UnixStream, shared: &Weak<Shared>, number: u64) {
    // Nothing is ever sent here.
    let _ = receive(watched);
    let mut failures = 0;
    while let Some(shared) = shared.upgrade() {
        let mut state = shared.state.lock();
        if state.watch != number || state.ended {
            return;
        }
        reap(&mut state);
        state.link = None;
        if state.wanted.is_empty() {
            return;
        }
        match shared.link(&mut state) {
            Ok(()) => {
                tracing::warn!("the holder process was gone; another one keeps the views");
                return;
            }
            Err(error) if failures == 0 => {
                tracing::error!(%error, "no holder process: containers would not survive a crash");
            }
            Err(_) => {}
        }
        failures += 1;
        drop(state);
        drop(shared);
        thread::sleep(REVIVE_AFTER);
    }
}

/// Takes note of a dead holder, so that it does not stay as a zombie. Its socket closes a moment before
/// it can be waited for.
fn reap(state: &mut State) {
    if let Some(mut holder) = state.holder.take() {
        for _ in 0..50 {
            match holder.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(2)),
                _ => return,
            }
        }
    }
}

fn packet_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        flags,
        None,
    )?)
}

fn ask(link: &UnixStream, request: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    send(link, request, descriptor)?;
    let (answer, _) = receive(link)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    verdict(&answer)
}

fn verdict(answer: &str) -> io::Result<()> {
    match answer {
        "ok" => Ok(()),
        other => Err(io::Error::other(format!("the holder process: {other}"))),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected
    )
}

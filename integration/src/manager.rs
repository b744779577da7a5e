//! What systemd does for a service that has descriptors kept (`FileDescriptorStoreMax=`).
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use anyhow::Result;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use parking_lot::Mutex;

use crate::command::command;
use crate::scratch::Scratch;

/// Longest notification, in bytes.
const LONGEST: usize = 4096;
/// First descriptor that is passed to a service.
const FIRST: usize = 3;

type Store = Arc<Mutex<BTreeMap<String, OwnedFd>>>;

/// A service manager with a store for descriptors.
#[derive(Debug)]
pub struct Manager {
    socket: PathBuf,
    store: Store,
    /// Copies that the service being started inherits.
    passed: Mutex<Vec<OwnedFd>>,
}

impl Manager {
    /// One that listens below `scratch`.
    pub fn start(scratch: &Scratch) -> Result<Self> {
        let path = scratch.path().join("notify.sock");
        let socket = UnixDatagram::bind(&path)?;
        let store = Store::default();
        let kept = Arc::clone(&store);
        // Ends with the process: a service may send until then.
        thread::spawn(move || while note(&socket, &kept).is_some() {});
        Ok(Self {
            socket: path,
            store,
            passed: Mutex::default(),
        })
    }

    /// Names of what is kept.
    pub fn names(&self) -> Vec<String> {
        self.store.lock().keys().cloned().collect()
    }

    /// The service has been started and has what it was passed.
    pub fn started(&self) {
        self.passed.lock().clear();
    }

    /// The command that starts `service` and passes it what is kept.
    pub fn command(&self, service: &Command) -> Result<Command> {
        let store = self.store.lock();
        let mut passed = self.passed.lock();
        passed.clear();
        let mut redirects = String::new();
        for (descriptor, number) in store.values().zip(FIRST..) {
            // High enough not to be overwritten on the way.
            let copy = fcntl(descriptor, FcntlArg::F_DUPFD(200))?;
            // SAFETY: it was made just now, and nothing else knows it.
            passed.push(unsafe { OwnedFd::from_raw_fd(copy) });
            redirects.push_str(&format!(" {number}<&{copy} {copy}<&-"));
        }
        let names: Vec<_> = store.keys().map(String::as_str).collect();
        let passing = match names.len() {
            0 => String::new(),
            count => format!(
                "LISTEN_PID=$$ LISTEN_FDS={count} LISTEN_FDNAMES={} ",
                names.join(":")
            ),
        };
        let script = format!("{passing}exec \"$0\" \"$@\"{redirects}");
        let mut shell = command("bash");
        shell.arg("-c").arg(script).arg(service.get_program());
        shell.args(service.get_args());
        shell
            .env("NOTIFY_SOCKET", &self.socket)
            .env("FDSTORE", "1000");
        Ok(shell)
    }
}

/// Takes one notification; `None` when there will be no more.
fn note(socket: &UnixDatagram, store: &Store) -> Option<()> {
    let mut text = [0; LONGEST];
    let mut room = nix::cmsg_space!([RawFd; 8]);
    let mut parts = [IoSliceMut::new(&mut text)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut room), flags).ok()?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs().ok()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            // SAFETY: the kernel has just made these descriptors, and nothing else knows them.
            let owned = |number| unsafe { OwnedFd::from_raw_fd(number) };
            descriptors.extend(numbers.into_iter().map(owned));
        }
    }
    let length = message.bytes;
    let text = String::from_utf8_lossy(&text[..length]).into_owned();
    let lines: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    let name = lines.get("FDNAME").unwrap_or(&"stored");
    if lines.contains_key("FDSTOREREMOVE") {
        store.lock().remove(*name);
    } else if lines.contains_key("FDSTORE")
        && let Some(descriptor) = descriptors.pop()
    {
        store.lock().insert((*name).to_owned(), descriptor);
    }
    // What came with a barrier is closed here, which is the answer.
    Some(())
}

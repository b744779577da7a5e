//! The holder: a process that keeps descriptors of views and does nothing else.
//!
//! It is started by the daemon where no service manager keeps descriptors, and ends when it keeps
//! nothing and nobody is connected. It reads no file, opens no socket and knows no view: there is nothing
//! in it to fail or to be upgraded.
//!
//! Requests come as packets on a unix socket, each answered with `ok` or with `error` and a text:
//! `keep NAME` with a descriptor, `forget NAME`, `list` (first answered with a packet `NAME` for each
//! descriptor, which it carries), and `quit`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use parking_lot::Mutex;

use super::rights::{receive, send};

/// Longest name, in bytes.
const LONGEST_NAME: usize = 128;
/// Most descriptors kept.
const MOST: usize = 1 << 16;
/// Bytes of stack of a thread that serves a connection.
const STACK: usize = 256 << 10;

#[derive(Debug, Default)]
struct Kept {
    descriptors: Mutex<BTreeMap<String, OwnedFd>>,
    connections: AtomicUsize,
}

/// Serves the listening socket at `listener` (of packets) until nothing is kept and nobody is connected.
/// Ends the process then.
///
/// # Errors
/// Nobody can connect any more.
pub fn serve(listener: OwnedFd) -> io::Result<()> {
    // Whoever ends the daemon's session or process group, or kills by name, does not mean this one.
    let _ = nix::unistd::setsid();
    let _ = nix::sys::prctl::set_name(c"soci-holder");
    raise_descriptor_limit();
    let kept = Arc::<Kept>::default();
    for connection in UnixListener::from(listener).incoming() {
        let (connection, kept) = (connection?, Arc::clone(&kept));
        kept.connections.fetch_add(1, Ordering::SeqCst);
        let work = move || {
            // A connection that fails is over like one that is closed.
            let _ = converse(&connection, &kept);
            let last = kept.connections.fetch_sub(1, Ordering::SeqCst) == 1;
            if last && kept.descriptors.lock().is_empty() {
                std::process::exit(0);
            }
        };
        thread::Builder::new().stack_size(STACK).spawn(work)?;
    }
    Ok(())
}

fn converse(connection: &UnixStream, kept: &Kept) -> io::Result<()> {
    while let Some((request, descriptor)) = receive(connection)? {
        match answer(connection, &request, descriptor, kept) {
            Ok(()) => send(connection, "ok", None)?,
            Err(error) => send(connection, &format!("error {error}"), None)?,
        }
        if request == "quit" {
            std::process::exit(0);
        }
    }
    Ok(())
}

fn answer(
    connection: &UnixStream,
    request: &str,
    descriptor: Option<OwnedFd>,
    kept: &Kept,
) -> io::Result<()> {
    let mut descriptors = kept.descriptors.lock();
    match (request.split_once(' '), descriptor) {
        (Some(("keep", name)), Some(descriptor)) => {
            if name.len() > LONGEST_NAME || descriptors.len() >= MOST {
                return Err(io::Error::other(
                    "the name is too long, or too many are kept",
                ));
            }
            descriptors.insert(name.to_owned(), descriptor);
        }
        (Some(("forget", name)), None) => drop(descriptors.remove(name)),
        (None, None) if request == "list" => {
            for (name, descriptor) in &*descriptors {
                send(connection, name, Some(descriptor.as_fd()))?;
            }
        }
        (None, None) if request == "quit" => {}
        _ => return Err(io::Error::other("no such request")),
    }
    Ok(())
}

/// Lets this process have as many descriptors as it may: views and layers need some each, and the usual
/// limit is 1024.
pub fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // With less, what comes beyond is refused, and that is told.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}

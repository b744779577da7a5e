//! User namespaces, made for their mapping only: nobody lives in them.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use fuse::{IdMap, IdMapping};
use nix::sched::{CloneFlags, unshare};

/// The argument with which our program [is a member](live) of a new user namespace.
pub const ARGUMENT: &str = "user-namespace";

/// A user namespace with a mapping, made when it is needed.
pub(super) struct UserNamespace<'a> {
    program: &'a Path,
    mapping: &'a IdMapping,
    made: Option<File>,
}

impl<'a> UserNamespace<'a> {
    /// One with `mapping`; `program` is this project's daemon.
    pub(super) fn of(program: &'a Path, mapping: &'a IdMapping) -> Self {
        Self {
            program,
            mapping,
            made: None,
        }
    }

    pub(super) fn mapping(&self) -> &'a IdMapping {
        self.mapping
    }

    /// Names it to the kernel. Blocks, the first time, for as long as it takes to start the program.
    ///
    /// # Errors
    /// The program cannot be started, or the kernel does not take the mapping: ranges overlap, or we lack CAP_SETUID or
    /// CAP_SETGID.
    pub(super) fn descriptor(&mut self) -> io::Result<BorrowedFd<'_>> {
        let made = match self.made.take() {
            Some(made) => made,
            None => make(self.program, self.mapping)?,
        };
        let made: &File = self.made.insert(made);
        Ok(made.as_fd())
    }
}

/// By a process of its own, since one that has threads cannot enter a new user namespace, and the daemon must stay where
/// it is.
fn make(program: &Path, mapping: &IdMapping) -> io::Result<File> {
    let mut member = Member::start(program)?;
    let process = format!("/proc/{}", member.0.id());
    member.wait_until_there()?;
    fs::write(format!("{process}/uid_map"), table(&mapping.users))?;
    fs::write(format!("{process}/gid_map"), table(&mapping.groups))?;
    File::open(format!("{process}/ns/user"))
}

/// As the kernel reads it from `/proc/PID/uid_map`.
fn table(map: &IdMap) -> String {
    let lines = map.extents().iter().map(|extent| {
        let (container, host, length) = (extent.container, extent.host, extent.length);
        format!("{container} {host} {length}\n")
    });
    lines.collect()
}

/// The process in the namespace. It ends with this value, or with the daemon, as both end its input.
struct Member(Child);

impl Member {
    fn start(program: &Path) -> io::Result<Self> {
        let member = Command::new(program)
            .arg(ARGUMENT)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        member.map(Self)
    }

    fn wait_until_there(&mut self) -> io::Result<()> {
        let mut there = [0];
        let output = self.0.stdout.as_mut();
        let read = output.map_or(Ok(0), |output| output.read(&mut there))?;
        if read == 0 {
            return Err(io::Error::other("no user namespace could be made"));
        }
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // It ends at the end of its input. What it says of its end does not matter.
        let _ = self.0.wait();
    }
}

/// Enters a new user namespace, says so by a byte on the standard output, and stays until the standard input ends. For a
/// process with one thread.
///
/// # Errors
/// The kernel refuses, or the output is closed.
pub fn live() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER)?;
    let mut output = io::stdout();
    output.write_all(b"\n")?;
    output.flush()?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

//! Threads that run while no other thread wants their CPU, and stop doing so when they are needed.
#![allow(unsafe_code)]

use std::io;

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Pid, gettid};

/// What a thread must be allowed to raise its priority to, to be an ordinary thread again: nice 0, as
/// getrlimit(2) counts it.
const NICE_ZERO: u64 = 20;

/// A thread of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Thread(Pid);

impl Thread {
    /// The one that asks.
    pub(crate) fn current() -> Self {
        Self(gettid())
    }

    /// Runs from now on while no other thread wants the CPU.
    pub(crate) fn yields(self) -> io::Result<()> {
        self.schedule(libc::SCHED_IDLE)
    }

    /// Is an ordinary thread from now on.
    pub(crate) fn competes(self) -> io::Result<()> {
        self.schedule(libc::SCHED_OTHER)
    }

    fn schedule(self, policy: libc::c_int) -> io::Result<()> {
        // SAFETY: all fields are numbers, for which zero is right with both policies.
        let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
        // SAFETY: `parameters` outlives the call, which keeps no pointer; the call changes no memory of ours.
        let set =
            unsafe { libc::sched_setscheduler(self.0.as_raw(), policy, &raw const parameters) };
        if set == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// Whether a thread that yields can be made an ordinary one again, which takes CAP_SYS_NICE or the
/// resource limit that is raised here (CAP_SYS_RESOURCE). What cannot must not yield: somebody may wait for it.
pub(crate) fn is_reversible() -> bool {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NICE)
        && soft < NICE_ZERO
    {
        // Without, the attempt shows whether the capability is there.
        let _ = setrlimit(Resource::RLIMIT_NICE, NICE_ZERO, hard.max(NICE_ZERO));
    }
    let attempt = std::thread::spawn(|| {
        let this = Thread::current();
        this.yields().and_then(|()| this.competes()).is_ok()
    });
    attempt.join().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The scheduling policy of a thread, by procfs (proc_pid_stat(5), field 41).
    fn policy(thread: Thread) -> i32 {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{}/stat", thread.0)).unwrap();
        let (_, rest) = stat.rsplit_once(')').unwrap();
        rest.split_whitespace().nth(38).unwrap().parse().unwrap()
    }

    #[test]
    fn a_thread_yields_and_competes_again_by_another_threads_word() {
        if !is_reversible() {
            return;
        }
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            tell.send(Thread::current()).unwrap();
            let _ = ended.recv();
        });
        let thread = told.recv().unwrap();
        thread.yields().unwrap();
        assert_eq!(policy(thread), libc::SCHED_IDLE);
        thread.competes().unwrap();
        assert_eq!(policy(thread), libc::SCHED_OTHER);
        drop(end);
        other.join().unwrap();
    }
}

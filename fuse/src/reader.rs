//! Who reads, and whether that is still so.
//!
//! A process that is killed in a read may have to wait for the answer (the kernel does not withdraw what it has handed
//! out), and what it asked for goes on being fetched. FUSE_INTERRUPT would tell, but fuser does not pass it on; the
//! kernel names the thread with each request, though, and knows what became of it.

use std::fs;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// SIGKILL in a mask of signals as proc(5) writes it: bit 8.
const KILLED: u64 = 1 << 8;

/// The thread that a request came from, by its id where the view was mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader(u32);

impl Reader {
    /// Nobody in particular, or somebody whom the kernel does not name: never gone.
    pub const UNKNOWN: Self = Self(0);

    /// The thread `id`, as the kernel names it in a request.
    pub fn new(id: u32) -> Self {
        Self(id)
    }

    /// Whether it has ended or is about to end, killed. False if that cannot be found out. An id that has
    /// been given to somebody else since counts as there.
    pub fn is_gone(self) -> bool {
        let Ok(id @ 1..) = i32::try_from(self.0) else {
            return false;
        };
        // Asks for any thread, visible in /proc or not.
        if kill(Pid::from_raw(id), None) == Err(Errno::ESRCH) {
            return true;
        }
        fs::read_to_string(format!("/proc/{id}/status")).is_ok_and(|status| is_killed(&status))
    }
}

/// Whether SIGKILL waits for the thread of that `/proc/<id>/status`, which cannot be ignored; or it is dead
/// already. Each thread of a killed process has the signal of its own.
fn is_killed(status: &str) -> bool {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim())
    };
    let pending = field("SigPnd:").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    let dead = field("State:").is_some_and(|state| state.starts_with(['Z', 'X']));
    dead || pending.is_some_and(|mask| mask & KILLED != 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn who_lives_is_there_and_who_has_ended_is_gone() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let reader = Reader::new(child.id());
        assert!(!reader.is_gone());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(reader.is_gone());
    }

    #[test]
    fn whom_the_kernel_does_not_name_is_never_gone() {
        assert!(!Reader::UNKNOWN.is_gone());
        assert!(!Reader::new(u32::MAX).is_gone());
    }

    #[test]
    fn a_signal_that_cannot_be_ignored_and_a_state_of_death_are_seen() {
        let status = |state: &str, pending: &str| {
            format!("Name:\tcat\nState:\t{state}\nSigPnd:\t{pending}\nShdPnd:\t0000000000000100\n")
        };
        assert!(is_killed(&status("D (disk sleep)", "0000000000000100")));
        assert!(is_killed(&status("Z (zombie)", "0000000000000000")));
        assert!(!is_killed(&status("D (disk sleep)", "0000000000004000")));
        assert!(!is_killed("nothing known"));
    }
}

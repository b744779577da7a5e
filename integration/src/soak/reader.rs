//! Reads files in every way there is and compares them with their originals. A process of its own: a
//! mapping whose page cannot be had ends its process.

mod mapping;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use serde::{Deserialize, Serialize};

use super::next;

/// Largest read, in bytes.
const LARGEST: usize = 1 << 20;
/// Direct reads have such offsets and lengths.
const BLOCK: usize = 4096;
/// Between two reads of one view, so that all of them together leave the daemon some time.
const PAUSE: Duration = Duration::from_millis(3);

/// What was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Reads.
    pub reads: u64,
    /// That failed.
    pub failed: u64,
    /// That gave other bytes than the original has.
    pub wrong: u64,
    /// The longest one, in milliseconds.
    pub slowest_ms: u64,
}

/// A tree of files and the originals they were packed from.
#[derive(Debug, Clone)]
pub struct Pair {
    /// Where the files are read.
    pub read: PathBuf,
    /// Where the originals are.
    pub original: PathBuf,
}

/// Reads all `pairs`, one thread each, until standard input ends. Failures are told on standard error as
/// they come.
///
/// # Errors
/// The originals cannot be read, or a thread panicked.
pub fn read(pairs: Vec<Pair>, seed: u64) -> Result<Tally> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for (pair, number) in pairs.into_iter().zip(1u64..) {
        let data = fs::read(pair.original.join("data"))?;
        let program = fs::read(pair.original.join("bin/busybox"))?;
        let sum = crate::host::sha256_hex(&data);
        let (stop, mut random) = (Arc::clone(&stop), seed.wrapping_mul(number) | 1);
        let work = move || {
            let mut tally = Tally::default();
            while !stop.load(Ordering::Relaxed) {
                let files = [("data", &data[..]), ("bin/busybox", &program[..])];
                let (name, original) = files[usize::from(next(&mut random).is_multiple_of(4))];
                let start = Instant::now();
                let read = one(&pair.read, name, original, &sum, &mut random);
                tally.note(&pair.read.join(name), &read, start.elapsed());
                thread::sleep(PAUSE);
            }
            tally
        };
        threads.push(thread::spawn(work));
    }
    io::stdin().read_to_end(&mut Vec::new())?;
    stop.store(true, Ordering::Relaxed);
    let mut all = Tally::default();
    for thread in threads {
        let tally = thread
            .join()
            .map_err(|_| anyhow::anyhow!("a reader panicked"))?;
        all.reads += tally.reads;
        all.failed += tally.failed;
        all.wrong += tally.wrong;
        all.slowest_ms = all.slowest_ms.max(tally.slowest_ms);
    }
    Ok(all)
}

impl Tally {
    fn note(&mut self, path: &Path, read: &io::Result<bool>, took: Duration) {
        self.reads += 1;
        self.slowest_ms = self
            .slowest_ms
            .max(took.as_millis().try_into().unwrap_or(u64::MAX));
        match read {
            Ok(true) => {}
            Ok(false) => {
                self.wrong += 1;
                eprintln!("wrong bytes: {}", path.display());
            }
            Err(error) => {
                self.failed += 1;
                eprintln!("failed read: {}: {error}", path.display());
            }
        }
    }
}

/// Reads a part of a file in some way; whether the bytes are right.
fn one(root: &Path, name: &str, original: &[u8], sum: &str, random: &mut u64) -> io::Result<bool> {
    let path = root.join(name);
    let mut pick = |below: usize| usize::try_from(next(random) % (below as u64 + 1)).unwrap_or(0);
    let start = pick(original.len() / BLOCK - 1) * BLOCK;
    let length = (1 + pick(LARGEST)).min(original.len() - start);
    let expected = &original[start..start + length];
    let way = pick(15);
    if way == 0 {
        return execute(root, sum);
    }
    if way == 1 {
        return list(root);
    }
    let direct = if way < 5 {
        OFlag::O_DIRECT
    } else {
        OFlag::empty()
    };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(direct.bits())
        .open(&path)?;
    if direct.is_empty() {
        // Else only the first read would reach the daemon.
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    }
    match way {
        2..5 => mapping::read_direct(&file, start as u64, expected),
        5..9 => mapping::compare(&file, start, expected),
        _ => buffered(&file, start as u64, expected),
    }
}

fn buffered(file: &File, start: u64, expected: &[u8]) -> io::Result<bool> {
    let mut bytes = vec![0; expected.len()];
    file.read_exact_at(&mut bytes, start)?;
    Ok(bytes == expected)
}

/// A program of the view reads a file of the view.
fn execute(root: &Path, sum: &str) -> io::Result<bool> {
    let output = Command::new("chroot")
        .arg(root)
        .args(["/bin/busybox", "sha256sum", "/data"])
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(io::Error::other(format!("{}: {text}", output.status)));
    }
    Ok(output.stdout.starts_with(sum.as_bytes()))
}

fn list(root: &Path) -> io::Result<bool> {
    let names: io::Result<Vec<_>> = fs::read_dir(root.join("bin"))?
        .map(|entry| Ok(entry?.file_name()))
        .collect();
    Ok(names?.iter().any(|name| name == "busybox"))
}

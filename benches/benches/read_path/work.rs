//! What is done to a tree, and how long it takes.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use memmap2::MmapMut;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use walkdir::WalkDir;

use crate::map::Map;
use crate::tree::{LARGE, LARGE_SIZE, Tree};

/// Random reads, and pages faulted, over all jobs.
const TIMES: u64 = 1600;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Work {
    /// All of the large file, each job a part of it.
    Sequential,
    /// Reads of so many bytes all over the large file.
    Random(usize),
    /// Single pages of a mapping of the large file.
    Faults,
    /// All bytes of all files, directory by directory.
    Everything,
    /// All names with their attributes.
    Find,
    /// The attributes of the small files in no order.
    Stat,
    /// The beginnings of the small files in no order.
    Open,
}

impl Work {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Sequential => "sequential".to_owned(),
            Self::Random(bytes) => format!("random {} KiB", bytes >> 10),
            Self::Faults => "page faults".to_owned(),
            Self::Everything => "everything".to_owned(),
            Self::Find => "find with stat".to_owned(),
            Self::Stat => "stat at random".to_owned(),
            Self::Open => "open and read 4 KiB".to_owned(),
        }
    }

    /// Does it under `root` and says how long it took.
    pub(crate) fn run(self, root: &Path, tree: &Tree, jobs: u64) -> Result<Duration> {
        let start = Instant::now();
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..jobs)
                .map(|job| scope.spawn(move || self.one(root, tree, job, jobs)))
                .collect();
            for worker in workers {
                worker
                    .join()
                    .unwrap_or_else(|_| anyhow::bail!("a job panicked"))?;
            }
            anyhow::Ok(())
        })?;
        Ok(start.elapsed())
    }

    fn one(self, root: &Path, tree: &Tree, job: u64, jobs: u64) -> Result<()> {
        let mut random = fastrand::Rng::with_seed(job);
        match self {
            Self::Sequential => sequential(&root.join(LARGE), job, jobs),
            Self::Random(bytes) => {
                let file = File::open(root.join(LARGE))?;
                let mut buffer = buffer(bytes)?;
                for _ in 0..TIMES / jobs {
                    let at = random.u64(0..LARGE_SIZE / bytes as u64) * bytes as u64;
                    file.read_exact_at(&mut buffer, at)?;
                }
                Ok(())
            }
            Self::Faults => {
                let map = Map::of(&File::open(root.join(LARGE))?)?;
                let pages = (0..TIMES / jobs).map(|_| random.u64(0..LARGE_SIZE >> 12) << 12);
                std::hint::black_box(pages.map(|at| u64::from(map.byte(at))).sum::<u64>());
                Ok(())
            }
            Self::Everything => {
                for entry in WalkDir::new(root) {
                    let entry = entry?;
                    if entry.file_type().is_file() {
                        std::io::copy(&mut File::open(entry.path())?, &mut std::io::sink())?;
                    }
                }
                Ok(())
            }
            Self::Find => {
                let mut bytes = 0;
                for entry in WalkDir::new(root) {
                    bytes += entry?.metadata()?.len();
                }
                anyhow::ensure!(bytes > LARGE_SIZE, "files are missing");
                Ok(())
            }
            Self::Stat => small(tree, &mut random, |path| {
                fs::symlink_metadata(root.join(path))?;
                Ok(())
            }),
            Self::Open => small(tree, &mut random, |path| {
                let mut buffer = [0; 4096];
                let _ = File::open(root.join(path))?.read(&mut buffer)?;
                Ok(())
            }),
        }
    }
}

fn sequential(large: &Path, job: u64, jobs: u64) -> Result<()> {
    let file = File::open(large)?;
    let mut buffer = buffer(1 << 20)?;
    let part = (LARGE_SIZE >> 20) / jobs;
    for block in job * part..(job + 1) * part {
        file.read_exact_at(&mut buffer, block << 20)?;
    }
    Ok(())
}

/// Memory to read into, from the beginning of a page on. AMD's Zen 3 copies four times slower to 8 or 16 bytes behind it,
/// where malloc(3) puts large buffers, and the copy to the reader would be most of what is measured, on both sides.
fn buffer(bytes: usize) -> Result<MmapMut> {
    Ok(MmapMut::map_anon(bytes)?)
}

fn small(
    tree: &Tree,
    random: &mut fastrand::Rng,
    with: impl Fn(&Path) -> Result<()>,
) -> Result<()> {
    let mut files: Vec<_> = tree.small.iter().collect();
    random.shuffle(&mut files);
    files.into_iter().try_for_each(|path| with(path))
}

/// Takes a file's pages out of the page cache.
pub(crate) fn forget_data(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    Ok(())
}

/// Has the kernel forget the names and attributes that it need not remember.
pub(crate) fn forget_names() -> Result<()> {
    Ok(fs::write("/proc/sys/vm/drop_caches", "2")?)
}

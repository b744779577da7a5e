//! The files that are read.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// The one large file.
pub(crate) const LARGE: &str = "large";
/// Its size in bytes.
pub(crate) const LARGE_SIZE: u64 = 128 << 20;
/// Directories of small files, and files in each.
const DIRECTORIES: u64 = 300;
const FILES: u64 = 40;

/// A tree on the disk.
pub(crate) struct Tree {
    pub(crate) root: PathBuf,
    /// The small files, relative to the root.
    pub(crate) small: Vec<PathBuf>,
    small_bytes: u64,
}

impl Tree {
    pub(crate) fn make(root: &Path) -> Result<Self> {
        let mut random = fastrand::Rng::with_seed(1);
        let mut small = Vec::new();
        let mut small_bytes = 0;
        for directory in 0..DIRECTORIES {
            let directory = PathBuf::from(format!("d{:02}/e{directory:03}", directory % 20));
            fs::create_dir_all(root.join(&directory))?;
            for file in 0..FILES {
                let path = directory.join(format!("file-{file:02}.txt"));
                let bytes = words(random.usize(500..12_000), &mut random);
                small_bytes += bytes.len() as u64;
                fs::write(root.join(&path), bytes)?;
                small.push(path);
            }
        }
        let mut large = fs::File::create(root.join(LARGE))?;
        for _ in 0..LARGE_SIZE >> 20 {
            large.write_all(&words(1 << 20, &mut random))?;
        }
        large.sync_all()?;
        Ok(Self {
            root: root.to_owned(),
            small,
            small_bytes,
        })
    }

    /// The part of all bytes that the large file has.
    pub(crate) fn large_share(&self) -> f64 {
        let bytes = |number: u64| std::time::Duration::from_nanos(number).as_secs_f64();
        bytes(LARGE_SIZE) / bytes(LARGE_SIZE + self.small_bytes)
    }
}

/// Bytes that compress to about a third, as layers do.
fn words(len: usize, random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 16);
    while bytes.len() < len {
        let word = random.u32(0..4000);
        bytes.extend_from_slice(format!("{:x} ", word * word).as_bytes());
    }
    bytes.truncate(len);
    bytes
}

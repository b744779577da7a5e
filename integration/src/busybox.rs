//! The smallest layer in which something can run.

use std::fs;

use anyhow::{Context, Result};
use tar::{Builder, EntryType, Header};

/// An uncompressed tar of this machine's static busybox, a few of its commands as links to it, and
/// the directories that runc mounts things on.
pub fn layer() -> Result<Vec<u8>> {
    let program = fs::read("/bin/busybox").context("busybox-static is not installed")?;
    let mut tar = Builder::new(Vec::new());
    for dir in ["bin/", "dev/", "etc/", "proc/", "sys/", "tmp/"] {
        tar.append_data(&mut header(EntryType::Directory, 0o755, 0), dir, &[][..])?;
    }
    let size = program.len() as u64;
    tar.append_data(
        &mut header(EntryType::Regular, 0o755, size),
        "bin/busybox",
        &program[..],
    )?;
    for command in [
        "cat",
        "echo",
        "ls",
        "md5sum",
        "mkdir",
        "rm",
        "sh",
        "sha256sum",
        "sleep",
        "stat",
    ] {
        let mut link = header(EntryType::Symlink, 0o777, 0);
        tar.append_link(&mut link, format!("bin/{command}"), "busybox")?;
    }
    Ok(tar.into_inner()?)
}

/// A tar with one file, for the layers above.
pub fn file_layer(path: &str, content: &[u8]) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    let mut header = header(EntryType::Regular, 0o644, content.len() as u64);
    tar.append_data(&mut header, path, content)?;
    Ok(tar.into_inner()?)
}

/// Bytes that no compressor makes smaller, the same every time.
pub fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..size.div_ceil(8))
        .flat_map(|_| next())
        .take(size)
        .collect()
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    const MTIME: u64 = 1_700_000_000;
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(MTIME);
    header.set_uid(0);
    header.set_gid(0);
    header
}

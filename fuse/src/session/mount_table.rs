//! /proc/self/mountinfo, as proc_pid_mountinfo(5) has it.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A line of the table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount<'t> {
    /// As stat(2) gives it.
    pub(super) device_number: u64,
    /// The file system type.
    pub(super) kind: &'t [u8],
}

/// The mount that is seen at `path`: of several, the last in the table.
pub(super) fn topmost<'t>(table: &'t [u8], path: &Path) -> Option<Mount<'t>> {
    let path = escape(path);
    let lines = table.rsplit(|&byte| byte == b'\n');
    lines.filter_map(|line| parse(line, &path)).next()
}

fn parse<'t>(line: &'t [u8], path: &[u8]) -> Option<Mount<'t>> {
    let mut fields = line.split(|&byte| byte == b' ');
    let numbers = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = numbers.split_once(':')?;
    if fields.nth(1)? != path {
        return None;
    }
    // Optional fields end with a dash.
    fields.find(|field| *field == b"-")?;
    Some(Mount {
        device_number: nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?),
        kind: fields.next()?,
    })
}

/// The table's spelling of a path.
fn escape(path: &Path) -> Vec<u8> {
    let mut escaped = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b' ' => escaped.extend(b"\\040"),
            b'\t' => escaped.extend(b"\\011"),
            b'\n' => escaped.extend(b"\\012"),
            b'\\' => escaped.extend(b"\\134"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
        40 22 0:39 / /a\\040b rw shared:1 master:2 - fuse.one soci ro,user_id=0\n\
        41 22 0:40 / /a\\040b rw - tmpfs tmpfs rw\n\
        garbage\n";

    #[test]
    fn the_last_mount_at_a_path_is_the_one_that_is_seen() {
        let mount = topmost(TABLE, Path::new("/a b"));
        let expected = Mount {
            device_number: 40,
            kind: b"tmpfs",
        };
        assert_eq!(mount, Some(expected));
        assert_eq!(topmost(TABLE, Path::new("/a")), None);
        let root = topmost(TABLE, Path::new("/"));
        assert_eq!(root.map(|mount| mount.kind), Some(&b"ext4"[..]));
    }

    #[test]
    fn optional_fields_are_skipped() {
        let table = b"40 22 0:39 / /view rw shared:1 master:2 - fuse.one soci ro";
        let mount = topmost(table, Path::new("/view"));
        assert_eq!(mount.map(|mount| mount.kind), Some(&b"fuse.one"[..]));
    }
}

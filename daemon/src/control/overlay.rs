//! Overlay mounts, as /proc/self/mountinfo has them: who uses a view.

use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use crate::snapshot::mapped;

/// A mounted overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Where.
    pub mountpoint: PathBuf,
    /// Nearest first.
    pub lower: Vec<PathBuf>,
    /// `None` if it is read-only.
    pub upper: Option<PathBuf>,
}

impl Overlay {
    /// All overlays of this process's mount namespace. Blocks on /proc.
    pub fn all() -> Vec<Self> {
        Self::parse(&std::fs::read("/proc/self/mountinfo").unwrap_or_default())
    }

    /// The overlays in the text of a mountinfo file.
    pub fn parse(table: &[u8]) -> Vec<Self> {
        table
            .split(|&byte| byte == b'\n')
            .filter_map(line)
            .collect()
    }

    /// Namespace and id of the container whose root it is, by where containerd's shim mounts it.
    pub fn container(&self) -> Option<(&str, &str)> {
        let names: Vec<&str> = self.mountpoint.to_str()?.split('/').collect();
        match names[..] {
            [.., runtime, namespace, id, "rootfs"]
                if runtime.starts_with("io.containerd.runtime") =>
            {
                Some((namespace, id))
            }
            _ => None,
        }
    }

    /// Whether `path` is one of its lowerdirs, or shown by one with mapped ids.
    pub fn shows(&self, path: &Path) -> bool {
        let mut lower = self.lower.iter();
        lower.any(|lower| lower == path || mapped::shows(lower, path))
    }
}

fn line(line: &[u8]) -> Option<Overlay> {
    let mut fields = line.split(|&byte| byte == b' ');
    let mountpoint = path(&unescape(fields.nth(4)?));
    // Optional fields end with a lone dash.
    fields.find(|field| *field == b"-")?;
    let (kind, _source, options) = (fields.next()?, fields.next()?, fields.next()?);
    if kind != b"overlay" {
        return None;
    }
    let mut overlay = Overlay {
        mountpoint,
        lower: Vec::new(),
        upper: None,
    };
    for option in options.split(|&byte| byte == b',') {
        let Some(equals) = option.iter().position(|&byte| byte == b'=') else {
            continue;
        };
        let value = unescape(&option[equals + 1..]);
        match &option[..equals] {
            b"lowerdir" | b"lowerdir+" => {
                let lower = value.split(|&byte| byte == b':');
                overlay
                    .lower
                    .extend(lower.filter(|it| !it.is_empty()).map(path));
            }
            b"upperdir" => overlay.upper = Some(path(&value)),
            _ => {}
        }
    }
    Some(overlay)
}

fn path(bytes: &[u8]) -> PathBuf {
    std::ffi::OsString::from_vec(bytes.to_vec()).into()
}

/// Blanks and the like are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|_| byte == b'\\');
        let octal = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let code = octal.and_then(|octal| u8::from_str_radix(octal, 8).ok());
        out.push(code.unwrap_or(byte));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn overlays_are_found_with_their_parts_and_their_container() {
        let table = b"29 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            40 29 0:50 / /run/containerd/io.containerd.runtime.v2.task/k8s.io/abc/rootfs rw,relatime \
            shared:9 master:2 - overlay overlay rw,lowerdir=/v/1:/s/2/fs,upperdir=/s/3/fs,workdir=/s/3/work\n\
            41 29 0:51 / /mnt/a\\040b ro - overlay overlay ro,lowerdir+=/x\\0401,lowerdir+=/y\n\
            broken line\n";
        let found = Overlay::parse(table);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].container(), Some(("k8s.io", "abc")));
        assert_eq!(found[0].upper, Some("/s/3/fs".into()));
        assert!(found[0].shows(Path::new("/s/2/fs")) && !found[0].shows(Path::new("/s/2")));
        assert_eq!(found[1].mountpoint, Path::new("/mnt/a b"));
        assert_eq!(found[1].lower, [Path::new("/x 1"), Path::new("/y")]);
        assert_eq!((found[1].container(), &found[1].upper), (None, &None));
    }
}

//! Layers made for a test: a tar in memory, its table of contents, its bytes.

use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use fuse::content::{LayerContent, ReadReply};
use fuse::{Layer, LayerTree};
use tar::{EntryType, Header};
use ztoc::builder::{self, BuildOptions};
use ztoc::{Compression, SpanSize, Toc, UncompressedOffset, Ztoc};

/// The bytes of a tar in memory.
pub(crate) struct TarContent(pub(crate) Arc<Vec<u8>>);

impl LayerContent for TarContent {
    fn read(&self, range: Range<UncompressedOffset>, reply: ReadReply) {
        let start = usize::try_from(range.start.0).unwrap();
        let end = usize::try_from(range.end.0).unwrap();
        match self.0.get(start..end) {
            Some(bytes) => reply.data(bytes),
            None => drop(reply),
        }
    }
}

/// What a tar header says, with the defaults of a plain root-owned file.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: EntryType,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: u64,
    pub(crate) link: Vec<u8>,
    pub(crate) device: (u32, u32),
    pub(crate) data: Vec<u8>,
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

impl Member {
    pub(crate) fn new(name: impl AsRef<[u8]>, kind: EntryType, mode: u32) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: 1_600_000_000,
            link: Vec::new(),
            device: (0, 0),
            data: Vec::new(),
            xattrs: Vec::new(),
        }
    }

    pub(crate) fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        let mut member = Self::new(name, EntryType::Regular, 0o644);
        member.data = data.as_ref().to_vec();
        member
    }

    pub(crate) fn directory(name: impl AsRef<[u8]>) -> Self {
        Self::new(name, EntryType::Directory, 0o755)
    }

    pub(crate) fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        let mut member = Self::new(name, EntryType::Symlink, 0o777);
        member.link = target.as_ref().to_vec();
        member
    }

    pub(crate) fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        let mut member = Self::new(name, EntryType::Link, 0o644);
        member.link = target.as_ref().to_vec();
        member
    }

    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub(crate) fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub(crate) fn mtime(mut self, mtime: u64) -> Self {
        self.mtime = mtime;
        self
    }

    pub(crate) fn device(mut self, major: u32, minor: u32) -> Self {
        self.device = (major, minor);
        self
    }

    pub(crate) fn xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.xattrs.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }
}

/// A tar of `members`.
pub(crate) fn archive(members: &[Member]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for member in members {
        let records: Vec<_> = member
            .xattrs
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.clone()))
            .collect();
        let mut records: Vec<(&str, &[u8])> = records
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()))
            .collect();
        let long_name = member.name.len() > 100;
        if long_name {
            records.push(("path", &member.name));
        }
        if member.link.len() > 100 {
            records.push(("linkpath", &member.link));
        }
        builder.append_pax_extensions(records).unwrap();
        let mut header = Header::new_ustar();
        header.set_entry_type(member.kind);
        header.set_mode(member.mode);
        header.set_uid(member.uid);
        header.set_gid(member.gid);
        header.set_mtime(member.mtime);
        header.set_size(member.data.len() as u64);
        if matches!(member.kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(member.device.0).unwrap();
            header.set_device_minor(member.device.1).unwrap();
        }
        let raw = header.as_old_mut();
        let short = &member.name[..member.name.len().min(100)];
        raw.name[..short.len()].copy_from_slice(short);
        let link = &member.link[..member.link.len().min(100)];
        raw.linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        builder.append(&header, member.data.as_slice()).unwrap();
    }
    builder.into_inner().unwrap()
}

/// The table of contents of a tar, built and decoded as for any layer.
pub(crate) fn toc(archive: &[u8]) -> Toc {
    let options = BuildOptions {
        span_size: SpanSize::DEFAULT,
        build_tool: "tests".to_owned(),
    };
    let built = builder::build(Compression::Uncompressed, archive, &options).unwrap();
    let ztoc = Ztoc::decode(&built.ztoc.encode()).unwrap();
    ztoc.into_parts().0
}

/// The layer that `archive` is.
pub(crate) fn layer(archive: &[u8]) -> Layer {
    Layer {
        tree: Arc::new(LayerTree::new(&toc(archive))),
        content: Arc::new(TarContent(Arc::new(archive.to_vec()))),
    }
}

/// Unpacks `archive` into `directory` with GNU tar.
pub(crate) fn extract(archive: &[u8], directory: &Path) {
    let mut tar = Command::new("tar")
        .args([
            "--extract",
            "--preserve-permissions",
            "--same-owner",
            "--numeric-owner",
        ])
        .args(["--xattrs", "--xattrs-include=*", "--file=-", "--directory"])
        .arg(directory)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = tar.stdin.take().unwrap();
    std::io::Write::write_all(&mut pipe, archive).unwrap();
    drop(pipe);
    assert!(tar.wait().unwrap().success());
}

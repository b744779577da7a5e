//! Views that show mapped ids by themselves, beside mounts with ids that the kernel maps, as root: for the node and for a
//! process in a user namespace both are the same. Needs Linux 6.12.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File, Permissions};
use std::io::{Read as _, Write as _};
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use daemon::snapshot::labels::{GID_MAPPING, UID_MAPPING};
use daemon::snapshot::mapped::{ARGUMENT, Mapped, MappedBy};
use daemon::snapshot::mapping;
use daemon::snapshot::record::SnapshotId;
use fuse::content::{LayerContent, ReadReply};
use fuse::{IdMapping, Layer, LayerTree, MountOptions, Session, View};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;
use ztoc::builder::{BuildOptions, build};
use ztoc::{Compression, SpanSize, UncompressedOffset};

const DAEMON: &str = env!("CARGO_BIN_EXE_soci-snapshotter-grpc");
const ID: SnapshotId = SnapshotId(7);
/// Tells this program that it is to look around as a process of a container.
const LOOK_AT: &str = "SPANSHOT_TEST_LOOK_AT";
/// The mapping: of users two ranges, and none of an id above 65535.
const USERS: &str = "0:300000:1,1:100001:65535";
const GROUPS: &str = "0:200000:65536";

/// Capabilities of version 2, or of version 3 with a root user: effective, CAP_DAC_READ_SEARCH permitted.
fn capability(root: Option<u32>) -> Vec<u8> {
    let version = if root.is_some() { 3u8 } else { 2 };
    let mut value = vec![1, 0, 0, version, 4];
    value.resize(20, 0);
    value.extend(root.map(u32::to_le_bytes).into_iter().flatten());
    value
}

/// An access control list with an entry of `user` and one of `group`.
fn acl(user: u32, group: u32) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1u16, 7u16, u32::MAX),
        (2, 5, user),
        (4, 5, u32::MAX),
        (8, 4, group),
        (16, 5, u32::MAX),
        (32, 0, u32::MAX),
    ] {
        value.extend(tag.to_le_bytes());
        value.extend(permissions.to_le_bytes());
        value.extend(id.to_le_bytes());
    }
    value
}

/// A tar in the making.
struct Archive(Builder<Vec<u8>>);

impl Archive {
    fn add(&mut self, path: &str, kind: EntryType, mode: u32, owner: (u64, u64), data: &[u8]) {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(1_700_000_000);
        header.set_size(data.len() as u64);
        if kind == EntryType::Char {
            header.set_device_major(1).unwrap();
            header.set_device_minor(5).unwrap();
        }
        if kind == EntryType::Symlink {
            header.set_link_name("owned").unwrap();
        }
        self.0.append_data(&mut header, path, data).unwrap();
    }

    fn file(&mut self, path: &str, mode: u32, owner: (u64, u64), data: &[u8]) {
        self.add(path, EntryType::Regular, mode, owner, data);
    }

    /// A file with an extended attribute.
    fn with(&mut self, path: &str, name: &str, value: &[u8], data: &[u8]) {
        let name = format!("SCHILY.xattr.{name}");
        self.0
            .append_pax_extensions([(name.as_str(), value)])
            .unwrap();
        self.file(path, 0o755, (0, 0), data);
    }
}

fn program(name: &str) -> Vec<u8> {
    fs::read(format!("/usr/bin/{name}")).unwrap()
}

/// Files of all kinds and many owners, some of them beyond the mapping.
fn image() -> Vec<u8> {
    let mut tar = Archive(Builder::new(Vec::new()));
    let owners = [
        ("root", (0, 0)),
        ("owned", (1000, 2000)),
        ("last", (65_535, 65_535)),
        ("beyond", (65_536, 70_000)),
        ("group-beyond", (33, 70_000)),
        ("overflow", (65_534, 65_534)),
        ("large", (2_000_000, 100_001)),
    ];
    for (name, owner) in owners {
        tar.file(name, 0o640, owner, name.as_bytes());
        tar.add(
            &format!("of-{name}/"),
            EntryType::Directory,
            0o751,
            owner,
            b"",
        );
        tar.file(&format!("of-{name}/inside"), 0o644, owner, b"");
    }
    tar.add("link", EntryType::Symlink, 0o777, (1000, 70_000), b"");
    tar.add("zero", EntryType::Char, 0o666, (5, 6), b"");
    tar.add("pipe", EntryType::Fifo, 0o622, (5, 6), b"");
    tar.file("implied/directory/file", 0o644, (1, 1), b"");
    tar.file("setuid", 0o4755, (0, 0), &program("id"));
    tar.file("setuid-33", 0o4755, (33, 33), &program("id"));
    tar.file("setuid-beyond", 0o4755, (70_000, 0), &program("id"));
    tar.file("secret", 0o600, (0, 0), b"secret");
    let cat = program("cat");
    for (name, root) in [
        ("capable", None),
        ("capable-root", Some(0)),
        ("capable-33", Some(33)),
        ("capable-beyond", Some(70_000)),
    ] {
        tar.with(name, "security.capability", &capability(root), &cat);
    }
    tar.with("access", "system.posix_acl_access", &acl(1000, 2000), b"");
    tar.with(
        "access-beyond",
        "system.posix_acl_access",
        &acl(70_000, 80_000),
        b"",
    );
    tar.with("user", "user.name", &acl(1000, 2000), b"");
    let value = acl(0, 0);
    let records = [("SCHILY.xattr.system.posix_acl_default", &*value)];
    tar.0.append_pax_extensions(records).unwrap();
    tar.add("defaults/", EntryType::Directory, 0o755, (0, 0), b"");
    tar.0.into_inner().unwrap()
}

/// The bytes of a tar in memory.
struct TarContent(Vec<u8>);

impl LayerContent for TarContent {
    fn read(&self, range: Range<UncompressedOffset>, reply: ReadReply) {
        let at = |offset: UncompressedOffset| usize::try_from(offset.0).unwrap();
        reply.data(&self.0[at(range.start)..at(range.end)]);
    }
}

fn layer(tar: &[u8]) -> Layer {
    let options = BuildOptions {
        span_size: SpanSize::DEFAULT,
        build_tool: String::new(),
    };
    let built = build(Compression::Uncompressed, tar, &options).unwrap();
    Layer {
        tree: Arc::new(LayerTree::new(&built.ztoc.into_parts().0)),
        content: Arc::new(TarContent(tar.to_vec())),
    }
}

fn ids() -> IdMapping {
    let labels = [(UID_MAPPING, USERS), (GID_MAPPING, GROUPS)];
    let labels = labels.map(|(label, value)| (label.to_owned(), value.to_owned()));
    mapping::of(&labels.into()).unwrap().unwrap()
}

/// The image mounted in both ways.
struct Ground {
    mapped: Mapped,
    /// What the kernel shows, and what the view shows by itself.
    shown: [PathBuf; 2],
    _sessions: [Session; 2],
    _root: TempDir,
}

impl Ground {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let tar = image();
        let mount = |number: u32, ids: Option<IdMapping>| {
            let path = root.path().join(format!("views/{number}"));
            fs::create_dir_all(&path).unwrap();
            let view = View::new(vec![layer(&tar)], false).with_ids(ids);
            let session = fuse::mount(view, &path, &MountOptions::new(root.path())).unwrap();
            (path, session)
        };
        let ((plain, first), (shifted, second)) = (mount(3, None), mount(4, Some(ids())));
        let layers = root.path().join("snapshotter/snapshots");
        let mapped = Mapped::new(root.path(), &layers).made_by(DAEMON.into());
        let by_kernel = mapped.put(ID, &ids(), &[plain]).unwrap().remove(0);
        // Containers come here by their overlay; this test's processes have to walk.
        let everybody = Permissions::from_mode(0o755);
        for directory in by_kernel.ancestors().skip(1).take(4) {
            fs::set_permissions(directory, everybody.clone()).unwrap();
        }
        Self {
            mapped,
            shown: [by_kernel, shifted],
            _sessions: [first, second],
            _root: root,
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.mapped.clear();
    }
}

/// All that can be seen of the files below `root`.
fn look(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut seen = BTreeMap::new();
    let mut pending = vec![PathBuf::from(".")];
    while let Some(path) = pending.pop() {
        let full = root.join(&path);
        let file = fs::symlink_metadata(&full).unwrap();
        if file.is_dir() {
            let names = fs::read_dir(&full).into_iter().flatten();
            pending.extend(names.map(|entry| path.join(entry.unwrap().file_name())));
        }
        let kind = file.file_type();
        let device = kind.is_char_device().then(|| file.rdev());
        let target = fs::read_link(&full).ok();
        let names = xattr::list(&full).unwrap();
        let attributes = names.map(|name| {
            let value = xattr::get(&full, &name).map_err(|error| error.raw_os_error());
            format!("{name:?}: {value:?}")
        });
        let attributes: Vec<_> = attributes.collect();
        let text = format!(
            "{:o} {}:{} {} {} {device:?} {target:?} {attributes:?}",
            file.mode(),
            file.uid(),
            file.gid(),
            file.size(),
            file.nlink(),
        );
        seen.insert(path, text);
    }
    seen
}

/// A user namespace with the mapping, as long as this is there.
struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        let mut member = Command::new(DAEMON)
            .arg(ARGUMENT)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut there = [0];
        let output = member.stdout.as_mut().unwrap();
        output.read_exact(&mut there).unwrap();
        for (file, map) in [("uid_map", USERS), ("gid_map", GROUPS)] {
            let table = map.replace(',', "\n").replace(':', " ");
            fs::write(format!("/proc/{}/{file}", member.id()), table).unwrap();
        }
        Self(member)
    }

    /// `program` as the container's `user`.
    fn command(&self, user: u32, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--user=/proc/{}/ns/user", self.0.id()));
        command.arg(format!("--setuid={user}"));
        command.arg(format!("--setgid={user}"));
        command.arg("--").arg(program);
        command
    }

    /// What it prints, or `None` if it fails.
    fn run(&self, user: u32, program: &Path, argument: &Path) -> Option<String> {
        let mut command = self.command(user, program);
        let output = command.arg(argument).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        output.status.success().then(|| text.trim().to_owned())
    }

    /// What this program sees there as root.
    fn look(&self, root: &Path) -> Vec<String> {
        // By its descriptor: its path may be closed to others.
        let mut command = self.command(0, Path::new("/proc/self/fd/0"));
        command.args(["--exact", "a_process_of_a_container_looks", "--nocapture"]);
        command.stdin(File::open(env::current_exe().unwrap()).unwrap());
        let output = command.env(LOOK_AT, root).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let seen = text.lines().filter_map(|line| line.strip_prefix("seen "));
        seen.map(str::to_owned).collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Not a test by itself: what [`Namespace::look`] starts.
#[test]
fn a_process_of_a_container_looks() {
    let Some(root) = env::var_os(LOOK_AT) else {
        return;
    };
    let mut output = std::io::stdout().lock();
    writeln!(output).unwrap();
    for (path, text) in look(Path::new(&root)) {
        writeln!(output, "seen {} {text}", path.display()).unwrap();
    }
}

#[test]
fn a_view_shows_the_node_what_the_kernel_would_map() {
    let ground = Ground::new();
    let [mut by_kernel, mut by_view] = ground.shown.each_ref().map(|root| look(root));
    // An access control list cannot name an id that is none: the view names one that the container does not have.
    let [by_kernel_beyond, by_view_beyond] = [&mut by_kernel, &mut by_view]
        .map(|seen| seen.remove(Path::new("./access-beyond")).unwrap());
    let value = |user, group| format!("{:?}", acl(user, group));
    assert!(
        by_kernel_beyond.contains(&value(u32::MAX, u32::MAX)),
        "{by_kernel_beyond}"
    );
    assert!(
        by_view_beyond.contains(&value(65_534, 65_534)),
        "{by_view_beyond}"
    );
    assert!(by_view.len() > 30, "{by_view:?}");
    assert_eq!(by_view, by_kernel);
    let owner = |path: &str| by_view[Path::new(path)].split(' ').nth(1).unwrap();
    assert_eq!(owner("."), "300000:200000");
    assert_eq!(owner("./owned"), "101000:202000");
    assert_eq!(owner("./beyond"), "65534:65534");
    assert_eq!(owner("./group-beyond"), "100033:65534");
    assert_eq!(owner("./implied/directory"), "300000:200000");
    let seen = |path: &str, value: &[u8]| by_view[Path::new(path)].contains(&format!("{value:?}"));
    assert!(seen("./capable", &capability(Some(300_000))));
    assert!(seen("./capable-33", &capability(Some(100_033))));
    assert!(seen("./access", &acl(101_000, 202_000)));
    assert!(seen("./defaults", &acl(300_000, 200_000)));
    assert!(seen("./user", &acl(1000, 2000)));
}

#[test]
fn a_view_shows_a_container_what_the_kernel_would_map() {
    let (ground, namespace) = (Ground::new(), Namespace::new());
    let [by_kernel, by_view] = ground.shown.each_ref().map(|root| namespace.look(root));
    assert!(by_view.len() > 30, "{by_view:?}");
    assert_eq!(by_view, by_kernel);
    let line = |path: &str| {
        let path = format!("./{path} ");
        by_view.iter().find(|line| line.starts_with(&path)).unwrap()
    };
    assert!(line("root").contains(" 0:0 "));
    assert!(line("owned").contains(" 1000:2000 "));
    assert!(line("beyond").contains(" 65534:65534 "));
    let seen = |path: &str, value: &[u8]| line(path).contains(&format!("{value:?}"));
    assert!(seen("capable", &capability(None)));
    assert!(seen("access", &acl(1000, 2000)));
    assert!(seen("access-beyond", &acl(u32::MAX, u32::MAX)));
}

#[test]
fn setuid_programs_capabilities_and_permissions_hold_as_with_ids_that_the_kernel_maps() {
    let (ground, namespace) = (Ground::new(), Namespace::new());
    let flag = Path::new("-u");
    for root in &ground.shown {
        let run = |name: &str, argument: &Path| namespace.run(1000, &root.join(name), argument);
        assert_eq!(run("setuid", flag).as_deref(), Some("0"), "{root:?}");
        assert_eq!(run("setuid-33", flag).as_deref(), Some("33"), "{root:?}");
        assert_eq!(
            run("setuid-beyond", flag).as_deref(),
            Some("1000"),
            "{root:?}"
        );
        let secret = root.join("secret");
        for (name, may) in [
            ("capable", true),
            ("capable-root", true),
            ("capable-33", false),
            ("capable-beyond", false),
        ] {
            let read = run(name, &secret);
            assert_eq!(read.is_some(), may, "{name} in {root:?}");
        }
        let cat = |user, file: &str| namespace.run(user, Path::new("/bin/cat"), &root.join(file));
        for (user, file, may) in [
            (0, "owned", true),
            (0, "secret", true),
            (0, "beyond", false),
            (1000, "owned", true),
            (33, "owned", false),
            (1000, "secret", false),
            // Its permissions say so, and nobody but its unknown owner is kept out.
            (0, "of-beyond/inside", true),
        ] {
            assert_eq!(
                cat(user, file).is_some(),
                may,
                "{file} by {user} in {root:?}"
            );
        }
    }
}

#[test]
fn only_what_does_not_show_mapped_ids_by_itself_is_mounted_with_mapped_ids() {
    let root = tempfile::tempdir().unwrap();
    let layers = root.path().join("snapshotter/snapshots");
    let lowers = [root.path().join("views/3"), layers.join("1/fs")];
    for lower in &lowers {
        fs::create_dir_all(lower).unwrap();
    }
    let mapped = Mapped::new(root.path(), &layers).made_by(DAEMON.into());
    let ids = ids();
    assert_eq!(mapped.of_views(Some(&ids)), None);
    let mapped = mapped.with_views(MappedBy::Views);
    assert_eq!(mapped.of_views(Some(&ids)), Some(&ids));
    assert_eq!(mapped.of_views(None), None);
    let shown = mapped.put(ID, &ids, &lowers).unwrap();
    assert_eq!(shown[0], lowers[0]);
    assert_eq!(fs::metadata(&shown[1]).unwrap().uid(), 300_000);
    assert!(!mapped.has(ID, &lowers[0]));
    mapped.remove(ID);
    let mapped = mapped.with_views(MappedBy::Kernel);
    mapped.put(ID, &ids, &lowers).unwrap();
    assert!(mapped.has(ID, &lowers[0]) && !mapped.has(SnapshotId(8), &lowers[0]));
    mapped.clear();
}

//! Large files that the kernel reads by itself.

use std::fs::{self, File};
use std::io::Read as _;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuse::content::{LayerContent, ReadReply};
use fuse::{Layer, LayerTree, MountOptions, Operation, Passthrough, Session, View};
use tempfile::TempDir;
use ztoc::UncompressedOffset;

use crate::adoption::{Served, orders, serve};
use crate::layer::{Member, TarContent, archive, toc};
use crate::mounts::{MountedView, Overlay};

const LARGE: usize = 3 << 20;

fn data(seed: u32) -> Vec<u8> {
    (0..LARGE as u32)
        .map(|at| ((at >> 8) ^ at ^ seed) as u8)
        .collect()
}

fn tar() -> Vec<u8> {
    archive(&[
        Member::file("small", "small"),
        Member::file("large", data(1)),
        Member::file("other", data(2)),
    ])
}

/// A tar in memory whose files can be had as files of their own in a directory.
struct Filed {
    tar: TarContent,
    directory: PathBuf,
}

impl LayerContent for Filed {
    fn read(&self, range: Range<UncompressedOffset>, reply: ReadReply) {
        self.tar.read(range, reply);
    }

    fn own_file(&self, file: Range<UncompressedOffset>) -> Option<Arc<File>> {
        let own = File::open(self.directory.join(file.start.to_string())).ok()?;
        assert_eq!(
            own.metadata().unwrap().len(),
            file.end.0 - file.start.0,
            "the whole file is asked for"
        );
        Some(Arc::new(own))
    }
}

/// The layer, its own files in `directory`.
fn filed(directory: &Path) -> View {
    described(tar(), directory)
}

/// `tar`, described as the layer is.
fn described(bytes: Vec<u8>, directory: &Path) -> View {
    let layer = Layer {
        tree: Arc::new(LayerTree::new(&toc(&tar()))),
        content: Arc::new(Filed {
            tar: TarContent(Arc::new(bytes)),
            directory: directory.to_owned(),
        }),
    };
    View::new(vec![layer], false)
}

/// Makes the file `number` of the layer a file of its own.
fn make(directory: &Path, number: usize) {
    let tar = tar();
    let entry = toc(&tar).entries()[number].clone();
    let start = entry.offset.0 as usize;
    let bytes = &tar[start..start + entry.size as usize];
    fs::write(directory.join(entry.offset.to_string()), bytes).unwrap();
}

fn options(directory: &Path) -> MountOptions {
    let mut options = MountOptions::new("/");
    options.passthrough = Some(Passthrough {
        min_size: 1 << 20,
        opens: directory.join("opens"),
    });
    options
}

/// Whether this kernel has it, by its own word.
fn is_possible(session: &Session) -> bool {
    let possible = session.passthrough().is_some();
    if !possible {
        eprintln!("this kernel has no passthrough");
    }
    possible
}

fn reads(session: &Session) -> u64 {
    session.counters().requests(Operation::Read)
}

fn opens(session: &Session) -> u64 {
    session.counters().opens_passed_through()
}

#[test]
fn a_large_file_is_read_by_the_kernel_itself_under_an_overlay_and_a_small_one_is_not() {
    let directory = TempDir::new_in("/var/tmp").unwrap();
    make(directory.path(), 0);
    make(directory.path(), 1);
    let view = MountedView::with(filed(directory.path()), &options(directory.path()));
    if !is_possible(&view.session) {
        return;
    }
    let overlay = Overlay::new(&[view.path()]);
    assert!(fs::read(overlay.path().join("small")).unwrap() == b"small");
    let before = reads(&view.session);
    for at in [overlay.path(), view.path()] {
        assert!(fs::read(at.join("large")).unwrap() == data(1));
    }
    assert_eq!(opens(&view.session), 2);
    // The headers in front of it were looked at inside, not by the kernel.
    assert_eq!(reads(&view.session), before);
    assert!(before > 0);
    // This one has no file of its own.
    assert!(fs::read(overlay.path().join("other")).unwrap() == data(2));
    assert_eq!(opens(&view.session), 2);
    assert!(reads(&view.session) > before);
}

#[test]
fn a_file_that_is_open_stays_as_it_is_and_changes_when_nobody_has_it_open() {
    let directory = TempDir::new_in("/var/tmp").unwrap();
    let view = MountedView::with(filed(directory.path()), &options(directory.path()));
    if !is_possible(&view.session) {
        return;
    }
    let path = view.path().join("large");
    let ordinary = File::open(&path).unwrap();
    make(directory.path(), 1);
    assert!(fs::read(&path).unwrap() == data(1), "opened twice");
    assert_eq!(opens(&view.session), 0);
    drop(ordinary);
    let mut through = open_until(&view, |session| opens(session) == 1);
    fs::remove_file(directory.path().join(own_name(1))).unwrap();
    assert!(fs::read(&path).unwrap() == data(1), "without a name");
    let mut bytes = Vec::new();
    through.read_to_end(&mut bytes).unwrap();
    assert!(bytes == data(1));
    drop(through);
    // Whose last close has come it is read from us: its own file is gone.
    let before = reads(&view.session);
    while reads(&view.session) == before {
        assert!(fs::read(&path).unwrap() == data(1));
    }
}

/// Opens the large file again and again until `done`: closes come after the file is closed.
fn open_until(view: &MountedView, done: impl Fn(&Session) -> bool) -> File {
    loop {
        let file = File::open(view.path().join("large")).unwrap();
        if done(&view.session) {
            return file;
        }
        drop(file);
        std::thread::yield_now();
    }
}

fn own_name(number: usize) -> String {
    toc(&tar()).entries()[number].offset.to_string()
}

#[test]
fn nothing_is_passed_through_unless_it_is_asked_for_and_there_is_a_large_file() {
    let directory = TempDir::new_in("/var/tmp").unwrap();
    make(directory.path(), 1);
    let plain = MountOptions::new("/");
    let mut larger = options(directory.path());
    larger.passthrough.as_mut().unwrap().min_size = LARGE as u64 + 1;
    for options in [plain, larger] {
        let view = MountedView::with(filed(directory.path()), &options);
        assert!(view.session.passthrough().is_none());
        assert!(fs::read(view.path().join("large")).unwrap() == data(1));
        assert_eq!(opens(&view.session), 0);
        assert!(reads(&view.session) > 0);
    }
    assert!(!directory.path().join("opens").exists());
}

/// The kernel refuses a file that lies on an overlay: ours below another would be one too many.
#[test]
fn a_file_that_the_kernel_does_not_take_is_read_as_others_are() {
    let lower = TempDir::new_in("/var/tmp").unwrap();
    let stacked = Overlay::new(&[lower.path()]);
    make(stacked.path(), 1);
    let view = MountedView::with(filed(stacked.path()), &options(lower.path()));
    for _ in 0..2 {
        assert!(fs::read(view.path().join("large")).unwrap() == data(1));
    }
    assert_eq!(opens(&view.session), 0);
    assert!(reads(&view.session) > 0);
}

#[test]
fn a_file_with_other_headers_than_its_entry_says_is_not_passed_through() {
    let directory = TempDir::new_in("/var/tmp").unwrap();
    make(directory.path(), 1);
    make(directory.path(), 2);
    let mut other = tar();
    let start = toc(&other).entries()[1].offset.0 as usize;
    // Its name.
    other[start - 512] ^= 1;
    let view = MountedView::with(
        described(other, directory.path()),
        &options(directory.path()),
    );
    if !is_possible(&view.session) {
        return;
    }
    for _ in 0..2 {
        assert!(fs::read(view.path().join("large")).is_err());
    }
    assert_eq!(opens(&view.session), 0);
    assert!(fs::read(view.path().join("other")).unwrap() == data(2));
    assert_eq!(opens(&view.session), 1);
}

#[test]
#[ignore = "the process that the test below starts and kills"]
fn server() {
    let (mountpoint, parent) = orders();
    let directory = mountpoint.parent().unwrap();
    let session = fuse::mount(filed(directory), &mountpoint, &options(directory)).unwrap();
    serve(&session, &parent);
}

#[test]
fn files_that_were_open_when_their_server_was_killed_are_read_on_and_opened_again() {
    let mut served = Served::by("passthrough::server");
    let directory = served.directory.path().to_owned();
    let (large, other) = (served.path().join("large"), served.path().join("other"));
    make(&directory, 1);
    let through = File::open(&large).unwrap();
    let ordinary = File::open(&other).unwrap();
    make(&directory, 2);
    served.kill();
    let device = served.device.try_clone().unwrap();
    let session = fuse::adopt(
        filed(&directory),
        &served.path(),
        device,
        served.offer,
        &options(&directory),
    )
    .unwrap();
    let mut bytes = vec![0; LARGE];
    for (file, path, expected) in [(through, large, data(1)), (ordinary, other, data(2))] {
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == expected, "{}", path.display());
        for _ in 0..2 {
            assert!(fs::read(&path).unwrap() == expected, "{}", path.display());
        }
        drop(file);
    }
    if is_possible(&session) {
        assert_eq!(opens(&session), 2);
    }
}

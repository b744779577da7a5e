//! Bytes read through a mount, and what happens when there are none.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fuse::content::{LayerContent, ReadError, ReadReply};
use fuse::{Layer, LayerTree, Operation};
use tempfile::TempDir;
use ztoc::{Entry, Toc, UncompressedOffset};

use crate::layer::{Member, TarContent, archive, layer, toc};
use crate::mounts::MountedView;

/// Bytes that tell where they are.
fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

#[test]
fn any_range_of_a_file_is_the_same_range_of_the_tar() {
    let data = pattern(3_000_001);
    let tar = archive(&[Member::file("before", "x"), Member::file("f", &data)]);
    let view = MountedView::of(&[tar]);
    let file = File::open(view.path().join("f")).unwrap();
    let mut position = 1usize;
    for round in 0..300usize {
        position = (position * 48_271 + round) % (data.len() + 5000);
        let mut buffer = vec![0; 1 + (position * 7919) % 300_000];
        let got = file.read_at(&mut buffer, position as u64).unwrap();
        let end = data.len().min(position + buffer.len());
        let expected = data.get(position..end).unwrap_or_default();
        assert!(&buffer[..got] == expected, "at {position}");
    }
    assert!(fs::read(view.path().join("f")).unwrap() == data);
}

/// Makes a sparse file, archives it with GNU tar, and reads it through a mount.
fn assert_sparse_is_read(version: &str) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("sparse");
    let file = File::create(&path).unwrap();
    file.set_len(9_000_000).unwrap();
    for (position, len) in [
        (8192, 100),
        (1_048_576, 70_000),
        (4_000_000, 1),
        (8_990_000, 9_000),
    ] {
        file.write_all_at(&pattern(len), position).unwrap();
    }
    let holes_only = File::create(directory.path().join("holes")).unwrap();
    holes_only.set_len(100_000).unwrap();
    fs::write(directory.path().join("zz-plain"), "plain").unwrap();
    let tar = Command::new("tar")
        .args(["--create", "--format=pax", "--sparse", "--sort=name"])
        .arg(format!("--sparse-version={version}"))
        .arg("--directory")
        .arg(directory.path())
        .args(["--file=-", "."])
        .output()
        .unwrap();
    assert!(tar.stdout.len() < 1_000_000, "the archive is not sparse");
    let view = MountedView::of(&[tar.stdout]);
    for name in ["sparse", "holes", "zz-plain"] {
        let (ours, original) = (view.path().join(name), directory.path().join(name));
        assert!(
            fs::read(&ours).unwrap() == fs::read(&original).unwrap(),
            "{version} {name}"
        );
        assert_eq!(
            fs::metadata(&ours).unwrap().len(),
            fs::metadata(&original).unwrap().len()
        );
    }
    let mut piece = [0xff; 300];
    let sparse = File::open(view.path().join("sparse")).unwrap();
    sparse.read_exact_at(&mut piece, 8092).unwrap();
    assert!(piece[..100] == [0; 100] && piece[100..200] == pattern(100)[..]);
    assert!(piece[200..] == [0; 100]);
}

#[test]
fn sparse_files_are_read_with_their_holes_as_zeros() {
    for version in ["0.0", "0.1", "1.0"] {
        assert_sparse_is_read(version);
    }
}

/// Keeps replies to reads beyond a position until it is dropped; answers the others.
struct Stuck {
    from: u64,
    bytes: Arc<Vec<u8>>,
    held: Arc<Mutex<Vec<ReadReply>>>,
}

impl LayerContent for Stuck {
    fn read(&self, range: Range<UncompressedOffset>, reply: ReadReply) {
        if range.start.0 >= self.from {
            return self.held.lock().unwrap().push(reply);
        }
        let range = range.start.0 as usize..range.end.0 as usize;
        reply.data(&self.bytes[range]);
    }
}

#[test]
fn reads_that_wait_do_not_stop_others() {
    let data = pattern(10_000);
    let tar = archive(&[Member::file("here", &data), Member::file("away", &data)]);
    let away = toc(&tar).entries()[1].offset.0;
    let held = Arc::new(Mutex::new(Vec::new()));
    let content = Stuck {
        // Its header is read first.
        from: away - 512,
        bytes: Arc::new(tar.clone()),
        held: Arc::clone(&held),
    };
    let tree = Arc::new(LayerTree::new(&toc(&tar)));
    let view = MountedView::new(
        vec![Layer {
            tree,
            content: Arc::new(content),
        }],
        false,
    );
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let path = view.path().join("away");
            std::thread::spawn(move || fs::read(path))
        })
        .collect();
    while held.lock().unwrap().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(fs::read(view.path().join("here")).unwrap() == data);
    assert!(fs::metadata(view.path().join("away")).unwrap().len() == 10_000);
    assert!(view.session.counters().unanswered_reads() > 0);
    // What waits is answered from a thread that has nothing to do with the mount.
    let mut failed = 0;
    while !readers.iter().all(|reader| reader.is_finished()) {
        for reply in held.lock().unwrap().drain(..) {
            reply.error(ReadError::Unavailable);
            failed += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(failed > 0);
    for reader in readers {
        assert_eq!(reader.join().unwrap().unwrap_err().raw_os_error(), Some(5));
    }
    while view.session.counters().unanswered_reads() > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_reader_that_waits_can_be_killed() {
    let tar = archive(&[Member::file("away", pattern(3_000_000))]);
    let held = Arc::new(Mutex::new(Vec::new()));
    let content = Stuck {
        from: 0,
        bytes: Arc::default(),
        held: Arc::clone(&held),
    };
    let tree = Arc::new(LayerTree::new(&toc(&tar)));
    let view = MountedView::new(
        vec![Layer {
            tree,
            content: Arc::new(content),
        }],
        false,
    );
    let mut reader = Command::new("cat")
        .arg(view.path().join("away"))
        .spawn()
        .unwrap();
    while held.lock().unwrap().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    reader.kill().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut ended = false;
    while !ended && Instant::now() < deadline {
        ended = reader.try_wait().unwrap().is_some();
        std::thread::sleep(Duration::from_millis(5));
    }
    held.lock().unwrap().clear();
    reader.wait().unwrap();
    assert!(ended);
}

/// Answers every read in one and the same way.
struct Always(fn(ReadReply));

impl LayerContent for Always {
    fn read(&self, _: Range<UncompressedOffset>, reply: ReadReply) {
        (self.0)(reply);
    }
}

fn read_with(answer: fn(ReadReply)) -> io::Result<Vec<u8>> {
    let tar = archive(&[Member::file("f", pattern(5000))]);
    let tree = Arc::new(LayerTree::new(&toc(&tar)));
    let view = MountedView::new(
        vec![Layer {
            tree,
            content: Arc::new(Always(answer)),
        }],
        false,
    );
    let outcome = fs::read(view.path().join("f"));
    let counters = view.session.counters();
    assert!(counters.failures(Operation::Read) > 0 && counters.read_bytes() == 0);
    outcome
}

#[test]
fn a_reply_that_is_dropped_short_or_an_error_fails_the_read_and_never_shortens_it() {
    let outcomes = [
        read_with(drop),
        read_with(|reply| reply.data(b"short")),
        read_with(|reply| reply.data(&[0; 100_000])),
        read_with(|reply| reply.error(ReadError::Unavailable)),
    ];
    for outcome in outcomes {
        assert_eq!(outcome.unwrap_err().raw_os_error(), Some(5));
    }
}

#[test]
fn a_panic_over_a_read_fails_that_read_alone() {
    let data = pattern(5000);
    let tar = archive(&[Member::file("bad", &data), Member::file("good", &data)]);
    // Where its header is.
    let good = toc(&tar).entries()[1].offset.0 - 512;
    struct Panicking(Vec<u8>, u64);
    impl LayerContent for Panicking {
        fn read(&self, range: Range<UncompressedOffset>, reply: ReadReply) {
            assert!(range.start.0 >= self.1, "as the test wants it");
            reply.data(&self.0[range.start.0 as usize..range.end.0 as usize]);
        }
    }
    let tree = Arc::new(LayerTree::new(&toc(&tar)));
    let content = Arc::new(Panicking(tar, good));
    let view = MountedView::new(vec![Layer { tree, content }], false);
    for _ in 0..5 {
        let outcome = fs::read(view.path().join("bad"));
        assert_eq!(outcome.unwrap_err().raw_os_error(), Some(5));
    }
    assert!(fs::read(view.path().join("good")).unwrap() == data);
}

#[test]
fn a_failed_read_is_tried_again() {
    let data = pattern(5000);
    let tar = archive(&[Member::file("f", &data)]);
    let failures = Mutex::new(2);
    struct Flaky(Mutex<u32>, Vec<u8>);
    impl LayerContent for Flaky {
        fn read(&self, range: Range<UncompressedOffset>, reply: ReadReply) {
            let mut left = self.0.lock().unwrap();
            if *left > 0 {
                *left -= 1;
                return reply.error(ReadError::Unavailable);
            }
            reply.data(&self.1[range.start.0 as usize..range.end.0 as usize]);
        }
    }
    let tree = Arc::new(LayerTree::new(&toc(&tar)));
    let content = Arc::new(Flaky(failures, tar));
    let view = MountedView::new(vec![Layer { tree, content }], false);
    let path = view.path().join("f");
    let mut attempts = 0;
    let read = loop {
        attempts += 1;
        match fs::read(&path) {
            Ok(read) => break read,
            Err(_) => assert!(attempts < 5),
        }
    };
    assert!(read == data && attempts > 1);
}

#[test]
fn a_program_runs_from_a_mount_that_is_mapped_into_memory() {
    let program = fs::read("/bin/true").unwrap();
    let tar = archive(&[Member::file("true", program).mode(0o755)]);
    let view = MountedView::new(vec![layer(&tar)], false);
    assert!(
        Command::new(view.path().join("true"))
            .status()
            .unwrap()
            .success()
    );
}

/// What a table of contents says of a tar, with some entry changed.
fn lying(tar: &[u8], lie: impl Fn(&mut Vec<Entry>)) -> Toc {
    let mut entries = toc(tar).entries().to_vec();
    lie(&mut entries);
    Toc::new(entries, tar.len() as u64).unwrap()
}

/// Serves a tar by a table of contents that is perhaps not its own.
fn served(tar: &[u8], toc: Toc) -> MountedView {
    MountedView::new(
        vec![Layer {
            tree: Arc::new(LayerTree::new(&toc)),
            content: Arc::new(TarContent(Arc::new(tar.to_vec()))),
        }],
        false,
    )
}

#[test]
fn a_file_whose_headers_are_not_those_of_its_entry_is_not_read() {
    let long = "n".repeat(150);
    let owned = Member::file("owned", "0123456789").xattr("user.a", "b");
    let tar = archive(&[
        Member::file("first", pattern(3000)),
        Member::file("second", pattern(3000)),
        Member::file(&long, "behind extended headers"),
        owned,
    ]);
    let view = served(&tar, toc(&tar));
    for name in ["first", "second", &long, "owned"] {
        // From its end first: what is read is not always the beginning.
        let file = File::open(view.path().join(name)).unwrap();
        let mut end = [0; 5];
        let size = file.metadata().unwrap().len();
        file.read_exact_at(&mut end, size - 5).unwrap();
        assert!(fs::read(view.path().join(name)).unwrap().ends_with(&end));
    }

    type Lie = fn(&mut Vec<Entry>);
    let lies: [(&str, Lie); 7] = [
        ("setuid", |all| all[0].mode = 0o4755),
        ("owner", |all| all[0].uid = 1000),
        ("size", |all| all[0].size = 2999),
        ("renamed", |all| all[0].name = b"sudo".to_vec()),
        ("swapped", |all| {
            let (one, two) = (all[0].offset, all[1].offset);
            (all[0].offset, all[1].offset) = (two, one);
        }),
        ("inside another file", |all| {
            all[0].offset = UncompressedOffset(1024);
            all[0].size = 512;
        }),
        ("no header before", |all| {
            all[0].offset = UncompressedOffset(0)
        }),
    ];
    for (lie, change) in lies {
        let view = served(&tar, lying(&tar, change));
        let name = if lie == "renamed" { "sudo" } else { "first" };
        for position in [0, 200] {
            let file = File::open(view.path().join(name)).unwrap();
            let read = file.read_at(&mut [0; 10], position);
            assert_eq!(read.unwrap_err().raw_os_error(), Some(5), "{lie}");
        }
        let other = fs::read(view.path().join("owned")).unwrap();
        assert_eq!(
            other, b"0123456789",
            "{lie}: the others are as they should be"
        );
    }
    let view = served(&tar, lying(&tar, |all| all[3].pax.clear()));
    assert!(
        fs::read(view.path().join("owned")).is_err(),
        "an attribute is left out"
    );
    let view = served(&tar, lying(&tar, |all| drop(all.remove(1))));
    assert!(
        fs::read(view.path().join(&long)).is_err(),
        "a member is left out"
    );
    assert!(fs::read(view.path().join("first")).is_ok());
}

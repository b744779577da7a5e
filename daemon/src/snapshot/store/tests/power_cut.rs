//! The machine loses power while records are written: of what was written since the last sync, any sectors
//! may be missing, and the file may have its old length or its new one.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use redb::StorageBackend;

use super::*;

/// What a disk writes whole.
const SECTOR: usize = 512;
const CHANGES: usize = 60;

/// A file of which only what was synced is sure to be there later.
#[derive(Debug, Clone)]
struct Disk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    synced: Vec<u8>,
    now: Vec<u8>,
    unsynced: Vec<Change>,
    /// What was left when power was cut, as often as it was.
    cuts: Vec<Vec<u8>>,
    random: fastrand::Rng,
}

#[derive(Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Length(usize),
}

impl Disk {
    fn new(content: Vec<u8>, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            synced: content.clone(),
            now: content,
            unsynced: Vec::new(),
            cuts: Vec::new(),
            random: fastrand::Rng::with_seed(seed),
        })))
    }

    /// Cuts the power, and gives what was left now and the times before.
    fn cuts(&self) -> Vec<Vec<u8>> {
        let mut state = self.0.lock();
        state.cut();
        std::mem::take(&mut state.cuts)
    }
}

impl State {
    fn cut(&mut self) {
        let mut left = self.synced.clone();
        let arrives = self.random.f64();
        for change in &self.unsynced {
            match change {
                Change::Length(length) => {
                    if self.random.f64() < arrives {
                        left.resize(*length, 0);
                    }
                }
                Change::Write(at, bytes) => {
                    for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                        if self.random.f64() < arrives {
                            write(&mut left, at + number * SECTOR, sector);
                        }
                    }
                }
            }
        }
        self.cuts.push(left);
    }

    fn change(&mut self, change: Change) {
        match &change {
            Change::Write(at, bytes) => write(&mut self.now, *at, bytes),
            Change::Length(length) => self.now.resize(*length, 0),
        }
        self.unsynced.push(change);
    }
}

fn write(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    file.resize(file.len().max(end), 0);
    file[at..end].copy_from_slice(bytes);
}

fn position(at: u64) -> usize {
    usize::try_from(at).unwrap()
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.lock();
        let from = position(offset)..position(offset) + out.len();
        let bytes = state.now.get(from).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().change(Change::Length(position(len)));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let change = Change::Write(position(offset), data.to_vec());
        self.0.lock().change(change);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        state.cut();
        state.synced = state.now.clone();
        state.unsynced.clear();
        Ok(())
    }
}

fn open(disk: &Disk) -> Store {
    let database = Database::builder().create_with_backend(disk.clone());
    Store::with(database.unwrap(), Path::new("unused"), 1).unwrap()
}

type Records = BTreeMap<String, Record>;

fn records(store: &Store) -> Records {
    let all = store.all().unwrap().into_iter();
    all.map(|entry| (entry.key, entry.record)).collect()
}

/// One change of some kind; it may well be refused.
fn change(store: &Store, random: &mut fastrand::Rng) {
    let (one, other) = (random.u8(..9), random.u8(..9));
    let (key, name) = (format!("key-{one}"), format!("name-{other}"));
    let parent = (random.bool()).then(|| name.clone());
    let _ = match random.u8(..6) {
        0 | 1 => store.insert(&new(store, &key, Kind::Active, parent.as_deref())),
        2 => store.insert_layer(&layer(store, &name, None)).map(|_| ()),
        3 => store.commit(&commit_request(&key, &name), USAGE),
        4 => store
            .remove(if random.bool() { &key } else { &name })
            .map(|_| ()),
        _ => store
            .update(&key, |labels| {
                labels.insert("label".to_owned(), "x".repeat(random.usize(..3000)));
                Ok(())
            })
            .map(|_| ()),
    };
}

#[test]
fn after_a_power_cut_the_records_are_those_before_or_after_the_change() {
    let mut random = fastrand::Rng::with_seed(17);
    let mut disk = Disk::new(Vec::new(), 1);
    let mut store = open(&disk);
    disk.cuts();
    let (mut changed, mut undone) = (0, 0);
    for number in 0..CHANGES {
        let before = records(&store);
        change(&store, &mut random);
        let after = records(&store);
        changed += usize::from(before != after);
        let mut cuts = disk.cuts();
        let last = cuts.pop().unwrap();
        for left in cuts {
            let survived = records(&open(&Disk::new(left, 2)));
            assert!(survived == before || survived == after, "change {number}");
            undone += usize::from(survived != after);
        }
        if number % 7 == 0 {
            // Power is cut when the caller has been told that it is done.
            drop(store);
            disk = Disk::new(last, number as u64);
            store = open(&disk);
            assert_eq!(records(&store), after, "change {number}");
            let highest = after.values().map(|record| record.id).max();
            assert!(highest.is_none_or(|highest| store.allocate() > highest));
        }
    }
    assert!(changed > CHANGES / 4 && undone > 0, "{changed} {undone}");
}

//! The records of all snapshots, in one redb file.
//!
//! Every method is one transaction that touches nothing but the database: it may wait for the disk
//! (call it on a blocking thread), never for anything else.

mod table;

#[cfg(any(test, fuzzing))]
pub(crate) use self::table::probe;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{RwLock, RwLockReadGuard};
use redb::{Database, ReadableDatabase, StorageError, TransactionError, WriteTransaction};
use time::OffsetDateTime;

use self::table::{Reader, Writer, failed};
use super::labels;
use super::record::{Entry, Kind, Labels, Record, SnapshotId, Source, Usage};
use crate::error::SnapshotError;

/// How many layers a chain may have. Overlayfs takes 500 lower directories; images stay below 130.
pub const MAX_DEPTH: usize = 512;

/// The records. See the module.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    /// Held for reading by whoever writes records, for writing only to open the file again; `None` when
    /// that has failed.
    database: RwLock<Option<Database>>,
    next_id: AtomicU64,
}

/// A snapshot to be recorded.
#[derive(Debug, Clone)]
pub struct NewSnapshot {
    /// From [`Store::allocate`].
    pub id: SnapshotId,
    /// Unique key or, if committed, name.
    pub key: String,
    /// Its kind.
    pub kind: Kind,
    /// Key of its parent.
    pub parent: Option<String>,
    /// Its labels.
    pub labels: Labels,
    /// Where its files are.
    pub source: Source,
    /// What it takes on disk, if it is committed.
    pub usage: Option<Usage>,
}

/// What `Commit` asks for.
#[derive(Debug, Clone)]
pub struct CommitRequest {
    /// The active snapshot.
    pub key: String,
    /// What it is called from now on.
    pub name: String,
    /// The parent of a snapshot that was prepared without one.
    pub parent: Option<String>,
    /// Its labels from now on; those given to `Prepare` are gone.
    pub labels: Labels,
}

impl Store {
    /// Opens or creates the database at `path`. Numbers below `first_id` are never given out:
    /// pass one more than the highest that any directory has.
    ///
    /// # Errors
    /// The file cannot be opened or is no database of ours.
    pub fn open(path: &Path, first_id: u64) -> Result<Self, SnapshotError> {
        let database = Database::create(path).map_err(failed("open the database"))?;
        Self::with(database, path, first_id)
    }

    fn with(database: Database, path: &Path, first_id: u64) -> Result<Self, SnapshotError> {
        let transaction = database.begin_write().map_err(failed("begin writing"))?;
        let next_id = Writer::new(&transaction)?.next_id()?;
        commit(transaction)?;
        Ok(Self {
            path: path.to_owned(),
            database: RwLock::new(Some(database)),
            next_id: AtomicU64::new(next_id.max(first_id)),
        })
    }

    /// A number for a new snapshot. It is used up even if nothing is recorded under it.
    pub fn allocate(&self) -> SnapshotId {
        SnapshotId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Records a snapshot.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound` (the parent), `Parent` (not committed).
    pub fn insert(&self, new: &NewSnapshot) -> Result<(), SnapshotError> {
        self.write(|writer| record_new(writer, &new.key, new))
    }

    /// Records a committed layer under `new.key`, or under that and its number if the name is taken by
    /// a layer with another parent. Answers the name; if there is one with the same `snapshot.ref`
    /// label and parent, that one's.
    ///
    /// # Errors
    /// `NotFound` (the parent), `Parent` (not committed).
    pub fn insert_layer(&self, new: &NewSnapshot) -> Result<String, SnapshotError> {
        self.write(|writer| {
            if let Some(name) = writer.layer(&new.key, new.parent.as_deref())? {
                return Ok(name);
            }
            let name = match writer.get(&new.key)? {
                Some(_) => format!("{}/{}", new.key, new.id),
                None => new.key.clone(),
            };
            record_new(writer, &name, new).map(|()| name)
        })
    }

    /// The committed snapshot that has label `containerd.io/snapshot.ref` = `target` on this parent.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn find_layer(
        &self,
        target: &str,
        parent: Option<&str>,
    ) -> Result<Option<String>, SnapshotError> {
        self.read()?.layer(target, parent)
    }

    /// One snapshot.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn get(&self, key: &str) -> Result<Record, SnapshotError> {
        self.read()?.get(key)?.ok_or_else(|| missing(key))
    }

    /// Whether a key is still to be had: asked before costly work, decided by [`Store::insert`].
    ///
    /// # Errors
    /// `AlreadyExists`.
    pub fn check_free(&self, key: &str) -> Result<(), SnapshotError> {
        match self.read()?.get(key)? {
            Some(_) => Err(exists(key)),
            None => Ok(()),
        }
    }

    /// The committed snapshots from `key` down to the bottom, nearest first.
    ///
    /// # Errors
    /// `NotFound`; `Parent` if one is not committed; `Corrupt` if the chain has more than
    /// [`MAX_DEPTH`] members.
    pub fn chain(&self, key: Option<&str>) -> Result<Vec<Record>, SnapshotError> {
        let reader = self.read()?;
        let mut chain = Vec::new();
        let mut next = key.map(str::to_owned);
        while let Some(key) = next {
            if chain.len() == MAX_DEPTH {
                return Err(SnapshotError::Corrupt {
                    detail: format!("more than {MAX_DEPTH} layers below {key:?}"),
                });
            }
            let record = reader.get(&key)?.ok_or_else(|| missing(&key))?;
            if record.kind != Kind::Committed {
                return Err(SnapshotError::Parent { parent: key });
            }
            next = record.parent.clone();
            chain.push(record);
        }
        Ok(chain)
    }

    /// Turns an active snapshot into a committed one that takes `usage` on disk.
    ///
    /// # Errors
    /// `NotFound`, `Kind` (not active), `AlreadyExists` (the name), `Argument` (another parent).
    pub fn commit(&self, request: &CommitRequest, usage: Usage) -> Result<(), SnapshotError> {
        self.write(|writer| {
            let mut record = writer
                .get(&request.key)?
                .ok_or_else(|| missing(&request.key))?;
            if record.kind != Kind::Active {
                return Err(kind(&request.key, record.kind, "committed"));
            }
            if request.name != request.key && writer.get(&request.name)?.is_some() {
                return Err(exists(&request.name));
            }
            let parent = adopted_parent(&record, request)?;
            check_parent(writer, parent.as_deref())?;
            writer.remove(&request.key, &record)?;
            record.kind = Kind::Committed;
            record.parent = parent;
            record.labels = request.labels.clone();
            record.usage = Some(usage);
            record.updated = OffsetDateTime::now_utc();
            writer.insert(&request.name, &record)
        })
    }

    /// Forgets a snapshot. Answers what it was.
    ///
    /// # Errors
    /// `NotFound`, `HasChildren`.
    pub fn remove(&self, key: &str) -> Result<Record, SnapshotError> {
        self.write(|writer| {
            let record = writer.get(key)?.ok_or_else(|| missing(key))?;
            if let Some(child) = writer.any_child(key)? {
                return Err(SnapshotError::HasChildren {
                    key: key.to_owned(),
                    child,
                });
            }
            writer.remove(key, &record)?;
            Ok(record)
        })
    }

    /// Changes labels: `change` gets those there are. Answers the record as it is then.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn update(
        &self,
        key: &str,
        change: impl FnOnce(&mut Labels) -> Result<(), SnapshotError>,
    ) -> Result<Record, SnapshotError> {
        self.write(|writer| {
            let mut record = writer.get(key)?.ok_or_else(|| missing(key))?;
            writer.remove(key, &record)?;
            change(&mut record.labels)?;
            record.updated = OffsetDateTime::now_utc();
            writer.insert(key, &record)?;
            Ok(record)
        })
    }

    /// All snapshots that `wanted` says yes to, in the order of their keys. One whose record is damaged is
    /// reported and passed over.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn list(&self, wanted: impl Fn(&Entry) -> bool) -> Result<Vec<Entry>, SnapshotError> {
        let mut entries = Vec::new();
        self.read()?.each(|entry| {
            match entry {
                Ok(entry) if wanted(&entry) => entries.push(entry),
                Ok(_) => {}
                Err(error) => tracing::error!(%error, "a snapshot is passed over"),
            }
            Ok(())
        })?;
        Ok(entries)
    }

    /// Really all snapshots, for who removes what no snapshot needs.
    ///
    /// # Errors
    /// The database cannot be read; `Corrupt` if a single record cannot be.
    pub fn all(&self) -> Result<Vec<Entry>, SnapshotError> {
        let mut entries = Vec::new();
        self.read()?.each(|entry| {
            entries.push(entry?);
            Ok(())
        })?;
        Ok(entries)
    }

    fn read(&self) -> Result<Reader, SnapshotError> {
        let (_open, transaction) = self.begin("begin reading", Database::begin_read)?;
        Reader::new(&transaction)
    }

    /// Begins a transaction, on a file that is opened again if it has to be: after an I/O error, of a full
    /// disk for one, redb refuses everything until then.
    fn begin<T>(
        &self,
        operation: &'static str,
        begin: impl Fn(&Database) -> Result<T, TransactionError>,
    ) -> Result<(RwLockReadGuard<'_, Option<Database>>, T), SnapshotError> {
        let open = self.database.read();
        match open.as_ref().map(&begin) {
            Some(Ok(transaction)) => return Ok((open, transaction)),
            Some(Err(error)) if !is_stuck(&error) => return Err(failed(operation)(error)),
            _ => drop(open),
        }
        let mut closed = self.database.write();
        // Closed first: the file is locked while it is open.
        *closed = None;
        let again = Database::create(&self.path).map_err(failed("open the database again"))?;
        tracing::warn!(path = %self.path.display(), "the snapshot records were opened again after an I/O error");
        let transaction = begin(&again).map_err(failed(operation))?;
        *closed = Some(again);
        Ok((
            parking_lot::RwLockWriteGuard::downgrade(closed),
            transaction,
        ))
    }

    fn write<T>(
        &self,
        change: impl FnOnce(&mut Writer<'_>) -> Result<T, SnapshotError>,
    ) -> Result<T, SnapshotError> {
        let (_open, transaction) = self.begin("begin writing", Database::begin_write)?;
        let mut writer = Writer::new(&transaction)?;
        let answer = change(&mut writer);
        drop(writer);
        match answer {
            Ok(value) => commit(transaction).map(|()| value),
            // Nothing of a failed change is kept; its own error says more than that of the abort.
            Err(error) => {
                let _ = transaction.abort();
                Err(error)
            }
        }
    }
}

/// Whether redb will go on refusing.
fn is_stuck(error: &TransactionError) -> bool {
    matches!(error, TransactionError::Storage(StorageError::PreviousIo))
}

fn commit(transaction: WriteTransaction) -> Result<(), SnapshotError> {
    transaction.commit().map_err(failed("write to disk"))
}

fn record_new(writer: &mut Writer<'_>, key: &str, new: &NewSnapshot) -> Result<(), SnapshotError> {
    if writer.get(key)?.is_some() {
        return Err(exists(key));
    }
    check_parent(writer, new.parent.as_deref())?;
    let now = OffsetDateTime::now_utc();
    let record = Record {
        id: new.id,
        kind: new.kind,
        parent: new.parent.clone(),
        labels: new.labels.clone(),
        created: now,
        updated: now,
        source: new.source.clone(),
        usage: new.usage,
    };
    writer.use_id(new.id)?;
    writer.insert(key, &record)
}

fn check_parent(writer: &Writer<'_>, parent: Option<&str>) -> Result<(), SnapshotError> {
    let Some(parent) = parent else { return Ok(()) };
    let record = writer.get(parent)?.ok_or_else(|| missing(parent))?;
    if record.kind == Kind::Committed {
        return Ok(());
    }
    Err(SnapshotError::Parent {
        parent: parent.to_owned(),
    })
}

/// The parent after a commit: the one there is, else the one the commit names.
fn adopted_parent(
    record: &Record,
    request: &CommitRequest,
) -> Result<Option<String>, SnapshotError> {
    match (&record.parent, &request.parent) {
        (Some(have), Some(want)) if have != want => Err(SnapshotError::Argument {
            what: "parent",
            detail: format!(
                "{:?} was prepared on {have:?}, not on {want:?}",
                request.key
            ),
        }),
        (None, Some(want)) if *want == request.key => Err(SnapshotError::Argument {
            what: "parent",
            detail: format!("{want:?} cannot be its own parent"),
        }),
        (have, want) => Ok(have.clone().or_else(|| want.clone())),
    }
}

/// The index entry that a record has: only committed layers are found by their reference.
fn layer_key(record: &Record) -> Option<(&str, &str)> {
    let target = record.labels.get(labels::REF)?;
    let parent = record.parent.as_deref().unwrap_or_default();
    (record.kind == Kind::Committed).then_some((target.as_str(), parent))
}

fn missing(key: &str) -> SnapshotError {
    SnapshotError::NotFound {
        key: key.to_owned(),
    }
}

fn exists(key: &str) -> SnapshotError {
    SnapshotError::AlreadyExists {
        key: key.to_owned(),
    }
}

/// The error for an operation that a snapshot's kind excludes.
pub fn kind(key: &str, kind: Kind, operation: &'static str) -> SnapshotError {
    SnapshotError::Kind {
        key: key.to_owned(),
        kind: kind.name(),
        operation,
    }
}

#[cfg(test)]
mod tests;

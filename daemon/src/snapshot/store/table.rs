//! Tables of the record database, kept coherent: records, children by parent, layers by reference.

use std::error::Error;

use redb::{
    MultimapTable, MultimapTableDefinition, ReadOnlyMultimapTable, ReadOnlyTable, ReadTransaction,
    ReadableMultimapTable, ReadableTable, Table, TableDefinition, WriteTransaction,
};

use super::layer_key;
use crate::error::SnapshotError;
use crate::snapshot::record::{Entry, Record, SnapshotId};

/// Key -> record as JSON.
pub(super) const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
/// Parent -> keys of its children.
const CHILDREN: MultimapTableDefinition<'_, &str, &str> = MultimapTableDefinition::new("children");
/// (`snapshot.ref` label, parent or empty) -> names of committed snapshots.
const LAYERS: MultimapTableDefinition<'_, (&str, &str), &str> =
    MultimapTableDefinition::new("layers");
/// `next_id`.
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const NEXT_ID: &str = "next_id";

/// Tables open for reading: one consistent state.
pub(super) struct Reader {
    records: ReadOnlyTable<&'static str, &'static [u8]>,
    layers: ReadOnlyMultimapTable<(&'static str, &'static str), &'static str>,
}

impl Reader {
    pub(super) fn new(transaction: &ReadTransaction) -> Result<Self, SnapshotError> {
        Ok(Self {
            records: transaction.open_table(RECORDS).map_err(failed("open"))?,
            layers: transaction
                .open_multimap_table(LAYERS)
                .map_err(failed("open"))?,
        })
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Record>, SnapshotError> {
        get(&self.records, key)
    }

    pub(super) fn layer(
        &self,
        target: &str,
        parent: Option<&str>,
    ) -> Result<Option<String>, SnapshotError> {
        layer(&self.layers, target, parent)
    }

    /// Shows every record to `visit`, or what is wrong with it.
    pub(super) fn each(
        &self,
        mut visit: impl FnMut(Result<Entry, SnapshotError>) -> Result<(), SnapshotError>,
    ) -> Result<(), SnapshotError> {
        for row in self.records.iter().map_err(failed("list"))? {
            let (key, value) = row.map_err(failed("list"))?;
            let record = decode(key.value(), value.value());
            visit(record.map(|record| Entry {
                key: key.value().to_owned(),
                record,
            }))?;
        }
        Ok(())
    }
}

/// Tables open for writing.
pub(super) struct Writer<'t> {
    records: Table<'t, &'static str, &'static [u8]>,
    children: MultimapTable<'t, &'static str, &'static str>,
    layers: MultimapTable<'t, (&'static str, &'static str), &'static str>,
    numbers: Table<'t, &'static str, u64>,
}

impl<'t> Writer<'t> {
    pub(super) fn new(transaction: &'t WriteTransaction) -> Result<Self, SnapshotError> {
        Ok(Self {
            records: transaction.open_table(RECORDS).map_err(failed("open"))?,
            children: transaction
                .open_multimap_table(CHILDREN)
                .map_err(failed("open"))?,
            layers: transaction
                .open_multimap_table(LAYERS)
                .map_err(failed("open"))?,
            numbers: transaction.open_table(NUMBERS).map_err(failed("open"))?,
        })
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Record>, SnapshotError> {
        get(&self.records, key)
    }

    pub(super) fn layer(
        &self,
        target: &str,
        parent: Option<&str>,
    ) -> Result<Option<String>, SnapshotError> {
        layer(&self.layers, target, parent)
    }

    pub(super) fn insert(&mut self, key: &str, record: &Record) -> Result<(), SnapshotError> {
        let bytes = serde_json::to_vec(record).map_err(failed("encode"))?;
        self.records
            .insert(key, bytes.as_slice())
            .map_err(failed("insert"))?;
        if let Some(parent) = &record.parent {
            self.children
                .insert(parent.as_str(), key)
                .map_err(failed("insert"))?;
        }
        if let Some(layer) = layer_key(record) {
            self.layers.insert(layer, key).map_err(failed("insert"))?;
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, key: &str, record: &Record) -> Result<(), SnapshotError> {
        self.records.remove(key).map_err(failed("remove"))?;
        if let Some(parent) = &record.parent {
            self.children
                .remove(parent.as_str(), key)
                .map_err(failed("remove"))?;
        }
        if let Some(layer) = layer_key(record) {
            self.layers.remove(layer, key).map_err(failed("remove"))?;
        }
        Ok(())
    }

    pub(super) fn any_child(&self, key: &str) -> Result<Option<String>, SnapshotError> {
        let mut children = self.children.get(key).map_err(failed("find children"))?;
        let child = children
            .next()
            .transpose()
            .map_err(failed("find children"))?;
        Ok(child.map(|child| child.value().to_owned()))
    }

    pub(super) fn next_id(&self) -> Result<u64, SnapshotError> {
        let number = self.numbers.get(NEXT_ID).map_err(failed("read"))?;
        Ok(number.map_or(1, |number| number.value()))
    }

    /// Sees to it that `id` is not given again.
    pub(super) fn use_id(&mut self, id: SnapshotId) -> Result<(), SnapshotError> {
        let next = self.next_id()?.max(id.0.saturating_add(1));
        self.numbers
            .insert(NEXT_ID, next)
            .map_err(failed("insert"))?;
        Ok(())
    }
}

fn get(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<Record>, SnapshotError> {
    let value = table.get(key).map_err(failed("read"))?;
    value.map(|value| decode(key, value.value())).transpose()
}

fn layer(
    table: &impl ReadableMultimapTable<(&'static str, &'static str), &'static str>,
    target: &str,
    parent: Option<&str>,
) -> Result<Option<String>, SnapshotError> {
    let mut names = table
        .get((target, parent.unwrap_or_default()))
        .map_err(failed("look up a layer"))?;
    let name = names
        .next()
        .transpose()
        .map_err(failed("look up a layer"))?;
    Ok(name.map(|name| name.value().to_owned()))
}

fn decode(key: &str, bytes: &[u8]) -> Result<Record, SnapshotError> {
    serde_json::from_slice(bytes).map_err(|error| SnapshotError::Corrupt {
        detail: format!("{key:?}: {error}"),
    })
}

/// For [`crate::hostile`]: some record.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(bytes: &[u8]) {
    if let Ok(record) = decode("key", bytes) {
        let again = serde_json::to_vec(&record).map(|bytes| decode("key", &bytes).ok());
        assert_eq!(again.ok().flatten(), Some(record));
    }
}

/// A failed operation of the database.
pub(super) fn failed<E: Error + Send + Sync + 'static>(
    operation: &'static str,
) -> impl FnOnce(E) -> SnapshotError {
    move |source| SnapshotError::Store {
        operation,
        source: Box::new(source),
    }
}

//! The table of contents in columns: what is alike stands together, and what repeats is named once.

use std::collections::HashMap;

use super::column::{Column, put_number, zigzag};
use super::{CompactError, MAX_ENTRIES, MAX_TEXT_LEN};
use crate::tar::BLOCK_LEN;
use crate::toc::{Entry, EntryKind, Member, Timestamp, Toc, Walk};
use crate::unit::UncompressedOffset;

/// The columns in their order in the blob.
pub(super) const COLUMNS: [&str; 15] = [
    "kinds",
    "shared name lengths",
    "other name lengths",
    "names",
    "positions",
    "sizes",
    "link lengths",
    "links",
    "owners",
    "owner of each entry",
    "seconds",
    "nanoseconds",
    "pax keys",
    "pax value lengths",
    "pax values",
];

const KINDS: [EntryKind; 7] = [
    EntryKind::Regular,
    EntryKind::Directory,
    EntryKind::SymLink,
    EntryKind::HardLink,
    EntryKind::CharDevice,
    EntryKind::BlockDevice,
    EntryKind::Fifo,
];

/// Everything of an entry that many others have as well: mode, uid, gid, device numbers, names of user and group,
/// keys of its PAX records.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Owner<'a> {
    numbers: [i64; 5],
    uname: &'a [u8],
    gname: &'a [u8],
    keys: Vec<&'a [u8]>,
}

impl<'a> Owner<'a> {
    fn of(entry: &'a Entry) -> Self {
        let numbers = [
            entry.mode,
            entry.uid.into(),
            entry.gid.into(),
            entry.dev_major,
            entry.dev_minor,
        ];
        Self {
            numbers,
            uname: &entry.uname,
            gname: &entry.gname,
            keys: entry.pax.iter().map(|(key, _)| key.as_slice()).collect(),
        }
    }

    fn encode(&self, owners: &mut Vec<u8>, keys: &mut Vec<u8>) {
        for number in self.numbers {
            put_number(owners, zigzag(number));
        }
        for name in [self.uname, self.gname] {
            put_bytes(owners, name);
        }
        put_number(keys, self.keys.len() as u64);
        for key in &self.keys {
            put_bytes(keys, key);
        }
    }

    fn decode(owners: &mut Column<'a>, keys: &mut Column<'a>) -> Result<Self, CompactError> {
        let mut numbers = [0; 5];
        for number in &mut numbers {
            *number = owners.signed()?;
        }
        let ids = [numbers[1], numbers[2]];
        if ids.iter().any(|id| u32::try_from(*id).is_err()) {
            return Err(CompactError::Column("owners"));
        }
        let (uname, gname) = (take_bytes(owners)?, take_bytes(owners)?);
        let count = keys.length()?;
        if count > keys.len() {
            return Err(CompactError::Column("pax keys"));
        }
        let keys: Result<Vec<_>, _> = (0..count).map(|_| take_bytes(keys)).collect();
        let keys = keys?;
        if !keys.is_sorted_by(|one, other| one < other) {
            return Err(CompactError::Column("pax keys"));
        }
        Ok(Self {
            numbers,
            uname,
            gname,
            keys,
        })
    }
}

fn put_bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    put_number(to, bytes.len() as u64);
    to.extend_from_slice(bytes);
}

fn take_bytes<'a>(from: &mut Column<'a>) -> Result<&'a [u8], CompactError> {
    let len = from.length()?;
    from.bytes(len)
}

/// Where an entry's data would begin if nothing but its size stood between it and the one before.
fn after<T>(entry: &Entry<T>) -> u64 {
    let stored = match entry.kind {
        EntryKind::Regular => entry.size,
        _ => 0,
    };
    let end = entry.offset.0.saturating_add(stored);
    end.checked_next_multiple_of(BLOCK_LEN as u64)
        .unwrap_or(end)
}

/// Bytes that an entry's texts take once they are read.
fn text_len(entry: &Entry) -> usize {
    let texts = [&entry.name, &entry.link, &entry.uname, &entry.gname];
    let pax = entry.pax.iter();
    let pax: usize = pax.map(|(key, value)| key.len() + value.len()).sum();
    texts.iter().map(|text| text.len()).sum::<usize>() + pax
}

/// The columns, unpacked.
pub(super) fn encode(toc: &Toc) -> Result<[Vec<u8>; COLUMNS.len()], CompactError> {
    let texts: usize = toc.entries().iter().map(text_len).sum();
    if toc.entries().len() > MAX_ENTRIES || texts > MAX_TEXT_LEN {
        return Err(CompactError::TooLarge);
    }
    let mut columns: [Vec<u8>; COLUMNS.len()] = Default::default();
    let mut known: HashMap<Owner<'_>, u64> = HashMap::new();
    let (mut name, mut expected, mut seconds) = (&[][..], 0, 0);
    for entry in toc.entries() {
        let [
            kinds,
            shared,
            others,
            names,
            positions,
            sizes,
            link_lengths,
            links,
            owners,
            owned,
            times,
            nanos,
            pax_keys,
            pax_lengths,
            pax_values,
        ] = &mut columns;
        let kind = KINDS.iter().position(|kind| *kind == entry.kind);
        kinds.push(kind.unwrap_or_default().to_le_bytes()[0]);
        let common = name.iter().zip(&entry.name);
        let common = common.take_while(|(one, other)| one == other).count();
        put_number(shared, common as u64);
        put_number(others, (entry.name.len() - common) as u64);
        names.extend_from_slice(&entry.name[common..]);
        put_number(
            positions,
            zigzag(entry.offset.0.wrapping_sub(expected).cast_signed()),
        );
        put_number(sizes, entry.size);
        put_number(link_lengths, entry.link.len() as u64);
        links.extend_from_slice(&entry.link);
        let (owner, next) = (Owner::of(entry), known.len() as u64);
        let number = *known.entry(owner).or_insert_with_key(|owner| {
            owner.encode(owners, pax_keys);
            next
        });
        put_number(owned, number);
        put_number(
            nanos,
            entry.mtime.map_or(0, |time| u64::from(time.nanos) + 1),
        );
        if let Some(time) = entry.mtime {
            put_number(times, zigzag(time.seconds.wrapping_sub(seconds)));
            seconds = time.seconds;
        }
        for (_, value) in &entry.pax {
            put_number(pax_lengths, value.len() as u64);
            pax_values.extend_from_slice(value);
        }
        (name, expected) = (&entry.name, after(entry));
    }
    Ok(columns)
}

/// A table of contents in its columns. Its entries are read and checked one after another and never held; only their names
/// are laid out, as each shares its beginning with the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnToc {
    columns: [Vec<u8>; COLUMNS.len()],
    names: Vec<u8>,
    count: usize,
    /// Bytes of the tar.
    size: u64,
}

impl ColumnToc {
    /// What [`encode`] wrote of `count` entries of a layer of `size` uncompressed bytes.
    pub(super) fn new(
        columns: [Vec<u8>; COLUMNS.len()],
        count: usize,
        size: u64,
    ) -> Result<Self, CompactError> {
        if count > MAX_ENTRIES || count > columns[0].len() {
            return Err(CompactError::TooLarge);
        }
        let names = names(&columns, count)?;
        Ok(Self {
            columns,
            names,
            count,
            size,
        })
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All entries in tar order.
    ///
    /// # Errors
    ///
    /// What is malformed, or contradicts another entry or the layer.
    #[inline]
    pub fn members(&self) -> impl Iterator<Item = Result<Member<'_>, CompactError>> {
        let mut reader = Reader::new(self);
        let mut walk = Walk::new(self.size);
        let mut left = self.count;
        std::iter::from_fn(move || {
            let Some(behind) = left.checked_sub(1) else {
                return reader.end().err().map(Err);
            };
            left = behind;
            let entry = reader.entry();
            Some(entry.and_then(|entry| Ok(walk.member(entry).map_err(Box::new)?)))
        })
    }

    /// Checks all entries.
    ///
    /// # Errors
    ///
    /// As [`Self::members`].
    pub fn check(&self) -> Result<(), CompactError> {
        self.members().try_for_each(|member| member.map(drop))
    }

    /// The same in memory.
    pub(super) fn to_toc(&self) -> Result<Toc, CompactError> {
        let entries = self.members().map(|member| Ok(member?.entry.into_owned()));
        let entries = entries.collect::<Result<_, CompactError>>()?;
        Ok(Toc { entries })
    }
}

/// The names of `count` entries, one after another.
fn names(columns: &[Vec<u8>; COLUMNS.len()], count: usize) -> Result<Vec<u8>, CompactError> {
    let [_, shared, others, names, ..] = columns;
    let [mut shared, mut others, mut own] = [(1, shared), (2, others), (3, names)]
        .map(|(index, bytes)| Column::new(COLUMNS[index], bytes));
    let (mut names, mut last) = (Vec::with_capacity(own.len()), 0..0);
    for _ in 0..count {
        let (shared, other) = (shared.length()?, others.length()?);
        if shared > last.len() {
            return Err(CompactError::Column("shared name lengths"));
        }
        let start = names.len();
        if start + shared > MAX_TEXT_LEN {
            return Err(CompactError::TooLarge);
        }
        names.extend_from_within(last.start..last.start + shared);
        names.extend_from_slice(own.bytes(other)?);
        last = start..names.len();
    }
    own.end()?;
    Ok(names)
}

struct Reader<'a> {
    columns: [Column<'a>; COLUMNS.len()],
    /// Those of the entries to come.
    names: &'a [u8],
    owners: Vec<Owner<'a>>,
    seconds: i64,
    /// Where the data of the next entry would begin if nothing but its size stood between it and the one before.
    expected: u64,
    text_len: usize,
}

impl<'a> Reader<'a> {
    fn new(toc: &'a ColumnToc) -> Self {
        let column = |index: usize| Column::new(COLUMNS[index], &toc.columns[index]);
        let mut columns = std::array::from_fn(column);
        // They are laid out.
        columns[3] = Column::new(COLUMNS[3], &[]);
        Self {
            columns,
            names: &toc.names,
            owners: Vec::new(),
            seconds: 0,
            expected: 0,
            text_len: 0,
        }
    }

    fn entry(&mut self) -> Result<Entry<&'a [u8]>, CompactError> {
        let [
            kinds,
            shared,
            others,
            _,
            positions,
            sizes,
            link_lengths,
            links,
            owners,
            owned,
            times,
            nanos,
            pax_keys,
            pax_lengths,
            pax_values,
        ] = &mut self.columns;
        let kind = KINDS.get(kinds.length()?);
        let kind = *kind.ok_or(CompactError::Column("kinds"))?;
        let name_len = shared.length()?.saturating_add(others.length()?);
        let names = self.names.split_at_checked(name_len);
        let (name, names) = names.ok_or(CompactError::Column("names"))?;
        self.names = names;
        let link_len = link_lengths.length()?;
        let link = links.bytes(link_len)?;
        let number = owned.length()?;
        if number == self.owners.len() {
            self.owners.push(Owner::decode(owners, pax_keys)?);
        }
        let owner = self.owners.get(number);
        let owner = owner.ok_or(CompactError::Column("owner of each entry"))?;
        let mut pax = Vec::with_capacity(owner.keys.len());
        let mut text_len = name.len() + link.len() + owner.uname.len() + owner.gname.len();
        for &key in &owner.keys {
            let len = pax_lengths.length()?;
            let value = pax_values.bytes(len)?;
            text_len += key.len() + value.len();
            pax.push((key, value));
        }
        self.text_len += text_len;
        if self.text_len > MAX_TEXT_LEN {
            return Err(CompactError::TooLarge);
        }
        let mtime = match nanos.small()? {
            0 => None,
            more => {
                self.seconds = self.seconds.wrapping_add(times.signed()?);
                Some(time(self.seconds, more - 1)?)
            }
        };
        let offset = self.expected.wrapping_add_signed(positions.signed()?);
        let [mode, uid, gid, dev_major, dev_minor] = owner.numbers;
        let id = |id: i64| u32::try_from(id).map_err(|_| CompactError::Column("owners"));
        let entry = Entry {
            name,
            kind,
            offset: UncompressedOffset(offset),
            size: sizes.number()?,
            link,
            mode,
            uid: id(uid)?,
            gid: id(gid)?,
            uname: owner.uname,
            gname: owner.gname,
            mtime,
            dev_major,
            dev_minor,
            pax,
        };
        self.expected = after(&entry);
        Ok(entry)
    }

    /// Checks that nothing is left.
    fn end(&self) -> Result<(), CompactError> {
        self.columns.iter().try_for_each(|column| column.end())
    }
}

fn time(seconds: i64, nanos: u32) -> Result<Timestamp, CompactError> {
    match nanos < 1_000_000_000 {
        true => Ok(Timestamp { seconds, nanos }),
        false => Err(CompactError::Column("nanoseconds")),
    }
}

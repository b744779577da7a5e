//! A checked FlatBuffers reader.
//!
//! The `flatbuffers` crate's verifier insists on UTF-8 strings and on at most a million tables; a
//! zTOC keeps raw tar names in strings and has a table per file. This reader checks every offset
//! before it follows it, and meters what it hands out: a buffer whose objects overlap (a million
//! vector elements that all point at one long string) cannot make the caller copy more than a small
//! multiple of the buffer.

use std::cell::Cell;

/// How often over the objects of a buffer may be read. Writers may share equal strings.
const MAX_SHARING: u64 = 2;

/// A buffer that is no well-formed FlatBuffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// An offset or a length leads out of the buffer.
    #[error("an offset or a length at byte {at} leads out of the buffer")]
    OutOfBounds {
        /// Where in the buffer.
        at: usize,
    },
    /// A table's field table is malformed.
    #[error("the table at byte {at} has no valid field table")]
    FieldTable {
        /// Where in the buffer.
        at: usize,
    },
    /// More data is referred to than the buffer holds.
    #[error("objects overlap: more data is referred to than the buffer holds")]
    Overlap,
}

/// A FlatBuffer.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    buf: &'a [u8],
    allowance: Cell<u64>,
}

/// A table in a buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table<'r, 'a> {
    reader: &'r Reader<'a>,
    at: usize,
    /// Offsets of the fields from `at`, two bytes each; 0 for an absent one.
    fields: &'a [u8],
    /// What lies at `at` itself.
    inline: &'a [u8],
}

/// A vector of offsets to tables or strings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OffsetVector<'r, 'a> {
    reader: &'r Reader<'a>,
    at: usize,
    len: usize,
}

/// Where an [`OffsetVector`] lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    at: usize,
    len: usize,
}

impl Place {
    pub(crate) fn len(self) -> usize {
        self.len
    }
}

// Inlined into whatever reads a table of contents, in another crate: an entry takes dozens of these calls, which cost half
// of its time.
impl<'a> Reader<'a> {
    pub(crate) fn new(buf: &'a [u8]) -> Self {
        Self {
            buf,
            allowance: Cell::new((buf.len() as u64).saturating_mul(MAX_SHARING)),
        }
    }

    pub(crate) fn root(&self) -> Result<Table<'_, 'a>, WireError> {
        self.table(self.follow(0)?)
    }

    /// Bytes of the buffer.
    pub(crate) fn len(&self) -> usize {
        self.buf.len()
    }

    /// The table that element `index` of the vector at `place` refers to.
    #[inline]
    pub(crate) fn element(&self, place: Place, index: usize) -> Result<Table<'_, 'a>, WireError> {
        let at = place.at + 4 * index;
        match index < place.len {
            true => self.table(self.follow(at)?),
            false => Err(WireError::OutOfBounds { at }),
        }
    }

    #[inline]
    fn bytes(&self, at: usize, len: usize) -> Result<&'a [u8], WireError> {
        at.checked_add(len)
            .and_then(|end| self.buf.get(at..end))
            .ok_or(WireError::OutOfBounds { at })
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], WireError> {
        let bytes = self.bytes(at, N)?;
        bytes.try_into().map_err(|_| WireError::OutOfBounds { at })
    }

    #[inline]
    fn u32(&self, at: usize) -> Result<usize, WireError> {
        Ok(u32::from_le_bytes(self.array(at)?) as usize)
    }

    /// The object that the offset at `at` refers to.
    #[inline]
    fn follow(&self, at: usize) -> Result<usize, WireError> {
        at.checked_add(self.u32(at)?)
            .ok_or(WireError::OutOfBounds { at })
    }

    #[inline]
    fn table(&self, at: usize) -> Result<Table<'_, 'a>, WireError> {
        let back = i64::from(i32::from_le_bytes(self.array(at)?));
        let bad = WireError::FieldTable { at };
        let vtable = i64::try_from(at)
            .ok()
            .and_then(|at| at.checked_sub(back))
            .ok_or(bad)?;
        let vtable = usize::try_from(vtable).map_err(|_| bad)?;
        let vtable_len = usize::from(u16::from_le_bytes(self.array(vtable)?));
        let inline_len = usize::from(u16::from_le_bytes(self.array(vtable + 2)?));
        let vtable_bytes = self.bytes(vtable, vtable_len)?;
        let inline = self.bytes(at, inline_len)?;
        if vtable_len % 2 != 0 || inline_len < 4 {
            return Err(bad);
        }
        self.charge(inline_len)?;
        let fields = vtable_bytes.get(4..).ok_or(bad)?;
        Ok(Table {
            reader: self,
            at,
            fields,
            inline,
        })
    }

    #[inline]
    fn charge(&self, bytes: usize) -> Result<(), WireError> {
        let left = self
            .allowance
            .get()
            .checked_sub(bytes as u64)
            .ok_or(WireError::Overlap)?;
        self.allowance.set(left);
        Ok(())
    }

    /// A string or byte vector: a length and as many bytes.
    #[inline]
    fn counted_bytes(&self, at: usize) -> Result<&'a [u8], WireError> {
        let len = self.u32(at)?;
        let bytes = self.bytes(at + 4, len)?;
        self.charge(len + 4)?;
        Ok(bytes)
    }
}

impl<'r, 'a> Table<'r, 'a> {
    /// Where the field `id` lies from `at` on, and its bytes, if it is present.
    #[inline]
    fn field<const N: usize>(&self, id: usize) -> Result<Option<(usize, [u8; N])>, WireError> {
        let offset = self.fields.get(2 * id..).and_then(<[u8]>::first_chunk);
        let offset = offset.map_or(0, |pair| usize::from(u16::from_le_bytes(*pair)));
        if offset == 0 {
            return Ok(None);
        }
        let bytes = self.inline.get(offset..).and_then(<[u8]>::first_chunk);
        match bytes {
            Some(bytes) if offset >= 4 => Ok(Some((offset, *bytes))),
            _ => Err(WireError::FieldTable { at: self.at }),
        }
    }

    #[inline]
    fn scalar<const N: usize>(&self, id: usize) -> Result<Option<[u8; N]>, WireError> {
        Ok(self.field(id)?.map(|(_, bytes)| bytes))
    }

    #[inline]
    pub(crate) fn i64(&self, id: usize) -> Result<i64, WireError> {
        Ok(self.scalar(id)?.map_or(0, i64::from_le_bytes))
    }

    pub(crate) fn i32(&self, id: usize) -> Result<i32, WireError> {
        Ok(self.scalar(id)?.map_or(0, i32::from_le_bytes))
    }

    #[inline]
    pub(crate) fn u32(&self, id: usize) -> Result<u32, WireError> {
        Ok(self.scalar(id)?.map_or(0, u32::from_le_bytes))
    }

    pub(crate) fn i8(&self, id: usize, default: i8) -> Result<i8, WireError> {
        Ok(self.scalar(id)?.map_or(default, i8::from_le_bytes))
    }

    #[inline]
    fn reference(&self, id: usize) -> Result<Option<usize>, WireError> {
        let Some((offset, bytes)) = self.field(id)? else {
            return Ok(None);
        };
        let at = self.at + offset;
        let target = at.checked_add(u32::from_le_bytes(bytes) as usize);
        target.map(Some).ok_or(WireError::OutOfBounds { at })
    }

    /// A string or byte vector; empty if absent.
    #[inline]
    pub(crate) fn bytes(&self, id: usize) -> Result<&'a [u8], WireError> {
        Ok(self.bytes_at(id)?.1)
    }

    /// A string or byte vector, and where in the buffer it begins; empty if absent.
    #[inline]
    pub(crate) fn bytes_at(&self, id: usize) -> Result<(usize, &'a [u8]), WireError> {
        self.reference(id)?.map_or(Ok((0, &[])), |at| {
            Ok((at + 4, self.reader.counted_bytes(at)?))
        })
    }

    pub(crate) fn table(&self, id: usize) -> Result<Option<Self>, WireError> {
        self.reference(id)?
            .map(|at| self.reader.table(at))
            .transpose()
    }

    /// A vector of tables or strings; empty if absent.
    #[inline]
    pub(crate) fn vector(&self, id: usize) -> Result<OffsetVector<'r, 'a>, WireError> {
        let reader = self.reader;
        let Some(at) = self.reference(id)? else {
            return Ok(OffsetVector {
                reader,
                at: 0,
                len: 0,
            });
        };
        let len = reader.u32(at)?;
        let bytes = len.checked_mul(4).ok_or(WireError::OutOfBounds { at })?;
        reader.bytes(at + 4, bytes)?;
        reader.charge(bytes + 4)?;
        Ok(OffsetVector {
            reader,
            at: at + 4,
            len,
        })
    }
}

impl<'r, 'a> OffsetVector<'r, 'a> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn place(self) -> Place {
        Place {
            at: self.at,
            len: self.len,
        }
    }

    pub(crate) fn tables(self) -> impl Iterator<Item = Result<Table<'r, 'a>, WireError>> {
        self.targets().map(move |at| self.reader.table(at?))
    }

    pub(crate) fn strings(self) -> impl Iterator<Item = Result<&'a [u8], WireError>> {
        self.targets().map(move |at| self.reader.counted_bytes(at?))
    }

    fn targets(self) -> impl Iterator<Item = Result<usize, WireError>> {
        (0..self.len).map(move |i| self.reader.follow(self.at + 4 * i))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use flatbuffers::FlatBufferBuilder;
    use proptest::prelude::*;

    use super::*;

    fn strings_sharing_one(count: usize, text: &[u8]) -> Vec<u8> {
        let mut builder = FlatBufferBuilder::new();
        let shared = builder.create_byte_string(text);
        let vector = builder.create_vector(&vec![shared; count]);
        let table = builder.start_table();
        builder.push_slot_always(4, vector);
        builder.push_slot(6, -5_i64, 0);
        let table = builder.end_table(table);
        builder.finish_minimal(table);
        builder.finished_data().to_vec()
    }

    #[test]
    fn fields_strings_and_defaults_are_read() {
        let bytes = strings_sharing_one(2, b"\xff\x00x");
        let reader = Reader::new(&bytes);
        let root = reader.root().unwrap();
        let strings: Result<Vec<_>, _> = root.vector(0).unwrap().strings().collect();
        assert_eq!(strings.unwrap(), [b"\xff\x00x", b"\xff\x00x"]);
        assert_eq!(root.i64(1), Ok(-5));
        assert_eq!(root.i64(2), Ok(0));
        assert_eq!(root.i8(7, 1), Ok(1));
        assert_eq!(root.bytes(9), Ok(&[][..]));
    }

    #[test]
    fn a_string_that_many_elements_share_is_not_handed_out_without_limit() {
        let bytes = strings_sharing_one(1000, &[b'x'; 1000]);
        let reader = Reader::new(&bytes);
        let strings = reader.root().unwrap().vector(0).unwrap().strings();
        let read: Result<Vec<_>, _> = strings.collect();
        assert_eq!(read, Err(WireError::Overlap));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let reader = Reader::new(&bytes);
            if let Ok(root) = reader.root() {
                for id in 0..6 {
                    let _ = (root.i64(id), root.bytes(id), root.table(id));
                    if let Ok(vector) = root.vector(id) {
                        for table in vector.tables().flatten() {
                            let _ = table.bytes(0);
                        }
                    }
                }
            }
        }
    }
}

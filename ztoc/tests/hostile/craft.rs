//! zTOCs put together field by field, consistent or not: what an attacker can write.

use flatbuffers::FlatBufferBuilder;

/// Fields of a zTOC, with nothing checked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Crafted {
    /// Number of the compression algorithm.
    pub(crate) algorithm: i8,
    /// Stated number of the last span.
    pub(crate) max_id: i32,
    /// Digest texts.
    pub(crate) digests: Vec<Vec<u8>>,
    /// The checkpoint blob.
    pub(crate) zinfo: Vec<u8>,
    /// Size of the layer blob.
    pub(crate) compressed_size: i64,
    /// Size of the archive.
    pub(crate) uncompressed_size: i64,
    /// Entries of the table of contents.
    pub(crate) entries: Vec<CraftedEntry>,
}

/// An entry, with nothing checked.
#[derive(Debug, Clone, Default)]
pub(crate) struct CraftedEntry {
    /// Name.
    pub(crate) name: Vec<u8>,
    /// File type.
    pub(crate) kind: Vec<u8>,
    /// Position of the data.
    pub(crate) offset: i64,
    /// Logical size.
    pub(crate) size: i64,
    /// Modification time.
    pub(crate) mtime: Vec<u8>,
    /// PAX records in any order.
    pub(crate) pax: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Crafted {
    /// The FlatBuffer.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut builder = FlatBufferBuilder::new();
        let entries: Vec<_> = self
            .entries
            .iter()
            .map(|entry| entry.encode(&mut builder))
            .collect();
        let entries = builder.create_vector(&entries);
        let toc = builder.start_table();
        builder.push_slot_always(4, entries);
        let toc = builder.end_table(toc);
        let digests: Vec<_> = self
            .digests
            .iter()
            .map(|digest| builder.create_byte_string(digest))
            .collect();
        let digests = builder.create_vector(&digests);
        let zinfo = builder.create_vector(&self.zinfo);
        let info = builder.start_table();
        builder.push_slot_always(4, self.algorithm);
        builder.push_slot_always(6, self.max_id);
        builder.push_slot_always(8, digests);
        builder.push_slot_always(10, zinfo);
        let info = builder.end_table(info);
        let root = builder.start_table();
        builder.push_slot_always(8, self.compressed_size);
        builder.push_slot_always(10, self.uncompressed_size);
        builder.push_slot_always(12, toc);
        builder.push_slot_always(14, info);
        let root = builder.end_table(root);
        builder.finish_minimal(root);
        builder.finished_data().to_vec()
    }
}

impl CraftedEntry {
    fn encode(
        &self,
        builder: &mut FlatBufferBuilder<'static>,
    ) -> flatbuffers::WIPOffset<flatbuffers::TableFinishedWIPOffset> {
        let pax: Vec<_> = self
            .pax
            .iter()
            .map(|(key, value)| {
                let key = builder.create_byte_string(key);
                let value = builder.create_byte_string(value);
                let table = builder.start_table();
                builder.push_slot_always(4, key);
                builder.push_slot_always(6, value);
                builder.end_table(table)
            })
            .collect();
        let pax = builder.create_vector(&pax);
        let name = builder.create_byte_string(&self.name);
        let kind = builder.create_byte_string(&self.kind);
        let mtime = builder.create_byte_string(&self.mtime);
        let table = builder.start_table();
        builder.push_slot_always(4, name);
        builder.push_slot_always(6, kind);
        builder.push_slot_always(8, self.offset);
        builder.push_slot_always(10, self.size);
        builder.push_slot_always(24, mtime);
        builder.push_slot_always(30, pax);
        builder.end_table(table)
    }
}

/// A gzip checkpoint blob: span size, then (in, out, bits) with a window of one repeated byte each.
pub(crate) fn zinfo(have: i32, checkpoints: &[(i64, i64, u8)]) -> Vec<u8> {
    let mut blob = have.to_le_bytes().to_vec();
    blob.extend_from_slice(&4096_i64.to_le_bytes());
    for (compressed, uncompressed, bits) in checkpoints {
        blob.extend_from_slice(&compressed.to_le_bytes());
        blob.extend_from_slice(&uncompressed.to_le_bytes());
        blob.push(*bits);
        blob.resize(blob.len() + 32 * 1024, b'w');
    }
    blob
}

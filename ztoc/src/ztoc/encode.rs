//! From a zTOC to the bytes that the original writes for it.
//!
//! FlatBuffers are built back to front, and the order of the calls decides where things lie. This is
//! the original's order: entries from last to first, each one's strings before its table; fields
//! in the order of their numbers, except in the compression information.

use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, Push, Vector, WIPOffset};

use super::decode::{GZIP, UNCOMPRESSED};
use super::{Compression, Ztoc};
use crate::span::SpanTable;
use crate::toc::{Entry, Timestamp, Toc};

type Builder = FlatBufferBuilder<'static>;
type Text = WIPOffset<&'static [u8]>;
type TableOffset = WIPOffset<flatbuffers::TableFinishedWIPOffset>;
type Offsets<T> = WIPOffset<Vector<'static, ForwardsUOffset<T>>>;

pub(super) fn encode(ztoc: &Ztoc) -> Vec<u8> {
    let checkpoints = ztoc.spans.zinfo().encode();
    let mut builder = Builder::with_capacity(checkpoints.len() + toc_len(&ztoc.toc) + 4096);
    let version = builder.create_byte_string(&ztoc.version);
    let build_tool = builder.create_byte_string(&ztoc.build_tool);
    let toc = toc(&mut builder, &ztoc.toc);
    let info = compression_info(&mut builder, &ztoc.spans, &checkpoints);
    let table = builder.start_table();
    put(&mut builder, 0, version);
    put(&mut builder, 1, build_tool);
    put(&mut builder, 4, toc);
    put_number(&mut builder, 2, ztoc.spans.compressed_size().cast_signed());
    put_number(
        &mut builder,
        3,
        ztoc.spans.uncompressed_size().cast_signed(),
    );
    put(&mut builder, 5, info);
    let root = builder.end_table(table);
    builder.finish_minimal(root);
    let (mut bytes, head) = builder.collapse();
    bytes.drain(..head);
    bytes
}

fn toc_len(toc: &Toc) -> usize {
    toc.entries().iter().map(Entry::encoded_len).sum()
}

/// Field number to position in the field table.
fn slot(id: u16) -> u16 {
    4 + 2 * id
}

fn put<T: Push>(builder: &mut Builder, id: u16, value: T) {
    builder.push_slot_always(slot(id), value);
}

/// Numbers are left out when they are zero.
fn put_number<T: Push + PartialEq + Default>(builder: &mut Builder, id: u16, value: T) {
    builder.push_slot(slot(id), value, T::default());
}

fn toc(builder: &mut Builder, toc: &Toc) -> TableOffset {
    let mut entries: Vec<_> = toc
        .entries()
        .iter()
        .rev()
        .map(|e| entry(builder, e))
        .collect();
    entries.reverse();
    let entries = builder.create_vector(&entries);
    let table = builder.start_table();
    put(builder, 0, entries);
    builder.end_table(table)
}

fn entry(builder: &mut Builder, entry: &Entry) -> TableOffset {
    let mtime = entry
        .mtime
        .and_then(Timestamp::to_rfc3339)
        .unwrap_or_default();
    let name = builder.create_byte_string(&entry.name);
    let kind = builder.create_byte_string(entry.kind.text().as_bytes());
    let link = builder.create_byte_string(&entry.link);
    let uname = builder.create_byte_string(&entry.uname);
    let gname = builder.create_byte_string(&entry.gname);
    let mtime = builder.create_byte_string(mtime.as_bytes());
    let pax = pax(builder, &entry.pax);
    let table = builder.start_table();
    put(builder, 0, name);
    put(builder, 1, kind);
    put_number(builder, 2, entry.offset.0.cast_signed());
    put_number(builder, 3, entry.size.cast_signed());
    put(builder, 4, link);
    put_number(builder, 5, entry.mode);
    put_number(builder, 6, entry.uid);
    put_number(builder, 7, entry.gid);
    put(builder, 8, uname);
    put(builder, 9, gname);
    put(builder, 10, mtime);
    put_number(builder, 11, entry.dev_major);
    put_number(builder, 12, entry.dev_minor);
    put(builder, 13, pax);
    builder.end_table(table)
}

fn pax(
    builder: &mut Builder,
    records: &[(Vec<u8>, Vec<u8>)],
) -> Offsets<flatbuffers::TableFinishedWIPOffset> {
    let record = |(key, value): &(Vec<u8>, Vec<u8>)| {
        let key = builder.create_byte_string(key);
        let value = builder.create_byte_string(value);
        let table = builder.start_table();
        put(builder, 0, key);
        put(builder, 1, value);
        builder.end_table(table)
    };
    let records: Vec<_> = records.iter().map(record).collect();
    builder.create_vector(&records)
}

fn compression_info(builder: &mut Builder, spans: &SpanTable, checkpoints: &[u8]) -> TableOffset {
    let checkpoints = builder.create_vector(checkpoints);
    let digests = spans.digests().iter();
    let digests: Vec<Text> = digests
        .map(|digest| builder.create_byte_string(digest.to_string().as_bytes()))
        .collect();
    let digests = builder.create_vector(&digests);
    let algorithm = match spans.compression() {
        Compression::Gzip => GZIP,
        Compression::Uncompressed => UNCOMPRESSED,
    };
    let table = builder.start_table();
    put_number(builder, 1, spans.max_id());
    put(builder, 2, digests);
    put(builder, 3, checkpoints);
    builder.push_slot(slot(0), algorithm, GZIP);
    builder.end_table(table)
}

//! Any bytes are a consistent compact zTOC or refused, in bounded memory. As hardly any bytes have digests and lengths that
//! fit, they are taken for the sections of a blob as well.

use std::sync::Arc;

use ztoc::compact::{self, HEADER_LEN, InMemory};
use ztoc::toc::FileData;
use ztoc::unit::ByteLen as _;
use ztoc::{Digest, SpanId};

/// Sections of a head, groups of windows not counted.
const SECTIONS: usize = 19;
/// Which section the records of groups are.
const GROUPS: usize = 3;

/// Panics where that does not hold.
pub(crate) fn check(bytes: &[u8]) {
    check_blob(bytes);
    if let Some(blob) = blob_of(bytes) {
        check_blob(&blob);
    }
}

fn check_blob(blob: &[u8]) {
    let windows = Arc::new(InMemory::new(blob.to_vec()));
    let lean = compact::decode_lean(blob, windows.clone());
    let Ok(decoded) = compact::decode(blob, windows) else {
        return;
    };
    let lean = lean.expect("it is decoded");
    let members = lean.toc.members().map(|member| member.expect("as before"));
    assert!(members.eq(decoded.toc.members()));
    assert!(compact::is_compact(blob));
    assert_eq!(compact::head_len(blob), Ok(Some(decoded.head_len)));
    let spans = &decoded.spans;
    let (mut end, mut window) = (0, vec![0; ztoc::checkpoint::WINDOW_LEN]);
    for id in spans.ids() {
        let range = spans.uncompressed(id);
        assert_eq!(range.start.0, end);
        end = range.end.0;
        assert!(spans.compressed(id).end.0 <= spans.compressed_size());
        assert!(range.is_empty() || spans.covering(range) == (id..SpanId(id.0 + 1)));
        assert!(spans.checksum(id).is_some());
        let written = spans.write_window(id, &mut window);
        if let Some(group) = spans.window_group(id) {
            assert!(group.start >= decoded.head_len as u64 && group.end <= decoded.blob_len);
        } else {
            assert_eq!(written, Ok(()), "nothing is needed for it");
        }
    }
    assert_eq!(end, spans.uncompressed_size());
    for (index, entry) in decoded.toc.entries().iter().enumerate() {
        let header = decoded.toc.header_offset(index);
        assert!(header.is_none_or(|header| header <= entry.offset));
        if let FileData::MapInArchive(range) = entry.data() {
            assert!(range.byte_len() > 0 || entry.offset.0 == 0);
        }
    }
}

/// A blob whose header tells the truth about the sections, which stand as they are: 48 bytes for the header's
/// numbers, 2 for the length of each section, then these; what is left is one group of windows.
fn blob_of(bytes: &[u8]) -> Option<Vec<u8>> {
    let (numbers, rest) = bytes.split_at_checked(24)?;
    let (lengths, mut rest) = rest.split_at_checked(2 * SECTIONS)?;
    let mut sections: Vec<&[u8]> = Vec::new();
    for length in lengths.chunks(2) {
        let length = usize::from(u16::from_le_bytes([length[0], length[1] & 3]));
        let (section, behind) = rest.split_at(length.min(rest.len()));
        sections.push(section);
        rest = behind;
    }
    let mut record = Vec::new();
    if numbers[0] & 1 == 0 {
        let unpacked = rest.len().max(usize::from(numbers[1]) * 64);
        record.extend_from_slice(&u32::try_from(rest.len()).ok()?.to_le_bytes());
        record.extend_from_slice(&u32::try_from(unpacked).ok()?.to_le_bytes());
        record.extend_from_slice(Digest::of(rest).as_bytes());
        sections[GROUPS] = &record;
    } else {
        rest = &[];
    }
    let head = HEADER_LEN + sections.iter().map(|section| section.len()).sum::<usize>();
    let mut blob = b"SPNZTOC\0\x01\0".to_vec();
    blob.extend_from_slice(&[1 + (numbers[0] & 1), 0]);
    blob.extend_from_slice(&u32::try_from(head).ok()?.to_le_bytes());
    blob.extend_from_slice(&((head + rest.len()) as u64).to_le_bytes());
    for size in [&numbers[2..7], &numbers[7..12], &numbers[12..15]] {
        let mut field = [0; 8];
        field[..size.len()].copy_from_slice(size);
        blob.extend_from_slice(&field);
    }
    blob.extend_from_slice(&u32::try_from(sections[2].len() / 4).ok()?.to_le_bytes());
    blob.extend_from_slice(&u32::try_from(sections[4].len()).ok()?.to_le_bytes());
    blob.extend_from_slice(Digest::of(numbers).as_bytes());
    for section in &sections {
        let length = u32::try_from(section.len()).ok()?.to_le_bytes();
        blob.extend_from_slice(&[length, length].concat());
    }
    sections
        .iter()
        .for_each(|section| blob.extend_from_slice(section));
    blob.extend_from_slice(rest);
    Some(blob)
}

//! Files with holes.

use std::ops::Range;
use std::sync::Arc;

use ztoc::UncompressedOffset;
use ztoc::toc::{Extent, FileData};

use super::{Answer, exactly};
use crate::content::LayerContent;
use crate::error::Error;
use crate::merge::Layer;
use crate::reader::Reader;

/// Reads `range` of the layer's sparse file `number`; if its map lies in the archive and is not
/// known yet, that is read first. Nothing waits: the second read is begun by the first's answer.
pub(super) fn read(
    layer: &Layer,
    number: u32,
    range: Range<u64>,
    reader: Reader,
    answer: impl Answer,
) {
    let file = layer.tree.sparse(number);
    if let Some(map) = file.map.get() {
        return read_mapped(&*layer.content, map, range, reader, answer);
    }
    let FileData::MapInArchive(map_range) = file.entry.data() else {
        return answer(Err(Error::SparseMap));
    };
    let map_range = map_range.start.max(file.header)..map_range.end;
    let (tree, content) = (Arc::clone(&layer.tree), Arc::clone(&layer.content));
    let then = move |bytes: Result<&[u8], Error>| {
        let file = tree.sparse(number);
        let map = match bytes.map(|bytes| file.entry.sparse_1_0(bytes)) {
            Ok(Ok(extents)) => file.map.get_or_init(|| extents.into()),
            Ok(Err(_)) => return answer(Err(Error::SparseMap)),
            Err(error) => return answer(Err(error)),
        };
        read_mapped(&*content, map, range, reader, answer);
    };
    exactly(&*layer.content, map_range, reader, then);
}

/// Reads `range` of a file made of the runs `map`, with one read of the layer: the runs of a
/// sparse member follow one another in the archive.
fn read_mapped(
    content: &dyn LayerContent,
    map: &[Extent],
    range: Range<u64>,
    reader: Reader,
    answer: impl Answer,
) {
    let Some(pieces) = pieces(map, &range) else {
        return answer(Err(Error::SparseMap));
    };
    // The kernel asks for no more than a megabyte.
    let Ok(len) = usize::try_from(range.end - range.start) else {
        return answer(Err(Error::SparseMap));
    };
    let mut buffer = vec![0; len];
    let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
        return answer(Ok(&buffer));
    };
    let span = first.tar.start..last.tar.end;
    if span.end - span.start > len as u64 {
        return answer(Err(Error::SparseMap));
    }
    let start = span.start;
    let in_tar = UncompressedOffset(span.start)..UncompressedOffset(span.end);
    exactly(content, in_tar, reader, move |bytes| {
        let placed = bytes.and_then(|bytes| place(&pieces, start, bytes, &mut buffer));
        answer(placed.map(|()| &*buffer));
    });
}

/// A run of data within one read.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    /// Where it goes, from the beginning of the read.
    target: u64,
    /// Where it lies in the archive.
    tar: Range<u64>,
}

/// The runs of data that `range` of a file touches; `None` if the map is not in order.
fn pieces(map: &[Extent], range: &Range<u64>) -> Option<Vec<Piece>> {
    let first =
        map.partition_point(|extent| extent.file_offset.saturating_add(extent.len) <= range.start);
    let mut pieces: Vec<Piece> = Vec::new();
    for extent in map[first..]
        .iter()
        .take_while(|extent| extent.file_offset < range.end)
    {
        let start = extent.file_offset.max(range.start);
        let end = extent.file_offset.checked_add(extent.len)?.min(range.end);
        let tar_start = extent
            .tar_offset
            .0
            .checked_add(start - extent.file_offset)?;
        if end <= start {
            continue;
        }
        let tar = tar_start..tar_start.checked_add(end - start)?;
        if pieces
            .last()
            .is_some_and(|before| before.tar.end > tar.start)
        {
            return None;
        }
        pieces.push(Piece {
            target: start - range.start,
            tar,
        });
    }
    Some(pieces)
}

/// Copies the pieces of `bytes`, which begin at `start` in the archive, to their places.
fn place(pieces: &[Piece], start: u64, bytes: &[u8], buffer: &mut [u8]) -> Result<(), Error> {
    for piece in pieces {
        let from = slice_range(piece.tar.start - start..piece.tar.end - start)?;
        let len = piece.tar.end - piece.tar.start;
        let to = slice_range(piece.target..piece.target + len)?;
        let from = bytes.get(from).ok_or(Error::SparseMap)?;
        buffer
            .get_mut(to)
            .ok_or(Error::SparseMap)?
            .copy_from_slice(from);
    }
    Ok(())
}

fn slice_range(range: Range<u64>) -> Result<Range<usize>, Error> {
    let position = |at| usize::try_from(at).map_err(|_| Error::SparseMap);
    Ok(position(range.start)?..position(range.end)?)
}

//! From a file's bytes to a layer's bytes.

mod headers;
mod sparse;

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use ztoc::UncompressedOffset;
use ztoc::unit::ByteLen;

use crate::content::{LayerContent, ReadReply};
use crate::error::Error;
use crate::inode::Node;
use crate::merge::View;
use crate::reader::Reader;
use crate::tree::{Body, Headers};

/// Takes the bytes of one read, on whatever thread has them.
pub(crate) trait Answer: FnOnce(Result<&[u8], Error>) + Send + 'static {}

impl<F: FnOnce(Result<&[u8], Error>) + Send + 'static> Answer for F {}

impl View {
    /// Reads up to `len` bytes of `node` from `position` on, for `reader`; fewer only at the end of the file.
    pub(crate) fn read(
        &self,
        node: Node,
        position: u64,
        len: u32,
        reader: Reader,
        answer: impl Answer,
    ) {
        let layer = self.layer(node);
        match &self.inode(node).body {
            Body::Regular { offset, size } => {
                let range = clip(position, len, *size);
                if range.is_empty() {
                    return answer(Ok(&[]));
                }
                let whole = in_tar(*offset, &(0..*size)).zip(in_tar(*offset, &range));
                let Some((file, range)) = whole else {
                    return answer(Err(Error::WrongLength));
                };
                match layer.tree.header_check(node.inode).state() {
                    Headers::Right => exactly_in(&*layer.content, file, range, reader, answer),
                    Headers::Unread(length) if range.start == file.start => {
                        let first = headers::First {
                            inode: node.inode,
                            length,
                            reader,
                        };
                        first.with(layer, &file, range.end, answer);
                    }
                    _ => {
                        let content = Arc::clone(&layer.content);
                        headers::before(
                            layer,
                            node.inode,
                            *offset,
                            reader,
                            move |right| match right {
                                Ok(()) => exactly_in(&*content, file, range, reader, answer),
                                Err(error) => answer(Err(error)),
                            },
                        );
                    }
                }
            }
            Body::Sparse(number) => {
                let number = *number;
                let entry = &layer.tree.sparse(number).entry;
                let range = clip(position, len, entry.size);
                let own = layer.clone();
                headers::before(
                    layer,
                    node.inode,
                    entry.offset,
                    reader,
                    move |right| match right {
                        Ok(()) => sparse::read(&own, number, range, reader, answer),
                        Err(error) => answer(Err(error)),
                    },
                );
            }
            Body::Directory(_) => answer(Err(Error::IsADirectory)),
            _ => answer(Err(Error::NotAFile)),
        }
    }
}

/// The part of a read that lies within the file.
fn clip(position: u64, len: u32, size: u64) -> Range<u64> {
    position.min(size)..position.saturating_add(u64::from(len)).min(size)
}

fn in_tar(start: UncompressedOffset, range: &Range<u64>) -> Option<Range<UncompressedOffset>> {
    let at = |position| Some(UncompressedOffset(start.0.checked_add(position)?));
    Some(at(range.start)?..at(range.end)?)
}

/// Reads `range` of a layer and answers with its bytes, or with an error if there are not as many:
/// the kernel would take a short answer for the end of the file and give the reader zeros.
fn exactly(
    content: &dyn LayerContent,
    range: Range<UncompressedOffset>,
    reader: Reader,
    answer: impl Answer,
) {
    exactly_in(content, range.clone(), range, reader, answer);
}

/// [`exactly`], of a file that lies in `file`.
fn exactly_in(
    content: &dyn LayerContent,
    file: Range<UncompressedOffset>,
    range: Range<UncompressedOffset>,
    reader: Reader,
    answer: impl Answer,
) {
    let wanted = range.byte_len();
    let reply = ReadReply::new(move |outcome| match outcome {
        Ok(bytes) if bytes.len() as u64 == wanted => answer(Ok(bytes)),
        Ok(_) => answer(Err(Error::WrongLength)),
        Err(error) => answer(Err(error.into())),
    });
    let reply = reply.wanted_by(reader);
    // A panic would take a thread of the session with it, and with the last one every reader would
    // wait for ever. The reply is dropped on the way here and so has told the reader.
    let read = AssertUnwindSafe(|| content.read_in_file(file, range.clone(), reply));
    if std::panic::catch_unwind(read).is_err() {
        let (start, end) = (range.start, range.end);
        tracing::error!(%start, %end, "reading a layer panicked, the read has failed");
    }
}

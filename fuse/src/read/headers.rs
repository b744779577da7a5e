//! The first read of a file, with the headers in front of it.

use std::ops::Range;

use ztoc::UncompressedOffset;

use super::{Answer, exactly, exactly_in};
use crate::error::Error;
use crate::merge::Layer;
use crate::reader::Reader;
use crate::tree::{Headers, InodeIndex};

/// The first read of `inode`, which has `length` bytes of headers.
pub(super) struct First {
    pub(super) inode: InodeIndex,
    pub(super) length: u64,
    pub(super) reader: Reader,
}

impl First {
    /// Reads the file that lies in `file` up to `end`, and with the same read the bytes in front of it, which must
    /// be its headers.
    pub(super) fn with(
        self,
        layer: &Layer,
        file: &Range<UncompressedOffset>,
        end: UncompressedOffset,
        answer: impl Answer,
    ) {
        let (own, data) = (layer.clone(), file.start);
        let Some(start) = data.0.checked_sub(self.length).map(UncompressedOffset) else {
            return answer(Err(refuse(layer, data)));
        };
        let length = usize::try_from(self.length).unwrap_or(usize::MAX);
        let (file, range) = (start..file.end, start..end);
        exactly_in(&*layer.content, file, range, self.reader, move |bytes| {
            let (headers, bytes) = match bytes.map(|bytes| bytes.split_at_checked(length)) {
                Ok(Some(parts)) => parts,
                Ok(None) => return answer(Err(Error::WrongLength)),
                Err(error) => return answer(Err(error)),
            };
            answer(look(&own, self.inode, data, headers).map(|()| bytes));
        });
    }
}

/// Goes on with `then` when the headers in front of `data`, where the bytes of `inode` begin, are found to be
/// its own, or something else.
pub(super) fn before(
    layer: &Layer,
    inode: InodeIndex,
    data: UncompressedOffset,
    reader: Reader,
    then: impl FnOnce(Result<(), Error>) + Send + 'static,
) {
    let start = match layer.tree.header_check(inode).state() {
        Headers::Right => return then(Ok(())),
        Headers::Impossible => None,
        Headers::Unread(length) => data.0.checked_sub(length),
    };
    let Some(start) = start else {
        return then(Err(refuse(layer, data)));
    };
    let own = layer.clone();
    let headers = UncompressedOffset(start)..data;
    exactly(&*layer.content, headers, reader, move |bytes| {
        then(bytes.and_then(|bytes| look(&own, inode, data, bytes)));
    });
}

fn look(
    layer: &Layer,
    inode: InodeIndex,
    data: UncompressedOffset,
    headers: &[u8],
) -> Result<(), Error> {
    let right = layer.tree.header_check(inode).look(headers);
    right.then_some(()).ok_or_else(|| refuse(layer, data))
}

/// Tells the layer that its table of contents is not its own.
fn refuse(layer: &Layer, data: UncompressedOffset) -> Error {
    layer.content.contradicted(data);
    Error::Headers
}

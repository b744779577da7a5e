//! A tar stream, member by member.

use std::fs::File;
use std::io::{self, BufRead};
use std::os::unix::fs::FileExt as _;

use ztoc::tar::Scanner;
use ztoc::toc::{Extent, FileData};
use ztoc::{Entry, UncompressedOffset};

use super::error::UnpackError;

/// Most bytes kept of what precedes a member's data: a whole map of a sparse file and more.
const HEADERS: usize = 2 << 20;

/// Reads a tar with the scanner that zTOCs are built with, so that an unpacked layer and a lazy one show
/// the same.
pub(super) struct Archive<R> {
    input: R,
    scanner: Scanner,
    /// How much of the tar has been scanned.
    position: u64,
    /// The bytes in front of the member's data, for maps of sparse files.
    headers: Vec<u8>,
}

impl<R: BufRead> Archive<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input,
            scanner: Scanner::new(),
            position: 0,
            headers: Vec::new(),
        }
    }

    /// The next member, or `None` at the end. Its data is skipped unless it is copied before.
    pub(super) fn next_member(&mut self) -> Result<Option<Entry>, UnpackError> {
        self.headers.clear();
        loop {
            let bytes = self.input.fill_buf().map_err(UnpackError::Read)?;
            if bytes.is_empty() {
                break;
            }
            let (taken, entry) = self.scanner.step(bytes)?;
            if self.headers.len() < HEADERS {
                self.headers.extend_from_slice(&bytes[..taken]);
            }
            self.consume(taken);
            if entry.is_some() {
                return Ok(entry);
            }
        }
        std::mem::take(&mut self.scanner).finish()?;
        Ok(None)
    }

    /// Writes the data of the member read last into `file`, holes as holes.
    pub(super) fn copy_data(&mut self, entry: &Entry, file: &File) -> Result<(), UnpackError> {
        let failed = |error| UnpackError::entry(&entry.name, error);
        let data = entry.data();
        if !matches!(data, FileData::Contiguous(_)) {
            file.set_len(entry.size).map_err(failed)?;
        }
        let extents = match data {
            FileData::Contiguous(range) => vec![Extent {
                file_offset: 0,
                tar_offset: range.start,
                len: range.end.0.saturating_sub(range.start.0),
            }],
            FileData::Sparse(extents) => extents,
            FileData::MapInArchive(_) => {
                let map = entry.sparse_1_0(&self.headers);
                map.map_err(|error| failed(io::Error::other(error)))?
            }
        };
        for extent in extents {
            self.copy_extent(entry, &extent, file)?;
        }
        Ok(())
    }

    fn copy_extent(
        &mut self,
        entry: &Entry,
        extent: &Extent,
        file: &File,
    ) -> Result<(), UnpackError> {
        if UncompressedOffset(self.position) != extent.tar_offset {
            let error = io::Error::new(io::ErrorKind::InvalidData, "its data is out of order");
            return Err(UnpackError::entry(&entry.name, error));
        }
        let (mut at, mut left) = (extent.file_offset, extent.len);
        while left > 0 {
            let bytes = self.input.fill_buf().map_err(UnpackError::Read)?;
            if bytes.is_empty() {
                return Err(UnpackError::Read(io::ErrorKind::UnexpectedEof.into()));
            }
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            let bytes = &bytes[..length];
            self.scanner.feed(bytes)?;
            file.write_all_at(bytes, at)
                .map_err(|error| UnpackError::entry(&entry.name, error))?;
            self.consume(length);
            at += length as u64;
            left -= length as u64;
        }
        Ok(())
    }

    fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.position += length as u64;
    }
}

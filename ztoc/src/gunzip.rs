//! A gzip stream from beginning to end, piece by piece.
//!
//! For whoever wants all of a layer and no checkpoints. Memory is bounded by a piece, the
//! window in front of it, and of the input what has been read and not yet been decoded.
//!
//! ```
//! use std::io::Write as _;
//! use ztoc::gunzip::{Gunzip, PIECE_LEN};
//! # let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
//! # gzip.write_all(b"hello")?;
//! # let blob = gzip.finish()?;
//!
//! let (mut gunzip, mut piece) = (Gunzip::new(&*blob), Vec::new());
//! let range = gunzip.read_piece(&mut piece)?;
//! assert_eq!(&piece[range], b"hello");
//! assert!(gunzip.read_piece(&mut piece)?.is_empty());
//! # Ok::<(), ztoc::gunzip::GunzipError>(())
//! ```

use std::io::Read;
use std::ops::Range;

use crate::builder::input::Input;
use crate::checkpoint::WINDOW_LEN;
use crate::error::{InflateError, WindowError};
use crate::gzip::{self, GzipError, TRAILER_LEN, Trailer};
use crate::inflate::{self, Cursor, Stop, Tables};
use crate::span::SpanTable;
use crate::unit::SpanId;

/// Most bytes of one piece.
pub const PIECE_LEN: usize = 256 << 10;

/// Why a gzip stream cannot be decoded. Offsets are positions in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GunzipError {
    /// Reading it failed.
    #[error(transparent)]
    Read(#[from] std::io::Error),
    /// A member's header is malformed.
    #[error("gzip member at offset {at}: {source}")]
    Header {
        /// Where the member begins.
        at: u64,
        /// What is wrong.
        source: GzipError,
    },
    /// It ends within a member.
    #[error("the gzip stream is cut off after {0} bytes")]
    CutOff(u64),
    /// The deflate stream is corrupt.
    #[error("the gzip stream is corrupt near offset {at}: {source}")]
    Deflate {
        /// About where.
        at: u64,
        /// What is wrong.
        source: InflateError,
    },
    /// A member does not have the content that its trailer states.
    #[error("checksum or length of the gzip member that ends at offset {0} is wrong")]
    Checksum(u64),
    /// Something other than zeros or a further member follows a member.
    #[error("garbage behind the gzip member that ends at offset {0}")]
    Garbage(u64),
}

/// Decodes a gzip stream of one or more members, padded with zeros or not.
#[derive(Debug)]
pub struct Gunzip<R> {
    reader: R,
    input: Input,
    tables: Tables,
    state: State,
    /// The last bytes put out, at most [`WINDOW_LEN`]: deflate refers to them.
    window: Vec<u8>,
    /// How many bytes of the current member have been put out, and their checksum.
    len: u64,
    crc: crc32fast::Hasher,
    /// The member was entered in its middle: its trailer cannot be compared.
    entered: bool,
}

#[derive(Debug)]
enum State {
    /// Before a member.
    Header,
    Deflate(Cursor),
    /// Behind a member's deflate stream.
    Trailer,
    End,
}

impl<R: Read> Gunzip<R> {
    /// Decodes what `reader` has.
    pub fn new(reader: R) -> Self {
        Self {
            reader,
            input: Input::default(),
            tables: Tables::new(),
            state: State::Header,
            window: Vec::with_capacity(WINDOW_LEN),
            len: 0,
            crc: crc32fast::Hasher::new(),
            entered: false,
        }
    }

    /// Decodes what `reader` has from a checkpoint of a layer on: `reader` begins at the
    /// checkpoint's first byte ([`crate::SpanTable::compressed`]). Checksum and length of the first
    /// member are not compared, as its beginning is not seen.
    ///
    /// # Errors
    ///
    /// The window in front of the checkpoint cannot be had.
    ///
    /// # Panics
    ///
    /// If `span` is not below [`crate::SpanTable::count`].
    pub fn from_span(reader: R, table: &SpanTable, span: SpanId) -> Result<Self, WindowError> {
        let mut window = vec![0; WINDOW_LEN];
        table.write_window(span, &mut window)?;
        let bit = match table.checkpoint(span).bits {
            0 => 0,
            bits => 8 - u64::from(bits),
        };
        Ok(Self {
            state: State::Deflate(Cursor::at_bit(bit)),
            window,
            entered: true,
            ..Self::new(reader)
        })
    }

    /// Decodes the next bytes into `buffer`, whose former content is lost, and tells where they
    /// are: nowhere at the end. Less than [`PIECE_LEN`] only before the end of a member.
    ///
    /// # Errors
    ///
    /// The stream cannot be read, is corrupt or cut off.
    pub fn read_piece(&mut self, buffer: &mut Vec<u8>) -> Result<Range<usize>, GunzipError> {
        loop {
            match self.state {
                State::Header => self.header()?,
                State::Trailer => self.trailer()?,
                State::End => return Ok(0..0),
                State::Deflate(cursor) => {
                    let range = self.deflate(cursor, buffer)?;
                    if !range.is_empty() {
                        return Ok(range);
                    }
                }
            }
        }
    }

    fn header(&mut self) -> Result<(), GunzipError> {
        let at = self.input.base();
        loop {
            let len = gzip::header_len(self.input.bytes());
            if let Some(len) = len.map_err(|source| GunzipError::Header { at, source })? {
                self.input.release(len);
                self.window.clear();
                self.len = 0;
                self.crc = crc32fast::Hasher::new();
                self.entered = false;
                self.state = State::Deflate(Cursor::at_bit(0));
                return Ok(());
            }
            if !self.input.fill(&mut self.reader)? {
                return Err(self.cut_off());
            }
        }
    }

    /// Decodes until the piece is full or the member ends.
    fn deflate(
        &mut self,
        mut cursor: Cursor,
        buffer: &mut Vec<u8>,
    ) -> Result<Range<usize>, GunzipError> {
        let start = self.window.len();
        buffer.resize(WINDOW_LEN + PIECE_LEN, 0);
        buffer[..start].copy_from_slice(&self.window);
        let (mut pos, end) = (start, start + PIECE_LEN);
        loop {
            let input = self.input.bytes();
            let decoded = inflate::run(&mut self.tables, input, &mut cursor, buffer, pos, end);
            let (stop, reached) = decoded.map_err(|source| GunzipError::Deflate {
                at: self.input.base() + cursor.bit() / 8,
                source,
            })?;
            pos = reached;
            match stop {
                Stop::OutputFull => {
                    self.state = State::Deflate(cursor);
                    break;
                }
                Stop::StreamEnd => {
                    self.input.release(cursor.byte_aligned_end());
                    self.state = State::Trailer;
                    break;
                }
                // `run` does not stop between blocks.
                Stop::BlockEnd => {}
                Stop::InputExhausted => {
                    let used = cursor.needed_from();
                    self.input.release(used);
                    cursor.rebase(used);
                    if !self.input.fill(&mut self.reader)? {
                        return Err(self.cut_off());
                    }
                }
            }
        }
        self.note(&buffer[..pos], start);
        Ok(start..pos)
    }

    /// Keeps of `decoded` what may be referred to; what begins at `new` is new.
    fn note(&mut self, decoded: &[u8], new: usize) {
        self.crc.update(&decoded[new..]);
        self.len += (decoded.len() - new) as u64;
        self.window.clear();
        let from = decoded.len().saturating_sub(WINDOW_LEN);
        self.window.extend_from_slice(&decoded[from..]);
    }

    fn trailer(&mut self) -> Result<(), GunzipError> {
        while self.input.bytes().len() < TRAILER_LEN {
            if !self.input.fill(&mut self.reader)? {
                return Err(self.cut_off());
            }
        }
        let trailer = self.input.bytes()[..TRAILER_LEN]
            .try_into()
            .expect("that many are there");
        self.input.release(TRAILER_LEN);
        let trailer = Trailer::parse(trailer);
        let crc = std::mem::take(&mut self.crc).finalize();
        // Lengths are stated modulo 2^32.
        let wrong = trailer.crc != crc || u64::from(trailer.len) != self.len & u64::from(u32::MAX);
        if wrong && !self.entered {
            return Err(GunzipError::Checksum(self.input.base()));
        }
        self.another_member()
    }

    /// Whether another member follows. Zeros up to the end may follow too.
    fn another_member(&mut self) -> Result<(), GunzipError> {
        let end = self.input.base();
        let mut zeros = false;
        while !self.input.bytes().is_empty() || self.input.fill(&mut self.reader)? {
            let bytes = self.input.bytes();
            match bytes.iter().position(|byte| *byte != 0) {
                Some(0) if !zeros && bytes[0] == gzip::MAGIC[0] => {
                    self.state = State::Header;
                    return Ok(());
                }
                Some(_) => return Err(GunzipError::Garbage(end)),
                None => {
                    zeros = true;
                    self.input.release(bytes.len());
                }
            }
        }
        self.state = State::End;
        Ok(())
    }

    fn cut_off(&self) -> GunzipError {
        GunzipError::CutOff(self.input.base() + self.input.bytes().len() as u64)
    }
}

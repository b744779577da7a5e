//! A tar scanner that is fed the stream in pieces and keeps the members' headers.
//!
//! It reads what Go's archive/tar reads, in the same way, because that is what containerd unpacks
//! with and what the original builds with; in addition it takes PAX global headers (passed over, as
//! containerd does), contiguous files (as regular ones) and old GNU sparse files (their map goes
//! into the entry's PAX records), which the original refuses.

mod header;
mod member;
mod pax;
pub(crate) mod sparse;

pub(crate) use self::header::BLOCK_LEN;
use self::header::{Block, Header};
use self::member::{Extended, Member};
use self::sparse::{MapReader, OldMap};
use crate::error::SparseError;
use crate::toc::Entry;
use crate::unit::UncompressedOffset;

/// The longest PAX header or GNU long name that is read, as in Go.
const MAX_SPECIAL_LEN: u64 = 1 << 20;

/// How large the entries of a layer may become in memory or in a zTOC.
const MAX_ENTRIES_LEN: usize = 1 << 30;

/// A stream that is no tar, or none that can become a container's layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tar member at offset {at}: {reason}")]
pub struct TarError {
    /// Where the member begins in the uncompressed stream.
    pub at: UncompressedOffset,
    /// What is wrong with it.
    pub reason: TarErrorReason,
}

/// What is wrong with a tar member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TarErrorReason {
    /// The stream ends inside of it.
    #[error("the archive is cut off")]
    CutOff,
    /// Its header is malformed.
    #[error("{0}")]
    Malformed(&'static str),
    /// Its map is malformed.
    #[error(transparent)]
    Sparse(#[from] SparseError),
    /// A kind of member that layers do not have.
    #[error("{name:?} has type {typeflag:?}, which is not supported")]
    Type {
        /// The member's name, as far as it can be shown.
        name: String,
        /// Its type flag.
        typeflag: char,
    },
    /// Metadata beyond what is supported.
    #[error("{0} is larger than is supported")]
    TooLarge(&'static str),
}

/// What the bytes to come are.
#[derive(Debug)]
enum State {
    /// A header or the first block of the end mark.
    Header,
    /// The second block of the end mark.
    EndMark,
    /// Data of a metadata member.
    Special(u8),
    /// A block with more of an old GNU sparse map.
    OldMap(Box<(Member, OldMap)>),
    /// A block of a 1.0 sparse map.
    Map(Box<(Member, MapReader)>),
    /// Bytes nobody needs.
    Skip { data: u64, padding: u64 },
    /// Behind the end mark.
    Done,
}

/// The scanner.
#[derive(Debug)]
pub struct Scanner {
    state: State,
    /// What has been gathered of the unit that the state needs, and its length.
    gathered: Vec<u8>,
    needed: usize,
    /// Padding behind what is being gathered.
    padding: u64,
    position: u64,
    /// Where the member in work begins, metadata in front of it included.
    member_at: u64,
    extended: Extended,
    entries: Vec<Entry>,
    entries_len: usize,
}

/// What a scan found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// The members in order.
    pub entries: Vec<Entry>,
    /// The position behind the end mark, or the end of a stream without one.
    pub end: UncompressedOffset,
}

impl Default for Scanner {
    fn default() -> Self {
        Self::new()
    }
}

impl Scanner {
    /// A scanner at the beginning of an archive.
    pub fn new() -> Self {
        Self {
            state: State::Header,
            gathered: Vec::new(),
            needed: BLOCK_LEN,
            padding: 0,
            position: 0,
            member_at: 0,
            extended: Extended::default(),
            entries: Vec::new(),
            entries_len: 0,
        }
    }

    /// Takes the next bytes of the stream. Those behind the end of the archive are ignored.
    ///
    /// # Errors
    ///
    /// What is wrong with the archive. The scanner is of no use after that.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), TarError> {
        while !bytes.is_empty() && !matches!(self.state, State::Done) {
            bytes = &bytes[self.unit(bytes)?..];
        }
        Ok(())
    }

    /// Takes the next bytes of the stream up to where a member's data begins, and returns how many it
    /// took and that member. Without a member all bytes are taken; those behind the end are ignored.
    ///
    /// # Errors
    ///
    /// As for [`Self::feed`].
    pub fn step(&mut self, bytes: &[u8]) -> Result<(usize, Option<Entry>), TarError> {
        let mut taken = 0;
        while taken < bytes.len() && !matches!(self.state, State::Done) {
            taken += self.unit(&bytes[taken..])?;
            if let Some(entry) = self.entries.pop() {
                return Ok((taken, Some(entry)));
            }
        }
        Ok((bytes.len(), None))
    }

    /// Takes what the current state needs, as far as it is there; how many bytes that were.
    fn unit(&mut self, bytes: &[u8]) -> Result<usize, TarError> {
        let taken = match &mut self.state {
            State::Done => return Ok(bytes.len()),
            State::Skip { data, padding } => skip(data, padding, bytes.len()),
            _ => gather(&mut self.gathered, self.needed, bytes),
        };
        self.position += taken as u64;
        let at = UncompressedOffset(self.member_at);
        self.advance().map_err(|reason| TarError { at, reason })?;
        Ok(taken)
    }

    /// How many bytes of the stream belong to the archive, as far as it has been taken.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Ends the stream.
    ///
    /// # Errors
    ///
    /// The stream ended inside a member. A missing end mark, and missing padding behind the
    /// last member, are no error.
    pub fn finish(self) -> Result<Scanned, TarError> {
        let complete = match self.state {
            State::Header | State::EndMark => self.gathered.is_empty(),
            State::Skip { data, .. } => data == 0,
            State::Done => true,
            State::Special(_) | State::OldMap(_) | State::Map(_) => false,
        };
        if !complete {
            let at = UncompressedOffset(self.member_at);
            return Err(TarError {
                at,
                reason: TarErrorReason::CutOff,
            });
        }
        Ok(Scanned {
            entries: self.entries,
            end: UncompressedOffset(self.position),
        })
    }

    /// Goes on to the next state if the unit of the current one is complete.
    fn advance(&mut self) -> Result<(), TarErrorReason> {
        if let State::Skip { data, padding } = self.state {
            if data == 0 && padding == 0 {
                self.expect(State::Header, BLOCK_LEN);
            }
            return Ok(());
        }
        if self.gathered.len() < self.needed {
            return Ok(());
        }
        let unit = std::mem::take(&mut self.gathered);
        match std::mem::replace(&mut self.state, State::Done) {
            State::Header => self.header(as_block(&unit))?,
            State::EndMark if unit.iter().any(|byte| *byte != 0) => {
                return Err(TarErrorReason::Malformed("a lone block of zeros"));
            }
            State::EndMark | State::Done | State::Skip { .. } => {}
            State::Special(typeflag) => {
                self.extended.take(typeflag, &unit)?;
                self.skip(0, self.padding);
            }
            State::OldMap(work) => {
                let (member, mut map) = *work;
                let more = map.extension(as_block(&unit))?;
                self.old_map(member, map, more)?;
            }
            State::Map(work) => self.map(*work, &unit)?,
        }
        self.reuse(unit);
        Ok(())
    }

    /// Keeps a used unit's memory for the next, unless it is unusually large.
    fn reuse(&mut self, mut unit: Vec<u8>) {
        unit.clear();
        if unit.capacity() <= 8 * BLOCK_LEN {
            self.gathered = unit;
        }
    }

    fn expect(&mut self, state: State, needed: usize) {
        self.state = state;
        self.needed = needed;
        if matches!(self.state, State::Header) && self.extended.is_empty() {
            self.member_at = self.position;
        }
    }

    fn skip(&mut self, data: u64, padding: u64) {
        self.expect(State::Skip { data, padding }, 0);
        if data == 0 && padding == 0 {
            self.expect(State::Header, BLOCK_LEN);
        }
    }

    fn header(&mut self, block: &Block) -> Result<(), TarErrorReason> {
        if block.iter().all(|byte| *byte == 0) {
            self.expect(State::EndMark, BLOCK_LEN);
            return Ok(());
        }
        let header = Header::parse(block).map_err(TarErrorReason::Malformed)?;
        match header.typeflag {
            b'x' | b'g' | b'L' | b'K' => self.special(&header),
            _ => {
                let member = self.extended.member(header)?;
                self.member(member, block)
            }
        }
    }

    /// Begins to gather a metadata member's data.
    fn special(&mut self, header: &Header) -> Result<(), TarErrorReason> {
        let size = u64::try_from(header.size)
            .map_err(|_| TarErrorReason::Malformed("the size is negative"))?;
        if size > MAX_SPECIAL_LEN {
            return Err(TarErrorReason::TooLarge("an extended header"));
        }
        self.padding = padding(size);
        if size == 0 {
            self.extended.take(header.typeflag, &[])?;
            self.skip(0, 0);
            return Ok(());
        }
        let needed = usize::try_from(size).map_err(|_| TarErrorReason::TooLarge("a member"))?;
        self.extended.begin();
        self.expect(State::Special(header.typeflag), needed);
        Ok(())
    }

    /// A member whose own header has been read, but perhaps not all of its map.
    fn member(&mut self, member: Member, block: &Block) -> Result<(), TarErrorReason> {
        if member.is_old_sparse() {
            let mut map = OldMap::default();
            let more = map.header(block)?;
            return self.old_map(member, map, more);
        }
        if member.has_map_in_archive() {
            if member.stored < BLOCK_LEN as u64 {
                return Err(SparseError("cut off").into());
            }
            self.expect(
                State::Map(Box::new((member, MapReader::default()))),
                BLOCK_LEN,
            );
            return Ok(());
        }
        self.complete(member)
    }

    fn old_map(
        &mut self,
        mut member: Member,
        map: OldMap,
        more: bool,
    ) -> Result<(), TarErrorReason> {
        if more {
            self.expect(State::OldMap(Box::new((member, map))), BLOCK_LEN);
            return Ok(());
        }
        member.set_old_map(&map)?;
        self.complete(member)
    }

    fn map(
        &mut self,
        (mut member, mut map): (Member, MapReader),
        block: &[u8],
    ) -> Result<(), TarErrorReason> {
        member.stored = member.stored.saturating_sub(BLOCK_LEN as u64);
        match map.push(block)? {
            Some(regions) => {
                member.check_map(&regions)?;
                self.complete(member)
            }
            None if member.stored < BLOCK_LEN as u64 => Err(SparseError("cut off").into()),
            None => {
                self.expect(State::Map(Box::new((member, map))), BLOCK_LEN);
                Ok(())
            }
        }
    }

    /// Keeps a member whose data begins here.
    fn complete(&mut self, mut member: Member) -> Result<(), TarErrorReason> {
        member.entry.offset = UncompressedOffset(self.position);
        self.entries_len += member.entry.encoded_len();
        if self.entries_len > MAX_ENTRIES_LEN {
            return Err(TarErrorReason::TooLarge("the table of contents"));
        }
        self.entries.push(member.entry);
        self.skip(member.stored, padding(member.stored));
        Ok(())
    }
}

/// Takes up to `available` bytes off data, then padding.
fn skip(data: &mut u64, padding: &mut u64, available: usize) -> usize {
    let available = available as u64;
    let from_data = available.min(*data);
    let from_padding = (available - from_data).min(*padding);
    *data -= from_data;
    *padding -= from_padding;
    usize::try_from(from_data + from_padding).expect("no more than was available")
}

/// Moves bytes to `gathered` until it holds `needed`; how many were moved.
fn gather(gathered: &mut Vec<u8>, needed: usize, bytes: &[u8]) -> usize {
    let taken = bytes.len().min(needed - gathered.len());
    gathered.extend_from_slice(&bytes[..taken]);
    taken
}

fn as_block(unit: &[u8]) -> &Block {
    unit.try_into().expect("a block was gathered")
}

/// Bytes from the end of `size` bytes to the next block.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK_LEN as u64
}

#[cfg(test)]
mod tests;

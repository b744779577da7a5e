//! What is read from the disk before it is asked for: the next requests of who reads a large file in sequence.
//!
//! Reads past the page cache have no read-ahead of the kernel's. The kernel does read the view ahead, but asks for the next
//! part only when the reader has come to the one before: without more, the disk rests while bytes are copied, and the
//! processors while the disk works.

use std::fmt;
use std::ops::Range;

use fuse::content::ReadReply;
use parking_lot::Mutex;
use ztoc::unit::ByteLen as _;
use ztoc::{Digest, UncompressedOffset};

use super::large::LargeBuffer;

/// Requests of a reader that are read ahead of it.
const DEPTH: u64 = 2;
/// Smallest request that has the next ones read. The kernel's read-ahead begins with smaller ones, and goes on with others.
const SMALLEST: u64 = 512 << 10;
/// Most requests that are read ahead, of all readers.
const MOST: usize = 6;
/// Readers told apart at a time.
const READERS: usize = 4;

/// Bytes of a layer.
type Part = Range<UncompressedOffset>;

/// What is read ahead and by whom, over all layers.
#[derive(Default)]
pub(crate) struct DiskAhead {
    /// Only the lock of the buffers is taken under it, and it is held over no I/O.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Oldest first.
    entries: Vec<Entry>,
    /// The one that was used last at the end.
    readers: Vec<Reader>,
}

/// One request that is read ahead.
struct Entry {
    layer: Digest,
    part: Part,
    stage: Stage,
}

enum Stage {
    /// Who has asked for it meanwhile.
    Reading(Vec<Waiting>),
    /// Where in the buffer it is.
    Read(LargeBuffer, Range<usize>),
}

/// A request that waits for what is being read.
pub(crate) struct Waiting {
    pub(crate) part: Part,
    pub(crate) reply: ReadReply,
}

/// Somebody who reads in sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reader {
    layer: Digest,
    /// Bytes of its last request.
    length: u64,
    /// Up to where it has asked or is read ahead.
    next: u64,
}

/// What there is for a request.
pub(crate) enum Found {
    /// The bytes, in this part of the buffer.
    Read(ReadReply, LargeBuffer, Range<usize>),
    /// They are being read, and the reply will come.
    Waits,
    /// Nothing.
    Nothing(ReadReply),
}

impl DiskAhead {
    /// Takes what was read ahead for a request.
    pub(crate) fn find(&self, layer: &Digest, part: &Part, reply: ReadReply) -> Found {
        let mut state = self.state.lock();
        let holds = |entry: &Entry| {
            entry.layer == *layer && entry.part.start <= part.start && part.end <= entry.part.end
        };
        let Some(index) = state.entries.iter().position(holds) else {
            return Found::Nothing(reply);
        };
        let mut entry = state.entries.remove(index);
        match entry.stage {
            Stage::Read(buffer, place) => {
                Found::Read(reply, buffer, inside(&entry.part, &place, part))
            }
            Stage::Reading(ref mut waiting) => {
                let part = part.clone();
                waiting.push(Waiting { part, reply });
                state.entries.insert(index, entry);
                Found::Waits
            }
        }
    }

    /// A request was for what is on disk only, or was read ahead. What is to be read now, each as an entry that must be
    /// [ended](Self::end): nothing unless it follows one of the same length, and nothing beyond `end`.
    pub(crate) fn follow(&self, layer: &Digest, part: &Part, end: UncompressedOffset) -> Vec<Part> {
        let length = part.byte_len();
        if length < SMALLEST {
            return Vec::new();
        }
        let mut state = self.state.lock();
        let Some(mut reader) = state.reader(layer, part) else {
            let (layer, next) = (*layer, part.end.0);
            state.remember(Reader {
                layer,
                length,
                next,
            });
            return Vec::new();
        };
        let steady = reader.length == length;
        reader.length = length;
        reader.next = reader.next.max(part.end.0);
        let mut wanted = Vec::new();
        while steady && reader.next < end.0.min(part.end.0 + DEPTH * length) && state.has_room() {
            let next = reader.next..end.0.min(reader.next + length);
            let next = UncompressedOffset(next.start)..UncompressedOffset(next.end);
            reader.next = next.end.0;
            state.entries.push(Entry {
                layer: *layer,
                part: next.clone(),
                stage: Stage::Reading(Vec::new()),
            });
            wanted.push(next);
        }
        state.remember(reader);
        wanted
    }

    /// An entry has been read, into this part of a buffer. If somebody waits for it, it is over, and both are given back.
    pub(crate) fn arrived(
        &self,
        layer: &Digest,
        part: &Part,
        buffer: LargeBuffer,
        place: Range<usize>,
    ) -> Option<(LargeBuffer, Vec<Waiting>)> {
        let mut state = self.state.lock();
        let index = state.being_read(layer, part)?;
        let entry = &mut state.entries[index];
        if let Stage::Reading(waiting) = &entry.stage
            && waiting.is_empty()
        {
            entry.stage = Stage::Read(buffer, place);
            return None;
        }
        Some((buffer, state.entries.remove(index).waiting()))
    }

    /// An entry is no more being read; who waits for it still.
    pub(crate) fn end(&self, layer: &Digest, part: &Part) -> Vec<Waiting> {
        let mut state = self.state.lock();
        let index = state.being_read(layer, part);
        index.map_or_else(Vec::new, |index| state.entries.remove(index).waiting())
    }

    /// Whether it holds anything that nobody has asked for yet.
    pub(crate) fn holds_any(&self) -> bool {
        let state = self.state.lock();
        state.entries.iter().any(|entry| !entry.is_reading())
    }

    /// Gives up what nobody has asked for.
    pub(crate) fn forget(&self) {
        let mut state = self.state.lock();
        let (kept, forgotten) = std::mem::take(&mut state.entries)
            .into_iter()
            .partition(Entry::is_reading);
        state.entries = kept;
        drop(state);
        drop::<Vec<Entry>>(forgotten);
    }
}

/// Where in a buffer `part` is, if `whole` is at `place`.
pub(crate) fn inside(whole: &Part, place: &Range<usize>, part: &Part) -> Range<usize> {
    // Both lie in a buffer.
    let at = |position: UncompressedOffset| {
        let from_start = usize::try_from(position.0 - whole.start.0);
        place.start + from_start.expect("a request fits into memory")
    };
    at(part.start)..at(part.end)
}

impl Entry {
    fn is_reading(&self) -> bool {
        matches!(self.stage, Stage::Reading(_))
    }

    fn waiting(self) -> Vec<Waiting> {
        match self.stage {
            Stage::Reading(waiting) => waiting,
            Stage::Read(..) => Vec::new(),
        }
    }
}

impl State {
    fn being_read(&self, layer: &Digest, part: &Part) -> Option<usize> {
        let is_it =
            |entry: &Entry| entry.is_reading() && entry.layer == *layer && entry.part == *part;
        self.entries.iter().position(is_it)
    }

    /// Takes the reader out that this request continues. Two threads bring requests, not always in their order.
    fn reader(&mut self, layer: &Digest, part: &Part) -> Option<Reader> {
        let continues = |reader: &Reader| {
            let before = part.start.0 + (DEPTH + 2) * reader.length;
            reader.layer == *layer && part.start.0 <= reader.next && reader.next <= before
        };
        let index = self.readers.iter().position(continues)?;
        Some(self.readers.remove(index))
    }

    fn remember(&mut self, reader: Reader) {
        if self.readers.len() >= READERS {
            self.readers.remove(0);
        }
        self.readers.push(reader);
    }

    /// Whether one more can be read ahead; what was read first and is not wanted makes room.
    fn has_room(&mut self) -> bool {
        if self.entries.len() < MOST {
            return true;
        }
        let read = self.entries.iter().position(|entry| !entry.is_reading());
        read.map(|index| self.entries.remove(index)).is_some()
    }
}

impl fmt::Debug for DiskAhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("DiskAhead")
            .field("entries", &state.entries.len())
            .field("readers", &state.readers)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::layer::large::LargeBuffers;

    const MIB: u64 = 1 << 20;
    const END: UncompressedOffset = UncompressedOffset(100 * MIB);

    fn layer() -> Digest {
        Digest::of(b"layer")
    }

    /// Megabyte `number` of a layer.
    fn part(number: u64) -> Part {
        UncompressedOffset(number * MIB)..UncompressedOffset((number + 1) * MIB)
    }

    fn follow(ahead: &DiskAhead, number: u64) -> Vec<Part> {
        ahead.follow(&layer(), &part(number), END)
    }

    /// A reply, and the length of what it is answered with.
    fn reply() -> (ReadReply, Receiver<Option<usize>>) {
        let (send, receive) = channel();
        let reply = ReadReply::new(move |answer| {
            let _ = send.send(answer.ok().map(<[u8]>::len));
        });
        (reply, receive)
    }

    fn is_read(ahead: &DiskAhead, number: u64) -> bool {
        matches!(
            ahead.find(&layer(), &part(number), reply().0),
            Found::Read(..)
        )
    }

    fn arrive(ahead: &DiskAhead, number: u64) {
        let buffer = Arc::<LargeBuffers>::default().any();
        let place = 0..usize::try_from(MIB).expect("fits");
        let waiting = ahead.arrived(&layer(), &part(number), buffer, place);
        assert!(waiting.is_none_or(|(_, waiting)| waiting.is_empty()));
    }

    #[test]
    fn the_second_request_of_a_sequence_has_the_next_two_read_and_each_later_one_more() {
        let ahead = DiskAhead::default();
        assert_eq!(follow(&ahead, 0), []);
        assert_eq!(follow(&ahead, 1), [part(2), part(3)]);
        assert_eq!(follow(&ahead, 2), [part(4)]);
        assert_eq!(follow(&ahead, 4), [part(5), part(6)], "not in their order");
        assert_eq!(follow(&ahead, 3), []);
    }

    #[test]
    fn nothing_is_read_beyond_the_file_nor_for_other_lengths_nor_after_a_jump() {
        let ahead = DiskAhead::default();
        let end = UncompressedOffset(2 * MIB + 5);
        assert_eq!(ahead.follow(&layer(), &part(0), end), []);
        let rest = UncompressedOffset(2 * MIB)..end;
        assert_eq!(ahead.follow(&layer(), &part(1), end), [rest]);
        assert_eq!(follow(&ahead, 50), [], "a jump");
        let half = UncompressedOffset(51 * MIB)..UncompressedOffset(51 * MIB + SMALLEST);
        assert_eq!(ahead.follow(&layer(), &half, END), [], "another length");
        let short = UncompressedOffset(0)..UncompressedOffset(SMALLEST - 1);
        assert_eq!(ahead.follow(&layer(), &short, END), []);
        assert_eq!(ahead.follow(&layer(), &short, END), [], "too short");
        assert_eq!(ahead.follow(&Digest::of(b"other"), &part(52), END), []);
    }

    #[test]
    fn what_was_read_is_given_once_and_to_its_layer_only() {
        let ahead = DiskAhead::default();
        follow(&ahead, 0);
        follow(&ahead, 1);
        arrive(&ahead, 2);
        let other = ahead.find(&Digest::of(b"other"), &part(2), reply().0);
        assert!(matches!(other, Found::Nothing(_)));
        assert!(ahead.holds_any() && is_read(&ahead, 2));
        assert!(!ahead.holds_any() && !is_read(&ahead, 2));
    }

    #[test]
    fn who_asks_for_what_is_being_read_waits_and_is_told_whatever_becomes_of_it() {
        let ahead = DiskAhead::default();
        follow(&ahead, 0);
        follow(&ahead, 1);
        let (first, answered) = reply();
        let inner = UncompressedOffset(2 * MIB + 10)..UncompressedOffset(3 * MIB - 10);
        assert!(matches!(ahead.find(&layer(), &inner, first), Found::Waits));
        let buffer = Arc::<LargeBuffers>::default().any();
        let (mut buffer, waiting) = ahead
            .arrived(&layer(), &part(2), buffer, 100..100 + (1 << 20))
            .expect("somebody waits");
        for Waiting {
            part: wanted,
            reply,
        } in waiting
        {
            let place = inside(&part(2), &(100..100 + (1 << 20)), &wanted);
            assert_eq!(place, 110..100 + (1 << 20) - 10);
            reply.data(&buffer.bytes()[place]);
        }
        assert_eq!(answered.recv(), Ok(Some((1 << 20) - 20)));
        assert!(ahead.end(&layer(), &part(2)).is_empty(), "it is over");

        let (second, answered) = reply();
        assert!(matches!(
            ahead.find(&layer(), &part(3), second),
            Found::Waits
        ));
        drop(ahead.end(&layer(), &part(3)));
        assert_eq!(answered.recv(), Ok(None), "an error, and no silence");
    }

    #[test]
    fn many_readers_share_the_room_and_what_nobody_wants_makes_some() {
        let ahead = DiskAhead::default();
        for start in [0, 20, 40, 60] {
            follow(&ahead, start);
            follow(&ahead, start + 1);
        }
        assert_eq!(ahead.state.lock().entries.len(), MOST);
        assert_eq!(follow(&ahead, 62), [], "all are being read");
        arrive(&ahead, 2);
        assert_eq!(follow(&ahead, 63).len(), 1);
        assert!(!is_read(&ahead, 2));
        assert_eq!(ahead.state.lock().readers.len(), READERS);
    }

    #[test]
    fn what_is_forgotten_is_what_was_read_and_not_what_is_being_read() {
        let ahead = DiskAhead::default();
        follow(&ahead, 0);
        follow(&ahead, 1);
        arrive(&ahead, 2);
        ahead.forget();
        assert!(!ahead.holds_any() && !is_read(&ahead, 2));
        arrive(&ahead, 3);
        assert!(is_read(&ahead, 3));
    }
}

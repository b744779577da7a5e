//! Reads the blob by whoever has the time: ahead of the thread that inflates, as long as another has nothing else to do.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard};

use super::input::{CHUNK_LEN, Chunk, read_full};
use super::lent::Lent;
use super::lock;

/// Room in front of each chunk for what is not used of the one before: of a deflate block in the middle of which that ends, all.
/// Few are longer.
const HEADROOM: usize = 96 << 10;

/// Chunks that wait.
const MOST_WAITING: usize = 4;

/// A blob that is read in chunks, by several threads.
#[derive(Debug)]
pub(super) struct ReadAhead<R> {
    /// Who has it reads what follows, and adds it to `waiting` before giving it back. `None` at the end.
    reader: Mutex<Option<R>>,
    /// Chunks that are read, in order, or why there are no more.
    waiting: Mutex<VecDeque<io::Result<Chunk>>>,
    lent: Mutex<Lent>,
}

impl<R: Read> ReadAhead<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader: Mutex::new(Some(reader)),
            waiting: Mutex::default(),
            lent: Mutex::default(),
        }
    }

    /// The next chunk; `None` at the end. Only one thread may ask.
    pub(super) fn next(&self) -> io::Result<Option<Chunk>> {
        if let Some(chunk) = self.pop() {
            return chunk.map(Some);
        }
        let reader = lock(&self.reader);
        // Whoever had the reader until now has added a chunk.
        if lock(&self.waiting).is_empty() {
            self.read(reader);
        }
        self.pop().transpose()
    }

    /// Reads a chunk, unless enough wait, nothing is left, or somebody else is at it; whether it did.
    pub(super) fn work(&self) -> bool {
        if lock(&self.waiting).len() >= MOST_WAITING {
            return false;
        }
        self.reader.try_lock().is_ok_and(|reader| self.read(reader))
    }

    /// Shares a buffer that is used up, or a part of it. It is read into again once nobody looks at it.
    pub(super) fn lend(&self, buffer: Vec<u8>) -> Arc<Vec<u8>> {
        lock(&self.lent).lend(buffer)
    }

    fn read(&self, mut guard: MutexGuard<'_, Option<R>>) -> bool {
        let Some(reader) = &mut *guard else {
            return false;
        };
        let chunk = read_chunk(reader, lock(&self.lent).returned());
        if !matches!(&chunk, Ok(chunk) if chunk.range.len() == CHUNK_LEN) {
            *guard = None;
        }
        if !matches!(&chunk, Ok(chunk) if chunk.range.is_empty()) {
            lock(&self.waiting).push_back(chunk);
        }
        true
    }

    fn pop(&self) -> Option<io::Result<Chunk>> {
        lock(&self.waiting).pop_front()
    }
}

fn read_chunk(reader: &mut impl Read, mut buffer: Vec<u8>) -> io::Result<Chunk> {
    if buffer.len() < HEADROOM + CHUNK_LEN {
        buffer.resize(HEADROOM + CHUNK_LEN, 0);
    }
    let into = &mut buffer[HEADROOM..HEADROOM + CHUNK_LEN];
    let range = HEADROOM..HEADROOM + read_full(reader, into)?;
    Ok(Chunk { buffer, range })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Cursor, ErrorKind};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    fn blob(len: usize) -> Vec<u8> {
        (0..=250_u8).cycle().take(len).collect()
    }

    #[test]
    fn chunks_come_in_order_whoever_reads_them_and_their_buffers_come_back() {
        let blob = blob(40 * CHUNK_LEN + 1);
        let ahead = ReadAhead::new(&blob[..]);
        let (done, mut read) = (AtomicBool::new(false), Vec::new());
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    ahead.work();
                }
            });
            while let Some(chunk) = ahead.next().unwrap() {
                read.extend_from_slice(chunk.bytes());
                drop(ahead.lend(chunk.buffer));
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(read == blob);
        assert!(lock(&ahead.lent).len() <= MOST_WAITING + 2);
    }

    #[test]
    fn no_more_is_read_ahead_than_may_wait() {
        let blob = blob(40 * CHUNK_LEN);
        let ahead = ReadAhead::new(&blob[..]);
        let read = (0..40).filter(|_| ahead.work()).count();
        assert_eq!(read, MOST_WAITING);
    }

    #[test]
    fn what_was_read_before_an_error_comes_first_and_nothing_behind_it() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(ErrorKind::ConnectionReset.into())
            }
        }
        let blob = blob(CHUNK_LEN);
        let ahead = ReadAhead::new(Cursor::new(&blob).chain(Failing));
        assert!(ahead.work() && ahead.work());
        assert!(!ahead.work(), "it has ended");
        assert_eq!(ahead.next().unwrap().unwrap().bytes(), blob);
        let error = ahead.next().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(ahead.next().unwrap().is_none());
    }
}

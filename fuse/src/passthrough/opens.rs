//! How each large file of a view is open now.
//!
//! The kernel reads an inode in one way at a time: by itself from one backing file, or through its page cache from
//! us. An open that asks for the other way while the inode is open fails (EIO). So the opens are counted, and since
//! they outlive this process, the counts are in a file that the next process reads. They are never too low, whenever
//! this process dies: an open is written down before it is answered, a close after that. Too high, a file stays
//! longer as it is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Begins the file of counts.
const MAGIC: [u8; 8] = *b"opens 1\n";
/// Bytes of a file's counts: three numbers.
const SLOT: usize = 12;

/// The large files of a view, by their places in its list. `B` is what the kernel was given to read from.
#[derive(Debug)]
pub(super) struct Opens<B> {
    slots: Box<[Slot<B>]>,
    /// `None`: the next process will not know.
    journal: Option<File>,
}

/// One large file.
#[derive(Debug)]
struct Slot<B> {
    counts: Counts,
    backing: Option<B>,
}

/// What is written down of a large file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    /// Handles that read from us.
    ordinary: u32,
    /// Handles that read from the backing file.
    through: u32,
    /// The backing file's number in the connection, as long as the kernel may know it; none is 0.
    number: u32,
}

/// What the kernel can be given to read from.
pub(super) trait Backing: Clone {
    /// Its number in the connection.
    fn number(&self) -> u32;
}

/// Where backing files come from.
pub(super) trait Register<B> {
    /// Gives the kernel a file. `None`: there is none, or the kernel does not take it.
    fn register(&self) -> Option<B>;

    /// One that an earlier process gave the kernel.
    fn again(&self, number: u32) -> B;
}

impl<B: Backing> Opens<B> {
    /// None of `files` files is open. `journal` is an empty file.
    ///
    /// # Errors
    /// It cannot be written: there must be room for all counts before the first is needed.
    pub(super) fn begin(files: usize, journal: File) -> io::Result<Self> {
        let mut bytes = MAGIC.to_vec();
        bytes.resize(MAGIC.len() + files * SLOT, 0);
        journal.write_all_at(&bytes, 0)?;
        Ok(Self {
            slots: (0..files).map(|_| Slot::new(Counts::default())).collect(),
            journal: Some(journal),
        })
    }

    /// The `files` files are open as an earlier process wrote down.
    ///
    /// # Errors
    /// The journal cannot be read or is not of so many files.
    pub(super) fn resume(files: usize, journal: File) -> io::Result<Self> {
        let mut bytes = vec![0; MAGIC.len() + files * SLOT];
        journal.read_exact_at(&mut bytes, 0)?;
        let (magic, counts) = bytes.split_at(MAGIC.len());
        if magic != MAGIC || journal.metadata()?.len() != bytes.len() as u64 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let slots = counts.chunks_exact(SLOT).map(Counts::parse).map(Slot::new);
        Ok(Self {
            slots: slots.collect(),
            journal: Some(journal),
        })
    }

    /// Nobody knows how the `files` files are open: each stays with us, which is right for all but those that
    /// are open from a backing file.
    pub(super) fn unknown(files: usize) -> Self {
        let ordinary = Counts {
            ordinary: u32::MAX,
            ..Counts::default()
        };
        Self {
            slots: (0..files).map(|_| Slot::new(ordinary)).collect(),
            journal: None,
        }
    }

    /// Whether the backing file of `file` is to be had for its next open.
    pub(super) fn wants_backing(&self, file: usize) -> bool {
        let slot = &self.slots[file];
        slot.counts.ordinary == 0 && slot.backing.is_none()
    }

    /// Counts an open of `file`; what the kernel is to read from, if not from us.
    pub(super) fn open(&mut self, file: usize, from: &impl Register<B>) -> Option<B> {
        let slot = &mut self.slots[file];
        let Counts {
            ordinary,
            through,
            number,
        } = slot.counts;
        if through > 0 {
            slot.backing.get_or_insert_with(|| from.again(number));
        } else {
            if number != 0 {
                // Given by an earlier process, and nobody reads from it any more.
                drop(from.again(number));
                slot.counts.number = 0;
            }
            if ordinary == 0 {
                slot.backing = from.register();
            }
        }
        let backing = slot.backing.clone();
        match &backing {
            Some(backing) => {
                slot.counts.through = slot.counts.through.saturating_add(1);
                slot.counts.number = backing.number();
            }
            None => slot.counts.ordinary = slot.counts.ordinary.saturating_add(1),
        }
        self.write(file);
        backing
    }

    /// Counts the end of an open of `file`. Answers the backing file that nobody reads from any more.
    pub(super) fn close(&mut self, file: usize, through: bool) -> Option<B> {
        let slot = &mut self.slots[file];
        let count = match through {
            true => &mut slot.counts.through,
            false => &mut slot.counts.ordinary,
        };
        // At the largest number nobody knows how many there are.
        if *count != u32::MAX {
            *count = count.saturating_sub(1);
        }
        let unused = match slot.counts.through {
            0 => slot.backing.take(),
            _ => None,
        };
        if unused.is_some() {
            slot.counts.number = 0;
        }
        // Before the kernel is told: a number that is written down is one that the kernel knows.
        self.write(file);
        unused
    }

    /// Writes the counts of `file` down: a few bytes for the page cache, in a file that has its length.
    fn write(&mut self, file: usize) {
        let at = (MAGIC.len() + file * SLOT) as u64;
        let bytes = self.slots[file].counts.bytes();
        let written = self.journal.as_ref().map(|to| to.write_all_at(&bytes, at));
        if let Some(Err(error)) = written {
            tracing::warn!(%error, "which large files are open cannot be written down any more");
            self.journal = None;
        }
    }
}

impl<B> Slot<B> {
    fn new(counts: Counts) -> Self {
        Self {
            counts,
            backing: None,
        }
    }
}

impl Counts {
    fn parse(bytes: &[u8]) -> Self {
        let mut numbers = bytes.chunks_exact(4).map(|number| {
            let number: [u8; 4] = number.try_into().unwrap_or_default();
            u32::from_le_bytes(number)
        });
        let mut next = || numbers.next().unwrap_or_default();
        Self {
            ordinary: next(),
            through: next(),
            number: next(),
        }
    }

    fn bytes(self) -> [u8; SLOT] {
        let mut bytes = [0; SLOT];
        let numbers = [self.ordinary, self.through, self.number];
        for (to, number) in bytes.chunks_exact_mut(4).zip(numbers) {
            to.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::Cell;

    use super::*;

    /// A kernel that numbers the files it is given, or takes none.
    struct Kernel {
        next: Cell<u32>,
        takes: bool,
        again: Cell<u32>,
    }

    impl Backing for u32 {
        fn number(&self) -> u32 {
            *self
        }
    }

    impl Register<u32> for Kernel {
        fn register(&self) -> Option<u32> {
            self.next.set(self.next.get() + 1);
            self.takes.then(|| self.next.get())
        }

        fn again(&self, number: u32) -> u32 {
            self.again.set(number);
            number
        }
    }

    fn kernel(takes: bool) -> Kernel {
        Kernel {
            next: Cell::new(6),
            takes,
            again: Cell::new(0),
        }
    }

    fn opens(files: usize) -> Opens<u32> {
        Opens::begin(files, tempfile::tempfile().unwrap()).unwrap()
    }

    /// What the next process knows.
    fn next(opens: &Opens<u32>) -> Opens<u32> {
        let journal = opens.journal.as_ref().unwrap().try_clone().unwrap();
        Opens::resume(opens.slots.len(), journal).unwrap()
    }

    #[test]
    fn all_handles_of_a_file_read_from_one_backing_file_until_the_last_is_closed() {
        let (mut opens, kernel) = (opens(2), kernel(true));
        assert_eq!(opens.open(1, &kernel), Some(7));
        assert_eq!(opens.open(1, &kernel), Some(7));
        assert_eq!(opens.open(0, &kernel), Some(8), "another file");
        assert_eq!(opens.close(1, true), None);
        assert_eq!(opens.close(1, true), Some(7));
        assert_eq!(opens.open(1, &kernel), Some(9));
    }

    #[test]
    fn a_file_that_is_open_from_us_is_opened_from_us_again() {
        let (mut opens, refusing, taking) = (opens(1), kernel(false), kernel(true));
        assert_eq!(opens.open(0, &refusing), None);
        assert!(!opens.wants_backing(0));
        assert_eq!(opens.open(0, &taking), None);
        opens.close(0, false);
        assert_eq!(opens.open(0, &taking), None, "one is left");
        opens.close(0, false);
        opens.close(0, false);
        assert_eq!(opens.open(0, &taking), Some(7));
    }

    #[test]
    fn the_next_process_goes_on_with_what_is_open() {
        let (mut opens, taking, refusing) = (opens(3), kernel(true), kernel(false));
        opens.open(0, &taking);
        opens.open(0, &taking);
        opens.open(2, &refusing);
        let mut opens = next(&opens);
        assert_eq!(opens.open(0, &taking), Some(7));
        assert_eq!(opens.open(2, &taking), None);
        assert_eq!(opens.open(1, &taking), Some(8));
        for _ in 0..2 {
            assert_eq!(opens.close(0, true), None);
        }
        assert_eq!(opens.close(0, true), Some(7));
        let mut opens = next(&opens);
        assert!(opens.wants_backing(0));
        assert_eq!(opens.open(0, &taking), Some(9));
    }

    #[test]
    fn a_backing_file_of_the_process_before_is_given_up_when_the_file_is_opened_anew() {
        let (mut opens, kernel) = (opens(1), kernel(true));
        opens.open(0, &kernel);
        let mut opens = next(&opens);
        assert_eq!(opens.close(0, true), None, "it is not known here");
        let mut opens = next(&opens);
        assert_eq!(opens.open(0, &kernel), Some(8));
        assert_eq!(kernel.again.get(), 7);
        assert_eq!(opens.close(0, true), Some(8));
    }

    #[test]
    fn without_a_journal_that_fits_every_file_stays_with_us() {
        let short = tempfile::tempfile().unwrap();
        short.write_all_at(&MAGIC, 0).unwrap();
        assert!(Opens::<u32>::resume(1, short).is_err());
        let long = tempfile::tempfile().unwrap();
        long.write_all_at(&[MAGIC.as_slice(), &[0; 24]].concat(), 0)
            .unwrap();
        assert!(Opens::<u32>::resume(1, long).is_err());
        let other = tempfile::tempfile().unwrap();
        other.write_all_at(&[1; 20], 0).unwrap();
        assert!(Opens::<u32>::resume(1, other).is_err());
        let mut opens = Opens::unknown(1);
        opens.close(0, false);
        assert_eq!(opens.open(0, &kernel(true)), None);
    }
}

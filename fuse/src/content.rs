//! The seam to whatever holds a layer's bytes.

use std::ops::Range;

use ztoc::UncompressedOffset;

use crate::reader::Reader;

/// The uncompressed tar of one layer, readable at any position.
pub trait LayerContent: Send + Sync + 'static {
    /// Reads `range`. What is local is answered before this returns, on the calling FUSE thread;
    /// for anything else `reply` moves elsewhere and this returns at once: it never waits for a
    /// network, a runtime or a lock held over I/O.
    ///
    /// Every reply must come in the end, also one whose [reader](ReadReply::reader) is gone: until then
    /// the pages stay locked, and whoever wants them waits.
    fn read(&self, range: Range<UncompressedOffset>, reply: ReadReply);

    /// [`read`](Self::read), and a hint: `range` lies in a file whose bytes are `file`, of which more
    /// may be wanted soon.
    fn read_in_file(
        &self,
        file: Range<UncompressedOffset>,
        range: Range<UncompressedOffset>,
        reply: ReadReply,
    ) {
        let _ = file;
        self.read(range, reply);
    }

    /// The layer has something else in front of `data` than the headers of the file that is said to begin
    /// there: its table of contents is not to be believed.
    fn contradicted(&self, data: UncompressedOffset) {
        let _ = data;
    }
}

/// The answer to one read, given exactly once; dropping it unanswered answers [`ReadError::Unavailable`].
pub struct ReadReply {
    answer: Option<Answer>,
    reader: Reader,
}

type Answer = Box<dyn FnOnce(Result<&[u8], ReadError>) + Send>;

/// Why bytes could not be had. The text for people is logged where the failure is handled, with
/// layer and host; the kernel only learns an errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The bytes could not be fetched, verified or decoded.
    #[error("the layer's bytes are not available")]
    Unavailable,
    /// The reader gave up (signal, killed container).
    #[error("the read was interrupted")]
    Interrupted,
}

impl ReadReply {
    /// A reply that ends in `answer`.
    pub fn new(answer: impl FnOnce(Result<&[u8], ReadError>) + Send + 'static) -> Self {
        Self {
            answer: Some(Box::new(answer)),
            reader: Reader::UNKNOWN,
        }
    }

    /// The same, for `reader`.
    #[must_use]
    pub fn wanted_by(mut self, reader: Reader) -> Self {
        self.reader = reader;
        self
    }

    /// Who waits for it.
    pub fn reader(&self) -> Reader {
        self.reader
    }

    /// Answers with exactly the bytes asked for.
    pub fn data(mut self, bytes: &[u8]) {
        if let Some(answer) = self.answer.take() {
            answer(Ok(bytes));
        }
    }

    /// Answers with a failure.
    pub fn error(mut self, error: ReadError) {
        if let Some(answer) = self.answer.take() {
            answer(Err(error));
        }
    }
}

impl Drop for ReadReply {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            answer(Err(ReadError::Unavailable));
        }
    }
}

impl std::fmt::Debug for ReadReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReadReply")
            .field("open", &self.answer.is_some())
            .field("reader", &self.reader)
            .finish()
    }
}

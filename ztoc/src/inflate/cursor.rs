//! Where decoding stands.

use super::careful;

/// What kind of block a cursor stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Block {
    /// None: a header comes next.
    Header,
    Stored,
    Fixed,
    Dynamic,
    /// None: the stream has ended.
    End,
}

/// A place in a raw DEFLATE stream, between any two tokens or inside a match or a stored
/// block. Bit and byte positions count from the start of the input given to the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    pub(super) bit: u64,
    /// Where the header of the current block starts.
    pub(super) header: u64,
    pub(super) block: Block,
    /// Whether the current block is the last one.
    pub(super) last: bool,
    /// Bytes left of a stored block or of a match that the output's end cut.
    pub(super) left: u16,
    /// Distance of that match.
    pub(super) distance: u16,
}

impl Cursor {
    /// The start of a stream or of a block.
    pub fn at_bit(bit: u64) -> Self {
        Self {
            bit,
            header: bit,
            block: Block::Header,
            last: false,
            left: 0,
            distance: 0,
        }
    }

    /// Position of the next bit.
    pub fn bit(&self) -> u64 {
        self.bit
    }

    /// Index of the first byte of which nothing is read yet. Once the stream has ended,
    /// that is where a gzip trailer starts.
    pub fn byte_aligned_end(&self) -> usize {
        usize::try_from(self.bit.div_ceil(8)).unwrap_or(usize::MAX)
    }

    /// Index of the first input byte that is still needed: inside a block with codes of
    /// its own that is its header, from which other tables may have to be built.
    pub fn needed_from(&self) -> usize {
        let bit = if self.block == Block::Dynamic {
            self.header
        } else {
            self.bit
        };
        usize::try_from(bit / 8).unwrap_or(usize::MAX)
    }

    /// Counts from a later byte: the caller dropped `bytes` bytes in front of the input.
    ///
    /// # Panics
    ///
    /// If more is dropped than [`needed_from`](Self::needed_from) allows.
    pub fn rebase(&mut self, bytes: usize) {
        assert!(
            bytes <= self.needed_from(),
            "{bytes} bytes dropped, some still needed"
        );
        let bits = bytes as u64 * 8;
        self.bit -= bits;
        self.header = self.header.saturating_sub(bits);
    }

    /// Writes what is left of a match to `out` from `pos` on, as far as there is room,
    /// and returns where it ends.
    pub(super) fn finish_match(&mut self, out: &mut [u8], pos: usize) -> usize {
        let count = usize::from(self.left).min(out.len() - pos);
        let end = pos + count;
        careful::repeat(out, pos, end, usize::from(self.distance));
        self.left -= u16::try_from(count).expect("limited by `left`");
        end
    }
}

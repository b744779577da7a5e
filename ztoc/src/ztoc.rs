//! The zTOC of one layer.

mod decode;
mod encode;
mod lean;

use std::sync::Arc;

use self::decode::Frame;
pub use self::lean::LeanToc;
use crate::checkpoint::ZtocBytes;
use crate::error::DecodeError;
use crate::span::SpanTable;
use crate::toc::Toc;
use crate::wire::Reader;

/// How a layer blob is compressed, as far as a zTOC can say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// gzip, one or several members.
    Gzip,
    /// A plain tar.
    Uncompressed,
}

/// A decoded or freshly built zTOC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ztoc {
    version: Vec<u8>,
    build_tool: Vec<u8>,
    toc: Toc,
    spans: SpanTable,
}

/// What this program writes; the only version there is.
const VERSION: &[u8] = b"0.9";

impl Ztoc {
    /// The longest zTOC that is read or written: 1 GiB, enough for the checkpoints of 130 GiB.
    pub const MAX_ENCODED_LEN: usize = 1 << 30;

    pub(crate) fn new(build_tool: &str, toc: Toc, spans: SpanTable) -> Self {
        Self {
            version: VERSION.to_vec(),
            build_tool: build_tool.into(),
            toc,
            spans,
        }
    }

    /// Decodes and checks zTOC 0.9 bytes.
    ///
    /// # Errors
    ///
    /// Which part is malformed, contradicts another, or exceeds a limit.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode::decode(bytes)
    }

    /// Decodes and checks zTOC 0.9 bytes, all of `bytes`, and leaves the windows of the checkpoints
    /// where they are: they are read from `ztoc`, which keeps the same bytes, when a span is
    /// decoded, and are checked then to be what they were. What stays in memory of a span
    /// are less than 100 bytes instead of 32 KiB. The entries are left in `bytes` as well, and checked when they are looked at.
    /// As a zTOC without its windows cannot be encoded, its two halves are what comes of it.
    ///
    /// # Errors
    ///
    /// As [`Self::decode`], but for what is wrong with entries.
    pub fn decode_lean(
        bytes: &[u8],
        ztoc: Arc<dyn ZtocBytes>,
    ) -> Result<(LeanToc<'_>, SpanTable), DecodeError> {
        let frame = Frame::read(&Reader::new(bytes), Some(ztoc))?;
        Ok((LeanToc::new(bytes, &frame), frame.spans))
    }

    /// The canonical bytes: identical to the original's for the same content.
    pub fn encode(&self) -> Vec<u8> {
        encode::encode(self)
    }

    /// The format version as written; free text, `0.9` in all zTOCs there are.
    pub fn version(&self) -> &[u8] {
        &self.version
    }

    /// The build tool's name, free text.
    pub fn build_tool(&self) -> &[u8] {
        &self.build_tool
    }

    /// The table of contents.
    pub fn toc(&self) -> &Toc {
        &self.toc
    }

    /// The spans.
    pub fn spans(&self) -> &SpanTable {
        &self.spans
    }

    /// Both halves, to be owned apart.
    pub fn into_parts(self) -> (Toc, SpanTable) {
        (self.toc, self.spans)
    }
}

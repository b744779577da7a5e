//! The zTOC of one layer.

use crate::error::DecodeError;
use crate::span::SpanTable;
use crate::toc::Toc;

/// How a layer blob is compressed, as far as a zTOC can say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// gzip, one or several members.
    Gzip,
    /// A plain tar.
    Uncompressed,
}

/// A decoded or freshly built zTOC.
#[derive(Debug)]
pub struct Ztoc {}

impl Ztoc {
    /// Decodes and checks zTOC 0.9 bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        todo!()
    }

    /// The canonical bytes: identical to the original's for the same content.
    pub fn encode(&self) -> Vec<u8> {
        todo!()
    }

    /// The build tool's name, free text.
    pub fn build_tool(&self) -> &[u8] {
        todo!()
    }

    /// The table of contents.
    pub fn toc(&self) -> &Toc {
        todo!()
    }

    /// The spans.
    pub fn spans(&self) -> &SpanTable {
        todo!()
    }

    /// Both halves, to be owned apart.
    pub fn into_parts(self) -> (Toc, SpanTable) {
        todo!()
    }
}

//! What is stored for a layer beside its spans: a zTOC, or a compact zTOC of which windows may be missing.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use fuse::LayerTree;
use ztoc::compact::{self, CompactError, InMemory};
use ztoc::error::DecodeError;
use ztoc::unit::ByteLen as _;
use ztoc::{Digest, SpanId, SpanTable, Ztoc};

use super::kept_ztoc::{Held, KeptZtoc};
use super::record::Origin;
use super::store::{LayerError, MAX_SPAN, MAX_ZTOC_SIZE, NewLayer, io_error};
use super::windows::Windows;

/// Checks the zTOC of a layer to be stored, compact or not, and makes its record.
pub(super) fn described(new: &NewLayer) -> Result<Origin, LayerError> {
    let (layer, ztoc) = (new.layer, new.ztoc);
    // Nothing is to be read from it now.
    let blob = Arc::new(InMemory::new(Vec::new()));
    if !compact::is_compact(&new.bytes) {
        let decoded = Ztoc::decode_lean(&new.bytes, blob);
        let decoded = decoded.and_then(|(mut toc, spans)| toc.check().map(|()| spans));
        let spans = decoded.map_err(|source| no_ztoc(&layer, &ztoc, source))?;
        check(&layer, new.size, &spans)?;
        return Ok(Origin::new(new, spans.compressed_size(), &new.bytes));
    }
    let decoded = compact::decode_lean(&new.bytes, blob);
    let checked = decoded.and_then(|lean| lean.toc.check().map(|()| lean));
    let decoded = checked.map_err(|source| no_compact(&layer, &ztoc, source))?;
    if decoded.layer != layer {
        let actual = decoded.layer;
        return Err(LayerError::OtherLayer {
            layer,
            ztoc,
            actual,
        });
    }
    check(&layer, new.size, &decoded.spans)?;
    let head = &new.bytes[..decoded.head_len];
    let origin = Origin::new(new, decoded.spans.compressed_size(), head);
    Ok(origin.with_head(head, decoded.blob_len))
}

fn no_compact(layer: &Digest, ztoc: &Digest, source: CompactError) -> LayerError {
    LayerError::Compact {
        layer: *layer,
        ztoc: *ztoc,
        source: Box::new(source),
    }
}

fn no_ztoc(layer: &Digest, ztoc: &Digest, source: DecodeError) -> LayerError {
    LayerError::Ztoc {
        layer: *layer,
        ztoc: *ztoc,
        source: Box::new(source),
    }
}

/// What a zTOC must fulfil beyond being well-formed.
pub(super) fn check(
    layer: &Digest,
    size: Option<u64>,
    spans: &SpanTable,
) -> Result<(), LayerError> {
    let actual = spans.compressed_size();
    if let Some(expected) = size.filter(|&expected| expected != actual) {
        return Err(LayerError::Size {
            layer: *layer,
            expected,
            actual,
        });
    }
    for span in (0..spans.count()).map(SpanId) {
        let bytes = spans
            .compressed(span)
            .byte_len()
            .max(spans.uncompressed(span).byte_len());
        if bytes > MAX_SPAN {
            return Err(LayerError::Span {
                layer: *layer,
                span,
                bytes,
            });
        }
    }
    Ok(())
}

/// What is stored for a layer: the zTOC, or the head of a compact zTOC.
pub(super) struct Stored {
    pub(super) record: Origin,
    kept: KeptZtoc,
    bytes: Held,
}

/// A layer's names and spans, and where the windows are, if they may be missing.
type Decoded = (LayerTree, SpanTable, Option<Windows>);

impl Stored {
    /// What it describes.
    pub(super) fn decode(self, layer: &Digest) -> Result<Decoded, LayerError> {
        if !self.record.vouches_for(&self.bytes) {
            return Err(LayerError::Damaged { layer: *layer });
        }
        decode(layer, &self.record, self.kept, &self.bytes)
    }
}

fn decode(
    layer: &Digest,
    record: &Origin,
    kept: KeptZtoc,
    bytes: &[u8],
) -> Result<Decoded, LayerError> {
    let ztoc = record.ztoc();
    let kept = Arc::new(kept);
    let Some(blob_len) = record.blob_len() else {
        let decoded = Ztoc::decode_lean(bytes, kept);
        let decoded = decoded.and_then(|(toc, spans)| Ok((LayerTree::read(toc)?, spans)));
        let (tree, spans) = decoded.map_err(|source| no_ztoc(layer, &ztoc, source))?;
        return Ok((tree, spans, None));
    };
    let blob = Arc::clone(&kept);
    let decoded = compact::decode_lean(bytes, blob);
    let decoded = decoded.and_then(|lean| Ok((LayerTree::read_columns(&lean.toc)?, lean.spans)));
    let (tree, spans) = decoded.map_err(|source| no_compact(layer, &ztoc, source))?;
    let windows = Windows::new(kept, ztoc, blob_len);
    Ok((tree, spans, Some(windows)))
}

/// Reads it. Blocks on file I/O.
pub(super) fn read_ztoc(dir: &Path, layer: &Digest) -> Result<Stored, LayerError> {
    let failed = |path: &Path, source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => LayerError::Missing(*layer),
        io::ErrorKind::InvalidData => LayerError::Damaged { layer: *layer },
        _ => io_error(path, source),
    };
    let origin = dir.join("origin");
    let record = Origin::read(&origin, layer).map_err(|source| failed(&origin, source))?;
    let path = dir.join("ztoc");
    let (kept, bytes) = KeptZtoc::open(&path, record.head_len(), MAX_ZTOC_SIZE)
        .map_err(|source| failed(&path, source))?;
    Ok(Stored {
        record,
        kept,
        bytes,
    })
}

/// Writes `bytes`; the file is as long as `len` says, with zeros at its end.
pub(super) fn write_synced(path: &Path, bytes: &[u8], len: Option<u64>) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    if let Some(len) = len {
        file.set_len(len)?;
    }
    file.sync_all()
}

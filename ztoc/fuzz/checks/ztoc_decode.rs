//! Any bytes are a consistent zTOC or refused. Corpus: `tests/golden/ztocs`.

use ztoc::toc::FileData;
use ztoc::{SpanId, Ztoc};

/// Panics where that does not hold.
pub(crate) fn check(bytes: &[u8]) {
    let Ok(ztoc) = Ztoc::decode(bytes) else {
        return;
    };
    let spans = ztoc.spans();
    let mut end = 0;
    for id in spans.ids() {
        let range = spans.uncompressed(id);
        assert_eq!(range.start.0, end);
        end = range.end.0;
        assert!(spans.compressed(id).end.0 <= spans.compressed_size());
        assert!(range.is_empty() || spans.covering(range) == (id..SpanId(id.0 + 1)));
    }
    assert_eq!(end, spans.uncompressed_size());
    for (index, entry) in ztoc.toc().entries().iter().enumerate() {
        assert!(
            ztoc.toc()
                .header_offset(index)
                .is_none_or(|header| header <= entry.offset)
        );
        if let FileData::MapInArchive(_) = entry.data() {
            let _ = entry.sparse_1_0(bytes);
        }
    }
    assert_eq!(Ztoc::decode(&ztoc.encode()).as_ref(), Ok(&ztoc));
}

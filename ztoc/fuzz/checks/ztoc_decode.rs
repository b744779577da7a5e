//! Any bytes are a consistent zTOC or refused, and its entries the same where they lie. Corpus: `tests/golden/ztocs`.

use std::sync::Arc;

use ztoc::compact::InMemory;
use ztoc::error::DecodeError;
use ztoc::toc::FileData;
use ztoc::{Entry, SpanId, UncompressedOffset, Ztoc};

/// An entry, and where its headers begin.
type Member = (Entry, Option<UncompressedOffset>);

/// All entries, looked at where they lie.
fn lean(bytes: &[u8]) -> Result<Vec<Member>, DecodeError> {
    let no_windows = Arc::new(InMemory::new(Vec::new()));
    let (mut toc, _) = Ztoc::decode_lean(bytes, no_windows)?;
    toc.in_any_order(|toc| {
        let members = toc.members();
        members
            .map(|member| member.map(|member| (member.entry.into_owned(), member.header)))
            .collect()
    })
}

/// The same of a table in memory.
fn held(ztoc: &Ztoc) -> Vec<Member> {
    let members = ztoc.toc().members().map(|member| {
        let owned = Entry {
            uname: Vec::new(),
            gname: Vec::new(),
            ..member.entry.into_owned()
        };
        (owned, member.header)
    });
    members.collect()
}

/// Panics where that does not hold.
pub(crate) fn check(bytes: &[u8]) {
    let lean = lean(bytes);
    let Ok(ztoc) = Ztoc::decode(bytes) else {
        return;
    };
    assert_eq!(lean, Ok(held(&ztoc)));
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

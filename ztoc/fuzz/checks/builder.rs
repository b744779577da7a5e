//! Any bytes get a zTOC that can be loaded again, or are refused. Corpus: `tests/golden/layers`.

use ztoc::builder::{self, BuildOptions};
use ztoc::{Compression, SpanSize, Ztoc};

/// Panics where that does not hold.
pub(crate) fn check(input: (u16, bool, &[u8])) {
    let (span_size, gzip, layer) = input;
    let options = BuildOptions {
        span_size: SpanSize::new(u64::from(span_size) + 1).expect("not zero"),
        build_tool: String::new(),
    };
    let compression = if gzip {
        Compression::Gzip
    } else {
        Compression::Uncompressed
    };
    if let Ok(built) = builder::build(compression, layer, &options) {
        assert_eq!(Ztoc::decode(&built.ztoc.encode()).as_ref(), Ok(&built.ztoc));
    }
}

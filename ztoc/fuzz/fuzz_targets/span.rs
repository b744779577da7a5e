//! Any compressed bytes inflate to exactly the length the zTOC states, or are refused.

#![no_main]

#[allow(dead_code)]
#[path = "../../tests/hostile/craft.rs"]
mod craft;

use craft::Crafted;
use libfuzzer_sys::fuzz_target;
use ztoc::{CompressedSpan, Digest, SpanBuffer, SpanId, UncompressedOffset, Ztoc};

fuzz_target!(|input: (u16, u8, u16, &[u8])| {
    let (claimed, bits, upto, bytes) = input;
    let bits = bits % 8;
    let crafted = Crafted {
        algorithm: 1,
        digests: vec![Digest::of(bytes).to_string().into_bytes()],
        zinfo: craft::zinfo(1, &[(10 + i64::from(bits != 0), 0, bits)]),
        compressed_size: 10 + bytes.len() as i64,
        uncompressed_size: claimed.into(),
        ..Crafted::default()
    };
    let Ok(ztoc) = Ztoc::decode(&crafted.encode()) else { return };
    let span = CompressedSpan::new(SpanId(0), bytes).verify(ztoc.spans()).expect("its digest");
    let (mut whole, mut prefix) = (SpanBuffer::new(), SpanBuffer::new());
    let prefix = span.inflate_prefix(&mut prefix, UncompressedOffset(upto.into()));
    if let Ok(plain) = span.inflate(&mut whole) {
        assert_eq!(plain.len(), usize::from(claimed));
        assert_eq!(prefix, Ok(&plain[..plain.len().min(upto.into())]));
    }
});

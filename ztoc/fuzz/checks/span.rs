//! Any compressed bytes inflate to exactly the length the zTOC states, or are refused, at once and
//! in steps alike.

use crate::craft::{self, Crafted};
use ztoc::{CompressedSpan, Digest, SpanBuffer, SpanId, UncompressedOffset, Ztoc};

/// Panics where that does not hold.
pub(crate) fn check(input: (u16, u8, u16, u16, &[u8])) {
    let (claimed, bits, upto, step, bytes) = input;
    let bits = bits % 8;
    let crafted = Crafted {
        algorithm: 1,
        digests: vec![Digest::of(bytes).to_string().into_bytes()],
        zinfo: craft::zinfo(1, &[(10 + i64::from(bits != 0), 0, bits)]),
        compressed_size: 10 + bytes.len() as i64,
        uncompressed_size: claimed.into(),
        ..Crafted::default()
    };
    let Ok(ztoc) = Ztoc::decode(&crafted.encode()) else {
        return;
    };
    let span = || {
        CompressedSpan::new(SpanId(0), bytes)
            .verify(ztoc.spans())
            .expect("its digest")
    };
    let (mut whole, mut prefix) = (SpanBuffer::new(), SpanBuffer::new());
    let whole = span().inflate(&mut whole);
    let prefix = span().inflate_prefix(&mut prefix, UncompressedOffset(upto.into()));
    let mut decoder = span()
        .decoder(SpanBuffer::new())
        .expect("windows are in memory");
    let mut stepped = Ok(());
    while stepped.is_ok() && !decoder.is_complete() {
        let next = decoder.decoded_to().0 + u64::from(step) + 1;
        stepped = decoder.decode_to(UncompressedOffset(next)).map(|_| ());
    }
    match whole {
        Ok(plain) => {
            assert_eq!(plain.len(), usize::from(claimed));
            assert_eq!(prefix, Ok(&plain[..plain.len().min(upto.into())]));
            assert_eq!(stepped.map(|()| decoder.decoded()), Ok(plain));
        }
        // How far it is decoded by then depends on the step.
        Err(_) => assert!(stepped.is_err()),
    }
}

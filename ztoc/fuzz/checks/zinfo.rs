//! Any checkpoint blob in an otherwise fitting zTOC is used or refused.

use crate::craft::{self, Crafted};
use ztoc::{Digest, Ztoc};

/// Whether it is of gzip, number of spans, both sizes, checkpoints (offsets and bits), and other bytes in
/// their place, unless empty.
pub(crate) type Input = (bool, u16, u32, u32, Vec<(i64, i64, u8)>, Vec<u8>);

/// Panics where that does not hold.
pub(crate) fn check(input: Input) {
    let (gzip, spans, compressed_size, uncompressed_size, checkpoints, raw) = input;
    let have = i32::from(spans % 512);
    let digest = Digest::of(b"").to_string().into_bytes();
    let zinfo = if raw.is_empty() {
        craft::zinfo(have, &checkpoints)
    } else {
        raw
    };
    let crafted = Crafted {
        algorithm: if gzip { 1 } else { 2 },
        max_id: have - 1,
        digests: vec![digest; usize::from(spans % 512)],
        zinfo,
        compressed_size: compressed_size.into(),
        uncompressed_size: uncompressed_size.into(),
        ..Crafted::default()
    };
    if let Ok(ztoc) = Ztoc::decode(&crafted.encode()) {
        let mut window = vec![0; 32 * 1024];
        for id in ztoc.spans().ids() {
            ztoc.spans()
                .write_window(id, &mut window)
                .expect("in memory");
        }
        assert_eq!(Ztoc::decode(&ztoc.encode()).as_ref(), Ok(&ztoc));
    }
}

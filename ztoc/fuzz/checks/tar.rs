//! Any bytes are a tar or refused, and it makes no difference in which pieces they come. Blocks that
//! look like headers get the checksum that lets them pass.

use ztoc::tar::Scanner;

fn scan<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Option<ztoc::tar::Scanned> {
    let mut scanner = Scanner::new();
    for piece in pieces {
        scanner.feed(piece).ok()?;
    }
    scanner.finish().ok()
}

fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for block in bytes
        .chunks_exact_mut(512)
        .filter(|block| block[257..262] == *b"ustar")
    {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
    bytes
}

/// Panics where that does not hold.
pub(crate) fn check(bytes: &[u8]) {
    let Some((step, bytes)) = bytes.split_first() else {
        return;
    };
    let bytes = with_checksums(bytes);
    let whole = scan(std::iter::once(bytes.as_slice()));
    let pieces = scan(bytes.chunks(usize::from(*step) + 1));
    assert_eq!(whole, pieces);
    if let Some(scanned) = whole {
        assert!(scanned.end.0 <= bytes.len() as u64);
    }
}

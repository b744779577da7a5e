//! Any stream, from any bit, behind any window, to any limit: we and zlib give the same
//! bytes and end in the same way, and going on from any step gives what one go gives.

use crate::oracle::{self, End};
use ztoc::error::InflateError;
use ztoc::inflate::{self, Cursor, Stop, Tables};

/// Decodes to `limit` bytes in an allocation that ends there, in steps of `step`.
fn decode(
    window: &[u8],
    input: &[u8],
    start: u64,
    limit: usize,
    step: usize,
) -> (Vec<u8>, Result<Stop, InflateError>) {
    let mut buf = vec![0; window.len() + limit].into_boxed_slice();
    buf[..window.len()].copy_from_slice(window);
    let input: Box<[u8]> = input.into();
    let (mut tables, mut cursor, mut pos) = (Tables::new(), Cursor::at_bit(start), window.len());
    loop {
        let end = buf.len().min(pos.saturating_add(step));
        match inflate::run(&mut tables, &input, &mut cursor, &mut buf, pos, end) {
            Ok((Stop::OutputFull, at)) if at < buf.len() => pos = at,
            Ok((stop, at)) => return (buf[window.len()..at].to_vec(), Ok(stop)),
            Err(error) => return (Vec::new(), Err(error)),
        }
    }
}

/// Panics where that does not hold.
pub(crate) fn check(input: (u16, u8, u16, u16, &[u8])) {
    let (window, start, limit, step, stream) = input;
    let window: Vec<u8> = (0..window % 32769).map(|at| (at >> 8 ^ at) as u8).collect();
    let (start, limit, step) = (start.into(), usize::from(limit), usize::from(step).max(1));
    let (expected, end) = oracle::inflate(&window, stream, start, limit + 1);

    let (bytes, stop) = decode(&window, stream, start, limit, usize::MAX);
    assert_eq!(
        decode(&window, stream, start, limit, step),
        (bytes.clone(), stop.clone())
    );
    if expected.len() > limit {
        assert_eq!(stop, Ok(Stop::OutputFull));
        assert!(bytes == expected[..limit]);
        return;
    }
    // The end is seen with room for one byte more.
    let (bytes, stop) = decode(&window, stream, start, limit + 1, usize::MAX);
    match stop {
        Ok(Stop::StreamEnd) => assert_eq!(end, End::Whole),
        Ok(Stop::InputExhausted) => assert_eq!(end, End::CutOff),
        Ok(stop) => panic!("{stop:?} where zlib comes to {end:?}"),
        // zlib reads the lengths that an empty code length code gives before it says no.
        Err(InflateError::CodeLengthCode) => assert_ne!(end, End::Whole),
        Err(_) => assert_eq!(end, End::Refused),
    }
    if stop.is_ok() {
        assert!(bytes == expected);
    } else {
        let (bytes, stop) = decode(&window, stream, start, expected.len(), step);
        assert_eq!(stop, Ok(Stop::OutputFull));
        assert!(bytes == expected);
    }
}

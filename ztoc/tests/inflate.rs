//! The inflater against zlib.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    missing_docs,
    unreachable_pub
)]

#[path = "inflate/layers.rs"]
mod layers;
#[path = "inflate/oracle.rs"]
mod oracle;

use oracle::{BitWriter, End};
use proptest::collection::vec;
use proptest::prelude::*;
use ztoc::error::InflateError;
use ztoc::inflate::{self, Cursor, Stop, Tables};

const GUARD: u8 = 0xa5;

/// As many cases, fewer under Miri.
fn cases(count: u32) -> ProptestConfig {
    let cases = if cfg!(miri) { count / 50 } else { count };
    ProptestConfig {
        cases,
        ..ProptestConfig::default()
    }
}

/// What our decoder makes of a stream: as [`oracle::inflate`], and whether it is full.
fn inflate(
    window: &[u8],
    input: &[u8],
    start: u64,
    limit: usize,
) -> (Vec<u8>, Result<Stop, InflateError>) {
    let mut buf = vec![GUARD; window.len() + limit].into_boxed_slice();
    buf[..window.len()].copy_from_slice(window);
    let input: Box<[u8]> = input.into();
    let end = buf.len();
    let mut cursor = Cursor::at_bit(start);
    let mut tables = Tables::new();
    let outcome = inflate::run(
        &mut tables,
        &input,
        &mut cursor,
        &mut buf,
        window.len(),
        end,
    );
    assert_eq!(&buf[..window.len()], window, "the window is not written");
    match outcome {
        Ok((stop, pos)) => (buf[window.len()..pos].to_vec(), Ok(stop)),
        Err(error) => (Vec::new(), Err(error)),
    }
}

/// Asserts that we and zlib give the same bytes and end in the same way.
fn same_as_zlib(window: &[u8], input: &[u8], start: u64, limit: usize) {
    let (expected, end) = oracle::inflate(window, input, start, limit + 1);
    let (actual, stop) = inflate(window, input, start, limit);
    if expected.len() > limit {
        assert_eq!(stop, Ok(Stop::OutputFull));
        assert!(actual == expected[..limit], "the bytes differ");
        return;
    }
    // With room for one byte more, the end is seen.
    let (actual, stop) = match stop {
        Ok(Stop::OutputFull) => inflate(window, input, start, limit + 1),
        _ => (actual, stop),
    };
    match stop {
        Ok(stop) => {
            let expected_stop = match end {
                End::Whole => Stop::StreamEnd,
                End::CutOff => Stop::InputExhausted,
                End::Refused => panic!("zlib refuses what we take: {stop:?}"),
            };
            assert_eq!(stop, expected_stop);
            assert!(actual == expected, "the bytes differ");
        }
        Err(error) => {
            assert!(end != End::Whole, "we refuse what zlib takes: {error}");
            if end == End::CutOff {
                // We may say so earlier, but only of what zlib refuses whatever comes next.
                for more in [[0; 64], [0xff; 64]] {
                    let longer = [input, &more[..]].concat();
                    let (_, end) = oracle::inflate(window, &longer, start, limit + 1);
                    assert_eq!(end, End::Refused, "zlib goes on: {error}");
                }
            }
            // All that comes before the error comes out.
            let (actual, stop) = inflate(window, input, start, expected.len());
            assert_eq!(stop, Ok(Stop::OutputFull));
            assert!(actual == expected, "the bytes before the error differ");
        }
    }
}

/// Decodes a stream from its start to its end.
fn inflate_all(stream: &[u8], length: usize) -> Vec<u8> {
    let (out, stop) = inflate(&[], stream, 0, length + 1);
    assert_eq!(stop, Ok(Stop::StreamEnd));
    out
}

/// Where blocks end: output position and cursor.
fn block_ends(stream: &[u8], length: usize) -> Vec<(usize, Cursor)> {
    let (mut tables, mut cursor) = (Tables::new(), Cursor::at_bit(0));
    let mut buf = vec![0; length + 1];
    let (mut pos, mut ends) = (0, Vec::new());
    loop {
        let outcome =
            inflate::run_block(&mut tables, stream, &mut cursor, &mut buf, pos, length + 1);
        let (stop, end) = outcome.unwrap();
        pos = end;
        match stop {
            Stop::BlockEnd => ends.push((pos, cursor)),
            Stop::StreamEnd => return ends,
            _ => panic!("{stop:?}"),
        }
    }
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn what_was_compressed_comes_out_again((data, stream) in layers::stream()) {
        prop_assert!(inflate_all(&stream, data.len()) == data);
    }

    #[test]
    fn any_limit_gives_a_prefix((data, stream) in layers::stream(), at: prop::sample::Index) {
        let limit = at.index(data.len() + 1);
        let (out, stop) = inflate(&[], &stream, 0, limit);
        prop_assert_eq!(stop, Ok(Stop::OutputFull));
        prop_assert!(out == data[..limit]);
    }

    #[test]
    fn nothing_behind_the_end_is_written((data, stream) in layers::stream(), at: prop::sample::Index) {
        let end = at.index(data.len() + 1);
        let mut buf = vec![GUARD; data.len() + 400];
        let mut cursor = Cursor::at_bit(0);
        inflate::run(&mut Tables::new(), &stream, &mut cursor, &mut buf, 0, end).unwrap();
        prop_assert!(buf[..end] == data[..end]);
        prop_assert!(buf[end..].iter().all(|&byte| byte == GUARD));
    }

    #[test]
    fn each_block_can_be_started_at_with_its_window((data, stream) in layers::stream()) {
        for (pos, cursor) in block_ends(&stream, data.len()) {
            let window = &data[pos.saturating_sub(32768)..pos];
            let limit = data.len() - pos + 1;
            let (out, stop) = inflate(window, &stream, cursor.bit(), limit);
            prop_assert_eq!(stop, Ok(Stop::StreamEnd));
            prop_assert!(out == data[pos..]);
        }
    }

    #[test]
    fn steps_of_any_size_give_what_one_go_gives(
        (data, stream) in layers::stream(),
        steps in vec(0..5000_usize, 1..20),
        keep_tables: bool,
    ) {
        let mut buf = vec![0; data.len()];
        let (mut tables, mut cursor, mut pos) = (Tables::new(), Cursor::at_bit(0), 0);
        for step in steps.into_iter().chain([1]).cycle() {
            let end = (pos + step).min(data.len());
            if !keep_tables {
                tables = Tables::new();
            }
            let outcome = inflate::run(&mut tables, &stream, &mut cursor, &mut buf, pos, end);
            prop_assert_eq!(outcome, Ok((Stop::OutputFull, end)));
            pos = end;
            if pos == data.len() {
                break;
            }
        }
        prop_assert!(buf == data);
    }

    #[test]
    fn input_that_arrives_in_parts_gives_what_whole_input_gives(
        (data, stream) in layers::stream(),
        parts in vec(1..3000_usize, 1..20),
    ) {
        let mut buf = vec![0; data.len() + 1];
        let (mut tables, mut cursor, mut pos) = (Tables::new(), Cursor::at_bit(0), 0);
        // What has arrived is held from `dropped` on only.
        let (mut held, mut dropped) = (Vec::new(), 0);
        for part in parts.into_iter().cycle() {
            let from = dropped + held.len();
            held.extend_from_slice(&stream[from..(from + part).min(stream.len())]);
            let end = buf.len();
            let (stop, new_pos) =
                inflate::run(&mut tables, &held, &mut cursor, &mut buf, pos, end).unwrap();
            pos = new_pos;
            if stop == Stop::StreamEnd {
                break;
            }
            prop_assert_eq!(stop, Stop::InputExhausted);
            let needed = cursor.needed_from();
            held.drain(..needed);
            dropped += needed;
            cursor.rebase(needed);
        }
        prop_assert!(buf[..pos] == data);
        prop_assert_eq!(dropped + cursor.byte_aligned_end(), stream.len());
    }

    #[test]
    fn tables_of_another_stream_do_no_harm(
        (data, stream) in layers::stream(),
        (other_data, other) in layers::stream(),
        step in 1..3000_usize,
    ) {
        let mut tables = Tables::new();
        let mut states = [
            (Cursor::at_bit(0), 0, vec![0; data.len()], &data, &stream),
            (Cursor::at_bit(0), 0, vec![0; other_data.len()], &other_data, &other),
        ];
        for turn in 0..60 {
            let (cursor, pos, buf, data, stream) = &mut states[turn % 2];
            let end = (*pos + step).min(data.len());
            let outcome = inflate::run(&mut tables, stream, cursor, buf, *pos, end);
            prop_assert_eq!(outcome, Ok((Stop::OutputFull, end)));
            prop_assert!(buf[..end] == data[..end]);
            *pos = end;
        }
    }
}

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn any_bytes_from_any_bit_are_decoded_or_refused_as_zlib_does(
        window in vec(any::<u8>(), 0..300),
        input in vec(any::<u8>(), 0..400),
        start in 0..100_u64,
        limit in 0..3000_usize,
    ) {
        same_as_zlib(&window, &input, start, limit);
    }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn damaged_streams_are_decoded_or_refused_as_zlib_does(
        (data, mut stream) in layers::stream(),
        window in prop_oneof![Just(0), 0..=32768_usize],
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        start: bool,
        limit: prop::sample::Index,
    ) {
        for (at, byte) in damage {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        if let Some(cut) = cut {
            stream.truncate(cut.index(stream.len()));
        }
        let window = vec![b'w'; window];
        let limit = if start { limit.index(data.len() + 1) } else { data.len() * 2 + 1000 };
        same_as_zlib(&window, &stream, 0, limit);
    }
}

/// zlib reads on, takes each bit for a code of length zero, and then refuses that the block has no end.
#[test]
fn a_header_without_any_code_for_its_code_lengths_is_refused_at_once() {
    let header = dynamic([29, 29, 0], &[0; 4], &[]);
    let (_, stop) = inflate(&[], &header, 0, 10);
    assert!(stop.is_err(), "{stop:?}");
    same_as_zlib(&[], &header, 0, 10);
}

/// A final fixed block of the given (value, bits) codes.
fn fixed(codes: &[(u64, u32)]) -> Vec<u8> {
    let mut stream = BitWriter::default();
    stream.put(0b011, 3);
    for &(code, count) in codes {
        stream.put_code(code, count);
    }
    stream.bytes
}

/// A final dynamic header with these fields, code length code lengths and bits.
fn dynamic(counts: [u64; 3], lengths: &[u64], rest: &[(u64, u32)]) -> Vec<u8> {
    let mut stream = BitWriter::default();
    stream.put(0b101, 3);
    for (count, bits) in counts.into_iter().zip([5, 5, 4]) {
        stream.put(count, bits);
    }
    for &length in lengths {
        stream.put(length, 3);
    }
    for &(value, count) in rest {
        stream.put(value, count);
    }
    stream.bytes.extend([0; 16]);
    stream.bytes
}

/// Lengths of a code length code of one bit each for symbols 18 (first bit 1) and 1.
const ONE_AND_ZEROS: [u64; 18] = [0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// 138 zero lengths in that code.
const ZEROS_138: (u64, u32) = (0xff, 8);

#[test]
fn each_corrupt_structure_is_named() {
    let far = InflateError::TooFarBack {
        distance: 3,
        available: 2,
    };
    let counts = |litlen, distance| InflateError::CodeCounts { litlen, distance };
    let stored = InflateError::StoredLength {
        length: 5,
        complement: 5,
    };
    let cases = [
        (vec![0b111], InflateError::BlockType),
        (vec![0b001, 5, 0, 5, 0], stored),
        (dynamic([30, 0, 0], &[], &[]), counts(287, 1)),
        (dynamic([0, 30, 0], &[], &[]), counts(257, 31)),
        (
            dynamic([0, 0, 0], &[1, 1, 1, 0], &[]),
            InflateError::CodeLengthCode,
        ),
        (
            dynamic([0, 0, 0], &[2, 1, 0, 0], &[]),
            InflateError::CodeLengthCode,
        ),
        // A repeat comes first, or goes on behind the last code.
        (
            dynamic([0, 0, 0], &[1, 1, 0, 0], &[(0, 1)]),
            InflateError::CodeLengthRepeat,
        ),
        (
            dynamic([0, 0, 14], &ONE_AND_ZEROS, &[ZEROS_138, ZEROS_138]),
            InflateError::CodeLengthRepeat,
        ),
        // 138 and 119 zeros, so that 256 has no code.
        (
            dynamic(
                [0, 0, 14],
                &ONE_AND_ZEROS,
                &[ZEROS_138, (1 | 108 << 1, 8), (0, 1)],
            ),
            InflateError::NoEndOfBlock,
        ),
        // Three codes of one bit; three distance codes of one bit.
        (
            dynamic(
                [2, 0, 14],
                &ONE_AND_ZEROS,
                &[ZEROS_138, (1 | 107 << 1, 8), (0, 4)],
            ),
            InflateError::LitlenCode,
        ),
        (
            dynamic(
                [0, 2, 14],
                &ONE_AND_ZEROS,
                &[ZEROS_138, (1 | 107 << 1, 8), (0, 4)],
            ),
            InflateError::DistanceCode,
        ),
        (fixed(&[(0b1100_0110, 8)]), InflateError::LitlenSymbol),
        (
            fixed(&[(0x30, 8), (1, 7), (0b11110, 5)]),
            InflateError::DistanceSymbol,
        ),
        (fixed(&[(0x30, 8), (0x30, 8), (1, 7), (0b00010, 5)]), far),
    ];
    for (stream, expected) in cases {
        let (_, stop) = inflate(&[], &stream, 0, 1000);
        assert_eq!(stop, Err(expected));
        same_as_zlib(&[], &stream, 0, 1000);
    }
}

#[test]
fn a_lone_code_of_one_bit_is_taken() {
    // A block of nothing, whose only code is the end of block's zero bit.
    let header = [ZEROS_138, (1 | 107 << 1, 8), (0, 2)];
    let empty = dynamic(
        [0, 0, 14],
        &ONE_AND_ZEROS,
        &[&header[..], &[(0, 1)]].concat(),
    );
    assert_eq!(
        inflate(&[], &empty, 0, 10),
        (Vec::new(), Ok(Stop::StreamEnd))
    );
    same_as_zlib(&[], &empty, 0, 10);
    let invalid = dynamic(
        [0, 0, 14],
        &ONE_AND_ZEROS,
        &[&header[..], &[(1, 1)]].concat(),
    );
    assert_eq!(
        inflate(&[], &invalid, 0, 10).1,
        Err(InflateError::LitlenSymbol)
    );
    same_as_zlib(&[], &invalid, 0, 10);
}

#[test]
fn a_cursor_beyond_the_input_waits_for_more() {
    for start in [1, 8, 1000, u64::MAX - 7, u64::MAX] {
        let (out, stop) = inflate(&[], &[0], start, 10);
        assert_eq!((out.len(), stop), (0, Ok(Stop::InputExhausted)));
    }
}

#[test]
fn a_stream_that_has_ended_stays_ended() {
    let stream = fixed(&[(0x31, 8), (0, 7)]);
    let (mut tables, mut cursor) = (Tables::new(), Cursor::at_bit(0));
    let mut buf = [0; 10];
    for pos in [0, 1] {
        let outcome = inflate::run(&mut tables, &stream, &mut cursor, &mut buf, pos, 10);
        assert_eq!(outcome, Ok((Stop::StreamEnd, 1)));
    }
    assert_eq!((cursor.bit(), cursor.byte_aligned_end()), (18, 3));
}

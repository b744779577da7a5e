#![allow(clippy::unwrap_used)]

use super::*;
use crate::toc::EntryKind;

/// A ustar header.
fn header(name: &str, typeflag: u8, size: &str) -> Vec<u8> {
    let mut block = vec![0; BLOCK_LEN];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(124, size.as_bytes());
    put(156, &[typeflag]);
    put(257, b"ustar\x0000");
    with_checksum(block)
}

fn with_checksum(mut block: Vec<u8>) -> Vec<u8> {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

/// A member whose data is `data`.
fn member(name: &str, typeflag: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = header(name, typeflag, &format!("{:011o}", data.len()));
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(BLOCK_LEN), 0);
    bytes
}

fn end_mark() -> Vec<u8> {
    vec![0; 2 * BLOCK_LEN]
}

fn scan(archive: &[u8]) -> Result<Scanned, TarError> {
    let mut scanner = Scanner::new();
    scanner.feed(archive)?;
    scanner.finish()
}

fn reason(archive: &[u8]) -> TarErrorReason {
    scan(archive).unwrap_err().reason
}

#[test]
fn the_archive_ends_behind_two_blocks_of_zeros() {
    let archive = [member("a", b'0', b"abc"), end_mark(), vec![b'x'; 10_000]].concat();
    let scanned = scan(&archive).unwrap();
    assert_eq!((scanned.entries.len(), scanned.end.0), (1, 1024 + 1024));
}

#[test]
fn an_end_mark_may_be_short_or_missing_and_so_may_the_last_padding() {
    let file = member("a", b'0', b"abc");
    for len in [512 + 3, 512 + 100, 1024] {
        assert_eq!(scan(&file[..len]).unwrap().end.0, len as u64, "{len}");
    }
    let with_one_block = [&file[..], &[0; BLOCK_LEN]].concat();
    assert_eq!(scan(&with_one_block).unwrap().end.0, 1536);
    assert_eq!(scan(&[]).unwrap().end.0, 0);
}

#[test]
fn an_archive_that_ends_inside_a_header_or_data_is_cut_off() {
    let file = member("a", b'0', b"abc");
    for len in [1, 511, 512, 512 + 2] {
        assert_eq!(reason(&file[..len]), TarErrorReason::CutOff, "{len}");
    }
    let half_an_end_mark = [&file[..], &[0; BLOCK_LEN + 7]].concat();
    assert_eq!(reason(&half_an_end_mark), TarErrorReason::CutOff);
    let long_name = member("././@LongLink", b'L', b"name\0");
    assert_eq!(reason(&long_name[..514]), TarErrorReason::CutOff);
}

#[test]
fn what_is_no_tar_is_refused_where_it_begins() {
    let archive = [member("a", b'0', b"abc"), vec![b'x'; BLOCK_LEN]].concat();
    let error = scan(&archive).unwrap_err();
    assert_eq!(error.at.0, 1024);
    assert!(matches!(error.reason, TarErrorReason::Malformed(_)));
    let zeros_in_between = [vec![0; BLOCK_LEN], member("a", b'0', b"")].concat();
    assert!(matches!(
        reason(&zeros_in_between),
        TarErrorReason::Malformed(_)
    ));
}

#[test]
fn members_without_data_have_none_whatever_their_size_says() {
    let link = header("link", b'1', "00000001000");
    let archive = [link, member("file", b'0', b"x"), end_mark()].concat();
    let scanned = scan(&archive).unwrap();
    assert_eq!(
        (scanned.entries[0].kind, scanned.entries[0].size),
        (EntryKind::HardLink, 512)
    );
    assert_eq!(
        (
            scanned.entries[1].name.as_slice(),
            scanned.entries[1].offset.0
        ),
        (&b"file"[..], 1024)
    );
}

#[test]
fn old_archives_have_directories_without_a_type() {
    let archive = [
        header("dir/", 0, "0"),
        header("file", 0, "0"),
        header("odd/", b'0', "0"),
    ];
    let kinds: Vec<_> = scan(&archive.concat())
        .unwrap()
        .entries
        .iter()
        .map(|entry| entry.kind)
        .collect();
    assert_eq!(
        kinds,
        [EntryKind::Directory, EntryKind::Regular, EntryKind::Regular]
    );
}

#[test]
fn the_last_extended_header_counts_and_counts_once() {
    let archive = [
        member("x", b'x', b"12 path=one\n10 uid=77\n"),
        member("x", b'x', b"12 path=two\n"),
        header("short", b'0', "0"),
        header("next", b'0', "0"),
    ];
    let entries = scan(&archive.concat()).unwrap().entries;
    assert_eq!(
        (entries[0].name.as_slice(), entries[0].uid),
        (&b"two"[..], 0)
    );
    assert_eq!(entries[0].pax, [(b"path".to_vec(), b"two".to_vec())]);
    assert_eq!(
        (entries[1].name.as_slice(), entries[1].pax.len()),
        (&b"next"[..], 0)
    );
}

#[test]
fn a_global_header_names_nothing_and_forgets_what_stood_before_it() {
    let archive = [
        member("x", b'x', b"12 path=one\n"),
        member("g", b'g', b"14 comment=hi\n"),
        header("plain", b'0', "0"),
    ];
    let entries = scan(&archive.concat()).unwrap().entries;
    assert_eq!(
        (entries[0].name.as_slice(), entries[0].pax.len()),
        (&b"plain"[..], 0)
    );
}

#[test]
fn sizes_that_are_negative_or_beyond_reason_are_refused() {
    let mut negative = header("a", b'0', "0");
    negative[124..136].fill(0xff);
    assert_eq!(
        reason(&with_checksum(negative)),
        TarErrorReason::Malformed("the size is negative")
    );
    let huge_name = header("././@LongLink", b'L', "77777777777");
    assert!(matches!(reason(&huge_name), TarErrorReason::TooLarge(_)));
}

#[test]
fn a_1_0_sparse_file_whose_map_never_ends_is_refused() {
    let pax = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n";
    let mut data = b"999999\n".to_vec();
    data.resize(4096, b'1');
    let archive = [
        member("x", b'x', pax),
        member("sparse", b'0', &data),
        end_mark(),
    ];
    assert!(matches!(
        reason(&archive.concat()),
        TarErrorReason::Sparse(_)
    ));
}

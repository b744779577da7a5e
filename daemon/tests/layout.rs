//! OCI layouts as directory and tar, good and hostile.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::path::Path;

use daemon::layout::{Layout, LayoutFormat, LayoutProblem, LayoutWriter};
use ztoc::Digest;
use ztoc::index::{Descriptor, ImageIndex, OCI_MANIFEST};

fn index() -> ImageIndex {
    ImageIndex::new(vec![Descriptor::of(OCI_MANIFEST, b"manifest")])
}

fn write(path: &Path, format: LayoutFormat, blobs: &[&[u8]]) {
    let mut writer = LayoutWriter::create(path, format, &index()).unwrap();
    for blob in blobs {
        writer
            .add_blob(&Digest::of(blob), blob.len() as u64, *blob)
            .unwrap();
    }
    writer.finish().unwrap();
}

fn problem(path: &Path) -> LayoutProblem {
    Layout::open(path).unwrap_err().problem
}

fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        // Written by hand: the crate refuses to make such names.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn what_was_written_is_read_back_in_both_forms() {
    let dir = tempfile::tempdir().unwrap();
    let blobs: [&[u8]; 3] = [b"manifest", b"", &[7; 100_000]];
    for (name, format) in [
        ("tar", LayoutFormat::Archive),
        ("dir", LayoutFormat::Directory),
    ] {
        let path = dir.path().join(name);
        write(&path, format, &blobs);
        let layout = Layout::open(&path).unwrap();
        assert_eq!(layout.index().unwrap(), index());
        for blob in blobs {
            let digest = Digest::of(blob);
            assert!(layout.has(&digest));
            let read = layout.read_blob(&digest, 1 << 20).unwrap().unwrap();
            assert_eq!(read, blob);
            let mut streamed = Vec::new();
            let mut reader = layout.open_blob(&digest).unwrap().unwrap();
            reader.read_to_end(&mut streamed).unwrap();
            assert_eq!(streamed, blob);
        }
        let absent = Digest::of(b"absent");
        assert!(!layout.has(&absent));
        assert!(layout.open_blob(&absent).unwrap().is_none());
    }
}

#[test]
fn a_tar_reader_that_is_not_ours_sees_the_same_layout() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layout.tar");
    write(&path, LayoutFormat::Archive, &[b"manifest"]);
    let unpacked = dir.path().join("unpacked");
    let mut archive = tar::Archive::new(fs::File::open(&path).unwrap());
    archive.unpack(&unpacked).unwrap();
    assert_eq!(
        fs::read(unpacked.join("oci-layout")).unwrap(),
        br#"{"imageLayoutVersion":"1.0.0"}"#
    );
    let blob = Digest::of(b"manifest").hex();
    assert_eq!(
        fs::read(unpacked.join("blobs/sha256").join(blob)).unwrap(),
        b"manifest"
    );
    assert_eq!(Layout::open(&unpacked).unwrap().index().unwrap(), index());
}

#[test]
fn a_writer_that_is_given_up_leaves_the_old_layout_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    for (name, format) in [
        ("tar", LayoutFormat::Archive),
        ("dir", LayoutFormat::Directory),
    ] {
        let path = dir.path().join(name);
        write(&path, format, &[b"old"]);
        let mut writer = LayoutWriter::create(&path, format, &index()).unwrap();
        let wrong = writer.add_blob(&Digest::of(b"one"), 5, &b"other"[..]);
        assert!(matches!(
            wrong.unwrap_err().problem,
            LayoutProblem::Corrupt { .. }
        ));
        drop(writer);
        assert!(Layout::open(&path).unwrap().has(&Digest::of(b"old")));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn an_existing_layout_is_replaced_and_anything_else_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    write(&path, LayoutFormat::Directory, &[b"old"]);
    write(&path, LayoutFormat::Directory, &[b"new"]);
    let layout = Layout::open(&path).unwrap();
    assert!(layout.has(&Digest::of(b"new")) && !layout.has(&Digest::of(b"old")));

    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("thesis"), b"years of work").unwrap();
    for (path, format) in [
        (&home, LayoutFormat::Directory),
        (&home, LayoutFormat::Archive),
        (&home.join("thesis"), LayoutFormat::Directory),
    ] {
        let error = LayoutWriter::create(path, format, &index()).unwrap_err();
        assert!(
            matches!(error.problem, LayoutProblem::NotALayout),
            "{error}"
        );
    }
    assert!(home.join("thesis").is_file());
}

#[test]
fn blobs_that_are_not_what_their_names_say_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layout");
    write(&path, LayoutFormat::Directory, &[b"blob"]);
    let digest = Digest::of(b"blob");
    let too_large = Layout::open(&path)
        .unwrap()
        .read_blob(&digest, 3)
        .unwrap_err();
    assert!(matches!(too_large.problem, LayoutProblem::TooLarge { .. }));
    fs::write(path.join("blobs/sha256").join(digest.hex()), b"other").unwrap();
    let corrupt = Layout::open(&path)
        .unwrap()
        .read_blob(&digest, 100)
        .unwrap_err();
    assert!(matches!(corrupt.problem, LayoutProblem::Corrupt { .. }));
}

#[test]
fn files_that_are_no_layout_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let write = |bytes: &[u8]| fs::write(&path, bytes).unwrap();
    write(&[0x1f, 0x8b, 8, 0, 0, 0]);
    assert!(matches!(problem(&path), LayoutProblem::Compressed));
    write(&tar(&[("manifest.json", b"[]"), ("repositories", b"{}")]));
    assert!(matches!(problem(&path), LayoutProblem::DockerSave));
    write(&tar(&[("hello", b"x")]));
    assert!(matches!(problem(&path), LayoutProblem::NoIndex));
    write(&[0; 1024]);
    assert!(matches!(problem(&path), LayoutProblem::NoIndex));
    write(&[b'x'; 700]);
    assert!(matches!(problem(&path), LayoutProblem::Io(_)));
    assert!(matches!(
        problem(&dir.path().join("absent")),
        LayoutProblem::Io(_)
    ));
    assert!(matches!(problem(dir.path()), LayoutProblem::NoIndex));
    write(&tar(&[("index.json", b"{\"schemaVersion\":1}")]));
    let error = Layout::open(&path).unwrap().index().unwrap_err();
    assert!(matches!(error.problem, LayoutProblem::Index(_)), "{error}");
}

#[test]
fn members_of_a_tar_whose_names_lead_elsewhere_are_no_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("evil.tar");
    let index = index().encode();
    let hex = Digest::of(b"x").hex();
    let outside = format!("../blobs/sha256/{hex}");
    fs::write(
        &path,
        tar(&[
            ("./index.json", &index),
            ("../../etc/passwd", b"x"),
            ("/etc/shadow", b"x"),
            (&outside, b"x"),
            ("blobs/sha256/../../x", b"x"),
        ]),
    )
    .unwrap();
    let layout = Layout::open(&path).unwrap();
    assert!(!layout.has(&Digest::of(b"x")));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

proptest::proptest! {
    #[test]
    fn a_damaged_tar_is_refused_or_read_within_its_bounds(at in 0_usize..3000, byte: u8) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layout.tar");
        let blob = [3_u8; 600];
        let name = format!("blobs/sha256/{}", Digest::of(&blob).hex());
        let mut bytes = tar(&[("index.json", &index().encode()), (&name, &blob)]);
        let at = at % bytes.len();
        bytes[at] = byte;
        fs::write(&path, &bytes).unwrap();
        if let Ok(layout) = Layout::open(&path) {
            let _ = layout.index();
            if let Ok(Some(read)) = layout.read_blob(&Digest::of(&blob), 1 << 20) {
                proptest::prop_assert_eq!(read, blob);
            }
        }
    }
}

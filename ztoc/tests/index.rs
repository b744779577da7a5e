//! SOCI indexes and converted images against those the original made, byte for byte.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ztoc::Digest;
use ztoc::index::{
    COMPACT_INDEX, CompactDescriptor, CompactIndex, Descriptor, DocumentError, Head, ImageIndex,
    IndexError, IndexVersion, IndexedManifest, Manifest, Platform, SociIndex, Subject,
    ZtocDescriptor, annotation, convert,
};

/// The project's own golden files and, where it is there, the larger collection beside the project.
fn golden_dirs() -> Vec<PathBuf> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let beside = std::env::var_os("SPANSHOT_GOLDEN")
        .map(PathBuf::from)
        .or_else(|| {
            package
                .ancestors()
                .map(|dir| dir.join("shared/golden"))
                .find(|dir| dir.is_dir())
        });
    [Some(package.join("tests/golden")), beside]
        .into_iter()
        .flatten()
        .collect()
}

struct Golden {
    name: String,
    soci_index: Vec<u8>,
    manifest: Vec<u8>,
    image_index: Vec<u8>,
}

fn golden() -> Vec<Golden> {
    let mut all = Vec::new();
    for dir in golden_dirs() {
        let dir = dir.join("indexes");
        let names: BTreeSet<String> = fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter_map(|file| Some(file.strip_suffix(".soci-index.json")?.to_owned()))
            .collect();
        let read = |name: &str, kind| fs::read(dir.join(format!("{name}.{kind}.json"))).unwrap();
        all.extend(names.into_iter().map(|name| Golden {
            soci_index: read(&name, "soci-index"),
            manifest: read(&name, "image-manifest"),
            image_index: read(&name, "image-index"),
            name,
        }));
    }
    assert!(all.len() >= 8, "golden indexes are missing");
    all
}

/// The manifest as it was before conversion.
fn source_of(golden: &Golden) -> Manifest {
    let mut source = Manifest::parse(&golden.manifest).unwrap();
    source.annotations.remove(annotation::INDEX_DIGEST).unwrap();
    source
}

fn indexed(golden: &Golden) -> (ImageIndex, IndexedManifest) {
    let manifest = source_of(golden);
    let mut listed = Descriptor::of(
        "application/vnd.oci.image.manifest.v1+json",
        &manifest.encode(),
    );
    let platform = Platform::new("linux", "amd64", "");
    listed.platform = Some(platform.clone());
    let source = IndexedManifest {
        digest: listed.digest,
        manifest,
        platform,
        index: Some(SociIndex::parse(&golden.soci_index).unwrap()),
        compact: None,
    };
    (ImageIndex::new(vec![listed]), source)
}

#[test]
fn an_index_built_from_its_parts_has_the_bytes_of_the_original() {
    for golden in golden() {
        let read = SociIndex::parse(&golden.soci_index).unwrap();
        assert_eq!(read.version(), IndexVersion::V2);
        assert_eq!(read.encode(), golden.soci_index, "{}", golden.name);
        let built = SociIndex::v2(read.ztocs().to_vec(), Vec::new()).unwrap();
        assert_eq!(built.encode(), golden.soci_index, "{}", golden.name);
    }
}

#[test]
fn a_v1_index_has_the_digest_under_which_the_original_pushed_it() {
    let read = |name: &str| {
        fs::read(
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tests/golden/v1")
                .join(name),
        )
        .unwrap()
    };
    // Printed indented; parsing forgets the form.
    let printed = SociIndex::parse(&read("soci-index-v1.json")).unwrap();
    let subject = printed.subject().unwrap();
    let built = SociIndex::v1(
        &Subject {
            media_type: subject.media_type.clone(),
            digest: subject.digest,
            size: subject.size,
        },
        printed.ztocs().to_vec(),
        Vec::new(),
    )
    .unwrap();
    let bytes = read("referrers-fallback-tag-index.json");
    let referrers = ImageIndex::parse(&bytes).unwrap();
    let pushed = &referrers.manifests[0];
    assert_eq!(Digest::of(&built.encode()), pushed.digest);
    assert_eq!(built.encode().len() as u64, pushed.size);
    assert_eq!(
        pushed.artifact_type.as_deref(),
        Some(IndexVersion::V1.artifact_type())
    );
    assert_eq!(referrers.encode(), bytes);
}

#[test]
fn a_converted_image_has_the_bytes_of_the_original() {
    for golden in golden() {
        let (image, source) = indexed(&golden);
        let conversion = convert(image, vec![source]).unwrap();
        assert_eq!(
            conversion.soci_indexes[0].bytes, golden.soci_index,
            "{}",
            golden.name
        );
        assert_eq!(
            conversion.manifests[0].0.bytes, golden.manifest,
            "{}",
            golden.name
        );
        assert_eq!(
            conversion.index.bytes, golden.image_index,
            "{}",
            golden.name
        );
    }
}

#[test]
fn a_docker_image_becomes_an_oci_image_and_keeps_its_docker_layers() {
    let golden = &golden()[0];
    let (_, mut source) = indexed(golden);
    source.manifest.media_type = ztoc::index::DOCKER_MANIFEST.to_owned();
    source.manifest.config.media_type = ztoc::index::DOCKER_CONFIG.to_owned();
    let layer_type = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    source.manifest.layers[0].media_type = layer_type.to_owned();
    let bytes = source.manifest.encode();
    let mut listed = Descriptor::of(ztoc::index::DOCKER_MANIFEST, &bytes);
    listed.platform = Some(source.platform.clone());
    source.digest = listed.digest;
    let mut list = ImageIndex::new(vec![listed]);
    list.media_type = ztoc::index::DOCKER_MANIFEST_LIST.to_owned();

    let conversion = convert(list, vec![source]).unwrap();
    let manifest = Manifest::parse(&conversion.manifests[0].0.bytes).unwrap();
    assert_eq!(manifest.media_type, ztoc::index::OCI_MANIFEST);
    assert_eq!(manifest.config.media_type, ztoc::index::OCI_CONFIG);
    assert_eq!(manifest.layers[0].media_type, layer_type);
    let index = ImageIndex::parse(&conversion.index.bytes).unwrap();
    assert_eq!(index.media_type, ztoc::index::OCI_INDEX);
    assert_eq!(index.manifests[0].media_type, ztoc::index::OCI_MANIFEST);
}

#[test]
fn converting_again_changes_nothing() {
    let golden = &golden()[0];
    let (image, source) = indexed(golden);
    let once = convert(image, vec![source.clone()]).unwrap();
    let (document, manifest) = once.manifests[0].clone();
    let again = IndexedManifest {
        digest: document.descriptor.digest,
        manifest,
        ..source
    };
    let twice = convert(ImageIndex::parse(&once.index.bytes).unwrap(), vec![again]).unwrap();
    assert_eq!(twice.index, once.index);
}

/// Two platforms, an attestation, and entries' own annotations; then one platform converted
/// anew with another index.
#[test]
fn entries_that_are_not_converted_keep_their_digests_and_annotations() {
    let all = golden();
    let (image, amd64) = indexed(&all[0]);
    let (mut other_image, mut arm64) = indexed(&all[1]);
    arm64.platform = Platform::new("linux", "arm64", "v8");
    let mut arm64_listed = other_image.manifests.remove(0);
    arm64_listed.platform = Some(Platform {
        variant: "v8".into(),
        ..Platform::new("linux", "arm64", "")
    });
    arm64_listed.annotations.insert("own".into(), "kept".into());
    let mut attestation =
        Descriptor::of("application/vnd.oci.image.manifest.v1+json", b"attestation");
    attestation.platform = Some(Platform::new("unknown", "unknown", ""));
    attestation.annotations.insert(
        "vnd.docker.reference.type".into(),
        "attestation-manifest".into(),
    );
    let mut image = image;
    image
        .manifests
        .extend([arm64_listed.clone(), attestation.clone()]);

    let both = convert(image, vec![amd64.clone(), arm64]).unwrap();
    let listed = ImageIndex::parse(&both.index.bytes).unwrap().manifests;
    assert_eq!(listed.len(), 5);
    assert_eq!(listed[2], attestation);
    assert_eq!(listed[1].annotations["own"], "kept");
    assert_eq!(listed[1].platform, arm64_listed.platform);
    assert_eq!(
        listed[1].annotations[annotation::INDEX_DIGEST],
        listed[4].digest.to_string()
    );
    assert_eq!(
        listed[4].annotations[annotation::IMAGE_MANIFEST_DIGEST],
        listed[1].digest.to_string()
    );

    let (document, manifest) = both.manifests[0].clone();
    let anew = IndexedManifest {
        digest: document.descriptor.digest,
        manifest,
        index: Some(SociIndex::parse(&all[2].soci_index).unwrap()),
        ..amd64
    };
    let again = convert(ImageIndex::parse(&both.index.bytes).unwrap(), vec![anew]).unwrap();
    let relisted = ImageIndex::parse(&again.index.bytes).unwrap().manifests;
    assert_eq!(relisted.len(), 5);
    for untouched in [1, 2, 4] {
        assert_eq!(relisted[untouched], listed[untouched]);
    }
    assert_eq!(relisted[3].digest, Digest::of(&all[2].soci_index));
    assert_eq!(
        relisted[0].annotations[annotation::INDEX_DIGEST],
        relisted[3].digest.to_string()
    );
}

fn compact_index(layer: &[u8]) -> CompactIndex {
    let ztoc = ZtocDescriptor {
        digest: Digest::of(b"compact"),
        size: 900,
        layer_digest: Digest::of(layer),
        layer_media_type: String::from("application/vnd.oci.image.layer.v1.tar+gzip"),
        span_size: Some(ztoc::compact::SPAN_SIZE),
        disable_xattrs: false,
    };
    let head = Head {
        size: 500,
        digest: Digest::of(b"head"),
    };
    CompactIndex::new(vec![CompactDescriptor { ztoc, head }], Vec::new(), None).unwrap()
}

#[test]
fn a_compact_index_is_listed_last_and_leaves_the_soci_index_as_it_is() {
    let golden = &golden()[0];
    let (image, source) = indexed(golden);
    let compact = compact_index(b"layer");
    let digest = Digest::of(&compact.encode());
    let with = IndexedManifest {
        compact: Some(compact),
        ..source.clone()
    };
    let converted = convert(image, vec![with]).unwrap();
    assert_eq!(converted.soci_indexes[0].bytes, golden.soci_index);
    let listed = ImageIndex::parse(&converted.index.bytes).unwrap().manifests;
    assert_eq!(listed.len(), 3);
    assert_eq!(listed[1].digest, Digest::of(&golden.soci_index));
    assert_eq!(listed[2].digest, digest);
    assert_eq!(listed[2].platform, listed[1].platform);
    assert_eq!(listed[2].artifact_type.as_deref(), Some(COMPACT_INDEX));
    for index in &listed[1..] {
        let target = &index.annotations[annotation::IMAGE_MANIFEST_DIGEST];
        assert_eq!(*target, listed[0].digest.to_string());
    }
    let (_, manifest) = &converted.manifests[0];
    let named = &manifest.annotations[annotation::COMPACT_INDEX_DIGEST];
    assert_eq!(*named, digest.to_string());

    // Another compact index alone takes the place of this one, and the SOCI index stays the image's.
    let anew = IndexedManifest {
        digest: listed[0].digest,
        manifest: manifest.clone(),
        index: None,
        compact: Some(compact_index(b"other")),
        ..source
    };
    let again = convert(
        ImageIndex::parse(&converted.index.bytes).unwrap(),
        vec![anew],
    )
    .unwrap();
    let relisted = ImageIndex::parse(&again.index.bytes).unwrap().manifests;
    assert_eq!(relisted.len(), 3);
    assert_eq!(relisted[1].digest, listed[1].digest);
    assert_ne!(relisted[2].digest, listed[2].digest);
    for index in &relisted[1..] {
        let target = &index.annotations[annotation::IMAGE_MANIFEST_DIGEST];
        assert_eq!(*target, relisted[0].digest.to_string());
    }
}

#[test]
fn keys_of_a_manifest_that_no_one_knows_survive_conversion() {
    let golden = &golden()[0];
    let (_, mut source) = indexed(golden);
    source.manifest.other.insert(
        "x-signature".into(),
        serde_json::json!({"b": 1, "a": [true]}),
    );
    let mut listed = Descriptor::of(ztoc::index::OCI_MANIFEST, &source.manifest.encode());
    listed.platform = Some(source.platform.clone());
    source.digest = listed.digest;
    let conversion = convert(ImageIndex::new(vec![listed]), vec![source]).unwrap();
    let text = String::from_utf8(conversion.manifests[0].0.bytes.clone()).unwrap();
    assert!(
        text.ends_with(r#","x-signature":{"b":1,"a":[true]}}"#),
        "{text}"
    );
}

#[test]
fn an_index_of_no_layer_is_refused() {
    assert!(matches!(
        SociIndex::v2(Vec::new(), Vec::new()),
        Err(IndexError::Empty)
    ));
}

#[test]
fn documents_that_are_no_soci_index_are_refused() {
    let golden = &golden()[0];
    let error = SociIndex::parse(&golden.manifest).unwrap_err();
    assert!(matches!(error, IndexError::UnknownVersion(_)), "{error}");
    let error = SociIndex::parse(&golden.image_index).unwrap_err();
    assert!(matches!(error, IndexError::Document(_)), "{error}");

    let text = String::from_utf8(golden.soci_index.clone()).unwrap();
    let without_layer = text.replace("com.amazon.soci.image-layer-digest", "other");
    assert!(matches!(
        SociIndex::parse(without_layer.as_bytes()),
        Err(IndexError::NoLayer { .. })
    ));
    for bytes in [
        &b""[..],
        b"{}",
        b"null",
        b"[]",
        &text.as_bytes()[..text.len() / 2],
    ] {
        assert!(SociIndex::parse(bytes).is_err());
    }
}

#[test]
fn a_document_that_is_manifest_and_index_at_once_is_refused() {
    let golden = &golden()[0];
    let both = |text: &[u8], keys: &str| {
        let text = String::from_utf8(text.to_vec()).unwrap();
        format!("{},{keys}}}", text.strip_suffix('}').unwrap())
    };
    assert!(matches!(
        Manifest::parse(both(&golden.manifest, r#""manifests":[]"#).as_bytes()),
        Err(DocumentError::Ambiguous(_))
    ));
    assert!(matches!(
        ImageIndex::parse(both(&golden.image_index, r#""layers":[]"#).as_bytes()),
        Err(DocumentError::Ambiguous(_))
    ));
}

#[test]
fn a_manifest_above_the_size_limit_is_refused_before_it_is_read() {
    let bytes = vec![b' '; ztoc::index::MAX_DOCUMENT_SIZE + 1];
    assert!(matches!(
        Manifest::parse(&bytes),
        Err(DocumentError::TooLarge { .. })
    ));
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
        let _ = SociIndex::parse(&bytes);
        let _ = ImageIndex::parse(&bytes);
    }

    #[test]
    fn a_damaged_index_is_refused_or_has_one_canonical_form(at in 0_usize..700, byte in 0x20_u8..0x7f) {
        let mut bytes = golden().swap_remove(0).soci_index;
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(index) = SociIndex::parse(&bytes) {
            let canonical = index.encode();
            let again = SociIndex::parse(&canonical).unwrap();
            proptest::prop_assert_eq!(again.encode(), canonical);
        }
    }
}

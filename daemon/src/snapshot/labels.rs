//! Labels of snapshots: what containerd and its clients say about a layer, and what we note.

use ztoc::Digest;

use super::images::{LayerRequest, NotLazy};
use super::record::Labels;

/// Set by containerd's unpacker: the chain ID that this layer is to be committed under.
pub const REF: &str = "containerd.io/snapshot.ref";
/// Reference of the image.
pub const IMAGE: &str = "containerd.io/snapshot/cri.image-ref";
/// Digest of the compressed layer.
pub const LAYER: &str = "containerd.io/snapshot/cri.layer-digest";
/// Digest of the image's manifest.
pub const MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";
/// Digests of this layer and those above it, separated by commas; cut off to fit a label.
pub const IMAGE_LAYERS: &str = "containerd.io/snapshot/cri.image-layers";
/// Compressed size of the layer in bytes.
pub const SIZE: &str = "containerd.io/snapshot/remote/soci.size";
/// Digest of the SOCI index that the user wants.
pub const INDEX: &str = "containerd.io/snapshot/remote/soci.index.digest";
/// User mapping of a container in a user namespace.
pub const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";
/// Group mapping of a container in a user namespace.
pub const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";

/// Written on a layer that is served lazily, with value [`REMOTE_VALUE`].
pub const REMOTE: &str = "containerd.io/snapshot/remote";
/// Value of [`REMOTE`].
pub const REMOTE_VALUE: &str = "remote snapshot";
/// Written on a layer of an image with a SOCI index, with value `true`.
pub const HAS_INDEX: &str = "containerd.io/snapshot/remote/has.soci.index.digest";
/// Written on a layer that we provided: the namespace it was prepared for.
pub const NAMESPACE: &str = "containerd.io/snapshot/remote/namespace";

/// Layers of an image that are looked at; a label of containerd's holds about 55.
const MAX_LAYERS: usize = 1024;

/// Reads the labels of a layer.
///
/// # Errors
/// [`NotLazy::Labels`] if the image or the layer is not named, or not in a form we know. Anything
/// else that is missing or malformed is left out: it is a hint.
pub fn parse(labels: &Labels, namespace: &str) -> Result<LayerRequest, NotLazy> {
    let required = |label: &'static str| labels.get(label).ok_or(NotLazy::Labels { label });
    let image = required(IMAGE)?
        .parse()
        .map_err(|_| NotLazy::Labels { label: IMAGE })?;
    let layer = required(LAYER)?
        .parse()
        .map_err(|_| NotLazy::Labels { label: LAYER })?;
    Ok(LayerRequest {
        image,
        layer,
        manifest: digest(labels, MANIFEST),
        layers_above: layers_above(labels, layer),
        size: labels.get(SIZE).and_then(|size| size.trim().parse().ok()),
        index: digest(labels, INDEX),
        namespace: namespace.to_owned(),
    })
}

fn digest(labels: &Labels, label: &str) -> Option<Digest> {
    labels.get(label)?.trim().parse().ok()
}

/// The digests of the list up to the first that is cut off; at least the layer itself.
fn layers_above(labels: &Labels, layer: Digest) -> Vec<Digest> {
    let list = labels.get(IMAGE_LAYERS).map_or("", String::as_str);
    let mut layers: Vec<Digest> = list
        .split(',')
        .take(MAX_LAYERS)
        .map_while(|digest| digest.trim().parse().ok())
        .collect();
    if layers.is_empty() {
        layers.push(layer);
    }
    layers
}

/// The namespace that a call is for: the gRPC header's, else the first component of a key of the
/// form `namespace/sequence/name`, else containerd's default. containerd 1.6 sends no header.
pub fn namespace(header: Option<&str>, key: &str) -> String {
    let of_key = || {
        let mut parts = key.splitn(3, '/');
        let namespace = parts.next().filter(|name| !name.is_empty())?;
        parts.next()?.parse::<u64>().ok()?;
        parts.next().map(|_| namespace)
    };
    let header = header.filter(|name| !name.is_empty());
    header.or_else(of_key).unwrap_or("default").to_owned()
}

/// How a layer that we commit is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Served span by span.
    Lazy,
    /// Unpacked by us, of an image with or without a SOCI index.
    Unpacked {
        /// Whether the image has an index.
        indexed: bool,
    },
}

/// The labels of a layer that we commit: those given, and ours.
pub fn committed(given: &Labels, mark: Mark, namespace: &str) -> Labels {
    let mut labels = given.clone();
    // Only we say so: a label that a client made up would be believed later.
    labels.remove(REMOTE);
    if mark == Mark::Lazy {
        labels.insert(REMOTE.to_owned(), REMOTE_VALUE.to_owned());
    }
    labels.remove(HAS_INDEX);
    if mark != (Mark::Unpacked { indexed: false }) {
        labels.insert(HAS_INDEX.to_owned(), "true".to_owned());
    }
    labels.insert(NAMESPACE.to_owned(), namespace.to_owned());
    labels
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn digest_of(byte: u8) -> Digest {
        Digest::of(&[byte])
    }

    fn given() -> Labels {
        let list = format!("{},{},sha256:0123", digest_of(1), digest_of(2));
        [
            (REF, "sha256:chain".to_owned()),
            (IMAGE, "registry.example/app:1".to_owned()),
            (LAYER, digest_of(1).to_string()),
            (MANIFEST, digest_of(9).to_string()),
            (IMAGE_LAYERS, list),
            (SIZE, "1234".to_owned()),
        ]
        .into_iter()
        .map(|(label, value)| (label.to_owned(), value))
        .collect()
    }

    #[test]
    fn a_list_of_layers_that_was_cut_off_keeps_its_whole_digests() {
        let request = parse(&given(), "k8s.io").unwrap();
        assert_eq!(request.layers_above, [digest_of(1), digest_of(2)]);
        assert_eq!(request.layer, digest_of(1));
        assert_eq!(request.manifest, Some(digest_of(9)));
        assert_eq!(request.size, Some(1234));
        assert_eq!(request.namespace, "k8s.io");
    }

    #[test]
    fn a_layer_without_image_or_digest_is_no_request() {
        for label in [IMAGE, LAYER] {
            let mut labels = given();
            labels.remove(label);
            let error = parse(&labels, "n").unwrap_err();
            assert_eq!(error.to_string(), NotLazy::Labels { label }.to_string());
        }
    }

    #[test]
    fn malformed_hints_are_left_out() {
        let mut labels = given();
        for label in [MANIFEST, IMAGE_LAYERS, SIZE, INDEX] {
            labels.insert(label.to_owned(), "-1,x".to_owned());
        }
        let request = parse(&labels, "n").unwrap();
        assert_eq!((request.manifest, request.index), (None, None));
        assert_eq!(request.size, None);
        assert_eq!(request.layers_above, [digest_of(1)]);
    }

    #[test]
    fn the_namespace_comes_from_the_header_or_the_key() {
        assert_eq!(namespace(Some("k8s.io"), "default/1/x"), "k8s.io");
        assert_eq!(namespace(None, "default/15/extract-1 sha256:a"), "default");
        assert_eq!(namespace(Some(""), "moby/3/a/b"), "moby");
        assert_eq!(namespace(None, "plain"), "default");
        assert_eq!(namespace(None, "sha256:x/y/z"), "default");
    }

    #[test]
    fn a_client_cannot_claim_that_an_unpacked_layer_is_lazy() {
        let mut labels = given();
        labels.insert(REMOTE.to_owned(), REMOTE_VALUE.to_owned());
        let kept = committed(&labels, Mark::Unpacked { indexed: false }, "n");
        assert!(!kept.contains_key(REMOTE) && !kept.contains_key(HAS_INDEX));
        assert_eq!(kept.get(REF), labels.get(REF));
        assert_eq!(
            committed(&labels, Mark::Lazy, "n").get(REMOTE).unwrap(),
            REMOTE_VALUE
        );
    }

    proptest! {
        #[test]
        fn no_labels_bring_the_parser_down(values in proptest::collection::vec(".{0,80}", 6)) {
            let names = [IMAGE, LAYER, MANIFEST, IMAGE_LAYERS, SIZE, INDEX];
            let labels = names.iter().map(|name| (*name).to_owned()).zip(values).collect();
            let _ = parse(&labels, "n");
        }
    }
}

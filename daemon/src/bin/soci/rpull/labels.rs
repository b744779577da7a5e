//! The labels by which a remote snapshotter knows what it is to prepare.

use std::collections::BTreeMap;

use ztoc::Digest;
use ztoc::index::Descriptor;

/// containerd refuses labels whose key and value together are longer.
const MAX_LABEL: usize = 4096;

const PREFIX: &str = "containerd.io/snapshot/";
const REF: &str = "containerd.io/snapshot.ref";
const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
const IMAGE_LAYERS: &str = "containerd.io/snapshot/cri.image-layers";
const LAYER_SIZE: &str = "containerd.io/snapshot/remote/soci.size";
const LAYER_SIZES: &str = "containerd.io/snapshot/remote/image.layers.size";
const INDEX_DIGEST: &str = "containerd.io/snapshot/remote/soci.index.digest";

/// What is the same for all layers of an image.
#[derive(Debug)]
pub(super) struct LayerLabels<'a> {
    pub(super) image: String,
    pub(super) manifest: Digest,
    pub(super) layers: &'a [Descriptor],
    pub(super) soci_index: Option<Digest>,
}

impl LayerLabels<'_> {
    /// The labels of layer `number`, whose snapshot will be called `chain_id`.
    pub(super) fn of(&self, number: usize, chain_id: &Digest) -> BTreeMap<String, String> {
        let above = self.layers.get(number..).unwrap_or_default();
        let listed = above.get(..listed_count(above)).unwrap_or_default();
        let join = |texts: Vec<String>| texts.join(",");
        let mut labels = BTreeMap::new();
        let mut set = |key: &str, value: String| labels.insert(key.to_owned(), value);
        if let Some(layer) = above.first() {
            for (key, value) in &layer.annotations {
                if key.starts_with(PREFIX) && key.len() + value.len() <= MAX_LABEL {
                    set(key, value.clone());
                }
            }
            set(LAYER_DIGEST, layer.digest.to_string());
            set(LAYER_SIZE, layer.size.to_string());
        }
        set(REF, chain_id.to_string());
        set(IMAGE_REF, self.image.clone());
        set(MANIFEST_DIGEST, self.manifest.to_string());
        set(
            IMAGE_LAYERS,
            join(listed.iter().map(|it| it.digest.to_string()).collect()),
        );
        set(
            LAYER_SIZES,
            join(listed.iter().map(|it| it.size.to_string()).collect()),
        );
        if let Some(index) = self.soci_index {
            set(INDEX_DIGEST, index.to_string());
        }
        labels
    }
}

/// How many layers fit into the label of layers. Their sizes are shorter and always fit.
fn listed_count(layers: &[Descriptor]) -> usize {
    const DIGEST_AND_COMMA: usize = 72;
    let room = MAX_LABEL - IMAGE_LAYERS.len() + 1;
    layers.len().min(room / DIGEST_AND_COMMA)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(count: u8, number: usize) -> BTreeMap<String, String> {
        let layers: Vec<_> = (0..count)
            .map(|i| Descriptor::new("layer", Digest::of(&[i]), u64::from(i)))
            .collect();
        let labels = LayerLabels {
            image: "example.com/app:1".into(),
            manifest: Digest::of(b"manifest"),
            layers: &layers,
            soci_index: Some(Digest::of(b"index")),
        };
        labels.of(number, &Digest::of(b"chain"))
    }

    #[test]
    fn a_layer_is_named_with_those_above_it() {
        let labels = labels(3, 1);
        let [one, two] = [Digest::of(&[1]), Digest::of(&[2])];
        assert_eq!(labels[LAYER_DIGEST], one.to_string());
        assert_eq!(labels[IMAGE_LAYERS], format!("{one},{two}"));
        assert_eq!(labels[LAYER_SIZES], "1,2");
        assert_eq!(labels[LAYER_SIZE], "1");
        assert_eq!(labels[REF], Digest::of(b"chain").to_string());
        assert_eq!(labels[INDEX_DIGEST], Digest::of(b"index").to_string());
    }

    #[test]
    fn the_lists_of_an_image_with_many_layers_are_cut_to_the_same_number() {
        let labels = labels(120, 0);
        let digests = &labels[IMAGE_LAYERS];
        assert!(IMAGE_LAYERS.len() + digests.len() <= MAX_LABEL);
        assert!(IMAGE_LAYERS.len() + digests.len() + 72 > MAX_LABEL);
        assert!(
            digests
                .split(',')
                .all(|digest| digest.parse::<Digest>().is_ok())
        );
        assert_eq!(
            digests.split(',').count(),
            labels[LAYER_SIZES].split(',').count()
        );
    }
}

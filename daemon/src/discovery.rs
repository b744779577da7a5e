//! Discovery: which SOCI index belongs to an image, and its zTOCs.
//!
//! In order: the index named by a label, the v2 annotation on the image manifest, v1 referrers.

use std::sync::Arc;

use bytes::Bytes;
use ztoc::Digest;

use crate::content::{ContentStore, StoreError};
use crate::registry::{Reference, Registry, RegistryError};
use crate::snapshot::images::NotLazy;

mod index;

pub use index::{IndexError, SociIndex, ZtocRef};

/// Which generations of SOCI indexes are looked for (`[pull_modes]`). An index named by a
/// label is used in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// `soci_v1.enable`: by referrers.
    pub v1: bool,
    /// `soci_v2.enable`: by the annotation on the image manifest.
    pub v2: bool,
}

impl Default for Modes {
    fn default() -> Self {
        Self {
            v1: false,
            v2: true,
        }
    }
}

/// For which image an index is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageQuery {
    /// Where the image is.
    pub image: Reference,
    /// Digest of the platform's manifest.
    pub manifest: Option<Digest>,
    /// An index named by the user.
    pub index: Option<Digest>,
}

/// Finds and fetches SOCI artifacts. Clones share what was found.
#[derive(Debug, Clone)]
pub struct Discovery {
    registry: Registry,
    store: Arc<dyn ContentStore>,
    modes: Modes,
}

/// Why there is no index or zTOC.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoveryError {
    /// The image has no SOCI index.
    #[error("the image has no SOCI index")]
    NoIndex,
    /// v1 and v2 are switched off and no index was named.
    #[error("lazy loading is switched off in the configuration")]
    Disabled,
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The content store failed.
    #[error("content store: {0}")]
    Store(#[source] Arc<StoreError>),
    /// The index is not what it should be.
    #[error("SOCI index {digest}: {error}")]
    Index {
        /// The index.
        digest: Digest,
        /// What is wrong.
        error: IndexError,
    },
    /// A zTOC is larger than accepted.
    #[error("zTOC {digest} has {size} bytes, more than the {limit} accepted")]
    ZtocTooLarge {
        /// The zTOC.
        digest: Digest,
        /// Its size by the index.
        size: u64,
        /// What is accepted.
        limit: u64,
    },
}

impl From<DiscoveryError> for NotLazy {
    fn from(error: DiscoveryError) -> Self {
        match error {
            DiscoveryError::NoIndex => Self::NoIndex,
            DiscoveryError::Disabled => Self::Disabled,
            error => Self::Artifact {
                detail: error.to_string(),
            },
        }
    }
}

impl Discovery {
    /// Looks in `store` before `registry`, and keeps in `store` what it fetched.
    pub fn new(registry: Registry, store: Arc<dyn ContentStore>, modes: Modes) -> Self {
        Self {
            registry,
            store,
            modes,
        }
    }

    /// The image's SOCI index. Asked once per image at a time; an index found is remembered, a
    /// failure only for seconds.
    pub async fn find(&self, query: &ImageQuery) -> Result<Arc<SociIndex>, DiscoveryError> {
        let _ = (query, &self.registry, &self.store, self.modes);
        todo!()
    }

    /// The bytes of a zTOC, verified against its digest; from the store if it is there.
    pub async fn fetch_ztoc(
        &self,
        image: &Reference,
        ztoc: &ZtocRef,
    ) -> Result<Bytes, DiscoveryError> {
        let _ = (image, ztoc);
        todo!()
    }
}

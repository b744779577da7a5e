//! Discovery: which SOCI index belongs to an image, and its zTOCs.
//!
//! In order: the index named by a label, the v2 annotation on the image manifest, v1 referrers. The
//! content store is asked before the registry. What was found is remembered as long as there is
//! room; that nothing was found, or that asking failed, only for seconds.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use ztoc::Digest;
use ztoc::index::COMPACT_INDEX;

use crate::content::ContentStore;
use crate::registry::flight::Flights;
use crate::registry::{Reference, Registry, RegistryError};
use crate::snapshot::images::NotLazy;

mod artifacts;
mod index;

use artifacts::Artifacts;
pub use artifacts::MAX_ZTOC_SIZE;
#[cfg(any(test, fuzzing))]
pub(crate) use artifacts::probe;
pub use index::{IndexError, SociIndex, V1_ARTIFACT_TYPE, V2_ARTIFACT_TYPE, ZtocRef};

/// For how long a failure is answered again without asking.
const FAILURE_LIFETIME: Duration = Duration::from_secs(5);
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// Which generations of SOCI indexes are looked for (`[pull_modes]`). An index named by a
/// label is used in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Modes {
    /// `soci_v1.enable`: by referrers.
    pub v1: bool,
    /// `soci_v2.enable`: by the annotation on the image manifest.
    pub v2: bool,
    /// `compact.enable`: whether compact indexes are used, which are found in the same ways.
    pub compact: bool,
}

impl Default for Modes {
    fn default() -> Self {
        Self {
            v1: false,
            v2: true,
            compact: true,
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
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    artifacts: Artifacts,
    modes: Modes,
    flights: Flights<Key, Outcome>,
    remembered: Mutex<LruCache<Key, (Outcome, Instant)>>,
}

/// What is asked for: host, repository, the manifest or named index, and whether it is the latter.
type Key = (String, String, Digest, bool);
type Outcome = Result<Arc<SociIndex>, DiscoveryError>;

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
    /// Neither an image manifest nor an index is known by digest.
    #[error("the digest of the image manifest is not known")]
    NoManifest,
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The image manifest cannot be read.
    #[error("image manifest {digest}: {detail}")]
    Manifest {
        /// The manifest.
        digest: Digest,
        /// What is wrong.
        detail: String,
    },
    /// The index is not what it should be.
    #[error("SOCI index {digest}: {error}")]
    Index {
        /// The index.
        digest: Digest,
        /// What is wrong.
        error: IndexError,
    },
    /// What begins a compact zTOC is not what its index says.
    #[error("compact zTOC {digest} does not begin with {head}")]
    Head {
        /// The compact zTOC.
        digest: Digest,
        /// The digest of its head, by the index.
        head: Digest,
    },
    /// A zTOC is not as large as its index says, or larger than accepted.
    #[error("zTOC {digest} has {size} bytes, {limit} are right")]
    ZtocSize {
        /// The zTOC.
        digest: Digest,
        /// Its size, by the index or as received.
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
            DiscoveryError::NoManifest => Self::Labels {
                label: "containerd.io/snapshot/cri.manifest-digest",
            },
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
            inner: Arc::new(Inner {
                artifacts: Artifacts::new(registry, store),
                modes,
                flights: Flights::new(),
                remembered: Mutex::new(LruCache::new(REMEMBERED)),
            }),
        }
    }

    /// The image's SOCI index. Asked once per image at a time; an index found is remembered, a
    /// failure only for seconds.
    pub async fn find(&self, query: &ImageQuery) -> Result<Arc<SociIndex>, DiscoveryError> {
        self.find_with(query, std::future::ready(None)).await
    }

    /// The same; `manifest` gives the bytes of the image's manifest, verified, if they are here
    /// already. It is asked only when they are needed.
    pub async fn find_with(
        &self,
        query: &ImageQuery,
        manifest: impl Future<Output = Option<Bytes>> + Send + 'static,
    ) -> Result<Arc<SociIndex>, DiscoveryError> {
        let (digest, named) = match (query.index, query.manifest.or_else(|| query.image.digest())) {
            (Some(index), _) => (index, true),
            _ if !self.inner.modes.v1 && !self.inner.modes.v2 => {
                return Err(DiscoveryError::Disabled);
            }
            (None, Some(manifest)) => (manifest, false),
            (None, None) => return Err(DiscoveryError::NoManifest),
        };
        let image = &query.image;
        let key = (
            image.host().to_owned(),
            image.repository().to_owned(),
            digest,
            named,
        );
        if let Some(outcome) = self.inner.recall(&key) {
            return outcome;
        }
        let (inner, image) = (self.inner.clone(), image.clone());
        let search = async move {
            let outcome = inner.search(&image, digest, named, manifest).await;
            inner.remember(key, &outcome);
            outcome
        };
        let key = (
            query.image.host().to_owned(),
            query.image.repository().to_owned(),
            digest,
            named,
        );
        self.inner.flights.join(key, || search).await
    }

    /// The bytes of a zTOC, or of a compact zTOC what is needed first, verified; from the store if it is there.
    pub async fn fetch_first(
        &self,
        image: &Reference,
        ztoc: &ZtocRef,
    ) -> Result<Bytes, DiscoveryError> {
        match &ztoc.head {
            Some(head) => self.inner.artifacts.head(image, ztoc, head).await,
            None => self.inner.artifacts.ztoc(image, ztoc).await,
        }
    }

    /// The bytes of a zTOC, verified against its digest; from the store if it is there.
    pub async fn fetch_ztoc(
        &self,
        image: &Reference,
        ztoc: &ZtocRef,
    ) -> Result<Bytes, DiscoveryError> {
        self.inner.artifacts.ztoc(image, ztoc).await
    }
}

impl Inner {
    fn recall(&self, key: &Key) -> Option<Outcome> {
        let mut remembered = self.remembered.lock();
        let (outcome, since) = remembered.get(key)?;
        (outcome.is_ok() || since.elapsed() < FAILURE_LIFETIME).then(|| outcome.clone())
    }

    fn remember(&self, key: Key, outcome: &Outcome) {
        self.remembered
            .lock()
            .put(key, (outcome.clone(), Instant::now()));
    }

    async fn search(
        &self,
        image: &Reference,
        digest: Digest,
        named: bool,
        manifest: impl Future<Output = Option<Bytes>> + Send,
    ) -> Outcome {
        if named {
            return self.artifacts.index(image, digest).await.map(Arc::new);
        }
        let second = if self.modes.v2 {
            self.by_annotation(image, digest, manifest.await).await
        } else {
            Err(DiscoveryError::NoIndex)
        };
        match second {
            Err(error) if self.modes.v1 => self.by_referrers(image, digest, error).await,
            found => found,
        }
    }

    async fn by_annotation(
        &self,
        image: &Reference,
        manifest: Digest,
        bytes: Option<Bytes>,
    ) -> Outcome {
        let named = self
            .artifacts
            .annotated_indexes(image, manifest, bytes)
            .await?;
        self.both(image, named.soci, named.compact).await
    }

    /// The SOCI index and the compact index of an image, at the same time; one that fails is left out if there is the other.
    async fn both(
        &self,
        image: &Reference,
        soci: Option<Digest>,
        compact: Option<Digest>,
    ) -> Outcome {
        let compact = compact.filter(|_| self.modes.compact);
        let soci = async {
            match soci {
                Some(digest) => self.artifacts.index(image, digest).await,
                None => Err(DiscoveryError::NoIndex),
            }
        };
        let compact = async {
            match compact {
                Some(digest) => self.artifacts.compact_index(image, digest).await,
                None => Err(DiscoveryError::NoIndex),
            }
        };
        let failed = |form: &str, error: &DiscoveryError| {
            if !matches!(error, DiscoveryError::NoIndex) {
                tracing::warn!(%image, %error, "the image's {form} cannot be used");
            }
        };
        let index = match futures::future::join(soci, compact).await {
            (Ok(soci), Ok(compact)) => soci.beside(compact),
            (Ok(soci), Err(error)) => {
                failed("compact index", &error);
                soci
            }
            (Err(error), Ok(compact)) => {
                failed("SOCI index", &error);
                compact
            }
            (Err(error), Err(_)) => return Err(error),
        };
        Ok(Arc::new(index))
    }

    /// `earlier` is why there was no v2 index: it is told when there is no v1 index either.
    async fn by_referrers(
        &self,
        image: &Reference,
        manifest: Digest,
        earlier: DiscoveryError,
    ) -> Outcome {
        if !matches!(earlier, DiscoveryError::NoIndex) {
            tracing::warn!(%image, %manifest, error = %earlier, "no v2 SOCI index, looking for a v1 index");
        }
        let of_type = |artifact_type| {
            self.artifacts
                .referring_index(image, manifest, artifact_type)
        };
        let compact = async {
            match self.modes.compact {
                true => of_type(COMPACT_INDEX).await,
                false => Ok(None),
            }
        };
        let found = futures::future::join(of_type(V1_ARTIFACT_TYPE), compact).await;
        let (soci, compact) = match found {
            (Err(error), Err(_) | Ok(None)) => return Err(error),
            (soci, compact) => (soci.ok().flatten(), compact.ok().flatten()),
        };
        match (soci, compact) {
            (None, None) => Err(earlier),
            (soci, compact) => self.both(image, soci, compact).await,
        }
    }
}

//! What a command works with: containerd, the artifact store, the records.

use std::sync::Arc;

use anyhow::{Context, Result};
use daemon::artifacts::Artifacts;
use daemon::containerd::{Containerd, Image, Lease};
use daemon::content::{ContainerdStore, ContentStore, OciLayoutStore};
use daemon::registry::Reference;

use crate::options::{Globals, StoreChoice};

/// The parts a command may need. Nothing connects before it is used.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) containerd: Containerd,
    pub(crate) artifacts: Artifacts,
    globals: Globals,
}

impl Session {
    /// Makes the root directory if need be.
    pub(crate) fn open(globals: &Globals) -> Result<Self> {
        Ok(Self {
            containerd: Containerd::new(&globals.address, &globals.namespace)?,
            artifacts: Artifacts::open(&globals.root)?,
            globals: globals.clone(),
        })
    }

    /// The store the user chose for artifacts, reached through `containerd` (which may be under a
    /// lease).
    pub(crate) fn store(&self, containerd: &Containerd) -> Result<Arc<dyn ContentStore>> {
        Ok(match self.globals.content_store {
            StoreChoice::Containerd => Arc::new(ContainerdStore::new(containerd.clone())),
            StoreChoice::Soci => {
                Arc::new(OciLayoutStore::open_at(&self.globals.root.join("content"))?)
            }
        })
    }

    /// The image a user names: as containerd has it, or by its familiar name (`alpine`).
    pub(crate) async fn image(&self, name: &str) -> Result<Image> {
        if let Some(image) = self.containerd.image(name).await? {
            return Ok(image);
        }
        let full = name.parse::<Reference>().map(|it| it.to_string());
        if let Ok(full) = full
            && let Some(image) = self.containerd.image(&full).await?
        {
            return Ok(image);
        }
        anyhow::bail!(
            "image {name:?}: not found in namespace {} of containerd; pull it first",
            self.globals.namespace
        )
    }
}

/// Runs `work` under a lease, which ends with it whatever comes of it.
pub(crate) async fn leased<T>(
    containerd: &Containerd,
    work: impl AsyncFnOnce(&Containerd) -> Result<T>,
) -> Result<T> {
    let lease: Lease = containerd.lease().await?;
    let outcome = work(lease.client()).await;
    let released = lease.release().await.context("the work itself is done");
    outcome.and_then(|value| released.map(|()| value))
}

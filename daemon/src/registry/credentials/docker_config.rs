//! `$DOCKER_CONFIG/config.json` with its credential helpers.
//!
//! Read by hand: the published reader runs helpers with no time limit on the calling thread,
//! and matches keys by their exact text only.

use std::path::PathBuf;

use async_trait::async_trait;

use super::{CredentialError, CredentialProvider, CredentialQuery, Credentials};

/// Docker's client configuration; read anew each time, since `docker login` may change it.
#[derive(Debug, Clone)]
pub struct DockerConfig {
    path: PathBuf,
}

impl DockerConfig {
    /// The file at `path`.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`; `None` without either variable.
    pub fn from_env() -> Option<Self> {
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
        let dir = std::env::var_os("DOCKER_CONFIG")
            .map(PathBuf::from)
            .or_else(home)?;
        Some(Self::at(dir.join("config.json")))
    }
}

#[async_trait]
impl CredentialProvider for DockerConfig {
    async fn credentials(
        &self,
        _query: CredentialQuery<'_>,
    ) -> Result<Option<Credentials>, CredentialError> {
        let _ = &self.path;
        todo!()
    }
}

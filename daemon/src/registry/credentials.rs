//! Where user names, passwords and identity tokens come from.

use std::fmt;

use async_trait::async_trait;

mod docker_config;
mod exec;
mod image_pattern;
mod kubelet;
mod secrets;

pub use docker_config::DockerConfig;
pub use kubelet::KubeletProviders;
pub use secrets::PullSecrets;
#[cfg(any(test, fuzzing))]
pub(crate) use {
    docker_config::probe, kubelet::probe as probe_kubelet, secrets::probe as probe_secrets,
};

/// What a registry is shown. `Debug` hides the secret.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Credentials {
    /// A user name and a password.
    Password {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A refresh token that the token server exchanges.
    IdentityToken(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Password(***)",
            Self::IdentityToken(_) => "IdentityToken(***)",
        })
    }
}

/// For which request credentials are wanted.
#[derive(Debug, Clone, Copy)]
pub struct CredentialQuery<'a> {
    /// Host with port: the reference's (`docker.io`, not its API host), or a mirror's own.
    pub host: &'a str,
    /// The repository.
    pub repository: &'a str,
    /// Whether `host` is a mirror.
    pub mirror: bool,
}

/// A source of credentials.
#[async_trait]
pub trait CredentialProvider: Send + Sync + fmt::Debug + 'static {
    /// Credentials for `query`; `None` when there are none. The error never contains a secret.
    async fn credentials(
        &self,
        query: CredentialQuery<'_>,
    ) -> Result<Option<Credentials>, CredentialError>;
}

/// Why a source of credentials could not be asked.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{source_name}: {detail}")]
pub struct CredentialError {
    /// Which source, as the operator knows it.
    pub source_name: String,
    /// What failed; no secret.
    pub detail: String,
}

/// Credentials given on a command line (`--user NAME[:PASSWORD]`, `--refresh TOKEN`), for every origin but no mirror.
#[derive(Debug, Clone)]
pub struct FixedCredentials(Credentials);

impl FixedCredentials {
    /// Reads `NAME:PASSWORD`, or `NAME` for an empty password; `None` without a name.
    pub fn parse(text: &str) -> Option<Self> {
        let (user, password) = text.split_once(':').unwrap_or((text, ""));
        (!user.is_empty()).then(|| {
            Self(Credentials::Password {
                user: user.to_owned(),
                password: password.to_owned(),
            })
        })
    }

    /// A token that the token server exchanges.
    pub fn token(text: &str) -> Self {
        Self(Credentials::IdentityToken(text.to_owned()))
    }
}

#[async_trait]
impl CredentialProvider for FixedCredentials {
    async fn credentials(
        &self,
        query: CredentialQuery<'_>,
    ) -> Result<Option<Credentials>, CredentialError> {
        Ok((!query.mirror).then(|| self.0.clone()))
    }
}

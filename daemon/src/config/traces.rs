//! Where traces go.

use serde::{Deserialize, Serialize};
use url::Url;

/// `[traces]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TracesConfig {
    /// A collector that takes OTLP over HTTP, such as `http://127.0.0.1:4318`; empty: no traces.
    pub endpoint: String,
    /// How many of a hundred traces are made.
    pub sample_percent: u8,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            sample_percent: 100,
        }
    }
}

impl TracesConfig {
    /// Where spans are to be sent, if anywhere: a collector that is only named by its host has the usual path.
    ///
    /// # Errors
    /// What is wrong with the endpoint.
    pub fn url(&self) -> Result<Option<Url>, String> {
        if self.endpoint.is_empty() {
            return Ok(None);
        }
        let wrong = |why: &dyn std::fmt::Display| {
            format!(
                "traces.endpoint {:?}: {why}; such as http://127.0.0.1:4318",
                self.endpoint
            )
        };
        let mut url: Url = self.endpoint.parse().map_err(|error| wrong(&error))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(wrong(&"it is no address of HTTP"));
        }
        if url.path() == "/" {
            url.set_path("/v1/traces");
        }
        Ok(Some(url))
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.sample_percent > 100 {
            return Err(format!(
                "traces.sample_percent is {}, more than 100",
                self.sample_percent
            ));
        }
        self.url().map(drop)
    }
}

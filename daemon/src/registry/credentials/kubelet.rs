//! The kubelet's credential providers: programs that it runs for the images they match.
//!
//! The configuration is the kubelet's own (`--image-credential-provider-config`) and so is the protocol
//! (`credentialprovider.kubelet.k8s.io`): a request with the image on standard input, credentials by
//! registry on standard output, with how long and for what they may be kept.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;

use super::exec::{self, Variable};
use super::image_pattern::ImagePattern;
use super::{CredentialError, CredentialProvider, CredentialQuery, Credentials};

const MAX_FILE: u64 = 4 << 20;
/// As long as the kubelet waits.
const PATIENCE: Duration = Duration::from_secs(60);
/// Answers kept; all are dropped when there are more.
const MAX_KEPT: usize = 256;

/// Credential providers as the kubelet runs them. The configuration is read anew each time.
pub struct KubeletProviders {
    config: PathBuf,
    programs: PathBuf,
    kept: Mutex<HashMap<Kept, (Option<Credentials>, Instant)>>,
}

/// What an answer is good for: a provider and, if not for everything, an image or registry.
type Kept = (String, String);

#[derive(Deserialize)]
struct Config {
    providers: Vec<Provider>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Provider {
    name: String,
    match_images: Vec<String>,
    #[serde(default)]
    default_cache_duration: String,
    api_version: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    #[serde(default)]
    cache_key_type: String,
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Login>>,
}

#[derive(Deserialize)]
struct Login {
    username: String,
    password: String,
}

impl KubeletProviders {
    /// Providers by the kubelet's configuration file, in YAML or JSON, whose programs are in `programs`.
    pub fn new(config: PathBuf, programs: PathBuf) -> Self {
        Self {
            config,
            programs,
            kept: Mutex::new(HashMap::new()),
        }
    }

    async fn read(&self) -> Result<Config, CredentialError> {
        use tokio::io::AsyncReadExt as _;
        let error = |detail: String| CredentialError {
            source_name: self.config.display().to_string(),
            detail,
        };
        let mut bytes = Vec::new();
        let file = tokio::fs::File::open(&self.config).await;
        let read = match file {
            Ok(file) => file.take(MAX_FILE).read_to_end(&mut bytes).await,
            Err(cause) => Err(cause),
        };
        read.map_err(|cause| error(cause.to_string()))?;
        // The parser's texts may quote the file, and arguments may be secret.
        let parsed = serde_saphyr::from_slice(&bytes);
        parsed.map_err(|_| error(String::from("no CredentialProviderConfig")))
    }

    fn recall(&self, provider: &str, image: &str) -> Option<Option<Credentials>> {
        let kept = self.kept.lock();
        let now = Instant::now();
        let mut keys = ["", registry(image), image].into_iter();
        keys.find_map(|key| {
            let (credentials, until) = kept.get(&(provider.to_owned(), key.to_owned()))?;
            (*until > now).then(|| credentials.clone())
        })
    }

    async fn ask(
        &self,
        provider: &Provider,
        image: &str,
    ) -> Result<Option<Credentials>, CredentialError> {
        let error = |detail: &str| CredentialError {
            source_name: format!("credential provider {}", provider.name),
            detail: detail.to_owned(),
        };
        if Path::new(&provider.name).components().count() != 1 || provider.name == ".." {
            return Err(error("not the name of a program"));
        }
        let request = json!({
            "kind": "CredentialProviderRequest",
            "apiVersion": provider.api_version,
            "image": image,
        });
        let environment: Vec<_> = provider.env.iter().flatten().map(Variable::pair).collect();
        let (program, request) = (self.programs.join(&provider.name), request.to_string());
        let answer = exec::ask(
            &program,
            provider.args.as_deref().unwrap_or_default(),
            &environment,
            request.as_bytes(),
            PATIENCE,
        );
        let answer = answer.await.map_err(|detail| error(&detail))?;
        if !answer.success {
            return Err(error("failed; run it by hand to see why"));
        }
        let response: Response = serde_json::from_slice(&answer.output)
            .map_err(|_| error("its answer is not in the protocol"))?;
        let credentials = response.credentials(image);
        self.keep(provider, image, &response, &credentials);
        Ok(credentials)
    }

    fn keep(
        &self,
        provider: &Provider,
        image: &str,
        response: &Response,
        credentials: &Option<Credentials>,
    ) {
        let duration = response.cache_duration.as_deref();
        let duration = duration.unwrap_or(&provider.default_cache_duration);
        let Some(duration) = parse_duration(duration).filter(|duration| !duration.is_zero()) else {
            return;
        };
        let key = match response.cache_key_type.as_str() {
            "Global" => "",
            "Registry" => registry(image),
            _ => image,
        };
        let mut kept = self.kept.lock();
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        let key = (provider.name.clone(), key.to_owned());
        kept.insert(key, (credentials.clone(), Instant::now() + duration));
    }
}

impl Response {
    /// Those of the most specific pattern that matches.
    fn credentials(&self, image: &str) -> Option<Credentials> {
        let logins = self.auth.iter().flatten();
        let matching = logins.filter(|(pattern, _)| ImagePattern::new(pattern).matches(image));
        let (_, login) = matching.max_by_key(|(pattern, _)| pattern.len())?;
        Some(Credentials::Password {
            user: login.username.clone(),
            password: login.password.clone(),
        })
    }
}

#[async_trait]
impl CredentialProvider for KubeletProviders {
    /// Every provider that matches is asked, in the order of the file, until one knows something. One
    /// that fails is passed over, and told if no other knows.
    async fn credentials(
        &self,
        query: CredentialQuery<'_>,
    ) -> Result<Option<Credentials>, CredentialError> {
        let image = format!("{}/{}", query.host, query.repository);
        let config = self.read().await?;
        let mut failed = None;
        for provider in &config.providers {
            let mut patterns = provider.match_images.iter();
            if !patterns.any(|pattern| ImagePattern::new(pattern).matches(&image)) {
                continue;
            }
            let known = match self.recall(&provider.name, &image) {
                Some(known) => Ok(known),
                None => self.ask(provider, &image).await,
            };
            match known {
                Ok(Some(credentials)) => return Ok(Some(credentials)),
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(None), Err)
    }
}

impl fmt::Debug for KubeletProviders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubeletProviders")
            .field("config", &self.config)
            .field("programs", &self.programs)
            .finish_non_exhaustive()
    }
}

fn registry(image: &str) -> &str {
    image.split('/').next().unwrap_or_default()
}

/// Go's notation: `12h`, `1h30m`, `0s`; at most a day, since secrets should not be kept for longer.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut sum = Duration::ZERO;
    if rest == "0" {
        return Some(sum);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, after) = after.split_at(letters.unwrap_or(after.len()));
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds);
        sum = sum.checked_add(part.ok()?)?;
        rest = after;
    }
    Some(sum.min(Duration::from_secs(24 * 3600)))
}

/// For [`crate::hostile`]: some configuration and some provider's answer, for some image.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(image: &str, config: &[u8], answer: &[u8]) {
    let config = serde_saphyr::from_slice::<Config>(config);
    for provider in config.iter().flat_map(|config| &config.providers) {
        let mut patterns = provider.match_images.iter();
        patterns.any(|pattern| ImagePattern::new(pattern).matches(image));
        let duration = parse_duration(&provider.default_cache_duration);
        assert!(duration.is_none_or(|duration| duration <= Duration::from_secs(24 * 3600)));
    }
    if let Ok(response) = serde_json::from_slice::<Response>(answer) {
        let _ = response.credentials(image);
        let _ = response.cache_duration.as_deref().and_then(parse_duration);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let seconds = |text| parse_duration(text).map(|duration| duration.as_secs_f64());
        assert_eq!(seconds("1h30m0s"), Some(5400.0));
        assert_eq!(seconds("0s"), Some(0.0));
        assert_eq!(seconds("1.5m"), Some(90.0));
        assert_eq!(seconds("999h"), Some(86_400.0));
        for text in [
            "h",
            "5",
            "-5s",
            "5 s",
            "5x",
            "1e400h",
            "9".repeat(400).as_str(),
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}

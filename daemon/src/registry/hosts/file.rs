//! containerd's `hosts.toml` (its document "Registry Configuration - Introduction"), and Docker's certificates in the
//! host's directory without such a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use toml::Spanned;

use super::super::config::RegistryConfig;
use super::super::error::Problem;
use super::super::reference::Reference;
use super::super::tls::{self, HostTls};
use super::endpoint::{Capabilities, Endpoint};

const MAX_FILE: u64 = 1 << 20;

/// A `hosts.toml` as it was read. Another one when a certificate that it names has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostsFile {
    path: PathBuf,
    text: String,
    certificates: Vec<Stamp>,
}

/// By which a change of a file is seen: size and time, if there is one.
type Stamp = (PathBuf, Option<(u64, SystemTime)>);

/// The order of `host` is that of the file, which counts: it is taken from the spans.
#[derive(Deserialize)]
struct Listing {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<String, Spanned<Settings>>,
}

/// The keys of a `[host."..."]`; at the top of the file they are about `server`.
#[derive(Deserialize)]
struct Settings {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// One file with certificate and key, several such files, or pairs of certificate and key; the first
/// is used.
#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    File(String),
    Files(Vec<OneOrMany>),
}

impl OneOrMany {
    fn all(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

impl HostsFile {
    /// The first of `<dir>/<host>/hosts.toml`, with a port as `host_port_` or `host:port`, and
    /// `<dir>/_default/hosts.toml`, over all `dirs`; certificates in such a directory stand for a file.
    pub(super) fn find(dirs: &[PathBuf], host: &str) -> Result<Option<Self>, Problem> {
        let escaped = host
            .rsplit_once(':')
            .map(|(name, port)| format!("{name}_{port}_"));
        let names: Vec<&str> = escaped
            .as_deref()
            .into_iter()
            .chain([host, "_default"])
            .collect();
        for dir in dirs {
            for name in &names {
                let dir = dir.join(name);
                let file = match Self::read(dir.join("hosts.toml"))? {
                    None => Self::of_certificates(&dir)?,
                    file => file,
                };
                if file.is_some() {
                    return Ok(file);
                }
            }
        }
        Ok(None)
    }

    /// What `*.crt` (authorities) and `*.cert` with `*.key` (the client's) in `dir` would be in a `hosts.toml`.
    fn of_certificates(dir: &Path) -> Result<Option<Self>, Problem> {
        let failed = |error: std::io::Error| Problem::Setup {
            detail: format!("{}: {error}", dir.display()),
        };
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let names = entries.map(|entry| Ok(PathBuf::from(entry?.file_name())));
        let mut names = names
            .collect::<std::io::Result<Vec<PathBuf>>>()
            .map_err(failed)?;
        names.sort();
        let (mut authorities, mut clients) = (Vec::new(), Vec::new());
        for name in &names {
            let text = |name: &Path| name.to_str().map(str::to_owned);
            match name.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => authorities.extend(text(name)),
                Some("cert") => {
                    let pair = [text(name), text(&name.with_extension("key"))];
                    clients.push(pair.into_iter().flatten().collect::<Vec<_>>());
                }
                _ => {}
            }
        }
        if authorities.is_empty() && clients.is_empty() {
            return Ok(None);
        }
        let mut table = toml::Table::new();
        table.insert(String::from("ca"), authorities.into());
        if !clients.is_empty() {
            table.insert(String::from("client"), clients.into());
        }
        Ok(Some(Self::new(dir.join("hosts.toml"), table.to_string())))
    }

    fn new(path: PathBuf, text: String) -> Self {
        let mut file = Self {
            path,
            text,
            certificates: Vec::new(),
        };
        let dir = file.dir().to_owned();
        // What is malformed is said when it is used.
        let listing = file.parse::<Listing>().ok();
        let own = file.parse::<Settings>().ok();
        let hosts = listing.iter().flat_map(|listing| listing.host.values());
        let settings = hosts.map(Spanned::get_ref).chain(&own);
        let paths = settings.flat_map(|settings| settings.tls(&dir).files());
        file.certificates = paths.map(stamp).collect();
        file
    }

    fn dir(&self) -> &Path {
        self.path.parent().unwrap_or_else(|| Path::new("/"))
    }

    fn read(path: PathBuf) -> Result<Option<Self>, Problem> {
        let failed = |error: std::io::Error| Problem::Setup {
            detail: format!("{}: {error}", path.display()),
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut text = String::new();
        file.take(MAX_FILE)
            .read_to_string(&mut text)
            .map_err(failed)?;
        Ok(Some(Self::new(path, text)))
    }

    /// The hosts of the file, then its `server`, by default `origin`. Reads certificates.
    pub(super) fn endpoints(
        &self,
        reference: &Reference,
        origin: Endpoint,
        config: &RegistryConfig,
    ) -> Result<Vec<Endpoint>, Problem> {
        let listing: Listing = self.parse()?;
        let own: Settings = self.parse()?;
        let mut hosts: Vec<_> = listing.host.into_iter().collect();
        hosts.sort_by_key(|(_, settings)| settings.span().start);
        let shared = &origin.client.clone();
        let endpoint = |url: &str, settings: &Settings| {
            self.endpoint(url, settings, reference, config, shared)
        };
        let mut endpoints = hosts
            .iter()
            .map(|(url, settings)| endpoint(url, settings.get_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        endpoints.push(match &listing.server {
            Some(server) => endpoint(server, &own)?,
            None => {
                let client = self.client(&own, config, shared)?;
                // A loopback host with certificates of its own is not meant to be spoken to without.
                let plain = config.plain_http || own.tls(self.dir()) == HostTls::default();
                let origin = if plain { origin } else { origin.encrypted() };
                origin.set_up(client, own.capabilities(), self.headers(&own)?)
            }
        });
        Ok(endpoints)
    }

    fn endpoint(
        &self,
        url: &str,
        settings: &Settings,
        reference: &Reference,
        config: &RegistryConfig,
        shared: &reqwest::Client,
    ) -> Result<Endpoint, Problem> {
        let listed = Endpoint::listed(url, settings.override_path, reference, config, shared);
        let endpoint = listed.map_err(|problem| self.error(&problem.to_string()))?;
        let client = self.client(settings, config, shared)?;
        Ok(endpoint.set_up(client, settings.capabilities(), self.headers(settings)?))
    }

    /// `shared`, unless the host wants certificates of its own.
    fn client(
        &self,
        settings: &Settings,
        config: &RegistryConfig,
        shared: &reqwest::Client,
    ) -> Result<reqwest::Client, Problem> {
        let tls = settings.tls(self.dir());
        if tls == HostTls::default() {
            Ok(shared.clone())
        } else {
            tls::client(config, &tls)
        }
    }

    fn headers(&self, settings: &Settings) -> Result<HeaderMap, Problem> {
        let mut headers = HeaderMap::new();
        for (name, values) in &settings.header {
            let key: HeaderName = name
                .parse()
                .map_err(|_| self.error(&format!("{name:?} is no header")))?;
            for value in values.all() {
                let mut value = HeaderValue::from_str(value)
                    .map_err(|_| self.error(&format!("header {name}: no header value")))?;
                value.set_sensitive(true);
                headers.append(key.clone(), value);
            }
        }
        Ok(headers)
    }

    fn parse<T: for<'de> Deserialize<'de>>(&self) -> Result<T, Problem> {
        if crate::nesting::is_too_deep(&self.text) {
            return Err(self.error("its tables are nested too deep"));
        }
        // Its message names the place; its Display would quote the line, which may hold a secret header.
        toml::from_str(&self.text).map_err(|error| self.error(error.message()))
    }

    fn error(&self, detail: &str) -> Problem {
        Problem::Setup {
            detail: format!("{}: {detail}", self.path.display()),
        }
    }
}

fn is_missing(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn stamp(path: PathBuf) -> Stamp {
    let look = |path: &Path| {
        let found = path.metadata().ok()?;
        Some((found.len(), found.modified().ok()?))
    };
    let seen = look(&path);
    (path, seen)
}

/// For [`crate::hostile`]: some file, up to where certificates would be read.
#[cfg(any(test, fuzzing))]
pub(crate) fn probe(text: &str) {
    let file = HostsFile {
        path: PathBuf::from("/hosts.toml"),
        text: text.to_owned(),
        certificates: Vec::new(),
    };
    let listing = file.parse::<Listing>();
    let hosts = listing.iter().flat_map(|listing| listing.host.values());
    let own = file.parse::<Settings>();
    for settings in hosts.map(Spanned::get_ref).chain(&own) {
        let _ = settings.capabilities();
        let _ = settings.tls(Path::new("/certs"));
        // A header with a secret must not be in the message.
        let _ = file
            .headers(settings)
            .map_err(|problem| problem.to_string());
    }
}

impl Settings {
    fn capabilities(&self) -> Capabilities {
        let Some(names) = &self.capabilities else {
            return Capabilities::ALL;
        };
        let has = |name: &str| names.iter().any(|own| own.eq_ignore_ascii_case(name));
        Capabilities {
            pull: has("pull"),
            resolve: has("resolve"),
            push: has("push"),
        }
    }

    fn tls(&self, dir: &Path) -> HostTls {
        let authorities = self.ca.as_ref().map_or(&[][..], OneOrMany::all);
        HostTls {
            ca_files: authorities.iter().map(|file| dir.join(file)).collect(),
            identity: self.identity(dir),
            skip_verify: self.skip_verify,
        }
    }

    fn identity(&self, dir: &Path) -> Option<(PathBuf, Option<PathBuf>)> {
        let files = match self.client.as_ref()? {
            Client::File(file) => std::slice::from_ref(file),
            Client::Files(files) => files.first()?.all(),
        };
        let key = files.get(1).filter(|key| !key.is_empty());
        Some((dir.join(files.first()?), key.map(|key| dir.join(key))))
    }
}

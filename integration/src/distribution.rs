//! The reference registry (distribution), and what it says was asked of it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::command::command;
use crate::link::Link;
use crate::scratch::Scratch;
use crate::service::Service;

/// A port of loopback that was free a moment ago: distribution cannot be told to pick one.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Where it writes what it answers.
const LOG: &str = "registry.log";

/// A private `docker-registry` on loopback, plain HTTP, no authentication.
#[derive(Debug)]
pub struct DockerRegistry {
    service: Service,
    dir: PathBuf,
    address: SocketAddr,
}

/// What a registry was asked for and sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests answered, of any kind.
    pub requests: u64,
    /// Bytes of all response bodies.
    pub bytes: u64,
    /// Bytes of the response bodies that were blobs or ranges of blobs.
    pub blob_bytes: u64,
}

impl DockerRegistry {
    /// Starts it below `scratch` and waits until it answers.
    pub fn start(scratch: &Scratch) -> Result<Self> {
        Self::start_at(&scratch.dir("registry")?)
    }

    /// Starts it, or starts it again, in `dir`.
    pub fn start_at(dir: &Path) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        Self::start_as(dir, command("docker-registry"), address, address, "")
    }

    /// Starts a pull-through cache of `origin` below `scratch`.
    pub fn start_cache(scratch: &Scratch, origin: &Self) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let proxy = format!("proxy: {{remoteurl: \"http://{}\"}}\n", origin.host());
        let dir = scratch.dir("cache")?;
        Self::start_as(&dir, command("docker-registry"), address, address, &proxy)
    }

    /// Starts it, or starts it again, in `dir`, at the far end of `link`.
    pub fn start_behind(dir: &Path, link: &Link) -> Result<Self> {
        let registry = link.far_command("docker-registry");
        Self::start_as(dir, registry, link.far_address(), link.near_address(), "")
    }

    /// Starts one on what another kept in `dir`, by TLS with `certificate` and `key`, and only for those whom the file
    /// `users` (htpasswd, bcrypt) names.
    pub fn start_private(dir: &Path, certificate: &Path, key: &Path, users: &Path) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let more = format!(
            "  tls: {{certificate: \"{}\", key: \"{}\"}}\nauth: {{htpasswd: {{realm: private, path: \"{}\"}}}}\n",
            certificate.display(),
            key.display(),
            users.display()
        );
        Self::start_as(dir, command("docker-registry"), address, address, &more)
    }

    fn start_as(
        dir: &Path,
        mut registry: Command,
        listen: SocketAddr,
        address: SocketAddr,
        more: &str,
    ) -> Result<Self> {
        let config = dir.join("config.yml");
        fs::write(&config, configuration(dir, listen) + more)?;
        registry.arg("serve").arg(&config);
        let mut service = Service::start("registry", &mut registry, &dir.join(LOG))?;
        service.wait_ready(|| TcpStream::connect(listen).is_ok())?;
        Ok(Self {
            service,
            dir: dir.to_owned(),
            address,
        })
    }

    /// Where it is asked.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `host:port`, the first component of its references.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// A reference to `name` (repository and tag) in it.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.host())
    }

    /// Where it keeps its blobs, `<2 hex>/<hex>/data` each.
    pub fn blobs(&self) -> PathBuf {
        self.dir.join("data/docker/registry/v2/blobs/sha256")
    }

    /// Everything it has answered so far, by its own log.
    pub fn traffic(&self) -> Result<Traffic> {
        Ok(self.traffic_until(usize::MAX))
    }

    /// How long its log is: a moment for [`Self::traffic_until`], at no cost.
    pub fn log_length(&self) -> usize {
        let length = fs::metadata(self.dir.join(LOG)).map_or(0, |log| log.len());
        usize::try_from(length).unwrap_or(usize::MAX)
    }

    /// Everything it had answered when its log was so long.
    pub fn traffic_until(&self, log_length: usize) -> Traffic {
        let mut traffic = Traffic::default();
        let log = self.service.log();
        let log = log.get(..log_length).unwrap_or(&log);
        for line in log.lines() {
            // Lines that are not JSON are the runtime's own.
            let Ok(entry) = serde_json::from_str::<LogEntry>(line) else {
                continue;
            };
            if entry.msg == "response completed" {
                traffic.add(&entry);
            }
        }
        traffic
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.service.pid()
    }

    /// Stops it: connections are refused from now on.
    pub fn stop(&mut self) -> Result<()> {
        self.service.kill().context("cannot stop the registry")
    }
}

impl Traffic {
    /// What came after `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            requests: self.requests - earlier.requests,
            bytes: self.bytes - earlier.bytes,
            blob_bytes: self.blob_bytes - earlier.blob_bytes,
        }
    }

    fn add(&mut self, entry: &LogEntry) {
        self.requests += 1;
        self.bytes += entry.written;
        if entry.method == "GET" && entry.uri.contains("/blobs/") {
            self.blob_bytes += entry.written;
        }
    }
}

/// A line of distribution's log in its JSON format.
#[derive(Debug, Deserialize)]
struct LogEntry {
    msg: String,
    #[serde(default, rename = "http.request.method")]
    method: String,
    #[serde(default, rename = "http.request.uri")]
    uri: String,
    #[serde(default, rename = "http.response.written")]
    written: u64,
}

fn configuration(dir: &Path, listen: SocketAddr) -> String {
    format!(
        "version: 0.1
log: {{level: info, formatter: json, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: \"{}/data\"}}
  delete: {{enabled: true}}
http:
  addr: \"{listen}\"
",
        dir.display()
    )
}

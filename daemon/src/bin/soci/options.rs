//! The command line: what all commands share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use daemon::containerd;
use daemon::registry::{DockerConfig, FixedCredentials, RegistryConfig, TlsConfig};
use ztoc::SpanSize;
use ztoc::index::Platform;

use crate::{
    act, cat, completion, convert, create, doctor, index, inspect, mount, prefetch_command, push,
    rpull, trace, ztoc_command,
};

/// Make and use SOCI (Seekable OCI) artifacts, so that containers start before their image is
/// downloaded.
#[derive(Debug, Parser)]
#[command(name = "soci", version = daemon::version_line(), max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true)]
#[command(disable_version_flag = true, args_override_self = true)]
pub(crate) struct Cli {
    /// Print the version
    #[arg(long, short = 'V', visible_short_alias = 'v', action = ArgAction::Version)]
    version: Option<bool>,
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build a SOCI index (v1) for an image in containerd
    Create(create::Arguments),
    /// Convert an image to a SOCI-enabled one (index v2)
    Convert(convert::Arguments),
    /// Push the SOCI index (v1) of an image to its registry
    Push(push::Arguments),
    /// List, show and remove SOCI indexes
    #[command(subcommand)]
    Index(index::Command),
    /// Build, list and show zTOCs, and read files of layers through them
    #[command(subcommand)]
    Ztoc(ztoc_command::Command),
    /// List and show the spans that are fetched first
    #[command(subcommand)]
    Prefetch(prefetch_command::Command),
    /// Make the records of artifacts anew from the content store
    RebuildDb,
    /// Pull an image lazily into containerd, of any version
    Rpull(rpull::Arguments),
    /// Mount an image lazily, without containerd and without the snapshotter
    Mount(mount::Arguments),
    /// Print one file out of an image, fetching as little as possible
    Cat(cat::Arguments),
    /// Check this machine and its set-up, and say what to do
    Doctor(doctor::Arguments),
    /// Look into the running snapshotter: what is mounted, what is local, who waited for what
    Inspect(inspect::Arguments),
    /// Follow faults and prepared layers as they happen
    Events,
    /// Record what a container reads, in order, for create --prefetch-from
    Trace(trace::Arguments),
    /// Fetch all that is missing of mounted views, so that no registry is needed any more
    Drain(act::Views),
    /// Have files of a mounted view fetched
    Fetch(act::Fetch),
    /// Compare the cached bytes of mounted views with their checksums
    Verify(act::Views),
    /// Remove what no snapshot needs
    Gc,
    /// Print completions for a shell
    Completion(completion::Completion),
    /// Write manual pages
    #[command(name = "man")]
    Manual(completion::Manual),
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Globals {
    /// containerd's socket
    #[arg(long, short, global = true, env = "CONTAINERD_ADDRESS",
        default_value = containerd::DEFAULT_ADDRESS, value_name = "SOCKET")]
    pub(crate) address: PathBuf,
    /// containerd's namespace
    #[arg(long, short, global = true, env = "CONTAINERD_NAMESPACE",
        default_value = containerd::DEFAULT_NAMESPACE, value_name = "NAME")]
    pub(crate) namespace: String,
    /// The snapshotter's socket; its control socket lies beside it
    #[arg(long, global = true, env = "SOCI_SNAPSHOTTER_ADDRESS",
        default_value = daemon::app::socket::DEFAULT_ADDRESS, value_name = "SOCKET")]
    pub(crate) snapshotter_address: PathBuf,
    /// Give up after this time, such as 30s or 5m; 0 is never
    #[arg(long, global = true, default_value = "0", value_parser = crate::duration::parse)]
    pub(crate) timeout: Duration,
    /// Log what is done to standard error
    #[arg(long, global = true)]
    pub(crate) debug: bool,
    /// Print results as JSON: one value, or one for each line of a command that goes on
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Where SOCI artifacts are kept; the daemon must be set to the same
    #[arg(long, global = true, value_enum, default_value = "containerd")]
    pub(crate) content_store: StoreChoice,
    /// The snapshotter's root directory
    #[arg(
        long,
        global = true,
        default_value = "/var/lib/soci-snapshotter-grpc/",
        value_name = "DIR"
    )]
    pub(crate) root: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StoreChoice {
    /// containerd's content store
    Containerd,
    /// A directory under --root
    Soci,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct PlatformArguments {
    /// Platform, such as linux/arm64; repeat it or separate by commas [default: the host's]
    #[arg(
        long = "platform",
        short = 'p',
        value_delimiter = ',',
        value_name = "PLATFORM"
    )]
    pub(crate) platforms: Vec<Platform>,
    /// All platforms of the image
    #[arg(long)]
    pub(crate) all_platforms: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct BuildArguments {
    /// Uncompressed bytes between checkpoints
    #[arg(long, default_value = "4194304", value_parser = span_size,
        allow_hyphen_values = true, value_name = "BYTES")]
    pub(crate) span_size: SpanSize,
    /// Layers smaller than this get no zTOC: they are pulled whole
    #[arg(long, default_value = "10485760", value_parser = byte_count,
        allow_hyphen_values = true, value_name = "BYTES")]
    pub(crate) min_layer_size: u64,
    /// Whether compact zTOCs, which start on fewer bytes, are written beside the zTOCs
    #[arg(long, value_enum, default_value = "yes", value_name = "WHETHER")]
    pub(crate) compact: CompactChoice,
    /// Uncompressed bytes between checkpoints of compact zTOCs
    #[arg(long, default_value = "1048576", value_parser = span_size,
        allow_hyphen_values = true, value_name = "BYTES")]
    pub(crate) compact_span_size: SpanSize,
    /// Note in the index what a layer does not need; repeat it or separate by commas
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME")]
    pub(crate) optimizations: Vec<Optimization>,
    /// Build zTOCs anew even if there are fitting ones
    #[arg(long, short)]
    pub(crate) force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompactChoice {
    /// Both
    Yes,
    /// Only zTOCs
    No,
    /// Only compact zTOCs: other snapshotters find no index
    Only,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Optimization {
    /// Mark layers without extended attributes
    Xattr,
}

/// Flags of commands that talk to a registry; the names are nerdctl's.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Registry options")]
pub(crate) struct RegistryArguments {
    /// User name and password [default: from the Docker configuration]
    #[arg(
        long,
        short,
        value_name = "USER[:PASSWORD]",
        conflicts_with = "refresh"
    )]
    user: Option<String>,
    /// Identity token, which the registry's token server exchanges
    #[arg(long, value_name = "TOKEN")]
    refresh: Option<String>,
    /// Speak plain HTTP
    #[arg(long)]
    plain_http: bool,
    /// Accept any TLS certificate
    #[arg(long, short = 'k')]
    skip_verify: bool,
    /// Trust the certificate authorities in this PEM file as well
    #[arg(long, value_name = "FILE")]
    tlscacert: Option<PathBuf>,
    /// Client certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tlskey")]
    tlscert: Option<PathBuf>,
    /// Key of the client certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tlscert")]
    tlskey: Option<PathBuf>,
    /// Directories of HOST/hosts.toml, as containerd has them; repeat it or separate by commas
    #[arg(long, value_delimiter = ',', value_name = "DIR")]
    hosts_dir: Vec<PathBuf>,
    /// Say on standard error what registries are asked and what they answer, without secrets
    #[arg(long, visible_alias = "http-dump")]
    http_trace: bool,
}

impl RegistryArguments {
    pub(crate) fn config(&self) -> anyhow::Result<RegistryConfig> {
        let mut config = RegistryConfig {
            plain_http: self.plain_http,
            hosts_dirs: self.hosts_dir.clone(),
            tls: TlsConfig {
                ca_file: self.tlscacert.clone(),
                cert_file: self.tlscert.clone(),
                key_file: self.tlskey.clone(),
                skip_verify: self.skip_verify,
            },
            ..RegistryConfig::default()
        };
        if let Some(user) = &self.user {
            let fixed = FixedCredentials::parse(user)
                .ok_or_else(|| anyhow::anyhow!("--user must be USER:PASSWORD"))?;
            config.credentials.push(Arc::new(fixed));
        } else if let Some(token) = &self.refresh {
            config
                .credentials
                .push(Arc::new(FixedCredentials::token(token)));
        } else if let Some(docker) = DockerConfig::from_env() {
            config.credentials.push(Arc::new(docker));
        }
        Ok(config)
    }
}

pub(crate) fn span_size(text: &str) -> Result<SpanSize, String> {
    byte_count(text).and_then(|bytes| {
        SpanSize::new(bytes).ok_or_else(|| "the span size must be above zero".to_owned())
    })
}

fn byte_count(text: &str) -> Result<u64, String> {
    text.parse()
        .ok()
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| "must be a number of bytes, not negative".to_owned())
}

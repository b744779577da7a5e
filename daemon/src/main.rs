//! `soci-snapshotter-grpc`: the daemon that containerd calls.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::{Parser, Subcommand};
use daemon::app::heap;
use daemon::app::root::{DEFAULT_ROOT, Root};
use daemon::app::socket::DEFAULT_ADDRESS;
use daemon::app::{Address, App, Settings};
use daemon::config::{Config, ConfigError, DEFAULT_PATH, Reloader, UnknownKey};
use daemon::control::{self, Control, Inside};
use daemon::cri::{ImageService, Keychain};
use daemon::images::{ImageLayers, reconfigure};
use daemon::layer::LayerStore;
use daemon::logging::{self, LogLevel};
use daemon::metrics::Metrics;
use daemon::registry::CredentialProvider;
use daemon::snapshot::images::Images;
use daemon::snapshot::mapped;
use daemon::traces::{Traces, TracesError};
use daemon::view::keeper::HolderClient;
use daemon::{REVISION, VERSION, view};
use tokio::runtime::Runtime;

/// Starts containers from images that are still in the registry.
///
/// Runs as a proxy plugin of containerd: [proxy_plugins.soci] type = "snapshot", address = the
/// socket given here.
#[derive(Debug, Parser)]
#[command(name = "soci-snapshotter-grpc", version = daemon::version_line(), max_term_width = 100)]
struct Arguments {
    /// Where containerd calls: a path, unix://PATH, or fd:// for the socket that systemd passes
    #[arg(long, global = true, env = "SOCI_SNAPSHOTTER_ADDRESS", default_value = DEFAULT_ADDRESS)]
    address: Address,

    /// Configuration file [default: /etc/soci-snapshotter-grpc/config.toml, if it is there]
    #[arg(
        long,
        global = true,
        env = "SOCI_SNAPSHOTTER_CONFIG",
        value_name = "FILE"
    )]
    config: Option<PathBuf>,

    /// How much is logged: trace, debug, info, warn, error, fatal or panic
    #[arg(
        long,
        global = true,
        env = "SOCI_SNAPSHOTTER_LOG_LEVEL",
        default_value = "info"
    )]
    log_level: LogLevel,

    /// Directory of all state; one daemon at a time
    #[arg(long, global = true, env = "SOCI_SNAPSHOTTER_ROOT", default_value = DEFAULT_ROOT)]
    root: PathBuf,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Looks at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Unmounts everything that a stopped daemon left mounted
    ///
    /// Stopping the daemon leaves its mounts, so that containers run on while it is upgraded. This takes
    /// them off, for the removal of the package. Containers that still use them lose their files.
    Unmount,
    /// Keeps descriptors of mounts for the next daemon (started by the daemon)
    #[command(hide = true)]
    Holder,
    /// Makes a user namespace for its mapping of ids (started by the daemon)
    #[command(hide = true, name = mapped::ARGUMENT)]
    UserNamespace,
}

#[derive(Debug, Clone, Copy, Subcommand)]
enum ConfigCommand {
    /// Prints the defaults as TOML
    Default,
    /// Prints the configuration in effect, the file's and the defaults, as TOML
    Dump,
    /// Reads the configuration and says what is wrong with it
    ///
    /// Fails if the file is malformed, which the daemon would not start with, or has keys that nobody
    /// knows, which the daemon ignores: often they are misspelt.
    Check,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(command) = &arguments.command {
        let done = match command {
            Command::Config(command) => print_config(*command, &arguments),
            Command::Unmount => unmount(&arguments),
            Command::Holder => hold(),
            Command::UserNamespace => mapped::live().map_err(Into::into),
        };
        return match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("soci-snapshotter-grpc: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    heap::return_large_buffers();
    let config = Config::load(arguments.config.as_deref());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let traces = match (&config, &runtime) {
        (Ok((config, _)), Ok(runtime)) => Traces::start(&config.traces, runtime.handle()),
        // What is wrong is told when there is a log.
        _ => Ok(None),
    };
    logging::start(
        arguments.log_level,
        traces.as_ref().ok().and_then(Option::as_ref),
    );
    match begin(config, runtime, traces).and_then(|begun| serve(&arguments, begun)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "soci-snapshotter-grpc failed");
            ExitCode::FAILURE
        }
    }
}

fn print_config(command: ConfigCommand, arguments: &Arguments) -> Result<()> {
    let config = match command {
        ConfigCommand::Default => Config::default(),
        ConfigCommand::Dump => Config::load(arguments.config.as_deref())?.0,
        ConfigCommand::Check => return check_config(arguments),
    };
    std::io::stdout().write_all(config.to_toml()?.as_bytes())?;
    Ok(())
}

fn check_config(arguments: &Arguments) -> Result<()> {
    let path = arguments.config.as_deref();
    let name = path.unwrap_or_else(|| DEFAULT_PATH.as_ref()).display();
    let (_, unknown) = Config::load(path)?;
    for key in &unknown {
        println!("{name}:{}: unknown key {}", key.line, key.key);
    }
    anyhow::ensure!(
        unknown.is_empty(),
        "{name} has {} keys that have no meaning; they are ignored",
        unknown.len()
    );
    if path.is_some() || Path::new(DEFAULT_PATH).exists() {
        println!("{name} is fine");
    } else {
        println!("there is no {name}: the defaults are in effect");
    }
    Ok(())
}

fn unmount(arguments: &Arguments) -> Result<()> {
    let root = Root::claim(&arguments.root)?;
    let keeper = HolderClient::new(root.path())?;
    mapped::unmount_all(root.path());
    let unmounted = view::unmount_all(&root.path().join("views"), &keeper)?;
    println!("{unmounted} views unmounted");
    Ok(())
}

/// The listening socket is standard input.
fn hold() -> Result<()> {
    let listener = std::io::stdin().as_fd().try_clone_to_owned()?;
    Ok(view::holder::serve(listener)?)
}

/// What there is before the daemon.
struct Begun {
    config: Config,
    runtime: Runtime,
    traces: Option<Traces>,
}

fn begin(
    config: Result<(Config, Vec<UnknownKey>), ConfigError>,
    runtime: std::io::Result<Runtime>,
    traces: Result<Option<Traces>, TracesError>,
) -> Result<Begun> {
    tracing::info!(
        version = VERSION,
        revision = REVISION,
        "starting soci-snapshotter-grpc"
    );
    let (config, unknown) = config?;
    for key in unknown {
        tracing::warn!(
            key = key.key,
            line = key.line,
            "unknown configuration key is ignored"
        );
    }
    Ok(Begun {
        config,
        runtime: runtime?,
        traces: traces?,
    })
}

fn serve(arguments: &Arguments, begun: Begun) -> Result<()> {
    let Begun {
        config,
        runtime,
        traces,
    } = begun;
    let settings = Settings {
        address: arguments.address.clone(),
        root: arguments.root.clone(),
    };
    let ended = runtime.block_on(async {
        let mut inside = None;
        let keychain = keychain(&arguments.address, &config);
        let mut credentials: Vec<Arc<dyn CredentialProvider>> = Vec::new();
        if let Some(keychain) = &keychain {
            credentials.push(Arc::new(keychain.clone()));
        }
        let images = async |root: &Root, metrics: &Arc<Metrics>, keeper| {
            let images = ImageLayers::start(root.path(), &config, keeper, credentials)?;
            let adopted = images.adopt().await?;
            tracing::info!(
                adopted,
                "views of the daemon before this one are served again"
            );
            metrics.watch(images.layers().clone());
            metrics.watch_views(images.views().clone(), images.layers().clone());
            inside = Some(Inside {
                views: images.views().clone(),
                layers: images.layers().clone(),
                metrics: Arc::clone(metrics),
            });
            Ok(Arc::new(images) as Arc<dyn Images>)
        };
        let app = App::build(&settings, &config, images).await?;
        let service = Path::new(&config.cri_keychain.image_service_path);
        let app = app.with_image_service(keychain.map(|known| ImageService::new(service, known)));
        let app = match &inside {
            Some(inside) => reloading(app, arguments, &config, inside.layers.clone()),
            None => app,
        };
        let _control = inside.and_then(|inside| control(&settings.address, inside));
        app.run().await
    });
    if let Some(traces) = traces {
        traces.stop();
    }
    // What still blocks after the drain is given up: nothing may keep the process from ending.
    runtime.shutdown_background();
    ended
}

/// Has SIGHUP read the configuration again.
fn reloading(app: App, arguments: &Arguments, config: &Config, layers: LayerStore) -> App {
    let reloader = Reloader::new(arguments.config.clone(), config.clone());
    app.reloading(move || reloader.reload(|config| reconfigure(&layers, config)))
}

/// Credentials that the kubelet gives with its pulls, if they are wanted. They are kept beside the socket, in `/run`:
/// a new daemon knows them, a new boot does not.
fn keychain(address: &Address, config: &Config) -> Option<Keychain> {
    let socket = match address {
        Address::Path(path) => path,
        Address::Systemd => Path::new(DEFAULT_ADDRESS),
    };
    let kept = || socket.with_extension("credentials");
    let wanted = config.cri_keychain.enable_keychain;
    wanted.then(|| Keychain::open(&kept()))
}

/// Serves the control API. Without it the daemon still does its work.
fn control(address: &Address, inside: Inside) -> Option<Control> {
    let path = match address {
        Address::Path(path) => control::socket_of(path),
        Address::Systemd => control::socket_of(DEFAULT_ADDRESS.as_ref()),
    };
    Control::start(&path, inside)
        .inspect_err(|error| {
            tracing::error!(path = %path.display(), "no control API for soci inspect: {error}");
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Arguments;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_version_is_one_line_as_tools_expect_it() {
        let line = Arguments::command().render_version();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[..2], ["soci-snapshotter-grpc", "version"]);
        assert_eq!(words.len(), 4, "{line}");
    }
}

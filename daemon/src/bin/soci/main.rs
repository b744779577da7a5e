//! `soci`: makes, converts, pushes and shows SOCI artifacts, and pulls images lazily.

mod act;
mod blobs;
mod cat;
mod completion;
mod control_client;
mod convert;
mod create;
mod doctor;
#[cfg(test)]
mod documented;
mod duration;
mod events;
mod image;
mod index;
mod inspect;
mod layers;
mod lazy;
mod member;
mod mount;
mod options;
mod paint;
mod prefetch_command;
mod progress;
mod push;
mod rebuild;
mod rpull;
mod session;
mod switches;
mod table;
mod trace;
mod trace_file;
mod wanted;
mod ztoc_command;

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::error::ErrorKind;
use clap::{ArgMatches, CommandFactory, FromArgMatches};

use crate::options::{Cli, Command};
use crate::paint::Paint;

fn main() -> ExitCode {
    let mut command = Cli::command();
    let arguments = switches::without_values(&command, std::env::args_os());
    let matches = command.try_get_matches_from_mut(arguments);
    let parsed = matches.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return usage(&error),
    };
    match run(cli, traces_http(&matches)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("soci: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Help and version are no errors, nor is asking for nothing, which gets help as in the original; everything else has the
/// form of all our errors.
fn usage(error: &clap::Error) -> ExitCode {
    let nothing = [
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
        ErrorKind::MissingSubcommand,
    ];
    if nothing.contains(&error.kind()) {
        // A reader that went away wanted no more.
        let _ = std::io::stdout().lock().write_all(&help());
        return ExitCode::SUCCESS;
    }
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    eprint!("soci: {}", text.strip_prefix("error: ").unwrap_or(&text));
    ExitCode::FAILURE
}

/// The help of the command that has been named so far.
fn help() -> Vec<u8> {
    let mut command = Cli::command();
    command.build();
    let mut named = &command;
    for word in std::env::args().skip(1) {
        named = named.find_subcommand(word).unwrap_or(named);
    }
    let text = named.clone().render_help();
    text.to_string().into_bytes()
}

/// Whether the command, whichever it is, has `--http-trace`.
fn traces_http(matches: &ArgMatches) -> bool {
    let mut innermost = matches;
    while let Some((_, inner)) = innermost.subcommand() {
        innermost = inner;
    }
    let flag = innermost.try_get_one::<bool>("http_trace");
    flag.is_ok_and(|flag| flag.copied().unwrap_or_default())
}

fn run(cli: Cli, traces_http: bool) -> Result<()> {
    let level = match (cli.globals.debug, traces_http) {
        (true, _) => "debug",
        (false, true) => "warn,daemon::registry=debug",
        (false, false) => "warn",
    };
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(level))
        .with_writer(std::io::stderr)
        .with_ansi(Paint::of_stderr().is_on())
        .init();
    // The first provider set wins, and only this program sets one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let outcome = runtime.block_on(limited(cli));
    // A layer being read must not hold back an error, or the exit after Ctrl-C.
    runtime.shutdown_background();
    outcome
}

/// Runs the command within `--timeout`, until Ctrl-C. Dropping it cancels what it does.
async fn limited(cli: Cli) -> Result<()> {
    let limit = cli.globals.timeout;
    // A record is ended by Ctrl-C, and is not lost by it.
    let ends_itself = matches!(cli.command, Command::Trace(_) | Command::Mount(_));
    let command = dispatch(cli);
    tokio::select! {
        outcome = command => outcome,
        () = expire(limit) => bail!("timed out after {limit:?}"),
        _ = tokio::signal::ctrl_c(), if !ends_itself => bail!("interrupted"),
    }
}

async fn expire(limit: std::time::Duration) {
    if limit.is_zero() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(limit).await;
}

async fn dispatch(cli: Cli) -> Result<()> {
    let globals = &cli.globals;
    match cli.command {
        Command::Create(arguments) => create::run(globals, arguments).await,
        Command::Convert(arguments) => convert::run(globals, arguments).await,
        Command::Push(arguments) => push::run(globals, arguments).await,
        Command::Index(command) => index::run(globals, command).await,
        Command::Ztoc(command) => ztoc_command::run(globals, command).await,
        Command::Prefetch(command) => prefetch_command::run(globals, command).await,
        Command::RebuildDb => rebuild::run(globals).await,
        Command::Rpull(arguments) => rpull::run(globals, arguments).await,
        Command::Mount(arguments) => mount::run(globals, &arguments).await,
        Command::Cat(arguments) => cat::run(globals, &arguments).await,
        Command::Doctor(arguments) => doctor::run(globals, &arguments).await,
        Command::Inspect(arguments) => inspect::run(globals, arguments).await,
        Command::Events => events::run(globals).await,
        Command::Trace(arguments) => trace::run(globals, &arguments).await,
        Command::Drain(arguments) => act::drain(globals, &arguments).await,
        Command::Fetch(arguments) => act::fetch_files(globals, &arguments).await,
        Command::Verify(arguments) => act::verify(globals, &arguments).await,
        Command::Gc => act::gc(globals).await,
        Command::Completion(arguments) => completion::completion(&arguments),
        Command::Manual(arguments) => completion::manual(&arguments),
    }
}

/// `soci ... | head` ends before we do.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

//! `soak`: containers read while the daemon is killed, for as long as one likes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use integration::soak::reader::{Pair, read};
use integration::soak::{Plan, run};

/// Kills the daemon while containers read, and counts the reads that fail or are wrong
#[derive(Debug, Parser)]
#[command(name = "soak")]
struct Arguments {
    /// How often the daemon is killed
    #[arg(long, default_value_t = 100)]
    kills: usize,
    /// Mounted views that are read
    #[arg(long, default_value_t = 20)]
    views: usize,
    /// How many of the views are read by containers as well
    #[arg(long, default_value_t = 4)]
    containers: usize,
    /// Decides when the daemon is killed and what is read
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(subcommand)]
    command: Option<Part>,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Reads trees and compares them with their originals until standard input ends
    #[command(hide = true)]
    Read {
        seed: u64,
        /// A tree, its originals, the next tree, and so on
        paths: Vec<PathBuf>,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse() {
        Arguments {
            command: Some(Part::Read { seed, paths }),
            ..
        } => read_only(&paths, seed),
        arguments => soak(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn read_only(paths: &[PathBuf], seed: u64) -> Result<()> {
    let pair = |paths: &[PathBuf]| Pair {
        read: paths[0].clone(),
        original: paths[1].clone(),
    };
    let tally = read(paths.chunks_exact(2).map(pair).collect(), seed)?;
    println!("{}", serde_json::to_string(&tally)?);
    Ok(())
}

fn soak(arguments: &Arguments) -> Result<()> {
    let plan = Plan {
        kills: arguments.kills,
        views: arguments.views,
        containers: arguments.containers.min(arguments.views),
        reader: std::env::current_exe()?,
        seed: arguments.seed,
    };
    let outcome = run(&plan, |kills| {
        if kills % 10 == 0 {
            println!("killed {kills} times");
        }
    })?;
    println!(
        "{} reads, the slowest took {} ms; restarts: median {} ms, longest {} ms",
        outcome.reads,
        outcome.slowest_ms,
        outcome.restart_ms(50),
        outcome.restarts.iter().max().map_or(0, Duration::as_millis)
    );
    println!("{}", outcome.line());
    if outcome.failed + outcome.wrong > 0 {
        bail!("reads failed");
    }
    Ok(())
}

//! `scripts/demo`: one container, started after a full pull and lazily, side by side.

mod measure;
mod report;
mod workload;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use integration::scratch::{self, Scratch};

/// Makes a real image (Debian, python3, numpy), pushes it with a SOCI index to a registry on
/// loopback, runs it after a full pull and lazily, and prints what each took.
#[derive(Debug, Parser)]
struct Options {
    /// Also write the numbers to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave registry, containerd and snapshotter running, and say how to go on.
    #[arg(long)]
    keep: bool,
    /// End and remove what an earlier --keep left in this directory; nothing else.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["json", "keep"])]
    clean: Option<PathBuf>,
    /// Where to put the private roots; 2 GB are needed, and not on an overlay.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    work_dir: PathBuf,
}

fn main() -> ExitCode {
    match scratch::clean_up_on_signals().and_then(|()| run(&Options::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    if let Some(dir) = &options.clean {
        return scratch::sweep(dir);
    }
    let scratch = Scratch::within(&options.work_dir)?;
    let (stage, report) = measure::both(&scratch)?;
    println!("{report}");
    if let Some(file) = &options.json {
        let json = serde_json::to_string_pretty(&report.to_json())? + "\n";
        fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if options.keep {
        println!("{}", stage.keep(scratch));
    }
    Ok(())
}

//! Completions for shells, and manual pages, generated from the command line itself.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::options::Cli;

#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// The shell: the output is to be sourced by it
    shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct Manual {
    /// Directory the pages go to; made if need be
    directory: PathBuf,
}

pub(crate) fn completion(arguments: &Completion) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "soci", &mut script);
    Ok(std::io::stdout().lock().write_all(&script)?)
}

pub(crate) fn manual(arguments: &Manual) -> Result<()> {
    let directory = &arguments.directory;
    std::fs::create_dir_all(directory)
        .and_then(|()| pages(directory))
        .with_context(|| format!("cannot write manual pages to {}", directory.display()))
}

fn pages(directory: &Path) -> std::io::Result<()> {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    clap_mangen::generate_to(root, directory)
}

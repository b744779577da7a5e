//! `soci doctor`: is this machine set up so that images are loaded lazily, and if not, what to do.

mod node;
mod registry;
mod system;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use crate::options::{Globals, RegistryArguments};
use crate::paint::{Colour, Paint, printable};
use crate::table;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Also check whether this image can be loaded lazily: registry, credentials, index
    #[arg(value_name = "IMAGE")]
    image: Option<String>,
    /// containerd's configuration
    #[arg(
        long,
        default_value = "/etc/containerd/config.toml",
        value_name = "FILE"
    )]
    containerd_config: PathBuf,
    /// The snapshotter's name in containerd
    #[arg(long, default_value = "soci", value_name = "NAME")]
    snapshotter: String,
    #[command(flatten)]
    registry: RegistryArguments,
}

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Works, but not as well as it could.
    Warning,
    /// Lazy loading does not work.
    Failure,
    /// Could not be checked, as something before it failed.
    Skipped,
}

/// A check, done.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What to do; empty if nothing.
    advice: String,
}

/// All findings so far.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, check: &'static str, found: impl Into<String>) {
        self.add(check, Verdict::Ok, found, "");
    }

    fn warning(
        &mut self,
        check: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.add(check, Verdict::Warning, found, advice);
    }

    fn failure(
        &mut self,
        check: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.add(check, Verdict::Failure, found, advice);
    }

    fn skipped(&mut self, check: &'static str, found: impl Into<String>) {
        self.add(check, Verdict::Skipped, found, "");
    }

    fn add(
        &mut self,
        check: &'static str,
        verdict: Verdict,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.0.push(Finding {
            check,
            verdict,
            found: found.into(),
            advice: advice.into(),
        });
    }
}

pub(crate) async fn run(globals: &Globals, arguments: &Arguments) -> Result<()> {
    let mut findings = Findings::default();
    system::check(&mut findings, globals);
    node::check(&mut findings, globals, arguments).await;
    if let Some(image) = &arguments.image {
        registry::check(&mut findings, image, &arguments.registry).await;
    }
    if globals.json {
        table::print_json(&findings.0)?;
    } else {
        print(&findings.0);
    }
    let failed = findings
        .0
        .iter()
        .filter(|it| it.verdict == Verdict::Failure)
        .count();
    match failed {
        0 => Ok(()),
        1 => bail!("1 check failed"),
        _ => bail!("{failed} checks failed"),
    }
}

fn print(findings: &[Finding]) {
    let paint = Paint::of_stdout();
    for finding in findings {
        let mark = match finding.verdict {
            Verdict::Ok => paint.text(Colour::Green, "ok     "),
            Verdict::Warning => paint.text(Colour::Yellow, "warning"),
            Verdict::Failure => paint.text(Colour::Red, "FAILED "),
            Verdict::Skipped => paint.text(Colour::Dim, "skipped"),
        };
        println!(
            "{mark} {:<22} {}",
            finding.check,
            printable(finding.found.as_bytes())
        );
        for line in finding.advice.lines() {
            println!("        {:<22} -> {line}", "");
        }
    }
}

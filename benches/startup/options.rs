//! The command line.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use integration::cache;

use crate::mode::Mode;
use crate::sample::LinkShape;
use crate::workload::{self, Workload};

/// Measures how long containers take to start, lazily and after full pulls, over links of different speed.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// Under three minutes: two small workloads, two links, two rounds; no claim can be made from it
    #[arg(long)]
    pub(crate) quick: bool,
    /// Where results and plots go
    #[arg(long, value_name = "DIR", default_value = "target/startup")]
    pub(crate) out: PathBuf,
    /// Rounds: samples of each workload, link and mode
    #[arg(long, value_name = "N")]
    pub(crate) rounds: Option<usize>,
    /// Second starts only in the first so many rounds over each link [default: in all]
    #[arg(long, value_name = "N", default_value_t = usize::MAX, hide_default_value = true)]
    pub(crate) second_rounds: usize,
    /// Only these workloads, separated by commas
    #[arg(long = "workload", value_name = "NAME", value_delimiter = ',')]
    pub(crate) names: Vec<String>,
    /// Workloads from this file instead of the built-in ones
    #[arg(long, value_name = "FILE")]
    pub(crate) workloads: Option<PathBuf>,
    /// Only these links, such as none,none/20ms,1g/20ms,200m/0ms
    #[arg(long = "link", value_name = "LINK", value_parser = link, value_delimiter = ',')]
    pub(crate) links: Vec<LinkShape>,
    /// Only these modes: overlayfs, full-pull, lazy, lazy+prefetch, on-demand, ztocs, original, soci-0.4,
    /// stargz, nydus, nydus-zran
    #[arg(long = "mode", value_name = "MODE", value_parser = mode, value_delimiter = ',')]
    pub(crate) modes: Vec<Mode>,
    /// A directory with the original's soci-snapshotter-grpc
    #[arg(long, value_name = "DIR")]
    pub(crate) original: Option<PathBuf>,
    /// Compare with these earlier results; exit status 3 if something is slower
    #[arg(long, value_name = "OLD.json")]
    pub(crate) compare: Option<PathBuf>,
    /// Measure nothing, show these results; of several runs if there are several
    #[arg(long, value_name = "RESULTS.json", num_args = 1..)]
    pub(crate) show: Vec<PathBuf>,
    /// Make the images that are missing, and measure nothing
    #[arg(long)]
    pub(crate) images_only: bool,
    /// Where images are kept between runs [default: startup-registry in the cache directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) registry: Option<PathBuf>,
    /// Where nodes are set up; gigabytes are needed, and not on an overlay
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub(crate) work_dir: PathBuf,
}

/// `none`, or `RATE/DELAY` such as `1g/20ms`; either part may be `none` or `0ms`.
fn link(text: &str) -> Result<LinkShape> {
    if text == "none" {
        return Ok(LinkShape {
            rate: None,
            delay_ms: 0,
        });
    }
    let Some((rate, delay)) = text.split_once('/') else {
        bail!("a link is none or RATE/DELAY, such as 200m/20ms");
    };
    let rate = match (rate.strip_suffix('g'), rate.strip_suffix('m')) {
        _ if rate == "none" => None,
        (Some(number), _) => Some(
            number
                .parse::<u64>()?
                .checked_mul(1_000_000_000)
                .context("too fast")?,
        ),
        (_, Some(number)) => Some(
            number
                .parse::<u64>()?
                .checked_mul(1_000_000)
                .context("too fast")?,
        ),
        _ => bail!("{rate} is no rate: 10g, 1g, 200m or none"),
    };
    ensure!(rate != Some(0), "nothing comes through a link of rate 0");
    let delay = delay
        .strip_suffix("ms")
        .with_context(|| format!("{delay} is no delay: 0ms, 20ms"))?;
    Ok(LinkShape {
        rate,
        delay_ms: delay.parse()?,
    })
}

fn mode(name: &str) -> Result<Mode> {
    let mode = Mode::named(name).filter(|mode| mode.is_first_start());
    mode.with_context(|| format!("no mode {name}; every lazy sample has a warm second start"))
}

impl Options {
    pub(crate) fn chosen_workloads(&self) -> Result<Vec<Workload>> {
        let all = match &self.workloads {
            Some(file) => {
                let text = fs::read_to_string(file)
                    .with_context(|| format!("cannot read {}", file.display()))?;
                workload::parse(&text).with_context(|| file.display().to_string())?
            }
            None => workload::built_in()?,
        };
        if let Some(unknown) = self
            .names
            .iter()
            .find(|name| !all.iter().any(|one| one.name == **name))
        {
            bail!("there is no workload {unknown}");
        }
        let small = ["busybox", "python"];
        let chosen = |workload: &Workload| match self.names.as_slice() {
            [] => {
                !self.quick || self.workloads.is_some() || small.contains(&workload.name.as_str())
            }
            names => names.contains(&workload.name),
        };
        Ok(all.into_iter().filter(chosen).collect())
    }

    pub(crate) fn chosen_links(&self) -> Vec<LinkShape> {
        if !self.links.is_empty() {
            return self.links.clone();
        }
        let shape = |rate, delay_ms| LinkShape { rate, delay_ms };
        if self.quick {
            return vec![shape(None, 0), shape(Some(1_000_000_000), 20)];
        }
        let rates = [
            None,
            Some(10_000_000_000),
            Some(1_000_000_000),
            Some(200_000_000),
        ];
        rates
            .into_iter()
            .flat_map(|rate| [0, 5, 20, 80].map(|delay| shape(rate, delay)))
            .collect()
    }

    pub(crate) fn chosen_modes(&self) -> Vec<Mode> {
        match self.modes.as_slice() {
            [] if self.quick => vec![Mode::Overlayfs, Mode::Lazy],
            [] => Mode::ALL
                .into_iter()
                .filter(|mode| mode.is_first_start())
                .collect(),
            modes => modes.to_vec(),
        }
    }

    pub(crate) fn chosen_rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 2 } else { 10 })
    }

    pub(crate) fn registry(&self) -> PathBuf {
        let kept = || cache::directory().join("startup-registry");
        self.registry.clone().unwrap_or_else(kept)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn links_are_read_as_they_are_written() {
        let shape = |rate, delay_ms| LinkShape { rate, delay_ms };
        assert_eq!(link("none").unwrap(), shape(None, 0));
        assert_eq!(link("1g/20ms").unwrap(), shape(Some(1_000_000_000), 20));
        assert_eq!(link("200m/0ms").unwrap(), shape(Some(200_000_000), 0));
        assert_eq!(link("none/80ms").unwrap(), shape(None, 80));
        for wrong in [
            "1g",
            "1x/2ms",
            "1g/2s",
            "0g/1ms",
            "99999999999999999g/0ms",
            "/",
        ] {
            assert!(link(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Options::command().debug_assert();
    }

    #[test]
    fn documented_command_lines_are_taken() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut shown = 0;
        for document in ["README.md", "docs/startup.md", "docs/benchmarks.md"] {
            let text = fs::read_to_string(root.join(document)).unwrap();
            let lines = text.lines().flat_map(|line| line.split('`'));
            for line in lines {
                let line = line.split(" #").next().unwrap_or_default();
                let Some(arguments) = line.strip_prefix("scripts/bench startup ") else {
                    continue;
                };
                // The script takes the suite away; a shell would expand the asterisk.
                let mut words: Vec<&str> = arguments.split_whitespace().collect();
                if words.first() == Some(&"--suite") {
                    words.drain(..2);
                }
                let options = Options::try_parse_from(["startup"].iter().chain(&words));
                options.unwrap_or_else(|error| panic!("{document}: {line}: {error}"));
                shown += 1;
            }
        }
        assert!(shown >= 12, "{shown}");
    }

    #[test]
    fn lists_are_separated_by_commas_or_repeated() {
        let options = Options::parse_from([
            "startup",
            "--link",
            "none,1g/5ms",
            "--link",
            "200m/0ms",
            "--workload",
            "python,numpy",
            "--mode",
            "lazy,overlayfs",
            "--show",
            "a.json",
            "b.json",
        ]);
        assert_eq!(options.chosen_links().len(), 3);
        assert_eq!(options.chosen_modes(), [Mode::Lazy, Mode::Overlayfs]);
        let names: Vec<_> = options
            .chosen_workloads()
            .unwrap()
            .into_iter()
            .map(|one| one.name)
            .collect();
        assert_eq!(names, ["python", "numpy"]);
        assert_eq!(options.show.len(), 2);
    }
}

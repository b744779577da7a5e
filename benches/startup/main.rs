//! The startup-latency harness: does lazy loading pay, for this image, on this link, against which alternative?
//!
//! Every sample is a cold start: an empty containerd and an empty snapshotter pull an image through a link
//! and start a container, until a condition says that it is ready. Modes take turns in shuffled rounds, so
//! that whatever the machine does meanwhile falls on all of them alike.

mod cells;
mod images;
mod machine;
mod measure;
mod mode;
mod plot;
mod process;
mod ready;
mod report;
mod sample;
mod stats;
mod workload;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use integration::link::{Link, Shape};
use integration::{DockerRegistry, Scratch, scratch};

use crate::images::Published;
use crate::measure::Place;
use crate::mode::{Mode, Peers};
use crate::sample::{About, LinkShape, Results};
use crate::workload::Workload;

/// Measures how long containers take to start, lazily and after full pulls, over links of different speed.
#[derive(Debug, Parser)]
struct Options {
    /// Under three minutes: two small workloads, two links, two rounds; no claim can be made from it
    #[arg(long)]
    quick: bool,
    /// Where results and plots go
    #[arg(long, value_name = "DIR", default_value = "target/startup")]
    out: PathBuf,
    /// Rounds: samples of each workload, link and mode
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Only these workloads (may be repeated)
    #[arg(long = "workload", value_name = "NAME")]
    names: Vec<String>,
    /// Workloads from this file instead of the built-in ones
    #[arg(long, value_name = "FILE")]
    workloads: Option<PathBuf>,
    /// Only these links, such as none, 1g/20ms or 200m/0ms (may be repeated)
    #[arg(long = "link", value_name = "LINK", value_parser = link)]
    links: Vec<LinkShape>,
    /// Only these modes: overlayfs, full-pull, lazy, on-demand, ztocs, original (may be repeated)
    #[arg(long = "mode", value_name = "MODE", value_parser = mode)]
    modes: Vec<Mode>,
    /// A directory with the original's soci-snapshotter-grpc
    #[arg(long, value_name = "DIR")]
    original: Option<PathBuf>,
    /// Compare with these earlier results; exit status 3 if something is slower
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
    /// Measure nothing, show these results
    #[arg(long, value_name = "RESULTS.json")]
    show: Option<PathBuf>,
    /// Where nodes are set up; gigabytes are needed, and not on an overlay
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    work_dir: PathBuf,
}

fn main() -> ExitCode {
    let ended = scratch::clean_up_on_signals().and_then(|()| run(&Options::parse()));
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(3),
        Err(error) => {
            eprintln!("startup: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether nothing is slower than before.
fn run(options: &Options) -> Result<bool> {
    let results = match &options.show {
        Some(file) => load(file)?,
        None => measure_all(options)?,
    };
    fs::create_dir_all(&options.out)?;
    let text = report::markdown(&results);
    print!("{text}");
    fs::write(options.out.join("startup.md"), &text)?;
    save(&results, &options.out)?;
    match plot::write(&results, &options.out) {
        Ok(files) => eprintln!(
            "startup: {} plots in {}",
            files.len(),
            options.out.display()
        ),
        Err(error) => eprintln!("startup: no plots: {error:#}"),
    }
    let mut slower = false;
    if let Some(file) = &options.compare {
        let (text, any) = report::comparison(&results, &load(file)?);
        println!("\n{text}");
        slower = any;
    }
    println!("{}", report::summary_line(&results));
    Ok(!slower)
}

fn load(file: &Path) -> Result<Results> {
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let results: Results = serde_json::from_slice(&text)
        .with_context(|| format!("{} has no results of this harness", file.display()))?;
    ensure!(
        results.version == VERSION,
        "{}: version {}, not {VERSION}",
        file.display(),
        results.version
    );
    Ok(results)
}

/// Of the results' format.
const VERSION: u32 = 1;

fn save(results: &Results, out: &Path) -> Result<()> {
    let text = serde_json::to_vec_pretty(results)?;
    fs::write(out.join("startup.json"), text).context("cannot write the results")
}

fn measure_all(options: &Options) -> Result<Results> {
    let workloads = options.chosen_workloads()?;
    let peers = Peers {
        original: options.original.clone(),
    };
    let (mut modes, mut missing) = (Vec::new(), Vec::new());
    for mode in options.chosen_modes() {
        match peers.missing(mode) {
            Some(why) => missing.push((mode.name().to_owned(), why)),
            None => modes.push(mode),
        }
    }
    let scratch = Scratch::within(&options.work_dir)?;
    let data = scratch.dir("registry")?;
    let published = publish(&scratch, &data, &workloads)?;
    let about = |(workload, image): (&Workload, &Published)| About {
        name: workload.name.clone(),
        about: workload.about.clone(),
        image_bytes: image.bytes,
    };
    let mut results = Results {
        version: VERSION,
        machine: machine::here(),
        workloads: workloads.iter().zip(&published).map(about).collect(),
        missing,
        samples: Vec::new(),
    };
    let mut random = fastrand::Rng::new();
    for shape in options.chosen_links() {
        let link_scratch = Scratch::within(&options.work_dir)?;
        let link = open(&link_scratch, shape)?;
        let registry = match &link {
            Some(link) => DockerRegistry::start_behind(&data, link)?,
            None => DockerRegistry::start_at(&data)?,
        };
        let place = Place {
            registry: &registry,
            link: link.as_ref(),
            shape,
            work_dir: &options.work_dir,
            peers: &peers,
        };
        for round in 0..options.chosen_rounds() {
            for (workload, image) in workloads.iter().zip(&published) {
                random.shuffle(&mut modes);
                for &mode in &modes {
                    let reference = match &workload.image {
                        Some(own) => own.clone(),
                        None => registry.reference(&image.name),
                    };
                    let sample = place.sample(workload, &reference, mode, round);
                    let sample = sample.with_context(|| {
                        format!(
                            "{} over {}, {}",
                            workload.name,
                            report::shape(shape),
                            mode.name()
                        )
                    })?;
                    eprintln!(
                        "startup: round {}, {:<12} {:<20} {:<10} {:>7.2} s",
                        round + 1,
                        workload.name,
                        report::shape(shape),
                        mode.name(),
                        sample.ready_s
                    );
                    results.samples.push(sample);
                }
            }
        }
    }
    Ok(results)
}

fn publish(scratch: &Scratch, data: &Path, workloads: &[Workload]) -> Result<Vec<Published>> {
    let registry = DockerRegistry::start_at(data)?;
    let mut published = Vec::new();
    for workload in workloads {
        eprintln!(
            "startup: making the image of {} (minutes when first)",
            workload.name
        );
        published.push(images::publish(scratch, &registry, workload)?);
    }
    Ok(published)
}

fn open(scratch: &Scratch, shape: LinkShape) -> Result<Option<Link>> {
    let shape = Shape {
        rate: shape.rate,
        delay: Duration::from_millis(shape.delay_ms),
    };
    if shape.is_none() {
        return Ok(None);
    }
    Link::open(scratch, shape).map(Some)
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
    fn chosen_workloads(&self) -> Result<Vec<Workload>> {
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

    fn chosen_links(&self) -> Vec<LinkShape> {
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

    fn chosen_modes(&self) -> Vec<Mode> {
        match self.modes.as_slice() {
            [] if self.quick => vec![Mode::Overlayfs, Mode::Lazy],
            [] => Mode::ALL
                .into_iter()
                .filter(|mode| mode.is_first_start())
                .collect(),
            modes => modes.to_vec(),
        }
    }

    fn chosen_rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 2 } else { 10 })
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
}

//! The startup-latency harness: does lazy loading pay, for this image, on this link, against which alternative?
//!
//! Every sample is a cold start: an empty containerd and an empty snapshotter pull an image through a link
//! and start a container, until a condition says that it is ready. Modes take turns in shuffled rounds, so
//! that whatever the machine does meanwhile falls on all of them alike.

mod cells;
mod images;
mod kept;
mod machine;
mod measure;
mod mode;
mod node;
mod options;
mod peers;
mod plot;
mod process;
mod ready;
mod report;
mod sample;
mod stats;
mod workload;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser as _;
use integration::link::{Link, Shape};
use integration::{DockerRegistry, Scratch, scratch};

use crate::images::{Form, Published};
use crate::kept::Kept;
use crate::measure::Place;
use crate::mode::Mode;
use crate::options::Options;
use crate::peers::Peers;
use crate::sample::{About, LinkShape, Results};
use crate::workload::Workload;

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
    let results = match options.show.split_first() {
        Some((first, others)) => {
            let mut results = load(first)?;
            for file in others {
                results.add(load(file)?);
            }
            results
        }
        None => measure_all(options)?,
    };
    if options.images_only {
        return Ok(true);
    }
    fs::create_dir_all(&options.out)?;
    let text = report::markdown(&results);
    print!("{text}");
    fs::write(options.out.join("startup.md"), &text)?;
    fs::write(options.out.join("short.md"), report::short(&results))?;
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

/// One sample a line.
fn save(results: &Results, out: &Path) -> Result<()> {
    let text = serde_json::to_string(results)?;
    let text = text.replace("{\"workload\":", "\n{\"workload\":") + "\n";
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
    let mut kept = Kept::open(&options.registry())?;
    let published = publish(options, &mut kept, &workloads, &modes)?;
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
    let all: Vec<_> = workloads.into_iter().zip(published).collect();
    for shape in options.chosen_links() {
        if options.images_only {
            break;
        }
        let link_scratch = Scratch::within(&options.work_dir)?;
        let link = open(&link_scratch, shape)?;
        let registry = match &link {
            Some(link) => DockerRegistry::start_behind(kept.path(), link)?,
            None => DockerRegistry::start_at(kept.path())?,
        };
        let place = Place {
            registry: &registry,
            link: link.as_ref(),
            shape,
            work_dir: &options.work_dir,
            peers: &peers,
        };
        for round in 0..options.chosen_rounds() {
            measure_round(&place, &all, &mut modes, round, &mut results)?;
        }
    }
    Ok(results)
}

/// One sample of each workload in each mode, in an order that chance makes.
fn measure_round(
    place: &Place<'_>,
    all: &[(Workload, Published)],
    modes: &mut [Mode],
    round: usize,
    results: &mut Results,
) -> Result<()> {
    for (workload, image) in all {
        fastrand::shuffle(modes);
        for &mode in &*modes {
            let reference = image.reference(place.registry, mode.form());
            let (name, link) = (&workload.name, report::shape(place.shape));
            let sample = place.sample(workload, &reference, mode, round);
            let sample = sample.with_context(|| format!("{name} over {link}, {}", mode.name()))?;
            eprintln!(
                "startup: round {}, {name:<12} {link:<20} {:<13} {:>7.2} s",
                round + 1,
                mode.name(),
                sample.ready_s
            );
            results.samples.push(sample);
        }
    }
    Ok(())
}

fn publish(
    options: &Options,
    kept: &mut Kept,
    workloads: &[Workload],
    modes: &[Mode],
) -> Result<Vec<Published>> {
    let scratch = Scratch::within(&options.work_dir)?;
    let registry = DockerRegistry::start_at(kept.path())?;
    let mut forms: Vec<Form> = modes.iter().map(|mode| mode.form()).collect();
    forms.sort();
    forms.dedup();
    let publish = |workload| images::publish(&scratch, &registry, kept, workload, &forms);
    workloads.iter().map(publish).collect()
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

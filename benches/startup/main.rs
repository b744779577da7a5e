//! The startup-latency harness: does lazy loading pay, for this image, on this link, against which alternative?
//!
//! Every sample is a cold start: an empty containerd and an empty snapshotter pull an image through a link
//! and start a container, until a condition says that it is ready. Modes take turns in shuffled rounds, so
//! that whatever the machine does meanwhile falls on all of them alike.

mod cells;
mod front;
mod images;
mod kept;
mod lazy;
mod machine;
mod matrix;
mod measure;
mod mode;
mod node;
mod nydus;
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
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser as _;
use integration::link::{Link, Shape};
use integration::{DockerRegistry, Scratch, scratch};

use crate::front::Front;
use crate::images::{Form, Published};
use crate::kept::Kept;
use crate::measure::{Place, Start};
use crate::mode::Mode;
use crate::options::Options;
use crate::peers::Peers;
use crate::sample::{About, Failure, LinkShape, Results};
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
    fs::create_dir_all(&options.out)?;
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
    let text = report::markdown(&results) + &matrix::of(&results);
    print!("{text}");
    fs::write(options.out.join("startup.md"), &text)?;
    fs::write(options.out.join("short.md"), report::short(&results))?;
    fs::write(options.out.join("matrix.md"), matrix::of(&results))?;
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
    if options.show.is_empty() && !results.failed.is_empty() {
        bail!("{} samples could not be taken", results.failed.len());
    }
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

/// One sample a line. Whole at any moment.
fn save(results: &Results, out: &Path) -> Result<()> {
    let text = serde_json::to_string(results)?;
    let text = text.replace("{\"workload\":", "\n{\"workload\":") + "\n";
    let (new, file) = (out.join("startup.json.new"), out.join("startup.json"));
    fs::write(&new, text).context("cannot write the results")?;
    fs::rename(new, file).context("cannot write the results")
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
        failed: Vec::new(),
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
        let front = match modes.contains(&Mode::Soci04) {
            true => Some(Front::start(&link_scratch, registry.address())?),
            false => None,
        };
        let place = Place {
            front: front.as_ref(),
            registry: &registry,
            link: link.as_ref(),
            shape,
            work_dir: &options.work_dir,
            peers: &peers,
        };
        for round in 0..options.chosen_rounds() {
            measure_round(options, &place, &all, &mut modes, round, &mut results)?;
        }
    }
    Ok(results)
}

/// One sample of each workload in each mode, in an order that chance makes. Each is kept at once.
fn measure_round(
    options: &Options,
    place: &Place<'_>,
    all: &[(Workload, Published)],
    modes: &mut [Mode],
    round: usize,
    results: &mut Results,
) -> Result<()> {
    for (workload, image) in all {
        fastrand::shuffle(modes);
        for &mode in &*modes {
            let reference = &place.reference(image, mode);
            let again = round < options.second_rounds;
            if results.has_given_up(&workload.name, mode.name()) {
                continue;
            }
            let wanted = Start {
                workload,
                reference,
                mode,
                round,
                again,
            };
            take(place, wanted, image.bytes, results);
            save(results, &options.out)?;
        }
    }
    Ok(())
}

/// Takes one sample. One that fails is told and listed, and the others go on.
fn take(place: &Place<'_>, wanted: Start<'_>, image_bytes: Option<u64>, results: &mut Results) {
    let (name, link) = (&wanted.workload.name, report::shape(place.shape));
    let (round, mode) = (wanted.round, wanted.mode.name());
    let head = format!(
        "startup: round {}, {name:<12} {link:<20} {mode:<13}",
        round + 1
    );
    match place.sample(wanted) {
        Ok(sample) => {
            let doubt = lazy::doubt(&sample, image_bytes);
            let doubt = doubt.map_or_else(String::new, |why| format!(", not lazy: {why}"));
            eprintln!("{head} {:>7.2} s{doubt}", sample.ready_s);
            results.samples.push(sample);
        }
        Err(error) => {
            // It failed because everything is being cleaned up, after which the process ends.
            while scratch::check_not_interrupted().is_err() {
                thread::park();
            }
            let why = format!("{error:#}");
            eprintln!("{head} failed: {why}");
            results.failed.push(Failure {
                workload: name.clone(),
                link: place.shape,
                mode: mode.to_owned(),
                round,
                why,
            });
        }
    }
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

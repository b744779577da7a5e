//! `scale`: what many containers and many images cost the daemon.

use std::process::ExitCode;

use clap::Parser;
use integration::scale::{Cost, Plan, measure};

/// Starts many containers and shows what the daemon takes
#[derive(Debug, Parser)]
#[command(name = "scale")]
struct Arguments {
    /// Containers of one image
    #[arg(default_value_t = 100)]
    containers: usize,
    /// Images with a container each
    #[arg(default_value_t = 50)]
    images: usize,
}

fn main() -> ExitCode {
    let Arguments { containers, images } = Arguments::parse();
    let growth = match measure(Plan { containers, images }) {
        Ok(growth) => growth,
        Err(error) => {
            eprintln!("scale: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    println!(
        "| running | memory MiB | threads | descriptors | FUSE mounts |\n|---|--:|--:|--:|--:|"
    );
    let row = |what: &str, cost: Cost| {
        println!(
            "| {what} | {} | {} | {} | {} |",
            cost.memory_kib >> 10,
            cost.threads,
            cost.descriptors,
            cost.mounts
        );
    };
    row("nothing", growth.idle);
    row("one container", growth.one);
    row(
        &format!("{containers} containers of its image"),
        growth.containers,
    );
    row(&format!("and of {images} images one each"), growth.images);
    let per =
        |after: u64, before: u64, of: usize| after.saturating_sub(before) / (of as u64).max(1);
    let (one, many, all) = (growth.one, growth.containers, growth.images);
    println!(
        "\nscale: kib_per_container={} kib_per_image={} threads_per_image={} descriptors_per_image={} mounts={}",
        per(many.memory_kib, one.memory_kib, containers),
        per(all.memory_kib, many.memory_kib, images),
        per(all.threads, many.threads, images),
        per(all.descriptors, many.descriptors, images),
        all.mounts
    );
    ExitCode::SUCCESS
}

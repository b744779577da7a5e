//! Workloads' images: made from packages, indexed, pushed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use integration::command::{command, run};
use integration::debian::{self, Step};
use integration::host::{Indexing, convert};
use integration::push::push;
use integration::{DockerRegistry, Layer, Layout, Scratch, Soci, busybox, cache, image};

use crate::workload::{Base, LayerRecipe, Workload};

/// The compressor of layers that are made here.
const COMPRESSOR: &str = "gzip -6";
const CLEAN: &str = "rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb /var/cache/apt/*.bin /var/log/*.log /var/log/apt";

/// A workload's image in the registry.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    /// Repository and tag, or a whole reference for a user's own.
    pub(crate) name: String,
    /// Bytes of its layers, compressed; of a user's own unknown.
    pub(crate) bytes: Option<u64>,
}

/// Makes the image (or takes its layers from the cache), indexes it and pushes it.
pub(crate) fn publish(
    scratch: &Scratch,
    registry: &DockerRegistry,
    workload: &Workload,
) -> Result<Published> {
    if let Some(name) = &workload.image {
        return Ok(Published {
            name: name.clone(),
            bytes: None,
        });
    }
    let layout = Layout::create(&scratch.dir(&format!("image-{}", workload.name))?)?;
    let layers = layers(&layout, workload).with_context(|| workload.name.clone())?;
    let command: Vec<_> = workload.command.iter().map(String::as_str).collect();
    let image = layout.add_image(&layers, &command, "latest")?;
    let indexed = Layout::open(&scratch.path().join(format!("indexed-{}", workload.name)));
    let how = Indexing {
        span_size: 4 << 20,
        compact: "yes",
        compact_span_size: 1 << 20,
        ..Indexing::default()
    };
    convert(&Soci::alone(scratch)?, layout.path(), indexed.path(), how)?;
    let name = format!("startup/{}:latest", workload.name);
    push(&indexed, &registry.reference(&name))?;
    for made in [&layout, &indexed] {
        fs::remove_dir_all(made.path())?;
    }
    Ok(Published {
        name,
        bytes: Some(image.size()),
    })
}

fn layers(layout: &Layout, workload: &Workload) -> Result<Vec<Layer>> {
    if workload.base == Base::Busybox {
        return Ok(vec![layout.add_gzip_layer(&busybox::layer()?)?]);
    }
    let scripts: Vec<_> = workload.layers.iter().enumerate().map(script).collect();
    let steps: Vec<_> = scripts
        .iter()
        .flatten()
        .map(|(name, script)| Step {
            name,
            script,
            compressor: COMPRESSOR,
        })
        .collect();
    let mut files = debian::layers(&format!("startup-{}", workload.name), &steps)?.into_iter();
    let mut layers = vec![files.next().context("a base")?];
    for recipe in &workload.layers {
        layers.push(match recipe {
            LayerRecipe::Pip { pip } => wheels(pip, &layers)?,
            _ => files.next().context("a layer for each step")?,
        });
    }
    layers
        .iter()
        .map(|file| layout.add_layer_file(file))
        .collect()
}

/// A step's name and script; none for what needs no Debian to run in.
fn script((number, recipe): (usize, &LayerRecipe)) -> Option<(String, String)> {
    let script = match recipe {
        LayerRecipe::Apt { apt } => format!(
            "apt-get update -qq; apt-get install -y -qq --no-install-recommends {apt}; {CLEAN}"
        ),
        LayerRecipe::Run { run } => run.clone(),
        LayerRecipe::File { file, content } => {
            format!(
                "mkdir -p \"$(dirname {file})\"; cat >{file} <<'END OF FILE'\n{content}END OF FILE\n"
            )
        }
        LayerRecipe::Pip { .. } => return None,
    };
    Some((format!("layer{number}"), script))
}

/// A layer with Python packages as pip installs them, for the python of `below`.
fn wheels(packages: &str, below: &[PathBuf]) -> Result<PathBuf> {
    let python = python_of(below)?;
    let key = format!(
        "wheels-{}",
        &image::sha256(format!("{python} {packages}").as_bytes())[7..19]
    );
    let made = cache::cached(&key, |dir| install(packages, &python, dir))?;
    Ok(made.join("wheels.tar.gz"))
}

fn install(packages: &str, python: &str, dir: &Path) -> Result<()> {
    let scratch = Scratch::within(dir)?;
    let root = scratch.dir("root")?;
    let target = scratch.dir(&format!("root/usr/local/lib/python{python}/dist-packages"))?;
    let mut pip = command("python3");
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "--only-binary=:all:",
    ]);
    pip.args(["--implementation", "cp", "--python-version", python]);
    for glibc in ["manylinux2014", "manylinux_2_17", "manylinux_2_28"] {
        pip.args(["--platform", &format!("{glibc}_{}", std::env::consts::ARCH)]);
    }
    run(pip
        .arg("--target")
        .arg(&target)
        .args(packages.split_whitespace()))?;
    let mut tar = command("tar");
    tar.args([
        "--create",
        "--format=posix",
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
    ]);
    tar.args([
        "--mtime=@1700000000",
        "--pax-option=delete=atime,delete=ctime",
    ]);
    tar.args(["--use-compress-program", COMPRESSOR, "--file"]);
    run(tar
        .arg(dir.join("wheels.tar.gz"))
        .arg("-C")
        .arg(&root)
        .arg("."))?;
    Ok(())
}

/// The version of the python in these layers, such as `3.11`.
fn python_of(layers: &[PathBuf]) -> Result<String> {
    for layer in layers.iter().rev() {
        let names = run(command("tar").arg("-tzf").arg(layer))?;
        let mut versions = names
            .lines()
            .filter_map(|name| name.strip_prefix("./usr/bin/python"));
        let exact = |version: &&str| version.contains('.') && !version.contains('-');
        if let Some(version) = versions.find(exact) {
            return Ok(version.to_owned());
        }
    }
    bail!("no layer below has a python: put {{ apt = \"python3\" }} in front")
}

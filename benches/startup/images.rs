//! Workloads' images: made from packages, indexed, pushed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use integration::command::{command, run};
use integration::debian::{self, Step};
use integration::host::{Indexing, convert};
use integration::push::push;
use integration::{
    Containerd, DockerRegistry, Layer, Layout, Scratch, Soci, busybox, cache, image,
};

use crate::kept::Kept;
use crate::nydus::{self, Data};
use crate::peers;
use crate::workload::{Base, LayerRecipe, Workload};

/// The compressor of layers that are made here.
const COMPRESSOR: &str = "gzip -6";
const CLEAN: &str = "rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb /var/cache/apt/*.bin /var/log/*.log /var/log/apt";

/// What of an image a mode pulls: all forms have the same layers, but for those that other snapshotters want converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    /// With a SOCI index, compact zTOCs, and what a recorded start read.
    Indexed,
    /// As it was made, and an index that Debian's `soci` made as a referrer.
    Soci04,
    /// Converted to eStargz by the stargz snapshotter's client.
    Estargz,
    /// Converted by nydus's builder to its own format.
    Nydus,
    /// Metadata made by nydus's builder, which refers to the layers as they were made.
    NydusZran,
}

impl Form {
    /// The tag in the workload's repository.
    pub(crate) fn tag(self) -> &'static str {
        match self {
            Self::Indexed => "latest",
            Self::Soci04 => PLAIN,
            Self::Estargz => "estargz",
            Self::Nydus => "nydus",
            Self::NydusZran => "nydus-zran",
        }
    }
}

/// The tag of an image as it was made.
const PLAIN: &str = "plain";
/// How long a service is recorded, which does not end by itself; and the longest that anything is.
const RECORDED: [&str; 2] = ["10s", "120s"];

/// A workload's image in the registry.
#[derive(Debug, Clone)]
pub(crate) struct Published {
    repository: String,
    /// Bytes of its layers, compressed; of a user's own unknown.
    pub(crate) bytes: Option<u64>,
}

impl Published {
    /// Where `registry` has it in the form that `mode` pulls; a user's own is where it is.
    pub(crate) fn reference(&self, registry: &DockerRegistry, form: Form) -> String {
        match self.bytes {
            None => self.repository.clone(),
            Some(_) => registry.reference(&format!("{}:{}", self.repository, form.tag())),
        }
    }
}

/// Sees to it that `registry`, whose images `kept` knows, has the image in all `forms`.
pub(crate) fn publish(
    scratch: &Scratch,
    registry: &DockerRegistry,
    kept: &mut Kept,
    workload: &Workload,
    forms: &[Form],
) -> Result<Published> {
    let mut published = Published {
        repository: format!("startup/{}", workload.name),
        bytes: None,
    };
    if let Some(name) = &workload.image {
        published.repository.clone_from(name);
        return Ok(published);
    }
    let recipe = format!("{workload:?} {}", kept.tools());
    let bytes = kept.image(&workload.name, &recipe, || {
        eprintln!("startup: making the image of {} (minutes)", workload.name);
        made(scratch, registry, workload, &published.repository)
    })?;
    published.bytes = Some(bytes);
    for &form in forms.iter().filter(|form| **form != Form::Indexed) {
        kept.image(
            &format!("{}:{}", workload.name, form.tag()),
            &recipe,
            || {
                eprintln!(
                    "startup: making the image of {} as {}",
                    workload.name,
                    form.tag()
                );
                let reference =
                    |tag| registry.reference(&format!("{}:{tag}", published.repository));
                match form {
                    Form::Estargz => convert_to_estargz(&reference(PLAIN), &reference(form.tag())),
                    Form::Nydus => {
                        convert_to_nydus(&reference(PLAIN), &reference(form.tag()), Data::Own)
                    }
                    Form::NydusZran => {
                        convert_to_nydus(&reference(PLAIN), &reference(form.tag()), Data::Layer)
                    }
                    _ => index_by_debians(&reference(PLAIN)),
                }?;
                Ok(bytes)
            },
        )?;
    }
    Ok(published)
}

/// Makes the image, indexes it, records a start, and pushes it with and without; its bytes.
fn made(
    scratch: &Scratch,
    registry: &DockerRegistry,
    workload: &Workload,
    repository: &str,
) -> Result<u64> {
    let dir = |what: &str| scratch.path().join(format!("{what}-{}", workload.name));
    let layout = Layout::create(&dir("image"))?;
    let layers = layers(&layout, workload).with_context(|| workload.name.clone())?;
    let command: Vec<_> = workload.command.iter().map(String::as_str).collect();
    let image = layout.add_image(&layers, &command, "latest")?;
    push(
        &layout,
        &registry.reference(&format!("{repository}:{PLAIN}")),
    )?;
    let (indexed, whole, record) = (dir("indexed"), dir("whole"), dir("record"));
    let soci = Soci::alone(scratch)?;
    convert(&soci, layout.path(), &indexed, HOW)?;
    let time = RECORDED[usize::from(!workload.is_service())];
    let mut trace = soci.command()?;
    trace
        .args(["trace", "--for", time, "--output"])
        .arg(&record);
    run(trace.arg(&indexed).arg("--").args(&workload.command)).context("cannot record a start")?;
    convert_with_record(&soci, layout.path(), &whole, &record)?;
    let tag = Form::Indexed.tag();
    push(
        &Layout::open(&whole),
        &registry.reference(&format!("{repository}:{tag}")),
    )?;
    for made in [layout.path(), &indexed, &whole] {
        fs::remove_dir_all(made)?;
    }
    Ok(image.size())
}

/// Spans of zTOCs as the original has them by default, and of compact ones.
const HOW: Indexing = Indexing {
    span_size: 4 << 20,
    min_layer_size: 0,
    compact: "yes",
    compact_span_size: 1 << 20,
};

fn convert_with_record(soci: &Soci, from: &Path, to: &Path, record: &Path) -> Result<()> {
    let mut convert = soci.command()?;
    convert.args(["convert", "--standalone", "--format", "oci-dir"]);
    convert.args(["--span-size", &HOW.span_size.to_string()]);
    convert.args(["--min-layer-size", &HOW.min_layer_size.to_string()]);
    convert.args(["--compact", HOW.compact]);
    convert.args(["--compact-span-size", &HOW.compact_span_size.to_string()]);
    run(convert.arg("--prefetch-from").arg(record).arg(from).arg(to))?;
    Ok(())
}

/// A containerd that has the content of `reference`, unpacked nowhere.
fn fetched(scratch: &Scratch, reference: &str) -> Result<Containerd> {
    let containerd = Containerd::start(scratch)?;
    let fetch = ["content", "fetch", "--plain-http", reference];
    run(containerd.ctr().command().args(fetch))?;
    Ok(containerd)
}

fn convert_to_estargz(from: &str, to: &str) -> Result<()> {
    let scratch = Scratch::within(Path::new("/var/tmp"))?;
    let containerd = fetched(&scratch, from)?;
    let convert = ["images", "convert", "--estargz", "--oci", from, to];
    run(peers::ctr_remote(&containerd)?.args(convert))?;
    let push = ["images", "push", "--plain-http", to];
    run(containerd.ctr().command().args(push))?;
    Ok(())
}

fn convert_to_nydus(from: &str, to: &str, data: Data) -> Result<()> {
    let scratch = Scratch::within(Path::new("/var/tmp"))?;
    let containerd = fetched(&scratch, from)?;
    let (tar, exported) = (scratch.path().join("plain.tar"), scratch.dir("plain")?);
    let mut export = containerd.ctr().command();
    run(export.args(["images", "export"]).arg(&tar).arg(from))?;
    run(command("tar").arg("-xf").arg(&tar).arg("-C").arg(&exported))?;
    let plain = Layout::open(&exported);
    let made = scratch.path().join("converted");
    push(
        &nydus::convert(&peers::nydus_image()?, &scratch, &plain, &made, data)?,
        to,
    )
}

fn index_by_debians(reference: &str) -> Result<()> {
    let scratch = Scratch::within(Path::new("/var/tmp"))?;
    let containerd = fetched(&scratch, reference)?;
    run(peers::soci(&containerd)?.args(["create", reference]))?;
    run(peers::soci(&containerd)?.args(["push", "--plain-http", reference]))?;
    Ok(())
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

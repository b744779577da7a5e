//! The image: files of this machine's `/usr`, cut into layers as images have them, some large and many small.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use integration::cache::cached;
use integration::command::{command, run};
use integration::host::Published;
use integration::image::Layout;
use integration::push::push;
use integration::{DockerRegistry, Scratch};

/// Sizes of the layers, in parts of 100.
pub(crate) const LAYERS: [u64; 12] = [20, 4, 9, 1, 2, 24, 3, 13, 6, 2, 15, 1];
const ROOTS: [&str; 4] = ["usr/bin", "usr/lib", "usr/sbin", "usr/share"];

/// Files of the layers, together about `megabytes` uncompressed; made once.
pub(crate) fn layers(megabytes: u64) -> Result<Vec<PathBuf>> {
    let dir = cached(&format!("full-pull-{megabytes}"), |dir| {
        make(dir, megabytes)
    })?;
    let layer = |number: usize| dir.join(format!("{number:02}.tar.gz"));
    Ok((0..LAYERS.len()).map(layer).collect())
}

/// Bytes of all layers, compressed.
pub(crate) fn size(layers: &[PathBuf]) -> Result<u64> {
    let sizes = layers.iter().map(|layer| Ok(fs::metadata(layer)?.len()));
    sizes.sum()
}

/// Pushes the image as `full:latest`.
pub(crate) fn publish(
    scratch: &Scratch,
    registry: &DockerRegistry,
    files: &[PathBuf],
) -> Result<Published> {
    let layout = Layout::create(&scratch.dir("layout")?)?;
    let layers: Result<Vec<_>> = files
        .iter()
        .map(|file| layout.add_layer_file(file))
        .collect();
    let image = layout.add_image(&layers?, &["true"], "latest")?;
    let reference = registry.reference("full:latest");
    push(&layout, &reference)?;
    Ok(Published {
        reference,
        image,
        layout,
    })
}

fn make(dir: &Path, megabytes: u64) -> Result<()> {
    eprintln!("full_pull: making an image of {megabytes} MB, once");
    let mut find = command("find");
    find.current_dir("/").args(ROOTS);
    find.args(["-xdev", "-printf", r"%b %p\n"]);
    let listed = run(&mut find)?;
    let mut files: Vec<(u64, &str)> = listed.lines().filter_map(parse).collect();
    files.sort_unstable_by_key(|(_, path)| *path);
    // Every n-th directory, so that all kinds of files are in it, in whole directories.
    let total: u64 = files.iter().map(|(bytes, _)| bytes).sum();
    let wanted = megabytes << 20;
    ensure!(total > wanted, "/usr has only {total} bytes");
    let mut files = files.into_iter();
    for (number, share) in LAYERS.into_iter().enumerate() {
        let (mut list, mut bytes) = (String::new(), 0);
        while bytes < wanted * share / 100 {
            let (size, path) = files.next().context("/usr is too small")?;
            bytes += size;
            writeln!(list, "{path}")?;
        }
        pack(dir, number, &list)?;
    }
    Ok(())
}

/// `blocks path`, without what cannot be in a list of lines.
fn parse(line: &str) -> Option<(u64, &str)> {
    let (blocks, path) = line.split_once(' ')?;
    let bytes = blocks.parse::<u64>().ok()? * 512;
    (!path.contains('\\')).then_some((bytes, path))
}

/// As docker and buildkit compress: level 6.
fn pack(dir: &Path, number: usize, list: &str) -> Result<()> {
    let names = dir.join("list");
    fs::write(&names, list)?;
    let layer = File::create(dir.join(format!("{number:02}.tar.gz")))?;
    let mut tar = command("tar");
    tar.args([
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "--no-recursion",
    ]);
    tar.args(["-C", "/", "-cf", "-", "-T"]).arg(&names);
    let mut tar = tar.stdout(Stdio::piped()).spawn().context("tar")?;
    let plain = tar.stdout.take().context("tar has no output")?;
    let mut gzip = command("pigz");
    let packed = gzip
        .args(["-6", "-n"])
        .stdin(plain)
        .stdout(layer)
        .status()?;
    ensure!(
        packed.success() && tar.wait()?.success(),
        "cannot pack layer {number}"
    );
    Ok(fs::remove_file(names)?)
}

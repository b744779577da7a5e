//! Real images: a Debian root file system and layers of what was done to it since.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount, umount};

use crate::cache::cached;
use crate::command::{command, run};
use crate::image::sha256;
use crate::scratch::Scratch;

/// One layer: what a shell does in the root file system as the layers below left it.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// A word for file names and messages.
    pub name: &'a str,
    /// What `sh -eu` runs in it, as root, with the network.
    pub script: &'a str,
    /// The program that compresses the layer's tar, with arguments.
    pub compressor: &'a str,
}

/// The layer files of an image, bottom first: a minimal Debian of this machine's release, then one
/// for each step. Made once and kept.
pub fn layers(name: &str, steps: &[Step<'_>]) -> Result<Vec<PathBuf>> {
    let mirror = Mirror::of_this_machine()?;
    let base = cached(&format!("debian-{}", mirror.suite), |dir| {
        bootstrap(&mirror, dir)
    })?;
    let recipe = format!("{} {steps:?}", mirror.suite);
    let key = format!(
        "{name}-{}",
        &sha256(recipe.as_bytes())["sha256:".len()..][..12]
    );
    let base = base.join("base.tar.gz");
    let made = cached(&key, |dir| run_steps(&base, steps, dir))?;
    let files = steps.iter().map(|step| made.join(layer_file(step)));
    Ok(std::iter::once(base).chain(files).collect())
}

/// The directory of a minimal Debian that can be booted: with systemd. Made once and kept; to be copied.
pub fn with_systemd() -> Result<PathBuf> {
    let base = layers("base", &[])?.remove(0);
    let mirror = Mirror::of_this_machine()?;
    let made = cached(&format!("systemd-{}", mirror.suite), |dir| {
        let root = dir.join("root");
        fs::create_dir(&root)?;
        run(command("tar")
            .args(["--xattrs", "--xattrs-include=*", "-xpf"])
            .arg(&base)
            .arg("-C")
            .arg(&root))?;
        let mut shell = command("chroot");
        mirror.environment(&mut shell);
        run(shell.arg(&root).args(["/bin/sh", "-euc", SYSTEMD]))?;
        for cache in ["var/cache/apt/archives", "var/lib/apt/lists"] {
            empty(&root.join(cache))?;
        }
        Ok(())
    })?;
    Ok(made.join("root"))
}

/// What brings systemd, and what the snapshotter's unit calls.
const SYSTEMD: &str = "apt-get update -qq\n\
    apt-get install -y -qq --no-install-recommends systemd-sysv kmod procps >/dev/null\n";

fn layer_file(step: &Step<'_>) -> String {
    format!("{}.tar.gz", step.name)
}

/// Where this machine gets its packages from.
#[derive(Debug)]
struct Mirror {
    url: String,
    suite: String,
    proxy: Option<String>,
}

impl Mirror {
    fn of_this_machine() -> Result<Self> {
        let release = fs::read_to_string("/etc/os-release").context("no /etc/os-release")?;
        let suite = release
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .context("no VERSION_CODENAME in /etc/os-release")?
            .trim_matches('"')
            .to_owned();
        let targets = run(command("apt-get").args([
            "indextargets",
            "--format",
            "$(RELEASE) $(COMPONENT) $(REPO_URI)",
            "Created-By: Packages",
        ]))?;
        let url = targets
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{suite} main ")))
            .with_context(|| format!("apt knows no mirror for {suite} main"))?
            .to_owned();
        let proxy =
            run(command("apt-config").args(["dump", "--format", "%v", "Acquire::http::Proxy"]))?;
        Ok(Self {
            url,
            suite,
            proxy: Some(proxy).filter(|proxy| !proxy.is_empty()),
        })
    }

    fn environment(&self, command: &mut Command) {
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C.UTF-8");
        if let Some(proxy) = &self.proxy {
            command.env("http_proxy", proxy);
        }
    }
}

fn bootstrap(mirror: &Mirror, dir: &Path) -> Result<()> {
    let scratch = Scratch::within(dir)?;
    let root = scratch.dir("root")?;
    let mut debootstrap = command("debootstrap");
    mirror.environment(&mut debootstrap);
    run(debootstrap
        .args(["--variant=minbase", &mirror.suite])
        .arg(&root)
        .arg(&mirror.url))?;
    for cache in ["var/cache/apt/archives", "var/lib/apt/lists"] {
        empty(&root.join(cache))?;
    }
    pack(&root, "gzip -6", &dir.join("base.tar.gz"))
}

fn empty(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}

fn run_steps(base: &Path, steps: &[Step<'_>], dir: &Path) -> Result<()> {
    let mirror = Mirror::of_this_machine()?;
    let scratch = Scratch::within(dir)?;
    let bottom = scratch.dir("base")?;
    run(command("tar")
        .args(["--xattrs", "--xattrs-include=*", "-xpf"])
        .arg(base)
        .arg("-C")
        .arg(&bottom))?;
    let mut lower = vec![bottom];
    for step in steps {
        let upper = scratch.dir(step.name)?;
        let root = Overlay::mount(&scratch, &lower, &upper)?;
        let mut shell = command("chroot");
        mirror.environment(&mut shell);
        run(shell
            .arg(&root.point)
            .args(["/bin/sh", "-euc", step.script]))
        .with_context(|| format!("step {}", step.name))?;
        drop(root);
        lower.insert(0, upper);
    }
    // Only now: an upper directory with whiteout files would be a wrong lower directory.
    for step in steps {
        let upper = scratch.path().join(step.name);
        name_whiteouts(&upper)?;
        pack(&upper, step.compressor, &dir.join(layer_file(step)))?;
    }
    Ok(())
}

/// The tree in which a step works.
struct Overlay {
    point: PathBuf,
}

impl Overlay {
    fn mount(scratch: &Scratch, lower: &[PathBuf], upper: &Path) -> Result<Self> {
        let point = scratch.dir("root")?;
        let work = scratch.dir("work")?;
        let lower: Vec<_> = lower.iter().map(|dir| dir.display().to_string()).collect();
        let data = format!(
            "lowerdir={},upperdir={},workdir={},index=off,redirect_dir=off,metacopy=off",
            lower.join(":"),
            upper.display(),
            work.display()
        );
        let none = MsFlags::empty();
        mount(
            Some("overlay"),
            &point,
            Some("overlay"),
            none,
            Some(data.as_str()),
        )
        .with_context(|| format!("cannot mount an overlay: {data}"))?;
        Ok(Self { point })
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        if let Err(error) = umount(&self.point) {
            eprintln!("cannot unmount {}: {error}", self.point.display());
        }
    }
}

/// Turns overlayfs's whiteouts (devices 0:0) and opaque marks into those of image layers.
fn name_whiteouts(upper: &Path) -> Result<()> {
    for entry in walkdir::WalkDir::new(upper).contents_first(true) {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.file_type().is_char_device() && metadata.rdev() == 0 {
            fs::remove_file(entry.path())?;
            let name = format!(".wh.{}", entry.file_name().to_string_lossy());
            touch(&entry.path().with_file_name(name))?;
        } else if metadata.is_dir()
            && xattr::get(entry.path(), "trusted.overlay.opaque")?.is_some_and(|mark| mark == b"y")
        {
            touch(&entry.path().join(".wh..wh..opq"))?;
        }
    }
    Ok(())
}

/// Makes an empty file; the directory keeps its modification time.
fn touch(file: &Path) -> Result<()> {
    let parent = file.parent().context("a file lies in a directory")?;
    let modified = fs::metadata(parent)?.modified()?;
    File::create(file)?;
    File::open(parent)?.set_modified(modified)?;
    Ok(())
}

fn pack(root: &Path, compressor: &str, out: &Path) -> Result<()> {
    let mut tar = command("tar");
    tar.args([
        "--create",
        "--format=posix",
        "--pax-option=delete=atime,delete=ctime",
    ]);
    tar.args([
        "--numeric-owner",
        "--sort=name",
        "--xattrs",
        "--xattrs-include=*",
    ]);
    tar.args([
        "--xattrs-exclude=trusted.*",
        "--use-compress-program",
        compressor,
    ]);
    run(tar.arg("--file").arg(out).arg("-C").arg(root).arg("."))?;
    Ok(())
}

//! What this machine has of the snapshotters that ours is compared with.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use integration::command::{command, run};
use integration::{Containerd, binaries, containerd};

use crate::mode::Mode;

/// The stargz snapshotter's daemon, and its client, which also converts images.
const STARGZ: [&str; 2] = ["containerd-stargz-grpc", "ctr-remote"];
/// The nydus snapshotter, its daemon and its builder of images.
const NYDUS: [&str; 3] = ["containerd-nydus-grpc", "nydusd", "nydus-image"];

/// Peers of this machine.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peers {
    /// A directory with the original's `soci-snapshotter-grpc`.
    pub(crate) original: Option<PathBuf>,
}

impl Peers {
    /// Why `mode` cannot be measured here; `None` if it can.
    pub(crate) fn missing(&self, mode: Mode) -> Option<String> {
        match mode {
            Mode::Original => self.missing_original(),
            Mode::Soci04 => missing_soci(),
            Mode::Stargz => missing_of(&STARGZ),
            Mode::Nydus | Mode::NydusZran => missing_nydus(),
            _ => None,
        }
    }

    fn missing_original(&self) -> Option<String> {
        let Some(dir) = &self.original else {
            return Some("its daemon is not installed: --original DIR names it".to_owned());
        };
        let binary = dir.join("soci-snapshotter-grpc");
        let absent = !binary.is_file();
        absent.then(|| format!("{} is not there", binary.display()))
    }

    /// The snapshotter of `mode`, ready for its address, configuration and root.
    pub(crate) fn daemon(&self, mode: Mode) -> Result<Command> {
        let program = match (mode, &self.original) {
            (Mode::Original, Some(dir)) => dir.join("soci-snapshotter-grpc"),
            (Mode::Soci04, _) => {
                installed("soci-snapshotter-grpc").context("soci-snapshotter-grpc")?
            }
            (Mode::Stargz, _) => installed(STARGZ[0]).context(STARGZ[0])?,
            (Mode::Nydus | Mode::NydusZran, _) => installed(NYDUS[0]).context(NYDUS[0])?,
            _ => binaries::binary("soci-snapshotter-grpc")?,
        };
        Ok(command(program))
    }
}

/// Debian's `soci` with the containerd it talks to.
pub(crate) fn soci(containerd: &Containerd) -> Result<Command> {
    client(&installed("soci").context("no soci")?, containerd)
}

/// The stargz snapshotter's client.
pub(crate) fn ctr_remote(containerd: &Containerd) -> Result<Command> {
    client(&installed(STARGZ[1]).context("no ctr-remote")?, containerd)
}

/// nydus's daemon, which its snapshotter starts for each image.
pub(crate) fn nydusd() -> Result<PathBuf> {
    installed(NYDUS[1]).context("no nydusd")
}

/// nydus's builder of images.
pub(crate) fn nydus_image() -> Result<PathBuf> {
    installed(NYDUS[2]).context("no nydus-image")
}

fn client(program: &Path, containerd: &Containerd) -> Result<Command> {
    let namespace = containerd.ctr().namespace().to_owned();
    let mut client = command(program);
    client.arg("--address").arg(containerd.socket());
    client.args(["--namespace", &namespace]);
    Ok(client)
}

fn missing_of(programs: &[&str]) -> Option<String> {
    let absent: Vec<_> = programs
        .iter()
        .filter(|program| installed(program).is_none())
        .copied()
        .collect();
    (!absent.is_empty()).then(|| format!("not installed: {}", absent.join(", ")))
}

/// Ours has the same names, and is no peer of itself.
fn missing_soci() -> Option<String> {
    missing_of(&["soci-snapshotter-grpc", "soci"]).or_else(|| {
        let said = run(command(installed("soci")?).arg("--version")).unwrap_or_default();
        (!said.contains(" 0.4.")).then(|| format!("what is installed says {:?}", said.trim()))
    })
}

/// It is pulled for by containerd's own client, which has to tell it what is pulled.
fn missing_nydus() -> Option<String> {
    missing_of(&NYDUS).or_else(|| {
        let (major, minor) = containerd::version().ok()?;
        let silent = (major, minor) < containerd::TELLS;
        silent.then(|| format!("containerd {major}.{minor} does not tell it what is pulled"))
    })
}

/// A program in one of the directories where Debian has programs.
fn installed(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

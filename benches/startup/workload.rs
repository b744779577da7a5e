//! What is started: an image, a command, and when it counts as ready.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// The built-in ones.
const BUILT_IN: &str = include_str!("workloads.toml");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    workload: Vec<Workload>,
}

/// One workload.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Workload {
    /// A word for tables and repositories.
    pub(crate) name: String,
    /// What it does.
    #[serde(default)]
    pub(crate) about: String,
    /// A user's own image, pulled from where it is; then there is no recipe.
    pub(crate) image: Option<String>,
    #[serde(default)]
    pub(crate) base: Base,
    /// What lies on the base, bottom first.
    #[serde(default)]
    pub(crate) layers: Vec<LayerRecipe>,
    /// Program and arguments.
    pub(crate) command: Vec<String>,
    pub(crate) ready: Ready,
    /// Does not end by itself, though a line tells that it is ready.
    #[serde(default)]
    service: bool,
}

impl Workload {
    /// Whether it does not end by itself.
    pub(crate) fn is_service(&self) -> bool {
        self.service || self.ready.port().is_some()
    }
}

/// The bottom layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Base {
    /// A minimal Debian.
    #[default]
    Debian,
    /// A static busybox and nothing else.
    Busybox,
}

/// How a layer is made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(crate) enum LayerRecipe {
    /// Debian packages, separated by spaces.
    Apt {
        /// Their names.
        apt: String,
    },
    /// Python packages with all they depend on.
    Pip {
        /// As pip wants them, separated by spaces.
        pip: String,
    },
    /// A shell line, run in the image.
    Run {
        /// The line.
        run: String,
    },
    /// One file.
    File {
        /// Its absolute path.
        file: String,
        /// What is in it.
        content: String,
    },
}

/// When a workload counts as ready.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Ready {
    /// A line of its output contains this.
    Line(String),
    /// A port of loopback accepts; the container has the host's network.
    Port(u16),
    /// `GET /` on a port of loopback answers 200; the container has the host's network.
    Http(u16),
    /// It has exited without an error.
    Exit(bool),
}

impl Ready {
    /// The port to be asked, if any.
    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            Self::Port(port) | Self::Http(port) => Some(*port),
            Self::Line(_) | Self::Exit(_) => None,
        }
    }
}

/// The built-in workloads.
pub(crate) fn built_in() -> Result<Vec<Workload>> {
    parse(BUILT_IN).context("the built-in workloads")
}

/// Workloads from text in the format of `workloads.toml`.
pub(crate) fn parse(text: &str) -> Result<Vec<Workload>> {
    let workloads = toml::from_str::<File>(text)?.workload;
    for workload in &workloads {
        let name = &workload.name;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ensure!(
            !name.is_empty() && name.chars().all(plain),
            "{name:?} is no name: a-z, 0-9 and - only"
        );
        ensure!(!workload.command.is_empty(), "{name}: no command");
        let recipe = workload.base == Base::Busybox || !workload.layers.is_empty();
        ensure!(
            workload.image.is_none() || !recipe,
            "{name}: an image and a recipe, which of them?"
        );
        ensure!(
            workload.ready != Ready::Exit(false),
            "{name}: ready by never exiting?"
        );
    }
    Ok(workloads)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_built_in_workloads_are_those_the_documents_name() {
        let names: Vec<_> = built_in()
            .unwrap()
            .into_iter()
            .map(|workload| workload.name)
            .collect();
        let documented = [
            "busybox",
            "python",
            "numpy",
            "everything",
            "tensorflow",
            "pytorch",
            "redis",
            "nginx",
            "node",
            "postgres",
            "java",
        ];
        assert_eq!(names, documented);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (text, said) in [
            (
                "name = 'A b'\ncommand = ['x']\nready = { exit = true }",
                "is no name",
            ),
            (
                "name = 'a'\ncommand = []\nready = { exit = true }",
                "no command",
            ),
            (
                "name = 'a'\ncommand = ['x']\nready = { exit = false }",
                "never exiting",
            ),
            (
                "name = 'a'\nimage = 'r/i:1'\nbase = 'busybox'\ncommand = ['x']\nready = { port = 1 }",
                "which of them",
            ),
            (
                "name = 'a'\ncommand = ['x']\nready = { port = 1 }\nreddy = 1",
                "unknown field",
            ),
        ] {
            let error = parse(&format!("[[workload]]\n{text}")).unwrap_err();
            assert!(format!("{error:#}").contains(said), "{error:#}");
        }
    }
}

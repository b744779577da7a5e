//! What is measured, as it is stored.

use serde::{Deserialize, Serialize};

/// Everything of one run of the harness.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Results {
    /// Of this format.
    pub(crate) version: u32,
    pub(crate) machine: Machine,
    /// The workloads measured.
    pub(crate) workloads: Vec<About>,
    /// Modes that could not be measured, and why.
    pub(crate) missing: Vec<(String, String)>,
    /// Samples that could not be taken.
    #[serde(default)]
    pub(crate) failed: Vec<Failure>,
    /// Every sample, outliers too, in the order they were taken.
    pub(crate) samples: Vec<Sample>,
}

/// Failures of a workload in a mode after which it is tried no more.
const ENOUGH: usize = 3;

impl Results {
    /// Adds what another run measured, on the same machine.
    pub(crate) fn add(&mut self, other: Self) {
        for about in other.workloads {
            if self.workloads.iter().all(|known| known.name != about.name) {
                self.workloads.push(about);
            }
        }
        self.missing.extend(other.missing);
        self.missing.sort();
        self.missing.dedup();
        self.failed.extend(other.failed);
        self.samples.extend(other.samples);
    }

    /// Whether `workload` has failed so often in `mode` that it would only take time.
    pub(crate) fn has_given_up(&self, workload: &str, mode: &str) -> bool {
        let failed = self.failed.iter();
        failed
            .filter(|failure| failure.workload == workload && failure.mode == mode)
            .count()
            >= ENOUGH
    }
}

/// What the numbers were taken on.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) kernel: String,
    pub(crate) containerd: String,
    pub(crate) spanshot: String,
    /// Seconds since 1970.
    pub(crate) time: u64,
}

/// A workload.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct About {
    pub(crate) name: String,
    pub(crate) about: String,
    /// Bytes of the image's layers, compressed, if known.
    pub(crate) image_bytes: Option<u64>,
}

/// A link, as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct LinkShape {
    /// Bits per second; none is no limit.
    pub(crate) rate: Option<u64>,
    /// Milliseconds added to each round trip.
    pub(crate) delay_ms: u64,
}

/// A sample that could not be taken.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) workload: String,
    pub(crate) link: LinkShape,
    pub(crate) mode: String,
    pub(crate) round: usize,
    /// What was said.
    pub(crate) why: String,
}

/// One cold start, and a second one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) workload: String,
    pub(crate) link: LinkShape,
    pub(crate) mode: String,
    pub(crate) round: usize,
    /// Seconds each of these took.
    pub(crate) pull_s: f64,
    pub(crate) create_s: f64,
    /// From the task's start to the ready condition.
    pub(crate) start_s: f64,
    /// From the pull's start.
    pub(crate) ready_s: f64,
    /// From the pull's start to the workload's end; as ready for a service.
    pub(crate) complete_s: f64,
    /// Create and start of a second container, page cache dropped, to its ready condition.
    /// None where it was left out.
    #[serde(default)]
    pub(crate) second_s: Option<f64>,
    /// What the registry sent by the end of the pull.
    #[serde(default)]
    pub(crate) pull_bytes: Option<u64>,
    /// The snapshotter's FUSE mounts when the workload was ready.
    #[serde(default)]
    pub(crate) fuse_mounts: Option<usize>,
    /// What the registry sent by the time the workload was ready.
    pub(crate) bytes: u64,
    pub(crate) requests: u64,
    /// Seconds of CPU of containerd and the snapshotter up to the end, and of pull.
    pub(crate) cpu_s: f64,
    /// Largest memory of the snapshotter and of what it started, or of containerd if there is none.
    pub(crate) peak_memory_bytes: u64,
    /// What containerd and the snapshotter had on disk at the end.
    pub(crate) disk_bytes: u64,
    /// Seconds from the pull's start and bytes come through by then; empty without a link.
    pub(crate) timeline: Vec<(f64, u64)>,
}

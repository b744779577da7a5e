//! What the numbers are taken on.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use integration::command::{command, run};
use procfs::Current as _;

use crate::sample::Machine;

/// This machine. What cannot be found out is empty.
pub(crate) fn here() -> Machine {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let version = |program: &str| {
        let said = run(command(program).arg("--version")).unwrap_or_default();
        said.lines().next().unwrap_or_default().trim().to_owned()
    };
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Machine {
        cpu: model.map_or_else(
            || std::env::consts::ARCH.to_owned(),
            |(_, model)| model.trim().to_owned(),
        ),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        memory_bytes: procfs::Meminfo::current().map_or(0, |memory| memory.mem_total),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        containerd: version("containerd"),
        spanshot: env!("CARGO_PKG_VERSION").to_owned(),
        time: since.map_or(0, |since| since.as_secs()),
    }
}

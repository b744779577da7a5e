//! Metrics of the process itself, as every Prometheus client has them. Read from /proc at a scrape.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;

#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let values = [
            (
                "process_resident_memory_bytes",
                "Resident memory size in bytes",
                resident_memory(),
            ),
            (
                "process_open_fds",
                "Number of open file descriptors",
                open_descriptors(),
            ),
            (
                "process_cpu_seconds_total",
                "Total user and system CPU time spent in seconds",
                cpu_seconds(),
            ),
        ];
        for (name, help, value) in values {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::new(value);
            let kind = MetricType::Gauge;
            gauge.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
        }
        Ok(())
    }
}

fn resident_memory() -> Option<f64> {
    let pages: f64 = word("/proc/self/statm", 1)?.parse().ok()?;
    Some(pages * setting(SysconfVar::PAGE_SIZE)?)
}

fn open_descriptors() -> Option<f64> {
    let count = fs::read_dir("/proc/self/fd").ok()?.count();
    u32::try_from(count).ok().map(f64::from)
}

fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the command, in parentheses, may hold spaces: fields are counted from behind it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    let user: f64 = times.next()?.parse().ok()?;
    let system: f64 = times.next()?.parse().ok()?;
    Some((user + system) / setting(SysconfVar::CLK_TCK)?)
}

fn word(path: &str, at: usize) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.split_whitespace().nth(at).map(str::to_owned)
}

fn setting(variable: SysconfVar) -> Option<f64> {
    let value = sysconf(variable).ok()??;
    u32::try_from(value).ok().map(f64::from)
}

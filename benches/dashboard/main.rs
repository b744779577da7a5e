//! `scripts/dashboard`: the Grafana dashboard's queries, asked of a real Prometheus that watched a real daemon at work, and
//! drawn as they would be there. A query that is wrong or finds nothing is an error.

mod draw;
mod panel;
mod prometheus;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use integration::busybox::noise;
use integration::ctr::Run;
use integration::host::{Host, small_layers};
use integration::push::push;
use integration::scratch;
use integration::tamper;

use self::prometheus::Prometheus;

/// The daemon gives up on what fails soon, so that something is seen to fail.
const CONFIG: &str = "[http]
MaxRetries = 2
MinWaitMsec = 10
MaxWaitMsec = 50
[background_fetch]
max_bandwidth = \"2mb\"
";

/// Runs images for a while and draws the dashboard of it.
#[derive(Debug, Parser)]
struct Options {
    /// The picture to be written.
    #[arg(long, value_name = "FILE", default_value = "docs/dashboard.svg")]
    out: PathBuf,
    /// The dashboard.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "docs/grafana-dashboard.json"
    )]
    dashboard: PathBuf,
    /// Prometheus, as Debian's package of that name has it.
    #[arg(long, value_name = "PROGRAM", default_value = "prometheus")]
    prometheus: PathBuf,
    /// Seconds of work.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,
}

fn main() -> ExitCode {
    match scratch::clean_up_on_signals().and_then(|()| run(&Options::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dashboard: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let text = fs::read_to_string(&options.dashboard)?;
    let panels = panel::of_dashboard(&text)?;
    let host = Host::start(CONFIG)?;
    let prometheus = Prometheus::start(
        &options.prometheus,
        &host.scratch,
        host.snapshotter.metrics_port(),
    )?;
    work(&host, Duration::from_secs(options.seconds))?;
    let mut empty = Vec::new();
    let mut drawn = Vec::new();
    for panel in panels {
        let curves = panel.ask(&prometheus)?;
        if curves.is_empty() {
            empty.push(panel.title.clone());
        }
        drawn.push((panel, curves));
    }
    draw::write(&drawn, &options.out)?;
    println!("{} panels in {}", drawn.len(), options.out.display());
    drop(prometheus);
    ensure!(empty.is_empty(), "panels without any data: {empty:?}");
    host.finish()
}

/// Images of all kinds come, are read and go, and some are not what they should be.
fn work(host: &Host, time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    let large = noise(24 << 20);
    let good = host.publish_files("app", &[("large", &large), ("greeting", b"hello\n")])?;
    let second = host.publish_files("other", &[("other", &noise(9 << 20))])?;
    let layout = host.layout("plain")?;
    let layers = small_layers(&layout, &[("plain", b"plain\n")])?;
    let plain = host.publish_layers("plain", &layout, &layers, None)?;
    let nonsense = |all: Vec<Vec<u8>>| all.iter().map(|ztoc| noise(ztoc.len())).collect();
    let odd = host.publish_files("odd", &[("odd", b"odd\n")])?;
    let odd = tamper::ztocs(&odd.layout, &host.scratch.path().join("bad"), nonsense)?;
    let bad = host.registry.reference("bad:latest");
    push(&odd, &bad)?;
    let rotten = host.publish_files("rotten", &[("rotten", &noise(5 << 20))])?;

    let soci = host.soci()?;
    soci.rpull(&good.reference)?;
    let _running = Running::start(host, &good.reference)?;
    rot(host, &rotten.image.layers[1].digest)?;
    for round in 0.. {
        if Instant::now() > end {
            break;
        }
        for reference in [&second.reference, &plain.reference, &bad, &rotten.reference] {
            soci.rpull(reference)?;
            let id = format!("round-{round}");
            let mut run = host.ctr().run_command(Run::shell(
                reference,
                &id,
                "for i in 1 2 3; do ls -lR / >/dev/null; done; cat /* >/dev/null 2>&1",
            ));
            // That of rotten bytes fails, as it should.
            let _ = run.output()?;
            std::thread::sleep(Duration::from_millis(700));
            host.ctr().remove_image(reference)?;
        }
    }
    Ok(())
}

/// A container that reads a little of something large now and then, until it is dropped.
struct Running<'a> {
    host: &'a Host,
    child: Child,
}

const READER: &str = "at=0; while :; do
    /bin/busybox dd if=/large of=/dev/null bs=65536 skip=$at count=1 2>/dev/null; at=$((at + 7)); sleep 1
done";

impl<'a> Running<'a> {
    fn start(host: &'a Host, image: &str) -> Result<Self> {
        let mut command = host.ctr().run_command(Run::shell(image, "reader", READER));
        let child = command.stdout(Stdio::null()).spawn();
        let child = child.context("cannot run a container")?;
        Ok(Self { host, child })
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let kill = ["tasks", "kill", "--signal", "KILL", "reader"];
        let _ = self.host.ctr().call(&kill);
        let _ = self.child.wait();
    }
}

/// Changes the bytes of a layer in the registry.
fn rot(host: &Host, digest: &str) -> Result<()> {
    let hex = digest.trim_start_matches("sha256:");
    let blob = host.registry.blobs().join(&hex[..2]).join(hex).join("data");
    let mut bytes = fs::read(&blob)?;
    bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
    Ok(fs::write(&blob, bytes)?)
}

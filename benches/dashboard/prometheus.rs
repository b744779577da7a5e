//! A Prometheus that watches one daemon, and is asked for what it saw.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use integration::Scratch;
use integration::command::{command, run, until};
use integration::distribution::free_port;
use integration::service::Service;
use serde_json::Value;

/// How long it takes to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// Ended when dropped.
#[derive(Debug)]
pub(crate) struct Prometheus {
    _service: Service,
    address: String,
    started: f64,
}

/// A curve: its labels and its points, seconds since the start and values.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) labels: Value,
    pub(crate) points: Vec<(f64, f64)>,
}

impl Prometheus {
    /// Starts `program`, which asks the daemon's port twice a second.
    pub(crate) fn start(program: &Path, scratch: &Scratch, metrics: u16) -> Result<Self> {
        let dir = scratch.dir("prometheus")?;
        let config = format!(
            "global: {{scrape_interval: 500ms}}\nscrape_configs:\n\
             - job_name: soci\n  static_configs: [{{targets: [\"127.0.0.1:{metrics}\"]}}]\n"
        );
        fs::write(dir.join("prometheus.yml"), config)?;
        let address = format!("127.0.0.1:{}", free_port()?);
        let mut server = command(program);
        server.arg(format!(
            "--config.file={}",
            dir.join("prometheus.yml").display()
        ));
        server.arg(format!(
            "--storage.tsdb.path={}",
            dir.join("data").display()
        ));
        server.arg(format!("--web.listen-address={address}"));
        let service = Service::start("prometheus", &mut server, &dir.join("log"))?;
        let prometheus = Self {
            _service: service,
            address,
            started: now(),
        };
        until("Prometheus answers", PATIENCE, || {
            Ok(prometheus.get("query", &[("query", "up == 1")]).ok())
        })?;
        Ok(prometheus)
    }

    /// The values of `query` since the start.
    pub(crate) fn range(&self, query: &str) -> Result<Vec<Series>> {
        let (start, end) = (self.started.to_string(), now().to_string());
        let parameters = [
            ("query", query),
            ("start", &start),
            ("end", &end),
            ("step", "1"),
        ];
        let answer = self.get("query_range", &parameters)?;
        let found = answer["data"]["result"].as_array().context("no result")?;
        let series = found.iter().map(|series| {
            let values = series["values"].as_array().into_iter().flatten();
            let points = values.filter_map(|point| {
                let value: f64 = point[1].as_str()?.parse().ok()?;
                Some((point[0].as_f64()? - self.started, value))
            });
            Series {
                labels: series["metric"].clone(),
                points: points.filter(|(_, value)| value.is_finite()).collect(),
            }
        });
        Ok(series.filter(|series| !series.points.is_empty()).collect())
    }

    fn get(&self, what: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        let mut curl = command("curl");
        curl.args(["--silent", "--show-error", "--get"]);
        for (name, value) in parameters {
            curl.args(["--data-urlencode", &format!("{name}={value}")]);
        }
        let text = run(curl.arg(format!("http://{}/api/v1/{what}", self.address)))?;
        let answer: Value = serde_json::from_str(&text)?;
        ensure!(answer["status"] == "success", "{parameters:?}: {text}");
        Ok(answer)
    }
}

fn now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs_f64()
}
